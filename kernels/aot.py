"""Compile every kernel as a real launch would, for real GPUs, without one: python -m cavmae_ds.kernels.aot

The cases run forward and backward on meta tensors while their launches are written down; each different one is
specialised by Triton's own launcher code and compiled for each target. Registers and spills are read from the
binary, load widths from the assembly. Exit code 1 when a kernel spills, exceeds the target's shared memory, or
loads in narrow pieces what its layout allows to load in pieces of 16 bytes.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from cavmae_ds.kernels.accuracy import outputs_and_gradients
from cavmae_ds.kernels.cases import CASES, Case
from cavmae_ds.kernels.launching import INTERPRETED, Launch, recording

VECTOR_BYTES = 16  # the widest load of one thread on all targets
WIDE_SHARE = 0.5  # of the bytes that a kernel's load instructions name: ids and tables are narrow by nature


@dataclass(frozen=True)
class Target:
    """A GPU to compile for."""

    name: str
    gpu: GPUTarget
    shared_bytes: int
    """Shared memory that one program may have."""


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", GPUTarget("cuda", 80, 32), 163 * 1024),  # CUDA C programming guide, table of capabilities
        Target("sm_90", GPUTarget("cuda", 90, 32), 227 * 1024),
        Target("sm_100", GPUTarget("cuda", 100, 32), 227 * 1024),
        Target("gfx942", GPUTarget("hip", "gfx942", 64), 64 * 1024),
    )
}


@dataclass(frozen=True)
class Job:
    """One launch to compile for one target; picklable, for the pool."""

    module: str
    function: str
    arguments: tuple[Any, ...]
    constexprs: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int
    target: str
    cases: tuple[str, ...]
    may_be_narrow: bool
    """The layout does not allow wide loads: ragged sizes, or the case says why."""


@dataclass(frozen=True)
class Binary:
    """What became of a job."""

    job: Job
    registers: int
    spill_bytes: int
    """Per thread, in local memory."""
    shared_bytes: int
    loads: tuple[int, ...]
    """Bytes per thread of each global load instruction."""

    @property
    def wide_share(self) -> float:
        """Share of the loaded bytes that arrive 16 at a time."""
        return sum(x for x in self.loads if x >= VECTOR_BYTES) / sum(self.loads) if self.loads else 1.0

    @property
    def problems(self) -> list[str]:
        """Why this kernel must not be shipped."""
        found, limit = [], TARGETS[self.job.target].shared_bytes
        where = f"{self.job.function} on {self.job.target} ({self.job.cases[0]})"
        if self.spill_bytes:
            found.append(f"{where} spills {self.spill_bytes} bytes per thread")
        if self.shared_bytes > limit:
            found.append(f"{where} takes {self.shared_bytes} bytes of shared memory, {limit} are there")
        judged = TARGETS[self.job.target].gpu.backend == "cuda"  # tiles are cut for warps of 32 threads, AMD has 64
        if judged and self.wide_share < WIDE_SHARE and not self.job.may_be_narrow:
            found.append(f"{where} takes {self.wide_share:.0%} of its bytes by {VECTOR_BYTES}-byte loads")
        return found


def recorded_jobs(cases: Iterable[Case], targets: Iterable[str]) -> list[Job]:
    """The different launches of all cases, forward and backward, for each target."""
    seen: dict[Any, tuple[Launch, list[str], bool]] = {}
    for case in cases:
        for launch in launches_of(case):
            narrow = case.kernel.narrow
            excused = not case.shape.real or launch.name in narrow or "*" in narrow
            _, names, may_be_narrow = seen.setdefault(_specialised(launch, "sm_90").key, (launch, [], True))
            names.append(case.name)
            seen[_specialised(launch, "sm_90").key] = launch, names, may_be_narrow and excused
    return [job_of(launch, target, names, narrow) for launch, names, narrow in seen.values() for target in targets]


def launches_of(case: Case) -> list[Launch]:
    """What the case's door would launch, forward and backward."""
    with recording() as launches:
        kernel = case.kernel
        outputs_and_gradients(kernel.fused, case.make_inputs("meta"), kernel.differentiable, kernel.outputs)
    return launches


def job_of(launch: Launch, target: str, cases: Sequence[str] = ("",), may_be_narrow: bool = False) -> Job:
    """The launch as something to compile for the target."""
    function = launch.kernel.fn
    return Job(
        function.__module__,
        function.__name__,
        launch.arguments,
        tuple(launch.constexprs.items()),
        launch.num_warps,
        launch.num_stages,
        target,
        tuple(dict.fromkeys(cases)),
        may_be_narrow,
    )


@dataclass(frozen=True)
class _Specialised:
    source: ASTSource
    options: dict[str, Any]
    key: tuple[str, ...]


def _specialised(launch: Launch, target: str) -> _Specialised:
    """What Triton's launcher makes of these arguments: types, divisibility by 16, values equal to 1."""
    function: JITFunction = launch.kernel
    backend = make_backend(TARGETS[target].gpu)
    bind = create_function_from_signature(function.signature, function.params, backend)
    asked = {**launch.constexprs, "num_warps": launch.num_warps, "num_stages": launch.num_stages}
    bound, specialisation, _ = bind(*launch.arguments, **asked)
    packed = function._pack_args(backend, {**asked, "debug": False}, bound, specialisation, None)
    options, signature, constexprs, attributes = packed
    source = ASTSource(function, signature, constexprs, attributes)
    key = function.fn.__module__, function.__name__, str(specialisation), str(constexprs), str(asked)
    return _Specialised(source, options.__dict__, key)


def compile_job(job: Job) -> Binary:
    """Compile, and read the outcome from the binary and its assembly."""
    kernel = getattr(importlib.import_module(job.module), job.function)
    launch = Launch(kernel, (1,), job.arguments, dict(job.constexprs), job.num_warps, job.num_stages)
    ready, target = _specialised(launch, job.target), TARGETS[job.target]
    compiled = triton.compile(ready.source, target=target.gpu, options=ready.options)
    if target.gpu.backend == "cuda":
        registers, spills = _cuda_usage(compiled.asm["cubin"])
        loads = _ptx_loads(compiled.asm["ptx"])
    else:
        registers, spills = _hip_usage(compiled.asm["amdgcn"])
        loads = _hip_loads(compiled.asm["amdgcn"])
    return Binary(job, registers, spills, compiled.metadata.shared, tuple(loads))


def compile_all(jobs: Sequence[Job], processes: int = 2) -> list[Binary]:
    """All jobs, a few at a time, in their order."""
    torch.set_num_threads(1)
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        return list(pool.map(compile_job, jobs))


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    """Registers per thread; bytes of stack, which Triton's kernels have for spills alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _ptx_loads(ptx: str) -> list[int]:
    """ld.global.v4.b32 is 16 bytes; cp.async names its bytes."""
    found = re.findall(r"\bld\.global(?:\.[a-zA-Z_][\w:]*)*?(?:\.v(\d))?\.[bsuf](\d+)\s", ptx)
    copies = re.findall(r"\bcp\.async\.c[ag]\.shared\.global[^;]*?\],\s*\[[^]]*\],\s*(0x[0-9a-fA-F]+|\d+)", ptx)
    return [int(count or 1) * int(bits) // 8 for count, bits in found] + [int(size, 0) for size in copies]


def _hip_usage(assembly: str) -> tuple[int, int]:
    """Vector registers per thread; bytes of private memory, which Triton's kernels have for spills alone."""
    registers, private = (
        int(re.findall(rf"\.{name}:\s+(\d+)", assembly)[-1]) for name in ("vgpr_count", "private_segment_fixed_size")
    )
    return registers, private


def _hip_loads(assembly: str) -> list[int]:
    """global_load_dwordx4 and buffer_load_dwordx4 are 16 bytes; the prologue's s_load brings the arguments."""
    sizes = {"ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "short": 2}
    sizes |= {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
    found = re.findall(r"^\s*(?:global|buffer)_load_(?:lds_)?([a-z]+?(?:x\d)?)(?:_d16\w*)?\s", assembly, re.MULTILINE)
    return [sizes[kind] for kind in found]


def summary(binaries: Iterable[Binary]) -> list[tuple[str, ...]]:
    """One row per kernel and target over all its configurations: the worst of each, headed by HEADINGS."""
    groups: dict[tuple[str, str], list[Binary]] = {}
    for binary in binaries:
        groups.setdefault((binary.job.function, binary.job.target), []).append(binary)
    rows: list[tuple[str, ...]] = []
    for (function, target), group in sorted(groups.items()):
        loads = [size for binary in group if "base" in "".join(binary.job.cases) for size in binary.loads]
        rows.append(
            (
                function.strip("_"),
                target,
                str(len(group)),
                str(max(b.registers for b in group)),
                str(max(b.spill_bytes for b in group)),
                f"{max(b.shared_bytes for b in group) / 1024:.1f}",
                f"{max(loads)} / {min(loads)}" if loads else "none",
                f"{min(b.wide_share for b in group if not b.job.may_be_narrow):.0%}"
                if not all(b.job.may_be_narrow for b in group)
                else "-",
            )
        )
    return rows


HEADINGS = "kernel", "target", "builds", "registers", "spilled B", "shared KiB", "widest / narrowest load B", "wide"


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """The rows as a Markdown table."""
    lines = [HEADINGS, ("---",) * 2 + ("---:",) * (len(HEADINGS) - 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 1 when a kernel must not be shipped."""
    parser = argparse.ArgumentParser(prog="python -m cavmae_ds.kernels.aot", description=__doc__.split("\n\n")[0])
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all of them")
    parser.add_argument("--kernel", default="", help="only cases whose name holds this")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    chosen = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    if INTERPRETED:
        console.print("TRITON_INTERPRET is set, so there is nothing to compile: unset it")
        return 1
    cases = [case for case in CASES if chosen.kernel in case.name]
    binaries = compile_all(recorded_jobs(cases, chosen.target or TARGETS))
    rows = summary(binaries)
    if chosen.markdown:
        console.print(markdown(rows), soft_wrap=True, markup=False, highlight=False)
    else:
        table = Table(*HEADINGS, title=f"{len(binaries)} builds, Triton {triton.__version__}")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    problems = [problem for binary in binaries for problem in binary.problems]
    for problem in problems:
        console.print(f"[red]{problem}[/red]")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
