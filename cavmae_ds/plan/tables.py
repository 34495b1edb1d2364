"""A plan's document as tables for people: memory, speed, scaling, what to type, and what it all rests on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Column, Table

from cavmae_ds.terminal import folding_table

GIB = 2**30


def tables(plan: dict[str, Any]) -> Iterator[RenderableType]:
    """What `cavmae plan` shows of a document."""
    rows = [("run file", plan["configured"])]
    rows += [(row["name"], row) for row in plan["alternatives"]]
    if plan["recommended"]:
        rows.append(("recommended", plan["recommended"]))
    gpus = f"{plan['gpus']} x {plan['gpu']['name']}"
    yield (
        f"{plan['parameters'] / 1e6:.2f} M parameters, {plan['trainable_parameters'] / 1e6:.2f} M trained, "
        f"{plan['flops_per_clip'] / 1e9:.1f} GFLOP a clip; {plan['global_batch']:,} clips a step, "
        f"{plan['steps']:,} steps, {plan['precision']}"
    )
    yield from (f"Note: {note}." for note in plan["notes"])
    yield _memory(rows, f"Memory of one GPU of {gpus}, GiB, predicted ({plan['usable_bytes'] / GIB:.1f} usable)")
    yield _speed(rows, f"Speed of {gpus}, predicted")
    yield _scaling(plan["weak_scaling"])
    yield _advice(plan)
    yield "\n".join(plan["assumptions"])


def _memory(rows: list[tuple[str, dict[str, Any]]], title: str) -> Table:
    table = _table(
        title, "", "micro batch", "weights", "gradients", "optimizer", "EMA", "buckets", "activations", "across clips",
        "total", "largest micro batch",
    )  # fmt: skip
    for name, row in rows:
        sizes = row["bytes"]
        weights = sizes["states_weights"] + sizes["states_gathered"]
        parts = (
            weights, sizes["states_gradients"], sizes["states_optimizer"], sizes["states_average"],
            sizes["states_buckets"], sizes["inputs"] + sizes["activations"], sizes["across_clips"],
        )  # fmt: skip
        total = f"{sizes['total'] / GIB:.2f}" + ("" if row["fits"] else " over")
        table.add_row(
            name,
            str(row["micro_batch"]),
            *(f"{part / GIB:.2f}" for part in parts),
            total,
            str(row["largest_micro_batch"]),
        )
    return table


def _speed(rows: list[tuple[str, dict[str, Any]]], title: str) -> Table:
    table = _table(
        title, "", "ZeRO", "micro batch", "compared with", "extra FLOPs", "ZeRO MB", "across clips MB", "ms a step",
        "clips/s", "days (hours)",
    )  # fmt: skip
    for name, row in rows:
        received = row["received_bytes_per_step"]
        table.add_row(
            name,
            str(row["zero_stage"]),
            str(row["micro_batch"]),
            f"{row['compared_with']:,}",
            f"{row['extra_flops']:.1%}",
            f"{(received['gradients'] + received['weights']) / 1e6:,.0f}",
            f"{received['across_clips'] / 1e6:,.1f}",
            f"{row['seconds_per_step']['step'] * 1e3:,.0f}",
            f"{row['clips_per_second']:,.0f}",
            _duration(row["days"]),
        )
    return table


def _duration(days: float) -> str:
    """`12.30 (295)`: days, and the same in hours."""
    hours = 24 * days
    return f"{days:.2f} ({hours:.0f})" if days >= 1 else f"{days:.2g} ({hours:.2g})"


def _scaling(points: list[dict[str, Any]]) -> Table:
    table = _table("Weak scaling, predicted: share of a step that is compute", "GPUs", "batch", "usual", "pessimistic")
    for point in points:
        shares = (f"{point[case]:.1%}" for case in ("usual", "pessimistic"))
        table.add_row(str(point["gpus"]), f"{point['global_batch']:,}", *shares)
    return table


def _advice(plan: dict[str, Any]) -> str:
    row = plan["recommended"]
    if row is None:
        return "Recommended: nothing fits that lets every clip meet all clips of its step; lower train.global_batch."
    met = f"every clip meets {row['compared_with']:,} of its step" if row["compared_with"] else "no clip meets another"
    host = f"; {row['bytes']['host'] / GIB:.1f} GiB of host memory a GPU" if row["bytes"]["host"] else ""
    return f"Recommended ({met}{host}):\n  {' '.join(row['overrides'])}"


def _table(title: str, *columns: str) -> Table:
    name, *numbers = columns
    made = [Column(name), *(Column(number, justify="right") for number in numbers)]
    return folding_table(
        *made, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
