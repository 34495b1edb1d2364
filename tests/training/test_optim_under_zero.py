"""An optimizer takes the same steps on any ranks at any ZeRO stage as the published rule takes on one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.ranks import fork_ranks
from tests.training.optim_problem import train_plainly
from tests.training.optim_worker import AVERAGED, TRAINED

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("optim_worker.py")


@pytest.fixture(scope="module", params=[1, 2], ids=lambda ranks: f"{ranks}-ranks")
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("optim")
    finished = fork_ranks(request.param, WORKER, str(folder), scratch=folder)
    assert finished.returncode == 0, finished.stdout
    return torch.load(folder / "results.pt", weights_only=True)


def assert_same(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(("name", "fragment"), TRAINED)
def test_every_optimizer_steps_as_the_published_rule_does_on_one_process(results, name, fragment):
    truth = train_plainly(name)
    assert_same(results["trained"][f"{name}-{fragment}"], truth, 1e-5)
    assert not truth["zero"].equal(torch.zeros(6, 3))  # a layer of zeros has no norm, and moves all the same


@pytest.mark.parametrize(("fragment", "precision"), AVERAGED)
def test_the_running_mean_is_that_of_one_process(results, fragment, precision):
    found = results["averaged"][f"{fragment}-{precision}"]
    plain = {name: mean for name, mean in found["plain"].items() if name != "frozen"}
    assert_same(found["mean"], plain, 1e-6)
    assert not torch.allclose(found["mean"]["wide"], found["weights"]["wide"], rtol=1e-3)


@pytest.mark.parametrize(("fragment", "precision"), AVERAGED)
def test_a_resumed_run_has_bitwise_the_mean_and_the_weights_of_an_undisturbed_one(results, fragment, precision):
    found = results["averaged"][f"{fragment}-{precision}"]
    for kind in ("mean", "weights"):
        assert all(torch.equal(found[f"resumed {kind}"][name], value) for name, value in found[kind].items()), kind
