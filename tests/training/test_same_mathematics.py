"""DESIGN 2.2: ranks, the ZeRO stage, micro-batches, passes, chunks and recomputing do not change the mathematics."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cavmae_ds.kernels.contrastive import contrastive_reference, unit_rows
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig
from cavmae_ds.tasks.pretrain.losses import PretrainLosses
from tests.ranks import fork_ranks
from tests.training import compared
from tests.training.matrix import SWITCHES, every_cell, few_cells, special_cells
from tests.training.whole_batch import Cell, fresh_model, train_on_one_process

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("whole_batch_worker.py")
RANKS = (1, 2, 4)


def train(ranks: int, cells: list[Cell], folder: Path, seconds: float = 300) -> dict:
    """What the ranks found: the comparison alone, and losses, norms and parameters of every cell."""
    (folder / "cells.json").write_text(json.dumps(cells))
    finished = fork_ranks(ranks, WORKER, str(folder), scratch=folder, seconds=seconds)
    assert finished.returncode == 0, finished.stdout
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.fixture(scope="module", params=RANKS, ids=lambda ranks: f"{ranks}-ranks")
def trained(request, tmp_path_factory):
    ranks = request.param
    cells = few_cells(ranks) + special_cells(ranks)
    return cells, train(ranks, cells, tmp_path_factory.mktemp("trained"))


def stacked(losses: list[PretrainLosses]) -> Tensor:
    """[STEPS, 7]"""
    return torch.stack([torch.stack([*of_step.terms().values()]).detach().double() for of_step in losses])


def assert_same(cell: Cell, result: dict) -> None:
    """Losses of every step to 1e-5, final parameters to 1e-5 of a step: what a whole batch in one process gives."""
    true_losses, true_parameters = train_on_one_process(cell.mathematics)
    truth = stacked(true_losses)
    torch.testing.assert_close(result["losses"], truth, rtol=1e-5, atol=1e-7, msg=lambda m: f"{cell.name}: {m}")
    assert result["parameters"].keys() == true_parameters.keys()
    for name, parameter in result["parameters"].items():
        where = f"{cell.name}, {name}"
        torch.testing.assert_close(
            parameter, true_parameters[name], rtol=1e-5, atol=1e-5, msg=lambda m, where=where: f"{where}: {m}"
        )


def test_any_way_to_train_is_that_of_one_plain_process_with_the_whole_batch(trained):
    cells, results = trained
    for cell in cells:
        if cell.precision == "fp32":
            assert_same(cell, results[cell.name])


@pytest.mark.matrix
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("ranks", RANKS, ids=lambda ranks: f"{ranks}-ranks")
def test_all_cells_of_the_matrix_are_one_plain_process_with_the_whole_batch(ranks, tmp_path):
    cells = every_cell(ranks)
    results = train(ranks, cells, tmp_path, seconds=7200)
    for cell in cells:
        assert_same(cell, results[cell.name])


def test_the_few_cells_meet_every_pair_of_switches():
    for ranks in RANKS:
        cells = few_cells(ranks)
        assert len(cells) < 20
        for (one, ones), (other, others) in itertools.combinations(SWITCHES.items(), 2):
            met = {(getattr(cell, one), getattr(cell, other)) for cell in cells}
            assert met == set(itertools.product(ones, others))


def test_the_norm_of_the_gradient_does_not_depend_on_the_zero_stage(trained):
    cells, results = trained
    norms: dict[Cell, list[Tensor]] = {}
    for cell in cells:
        if cell.precision == "fp32":
            norms.setdefault(cell.mathematics, []).append(torch.tensor(results[cell.name]["norms"]))
    assert any(len(same) > 2 for same in norms.values())
    for same in norms.values():
        for norm in same:
            torch.testing.assert_close(norm, same[0], rtol=1e-5, atol=0)


def test_a_loss_that_is_off_moves_none_of_its_parameters(trained):
    cells, results = trained
    for cell in cells:
        if cell.precision == "bf16":  # what is frozen is kept in bf16 only
            continue
        cfg = cell.config()
        start = fresh_model(cfg)
        unused = start.unused_parameters(mae=cell.mae > 0, contrastive=cell.contrastive > 0)
        assert unused
        for name, parameter in start.named_parameters():
            moved = not torch.equal(results[cell.name]["parameters"][name], parameter)
            assert moved != (name in unused or "pos_embed" in name), f"{cell.name}, {name}"


def test_in_bf16_training_is_that_of_one_process_but_for_bf16_rounding(trained):
    """bf16 rounds to 2^-9. Reconstruction: two roundings, 2^-8 of it. Contrastive: one on
    either side of a cosine, over the temperature. Updates: gradients are rounded in other places, and Adam's first
    steps make the smallest gradient as large as the others, sign and all: 2^-5 of the norm of them all (measured: 1 %).
    """
    cells, results = trained
    for cell in cells:
        if cell.precision == "bf16":
            cfg = cell.config()
            true_losses, true_parameters = train_on_one_process(cell.mathematics)
            truth = stacked(true_losses)
            losses = results[cell.name]["losses"]
            torch.testing.assert_close(losses[:, 1:3], truth[:, 1:3], rtol=2**-8, atol=0)
            logit = 2 * 2**-9 / cfg.contrastive.temperature
            torch.testing.assert_close(losses[:, 3], truth[:, 3], rtol=0, atol=logit)
            rounded = fresh_model(cfg).bfloat16()
            start = {name: p.detach().float() for name, p in rounded.named_parameters() if p.requires_grad}
            update, true_update = (
                torch.cat([(after[name] - before).flatten() for name, before in start.items()])
                for after in (results[cell.name]["parameters"], true_parameters)
            )
            error = ((update - true_update).norm() / true_update.norm()).item()
            assert error < 2**-5, f"{cell.name}: {error}"


@pytest.mark.parametrize("cfg", compared.WAYS, ids=lambda cfg: compared.name(cfg, 0)[:-2])
def test_the_contrastive_loss_and_its_gradients_are_those_of_all_clips_in_one_place(trained, cfg):
    _, results = trained
    size = compared.CLIPS // (cfg.chunks or 1)
    audio, image = (side.requires_grad_() for side in compared.features())
    found = []
    for a, v in zip(unit_rows(audio).split(size), unit_rows(image).split(size), strict=True):
        logits = v @ a.T / cfg.temperature  # [images, audios]
        own = torch.arange(len(a))
        to_audio, to_image = F.cross_entropy(logits, own), F.cross_entropy(logits.T, own)
        v2a, a2v = ((side.argmax(1) == own).double().mean() for side in (logits, logits.T))
        if cfg.direction == "both":
            found.append(((to_audio + to_image) / 2, (v2a + a2v) / 2, v2a, a2v))
        else:
            found.append((to_audio, v2a, v2a, torch.zeros_like(v2a)))
    loss, *accuracies = (torch.stack(term).mean() for term in zip(*found, strict=True))
    if cfg.direction == "both" and cfg.chunks is None:
        assert accuracies[1] != accuracies[2]  # or the directions could be mixed up unnoticed
    truth = [loss.detach(), *accuracies, *torch.autograd.grad(loss, (audio, image))]
    for micro_batches in compared.MICRO_BATCHES:
        got = results["compared"][compared.name(cfg, micro_batches)]
        for ours, exact in zip(got, truth, strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-14)


def test_in_bf16_what_is_sent_is_rounded_and_nothing_else(trained):
    """The products are those of rounded rows, summed in float32; gradients come back in float32, from rounded ones."""
    cells, results = trained
    loss, *gradients = results["compared"]["bf16"]
    audio, image = (side.requires_grad_() for side in compared.features(torch.float32))
    exact = contrastive_reference(unit_rows(image), unit_rows(audio), 0, 0.05).loss
    rounded = [unit_rows(side).bfloat16().float() for side in (image, audio)]
    sent = exact if cells[0].ranks == 1 else contrastive_reference(*rounded, 0, 0.05).loss
    torch.testing.assert_close(loss, sent.detach(), rtol=1e-6, atol=0)
    for ours, true in zip(gradients, torch.autograd.grad(exact, (audio, image)), strict=True):
        assert (ours - true).norm() < 2**-8 / 0.05 * true.norm()


def test_the_comparison_notices_a_contrastive_gradient_that_is_off_by_the_number_of_ranks():
    """Guards the tolerance: what a gather with the wrong factor would do on two ranks lies far outside of it."""
    _, right = train_on_one_process(Cell())
    _, wrong = train_on_one_process(Cell(contrastive=0.05))

    worst = max((right[name] - wrong[name]).abs().max().item() for name in right)

    assert worst > 2e-4


def test_accumulating_without_a_second_pass_compares_fewer_clips():
    """Guards the truth: one pass and two are different objectives, and the cells are compared with the right one."""
    whole, _ = train_on_one_process(Cell())
    halves, _ = train_on_one_process(Cell(accumulation=2))
    assert whole[0].contrastive > halves[0].contrastive + 0.1
    assert whole[0].mae["audio"] == halves[0].mae["audio"]


def test_the_official_gpus_are_parts_of_the_batch():
    """256 clips on one rank in chunk=4 and 64 on each of four ranks: the same four losses (spec/cav-mae.md 1.8)."""
    from cavmae_ds.distributed.process_group import World
    from cavmae_ds.tasks.pretrain.contrastive import Negatives

    draw = torch.Generator().manual_seed(0)
    audio, other = (torch.randn(256, 32, generator=draw, dtype=torch.float64) for _ in range(2))
    image = audio + other

    def loss(audio: Tensor, image: Tensor, negatives: str, ranks: int) -> Tensor:
        world = World(rank=0, size=ranks, local_rank=0, hosts=1, device=torch.device("cpu"))
        compared = Negatives(ContrastiveConfig(negatives=negatives), world, accumulation=1)
        return compared.finish(compared.start(audio, image)).loss

    on_one = loss(audio, image, "chunk=4", ranks=1)
    on_four = [loss(a, v, "rank", ranks=4) for a, v in zip(audio.split(64), image.split(64), strict=True)]

    torch.testing.assert_close(on_one * 4, torch.stack(on_four).sum(), rtol=1e-12, atol=0)
