"""Whether Triton's kernels can be built here: for the GPU that is there, or ahead of time for one that is not."""

from __future__ import annotations

import os
import shutil
import time

import torch

from cavmae_ds.doctor.finding import Finding, fix, note, ok
from cavmae_ds.kernels.cases import CASES, Case
from cavmae_ds.kernels.launching import INTERPRETED, references

COMPILERS = "gcc", "clang", "cc"
ELSEWHERE = "sm_90"
"""The target where there is no GPU to compile for."""
INSTALL_COMPILER = "install gcc (Debian: apt install gcc libc6-dev), or name a compiler in CC"


def check_compiler() -> list[Finding]:
    """A C compiler, which Triton needs for its launchers, and one kernel built for real."""
    gpu = torch.cuda.is_available()
    return [c_compiler(os.environ.get("CC", ""), gpu), _on_gpu() if gpu else _ahead()]


def c_compiler(told: str, gpu: bool) -> Finding:
    """Triton calls CC, or what it finds under these names."""
    path = next(filter(None, map(shutil.which, (told,) if told else COMPILERS)), None)
    if path:
        return ok("C compiler", path)
    said = f"CC={told} is not there" if told else f"none of {', '.join(COMPILERS)} is there"
    return (fix if gpu else note)("C compiler", f"{said}; Triton needs one on a GPU", INSTALL_COMPILER)


def _case() -> Case:
    """A small one that loads, sums and stores."""
    return next(case for case in CASES if case.kernel.name.startswith("masked_mse"))


def _on_gpu() -> Finding:
    if INTERPRETED:
        return fix("Triton", "TRITON_INTERPRET is set: kernels run in Python", "unset TRITON_INTERPRET")
    case, began = _case(), time.perf_counter()
    inputs = case.make_inputs("cuda")
    built = case.kernel.fused(**inputs)
    with references():
        wanted = case.kernel.fused(**inputs)
    torch.testing.assert_close(built, wanted, rtol=1e-2, atol=1e-2)
    return ok("Triton", f"{case.name} built and run in {time.perf_counter() - began:.1f} s, right")


def _ahead() -> Finding:
    if INTERPRETED:
        return note("Triton", "TRITON_INTERPRET is set: kernels run in Python", "unset TRITON_INTERPRET")
    from cavmae_ds.kernels.aot import compile_job, job_of, launches_of

    case, began = _case(), time.perf_counter()
    binary = compile_job(job_of(launches_of(case)[0], ELSEWHERE))
    took_s = time.perf_counter() - began
    return ok("Triton", f"{case.name} built for {ELSEWHERE} in {took_s:.1f} s, {binary.registers} registers")
