"""Every case of the table at its small shapes: as accurate as eager, every element written."""

from __future__ import annotations

import pytest
import torch

from cavmae_ds.kernels.accuracy import deviations, outputs_and_gradients
from cavmae_ds.kernels.cases import CASES, KERNELS, Case
from cavmae_ds.kernels.shapes import REAL
from tests.kernels.accuracy import assert_as_accurate_as_eager, needs_kernels

pytestmark = needs_kernels
SMALL = [case for case in CASES if not case.shape.real]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_door_is_within_twice_eagers_error_and_writes_every_element(case: Case, poisoned_memory):
    kernel = case.kernel
    assert_as_accurate_as_eager(
        kernel.reference, kernel.fused, case.make_inputs("cpu"), kernel.differentiable, kernel.outputs
    )


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_door_gives_the_same_bits_twice(case: Case):
    kernel, inputs = case.kernel, case.make_inputs("cpu", seed=1)
    first, second = (
        outputs_and_gradients(kernel.fused, inputs, kernel.differentiable, kernel.outputs) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.differentiable], ids=lambda kernel: kernel.name)
def test_gradients_survive_torch_compile(kernel):
    case = next(case for case in SMALL if case.kernel is kernel and case.shape.name == "ragged")
    compiled = torch.compile(kernel.fused, backend="aot_eager")
    inputs = case.make_inputs("cpu")
    plain, traced = (
        outputs_and_gradients(door, inputs, kernel.differentiable, kernel.outputs) for door in (kernel.fused, compiled)
    )
    for name in plain:
        torch.testing.assert_close(traced[name], plain[name], msg=lambda text, name=name: f"{name}: {text}")


def test_every_kernel_is_listed_at_the_real_batches_and_at_small_shapes():
    for kernel in KERNELS:
        assert (
            {shape.clips for shape in kernel.shapes if shape.real} == {shape.clips for shape in REAL} == {64, 256, 512}
        )
        assert {"ragged", "tiny"} <= {shape.name for shape in kernel.shapes}


def test_an_element_that_nobody_writes_is_found(poisoned_memory):
    def forgetful(rows: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(rows)
        out[1:] = rows[1:]
        return out

    (found,) = deviations(lambda rows: rows + 0, forgetful, {"rows": torch.ones(3, 2)}, (), ("rows",))
    assert not found.good and found.worst == torch.inf
