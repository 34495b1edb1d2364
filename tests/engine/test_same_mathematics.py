"""DESIGN 2.2: the number of ranks, the ZeRO stage and the split into micro-batches do not change the mathematics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.whole_batch import run_config, train_on_one_process
from tests.engine.whole_batch_worker import VARIANTS
from tests.launcher import launch

WORKER = Path(__file__).with_name("whole_batch_worker.py")


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda ranks: f"{ranks}-ranks")
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    finished = launch(request.param, WORKER, str(folder), scratch=folder)
    assert finished.returncode == 0, finished.stdout
    return request.param, folder


@pytest.mark.parametrize("stage", [1, 2, 3], ids=lambda stage: f"zero{stage}")
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_ranks_and_any_zero_stage_train_as_one_plain_process_on_the_whole_batch(trained, stage, variant):
    ranks, folder = trained
    _, contrastive, direction = VARIANTS[variant]
    true_losses, true_parameters = train_on_one_process(run_config(stage, 1, 1, contrastive, direction))

    result = torch.load(folder / f"{variant}-zero{stage}-ranks{ranks}.pt", weights_only=True)

    for step, (losses, truth) in enumerate(zip(result["losses"], true_losses, strict=True)):
        torch.testing.assert_close(
            torch.tensor(losses, dtype=torch.float64),
            torch.stack(truth).detach().double(),
            rtol=1e-5,
            atol=1e-7,
            msg=lambda m: f"step {step}: {m}",  # noqa: B023
        )
    assert result["parameters"].keys() == true_parameters.keys()
    for name, parameter in result["parameters"].items():
        torch.testing.assert_close(
            parameter,
            true_parameters[name],
            rtol=1e-5,
            atol=1e-5,
            msg=lambda m: f"{name}: {m}",  # noqa: B023
        )


def test_the_comparison_notices_a_contrastive_gradient_that_is_off_by_the_number_of_ranks():
    """Guards the tolerance: what a gather with the wrong factor would do on two ranks lies far outside of it."""
    _, right = train_on_one_process(run_config(2, 1, 1, 0.1))
    _, wrong = train_on_one_process(run_config(2, 1, 1, 0.05))

    worst = max((right[name] - wrong[name]).abs().max().item() for name in right)

    assert worst > 2e-4
