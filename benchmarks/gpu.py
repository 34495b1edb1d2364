"""Everything worth knowing about the kernels on this GPU, in under 8 minutes: python -m benchmarks.gpu

Needs torch and triton for the kernels, the model's packages for the training step. Prints a short table last and
writes benchmarks/results/<card>-<date>.json. Exit code 2 without CUDA, 1 when a case is wrong.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.report import Report, Row, commit_of, mfu, rate, table
from benchmarks.timing import copy_bandwidth, matmul_rate, timed
from cavmae_ds.kernels.accuracy import deviations
from cavmae_ds.kernels.cases import CASES, Case, Cost

CHECKOUT = Path(__file__).parents[1]
SECONDS = 450.0  # sections that begin later are left out, and said so
DECODER_TOKENS, DECODER_HEADS, HEAD_WIDTH = 708, 16, 32
TIMED_DTYPE = torch.bfloat16


def correctness(cases: Iterable[Case]) -> Iterator[Row]:
    """Every case against float64 on the card; the contrastive reference is dense, so it is checked where it fits."""
    for case in cases:
        kernel = case.kernel
        if case.shape.clips > 64:
            continue  # the same kernels and configurations as at 64
        found = deviations(
            kernel.reference, kernel.fused, case.make_inputs("cuda"), kernel.differentiable, kernel.outputs
        )
        bad = [f"{d.name} off by {d.worst:.1e}, allowed {d.allowed:.1e}" for d in found if not d.good]
        yield Row("correctness", case.name, note="; ".join(bad) or "ok")


def kernels(cases: Iterable[Case], bandwidth: float, matmul: float) -> Iterator[Row]:
    """Fused, eager reference and compiled reference of each case, forward and forward with backward."""
    for case in cases:
        compiled = torch.compile(case.kernel.reference, dynamic=False)
        ways = {"fused": case.kernel.fused, "eager": case.kernel.reference, "compile": compiled}
        for implementation, function in ways.items():
            yield from _kernel_rows(case, implementation, function, bandwidth, matmul)
        torch.compiler.reset()


def _kernel_rows(
    case: Case, implementation: str, function: Callable[..., Any], bandwidth: float, matmul: float
) -> Iterator[Row]:
    cost, inputs = case.cost, case.make_inputs("cuda")
    row = partial(Row, "kernel", case.name, implementation)
    try:
        with torch.no_grad():
            timing = timed(lambda: function(**inputs))
        yield row("forward", **_rates(Cost(*cost[:1], 0, cost.forward_flops), timing, bandwidth, matmul))
        if not case.kernel.differentiable:
            return
        leaves = [inputs[name].requires_grad_() for name in case.kernel.differentiable]
        arriving: list[torch.Tensor] = []

        def both() -> None:
            result = function(**inputs)
            first = result[0] if isinstance(result, tuple) else result
            if not arriving:
                arriving.append(torch.ones_like(first))
            torch.autograd.grad(first, leaves, arriving[0])

        yield row("both", **_rates(cost, timed(both), bandwidth, matmul))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        yield row(note=_short(error))
    finally:
        _free()


def _rates(cost: Cost, timing: Any, bandwidth: float, matmul: float) -> dict[str, Any]:
    count, flops = cost.forward_bytes + cost.backward_bytes, cost.forward_flops + cost.backward_flops
    gigabytes, tflops = rate(count, flops, timing.ms)
    share = tflops * 1e12 / matmul if flops else gigabytes * 1e9 / bandwidth
    found = {"ms": timing.ms, "peak_mib": timing.peak_mib, "share": share}
    return found | ({"tflops": tflops} if flops else {"gigabytes_per_second": gigabytes})


def attention(clips: int, matmul: float) -> Iterator[Row]:
    """PyTorch's attention backends on the decoder's shape, forward and backward."""
    size = clips, DECODER_HEADS, DECODER_TOKENS, HEAD_WIDTH
    q, k, v = (torch.randn(size, device="cuda", dtype=TIMED_DTYPE, requires_grad=True) for _ in range(3))
    arriving = torch.randn_like(q)
    flops = 3.5 * 4 * DECODER_TOKENS**2 * DECODER_HEADS * HEAD_WIDTH * clips  # backward: 2.5 x forward

    def both() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), arriving)

    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        row = partial(Row, "attention", f"decoder layer, {clips} clips", backend.name.lower(), "both")
        try:
            with sdpa_kernel(backend):
                timing = timed(both)
        except RuntimeError as error:
            yield row(note=_short(error))
            continue
        tflops = flops / timing.ms / 1e9
        yield row(ms=timing.ms, tflops=tflops, share=tflops * 1e12 / matmul, peak_mib=timing.peak_mib)


def steps(batches: Iterable[int], matmul: float, deadline: float) -> Iterator[Row]:
    """Training steps of CAV-MAE base: references and kernels, eager and compiled."""
    try:
        from benchmarks.step import WAYS, training_step
        from cavmae_ds.config import MaskConfig, ModelConfig
        from cavmae_ds.model.flops import training_flops
    except ImportError as error:
        yield Row("step", "CAV-MAE base", note=f"left out: {error}")
        return
    flops = training_flops(ModelConfig(), MaskConfig())
    for way in WAYS:
        for clips in batches:
            row = partial(Row, "step", f"CAV-MAE base, {clips} clips", way)
            if time.monotonic() > deadline:
                yield row(note="left out: the time is up")
                continue
            try:
                with training_step(clips, way) as step:
                    timing = timed(step, budget_ms=2000, cold=False)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                yield row(note=_short(error))
                continue
            finally:
                _free()
            speed = clips / timing.ms * 1e3
            share = mfu(speed, flops, matmul / 1e12)
            yield row("both", timing.ms, share=share, peak_mib=timing.peak_mib, clips_per_second=speed)


def _short(error: BaseException) -> str:
    return "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error).strip().split("\n")[0][:120]


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def chosen_cases(cases: Iterable[Case]) -> list[Case]:
    """The cases to time: the largest real batch and batch 256 in bf16, masks as they are."""
    real = [case for case in cases if case.shape.real and case.dtype in (TIMED_DTYPE, torch.int64)]
    timed_cases = [case for case in real if case.shape.clips == 256]
    timed_cases += [Case(case.kernel, shape, case.dtype) for case in timed_cases for shape in case.kernel.large]
    return timed_cases


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=CHECKOUT / "benchmarks" / "results")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256, 512], help="batch sizes of the training step")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu measures a GPU, and torch sees none here", file=sys.stderr)  # noqa: T201
        return 2
    start, versions = time.monotonic(), {"torch": torch.__version__, "triton": triton.__version__}
    versions["cuda"] = str(torch.version.cuda)
    report = Report(torch.cuda.get_device_name(), versions, commit_of(CHECKOUT))
    rows, deadline = report.rows, start + SECONDS
    bandwidth, matmul = copy_bandwidth(), matmul_rate()
    rows.append(Row("ceiling", "copy", gigabytes_per_second=bandwidth / 1e9))
    rows.append(Row("ceiling", "matmul bf16", tflops=matmul / 1e12))
    sections = (
        correctness(CASES),
        attention(256, matmul),
        steps(chosen.batch, matmul, start + 0.6 * SECONDS),
        kernels(chosen_cases(CASES), bandwidth, matmul),
    )
    for section in sections:
        for row in section:
            rows.append(row)
            if time.monotonic() > deadline:
                rows.append(Row(row.section, "the rest of it", note="left out: the time is up"))
                break
    path = report.save(chosen.out, datetime.now(timezone.utc))
    print(table(rows))  # noqa: T201
    print(f"{report.card}, {time.monotonic() - start:.0f} s, {path}")  # noqa: T201
    return 1 if any(row.section == "correctness" and not row.note.startswith("ok") for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
