"""Everything worth knowing about the kernels on this GPU, in under 8 minutes: python -m benchmarks.gpu

Needs torch and triton for the kernels, the model's packages for the training step. Prints a short table last;
benchmarks/results/<card>-<date>.json has each row as soon as it is measured. Exit code 2 without CUDA, 1 when a case
is wrong.
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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.report import Report, Row, commit_of, mfu, rate, table
from benchmarks.timing import copy_bandwidth, matmul_rate, timed
from cavmae_ds.kernels.accuracy import deviations
from cavmae_ds.kernels.cases import CASES, Case, Cost

CHECKOUT = Path(__file__).parents[1]
SECONDS = 450.0  # what would begin later is left out, and said so
UNTIL = {"step": 0.5, "attention": 0.55, "correctness": 0.75, "kernel": 1.0}
"""Section -> share of the time after which no more of it begins; in the order of their worth, the product first."""
SECTIONS = tuple(UNTIL)
LEFT_OUT = "left out"
DECODER_TOKENS, DECODER_HEADS, HEAD_WIDTH = 708, 16, 32
TIMED_DTYPE = torch.bfloat16


class Job(NamedTuple):
    """What gives one row, or a row for each direction."""

    row: Callable[..., Row]
    """Makes a row that names what is measured."""
    measure: Callable[[], Iterable[Row]]


def run(jobs: Iterable[Job], report: Report, path: Path, deadline: float) -> None:
    """Measure job by job until the deadline (time.monotonic()); whatever one of them meets costs its own rows alone.

    The report is saved after each row. What is left out has a row that says so.
    """
    for job in jobs:
        for row in _measured(job, deadline):
            report.rows.append(row)
            report.save(path)


def _measured(job: Job, deadline: float) -> Iterator[Row]:
    if time.monotonic() > deadline:
        yield job.row(note=f"{LEFT_OUT}: the time is up")
        return
    try:
        yield from job.measure()
    except Exception as error:  # a compiler's, a driver's, our own: the next job may be fine
        yield job.row(note=_short(error))
    finally:
        _free()


def correctness(cases: Iterable[Case]) -> Iterator[Job]:
    """Every case against float64 on the card; the contrastive reference is dense, so it is checked where it fits."""
    for case in cases:
        if case.shape.clips <= 64:  # the same kernels and configurations as at more clips
            row = partial(Row, "correctness", case.name)
            yield Job(row, partial(_deviations, case, row))


def _deviations(case: Case, row: Callable[..., Row]) -> Iterator[Row]:
    kernel = case.kernel
    found = deviations(kernel.reference, kernel.fused, case.make_inputs("cuda"), kernel.differentiable, kernel.outputs)
    bad = [f"{d.name} off by {d.worst:.1e}, allowed {d.allowed:.1e}" for d in found if not d.good]
    yield row(note="; ".join(bad) or "ok")


def kernels(cases: Iterable[Case], bandwidth: float, matmul: float) -> Iterator[Job]:
    """Fused, eager reference and compiled reference of each case, forward and forward with backward."""
    for case in cases:
        compiled = torch.compile(case.kernel.reference, dynamic=False)
        for implementation, function in (
            ("fused", case.kernel.fused), ("eager", case.kernel.reference), ("compile", compiled),
        ):  # fmt: skip
            row = partial(Row, "kernel", case.name, implementation)
            yield Job(row, partial(_kernel_rows, case, row, function, bandwidth, matmul))
        torch.compiler.reset()


def _kernel_rows(
    case: Case, row: Callable[..., Row], function: Callable[..., Any], bandwidth: float, matmul: float
) -> Iterator[Row]:
    cost, inputs = case.cost, case.make_inputs("cuda")
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


def _rates(cost: Cost, timing: Any, bandwidth: float, matmul: float) -> dict[str, Any]:
    count, flops = cost.forward_bytes + cost.backward_bytes, cost.forward_flops + cost.backward_flops
    gigabytes, tflops = rate(count, flops, timing.ms)
    share = tflops * 1e12 / matmul if flops else gigabytes * 1e9 / bandwidth
    found = {"ms": timing.ms, "peak_mib": timing.peak_mib, "share": share}
    return found | ({"tflops": tflops} if flops else {"gigabytes_per_second": gigabytes})


def attention(clips: int, matmul: float) -> Iterator[Job]:
    """PyTorch's attention backends on the decoder's shape, forward and backward."""
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        row = partial(Row, "attention", f"decoder layer, {clips} clips", backend.name.lower(), "both")
        yield Job(row, partial(_attention_row, backend, row, clips, matmul))


def _attention_row(backend: SDPBackend, row: Callable[..., Row], clips: int, matmul: float) -> Iterator[Row]:
    size = clips, DECODER_HEADS, DECODER_TOKENS, HEAD_WIDTH
    q, k, v = (torch.randn(size, device="cuda", dtype=TIMED_DTYPE, requires_grad=True) for _ in range(3))
    arriving = torch.randn_like(q)
    flops = 3.5 * 4 * DECODER_TOKENS**2 * DECODER_HEADS * HEAD_WIDTH * clips  # backward: 2.5 x forward

    def both() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), arriving)

    with sdpa_kernel(backend):
        timing = timed(both)
    tflops = flops / timing.ms / 1e9
    yield row(ms=timing.ms, tflops=tflops, share=tflops * 1e12 / matmul, peak_mib=timing.peak_mib)


def steps(batches: Iterable[int], matmul: float) -> Iterator[Job]:
    """Training steps of CAV-MAE base: the product first, then the references, as they are and compiled."""
    try:
        from benchmarks.step import WAYS
    except ImportError as error:
        yield Job(partial(Row, "step", "CAV-MAE base"), partial(_left_out, f"{LEFT_OUT}: {error}"))
        return
    for clips in batches:
        for way in WAYS:
            row = partial(Row, "step", f"CAV-MAE base, {clips} clips", way)
            yield Job(row, partial(_step_row, row, clips, way, matmul))


def _step_row(row: Callable[..., Row], clips: int, way: str, matmul: float) -> Iterator[Row]:
    from benchmarks.step import training_step
    from cavmae_ds.plan.measure import flops_per_clip
    from cavmae_ds.tasks import validate_run

    with training_step(clips, way) as step:
        timing = timed(step, budget_ms=2000, cold=False)
    speed = clips / timing.ms * 1e3
    share = mfu(speed, flops_per_clip(validate_run({"train": {"epochs": 1}})), matmul / 1e12)
    yield row("both", timing.ms, share=share, peak_mib=timing.peak_mib, clips_per_second=speed)


def _left_out(why: str) -> Iterator[Row]:
    yield Row("step", "CAV-MAE base", note=why)


def _short(error: BaseException) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"


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
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 64, 512], help="batch sizes of the training step")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="in the order of their worth")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu measures a GPU, and torch sees none here", file=sys.stderr)  # noqa: T201
        return 2
    start, versions = time.monotonic(), {"torch": torch.__version__, "triton": triton.__version__}
    versions["cuda"] = str(torch.version.cuda)
    report = Report(torch.cuda.get_device_name(), versions, commit_of(CHECKOUT), datetime.now(timezone.utc))
    path = report.path_in(chosen.out)
    bandwidth, matmul = copy_bandwidth(), matmul_rate()
    report.rows.append(Row("ceiling", "copy", gigabytes_per_second=bandwidth / 1e9))
    report.rows.append(Row("ceiling", "matmul bf16", tflops=matmul / 1e12))
    base = [case for case in CASES if case.shape.real and case.dtype in (TIMED_DTYPE, torch.int64)]
    jobs = {
        "step": steps(chosen.batch, matmul),
        "attention": attention(256, matmul),
        "correctness": correctness([*base, *(case for case in CASES if case not in base)]),
        "kernel": kernels(chosen_cases(CASES), bandwidth, matmul),
    }
    try:
        for section in SECTIONS:
            if section in chosen.sections:
                run(jobs[section], report, path, start + UNTIL[section] * SECONDS)
            else:
                report.rows.append(Row(section, "all of it", note=f"{LEFT_OUT}: not asked for"))
    except KeyboardInterrupt:
        report.rows.append(Row("", "the rest", note=f"{LEFT_OUT}: interrupted"))
    report.save(path)
    print(table(report.rows))  # noqa: T201
    print(f"{report.card}, {time.monotonic() - start:.0f} s, {path}")  # noqa: T201
    wrong = [row for row in report.rows if row.section == "correctness" and not row.note.startswith(("ok", LEFT_OUT))]
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
