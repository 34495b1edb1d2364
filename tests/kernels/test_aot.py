"""Every kernel compiles for every target and keeps the promises of speed; what breaks one is caught."""

from __future__ import annotations

import pytest
import torch

from cavmae_ds.kernels.aot import (
    HEADINGS,
    TARGETS,
    compile_all,
    compile_job,
    job_of,
    markdown,
    recorded_jobs,
    summary,
)
from cavmae_ds.kernels.cases import CASES
from cavmae_ds.kernels.launching import INTERPRETED, launch, recording
from tests.kernels.spilling import hoarding_kernel, narrow_kernel, spilling_kernel

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing: unset TRITON_INTERPRET")


def floats(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(count, dtype=dtype, device="meta")


@pytest.mark.slow
def test_every_kernel_of_every_case_compiles_for_every_gpu_without_spills_and_with_wide_loads():
    binaries = compile_all(recorded_jobs([case for case in CASES if case.shape.real], TARGETS))
    assert {binary.job.target for binary in binaries} == set(TARGETS)
    assert [problem for binary in binaries for problem in binary.problems] == []


def test_launches_that_differ_in_batch_size_alone_are_compiled_once():
    cases = [case for case in CASES if case.kernel.name == "unshuffle" and case.dtype == torch.bfloat16]
    real = [case for case in cases if case.shape.real]
    assert len(real) == 3
    assert len(recorded_jobs(real, ["sm_90"])) == len(recorded_jobs(real[:1], ["sm_90"]))


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_that_spills_is_caught(target):
    size = 1 << 17  # 16 warps share the registers: 128 for each thread, which must hold 128 or 256 numbers
    with recording() as launches:
        launch(spilling_kernel, (1,), floats(size), floats(size), num_warps=16, BLOCK=size)
    binary = compile_job(job_of(launches[0], target))
    assert binary.spill_bytes > 0
    assert any("spilling_kernel" in problem and "spills" in problem for problem in binary.problems)


@pytest.mark.parametrize("target", [name for name in TARGETS if name.startswith("sm")])
def test_a_kernel_that_loads_number_by_number_is_caught_unless_its_case_says_why(target):
    with recording() as launches:
        launch(narrow_kernel, (1,), floats(1 << 13), floats(1 << 10), 7, BLOCK=1 << 10)
    binary = compile_job(job_of(launches[0], target))
    assert set(binary.loads) == {4} and binary.wide_share == 0
    assert any("narrow_kernel" in problem and "16-byte loads" in problem for problem in binary.problems)
    assert compile_job(job_of(launches[0], target, may_be_narrow=True)).problems == []


@pytest.mark.parametrize("target", ["sm_80"])
def test_a_kernel_that_wants_more_shared_memory_than_there_is_is_caught(target):
    matrix = floats(1 << 16, torch.float16)
    with recording() as launches:
        launch(hoarding_kernel, (1,), matrix, matrix, floats(1 << 16), num_warps=16, SIZE=256)
    binary = compile_job(job_of(launches[0], target))
    assert binary.shared_bytes > TARGETS[target].shared_bytes
    assert any("shared memory" in problem for problem in binary.problems)


def test_an_argument_off_the_16_byte_grid_is_compiled_without_wide_loads():
    def widest(source: torch.Tensor) -> int:
        with recording() as launches:
            launch(narrow_kernel, (1,), source, floats(1 << 10), 1, BLOCK=1 << 10)
        return max(compile_job(job_of(launches[0], "sm_90")).loads)

    assert widest(floats(1 << 11)) == 16
    assert widest(floats(1 << 11)[1:]) == 4


def test_the_table_has_one_row_per_kernel_and_target():
    with recording() as launches:
        for size in (1 << 10, 1 << 11):
            launch(narrow_kernel, (1,), floats(1 << 13), floats(size), 1, BLOCK=size)
    binaries = [compile_job(job_of(x, target)) for x in launches for target in ("sm_80", "sm_90")]
    rows = summary(binaries)
    assert [row[:3] for row in rows] == [("narrow_kernel", "sm_80", "2"), ("narrow_kernel", "sm_90", "2")]
    assert markdown(rows).splitlines()[0] == "| " + " | ".join(HEADINGS) + " |"
