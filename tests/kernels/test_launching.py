"""Where kernels run, and what is written down when they do not."""

from __future__ import annotations

import pytest
import torch

from cavmae_ds.kernels.launching import INTERPRETED, can_launch, launch, recording, references
from tests.kernels.spilling import narrow_kernel


def meta(count: int) -> torch.Tensor:
    return torch.empty(count, device="meta")


def test_while_recording_launches_are_written_down_and_nothing_runs():
    with recording() as launches:
        assert can_launch(meta(8)) and not can_launch(torch.ones(8))
        launch(narrow_kernel, (2,), meta(8), meta(8)[1:], 3, num_warps=2, BLOCK=4)
    (found,) = launches
    assert (found.name, found.grid, found.num_warps, found.constexprs) == ("narrow_kernel", (2,), 2, {"BLOCK": 4})
    assert [x if isinstance(x, int) else (x.dtype, x.address) for x in found.arguments] == [
        (torch.float32, 0),
        (torch.float32, 4),
        3,
    ]


def test_an_empty_grid_is_no_launch():
    with recording() as launches:
        launch(narrow_kernel, (3, 0), meta(8), meta(8), 1, BLOCK=4)
    assert launches == []


def test_an_error_inside_ends_the_recording():
    with pytest.raises(KeyError), recording():
        raise KeyError
    assert not can_launch(meta(8))


def test_on_a_cpu_kernels_run_only_in_the_interpreter():
    assert can_launch(torch.ones(8)) == INTERPRETED


def test_references_can_be_asked_for_on_every_device():
    with references():
        assert not can_launch(torch.ones(8))
