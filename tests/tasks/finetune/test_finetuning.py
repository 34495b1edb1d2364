"""Finetuning from start to scores: what is measured on the way, what is averaged, and what a kill costs (nothing)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from cavmae_ds.checkpoint import checkpoint_root, whole_checkpoints
from cavmae_ds.checkpoint.folder import read_manifest
from cavmae_ds.checkpoint.layout import AVERAGED, MASTER
from cavmae_ds.checkpoint.weights import assemble
from cavmae_ds.cli import app
from cavmae_ds.data.format.clips import collate
from cavmae_ds.data.loading.stream import EvaluationClips
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.evaluation.classification import classification_scores, one_hot
from cavmae_ds.evaluation.inference import EVERY_FRAME, open_judged
from cavmae_ds.evaluation.roc_curves import read_curves
from cavmae_ds.evaluation.scores import classification
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.models.cavmae.classifier import CAVMAEFT
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.tasks import load_run
from cavmae_ds.tasks.finetune.final_evaluation import AVERAGED_WEIGHTS, is_scored, write_averaged
from cavmae_ds.tasks.finetune.validation import SCORES, note_epoch
from cavmae_ds.weights.load import load_model
from cavmae_ds.weights.official import save_official
from tests.data.small_shards import small_shards
from tests.ranks import CHECKOUT, fork_cavmae, fork_ranks

pytestmark = pytest.mark.slow

FINETUNE = CHECKOUT / "launch" / "finetune.py"
EPOCHS, STEPS = 4, 12  # 24 clips, 8 a step
FINAL_SCORES = "averaged.classification.json"
RUN = """\
ds_config: ds_configs/zero2.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: 1, validation: {validation}}}
classifier: {{head_lr_ratio: 5}}
augment: {{freqm: 20, timem: 20}}
average: {{from_epoch: 2, to_epoch: 3}}
evaluate: {{batch: 2}}
optim: {{name: adam, learning_rate: 1e-3, eps: 1e-5, schedule: step, decay_start_epoch: 2, decay_every_epochs: 1}}
train: {{global_batch: 8, micro_batch: 2, epochs: 4, precision: fp32}}
checkpoint: {{every_steps: 1, keep_last: 20}}
monitor: {{log_every: 1, pictures_every: 0}}
"""


@pytest.fixture(scope="module")
def run_file(tiny_shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetuning")
    small_shards(tiny_shards, folder / "held-out", range(5, 12), shard_clips=2)  # 4 groups of 2, the last one short
    (folder / "run.yaml").write_text(RUN.format(shards=tiny_shards, validation=folder / "held-out"))
    return folder / "run.yaml"


def finetune(run_file: Path, run_dir: Path, *overrides: str, ranks: int = 2) -> Path:
    """What is said is in RUN/said.txt."""
    finished = fork_ranks(ranks, FINETUNE, str(run_file), f"run_dir={run_dir}", *overrides, scratch=run_file.parent)
    assert finished.returncode == 0, finished.stdout
    (run_dir / "said.txt").write_text(finished.stdout)
    return run_dir


@pytest.fixture(scope="module")
def undisturbed(run_file) -> Path:
    return finetune(run_file, run_file.parent / "undisturbed")


def scores(run_dir: Path, name: str = FINAL_SCORES) -> dict[str, Any]:
    return json.loads((run_dir / name).read_text())


def weights_after(run_dir: Path, step: int, state: str = MASTER) -> dict[str, torch.Tensor]:
    folder = checkpoint_root(run_dir) / f"step-{step:08d}"
    return assemble(folder, read_manifest(folder), state)


def assert_same(weights: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> None:
    """Bit by bit."""
    assert weights.keys() == truth.keys()
    assert all(torch.equal(weights[name], truth[name]) for name in truth)


def learnt(run_dir: Path) -> dict[str, dict[int, float]]:
    drawn = ("loss/", "optim/", "train/", "validation/")
    return {tag: points for tag, points in read_curves(run_dir).items() if tag.startswith(drawn)}


def test_acceptance_14_averaged_weights_are_the_mean_of_those_after_each_epoch_of_the_range(undisturbed):
    second, third = weights_after(undisturbed, 6), weights_after(undisturbed, 9)

    averaged = load_model(undisturbed / AVERAGED_WEIGHTS)

    assert (averaged.kind, averaged.classes) == ("finetune", 4)
    for name, weight in averaged.model.state_dict().items():
        torch.testing.assert_close(weight, (second[name] + third[name]) / 2, rtol=1e-6, atol=1e-8)
    assert not torch.equal(second["mlp_head.1.weight"], third["mlp_head.1.weight"])


def test_every_clip_is_validated_once_after_every_epoch_and_the_best_epoch_is_noted(undisturbed, run_file):
    curves, noted = learnt(undisturbed), json.loads((undisturbed / SCORES).read_text())
    last = load_model(undisturbed)
    clips = EvaluationClips(str(run_file.parent / "held-out"), last.inputs)
    batch = collate([clips[place] for place in range(7)])

    with torch.inference_mode():
        logits = last.model(*FrontEnd(inputs(last.config), torch.device("cpu"))(batch))
    truth = one_hot(batch.labels, 4)
    found = classification_scores(truth, logits.sigmoid())
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)

    assert set(curves["validation/map"]) == {3, 6, 9, 12}
    assert curves["validation/map"][STEPS] == pytest.approx(found.mean_average_precision, rel=1e-6)
    assert curves["validation/accuracy"][STEPS] == pytest.approx(found.accuracy, rel=1e-6)
    assert curves["validation/total"][STEPS] == pytest.approx(loss.item(), rel=1e-5)
    assert [epoch["epoch"] for epoch in noted["epochs"]] == [1, 2, 3, 4]
    precisions = list(curves["validation/map"].values())
    assert noted["best_epoch"] == 1 + precisions.index(max(precisions))


def test_at_its_end_a_run_is_scored_as_cavmae_evaluate_scores_its_averaged_weights(undisturbed, run_file):
    judged = open_judged(undisturbed / AVERAGED_WEIGHTS, str(run_file.parent / "held-out"))
    modes = ("multimodal", "missingaudioonly", "missingvideoonly")

    values, _, found = classification(replace(judged, batch=2), EVERY_FRAME, ",".join(modes))

    written, said = scores(undisturbed), (undisturbed / "said.txt").read_text()
    assert {key: written[key] for key in values} == json.loads(json.dumps(values))  # bitwise, on two ranks
    assert tuple(written["modes"]) == modes and found["multimodal"].scores.clips == 7
    assert (written["weights"], written["step"]) == (str(undisturbed / AVERAGED_WEIGHTS), STEPS)
    assert "scores of the averaged weights" in said
    assert f"{written['modes']['missingvideoonly']['mean_average_precision']:.2%}" in said
    reported = CliRunner().invoke(app, ["report", str(undisturbed)], catch_exceptions=False)
    assert reported.exit_code == 0 and "finetuning, finished" in reported.output
    assert f"step {STEPS}; data" in reported.output and "validation/map" in reported.output


@pytest.mark.parametrize(
    ("written", "expected"), [(None, False), ({"step": 12}, True), ({"step": 9}, False), ({"data": "other"}, True)]
)
def test_scores_of_this_end_and_those_of_cavmae_evaluate_are_left_alone(written, expected, tmp_path):
    if written:
        (tmp_path / FINAL_SCORES).write_text(json.dumps(written))
    assert is_scored(tmp_path / FINAL_SCORES, STEPS) == expected


def test_a_killed_run_goes_on_as_if_nothing_had_been_also_with_its_average(undisturbed, run_file):
    killed = run_file.parent / "killed"
    shutil.copytree(undisturbed, killed)
    for folder in whole_checkpoints(killed)[7:]:  # in the middle of epoch 3, which is the second to be averaged
        shutil.rmtree(folder)
    (killed / AVERAGED_WEIGHTS).unlink()
    (killed / FINAL_SCORES).write_text('{"data": "of what was learnt so far"}')

    finetune(run_file, killed)

    assert learnt(killed) == learnt(undisturbed)  # bitwise, at every step
    for state in (MASTER, AVERAGED):
        assert_same(weights_after(killed, STEPS, state), weights_after(undisturbed, STEPS, state))
    assert_same(load_file(killed / AVERAGED_WEIGHTS), load_file(undisturbed / AVERAGED_WEIGHTS))
    assert (killed / SCORES).read_text() == (undisturbed / SCORES).read_text()
    assert scores(killed)["modes"] == scores(undisturbed)["modes"]


@pytest.fixture
def on_one_rank(run_file, s3_bucket) -> Path:
    """The same run on one rank, in two micro-batches, without validation clips; its checkpoint is in a bucket, too."""
    address, run_dir = f"s3://{s3_bucket}/one", run_file.parent / "one"
    settings = ("data.validation=''", "train.micro_batch=4", f"checkpoint.every_steps={STEPS}")
    return finetune(run_file, run_dir, *settings, f"checkpoint.address={address}", ranks=1)


def test_one_rank_in_two_micro_batches_learns_the_same_as_two_ranks(undisturbed, on_one_rank):
    two, one = learnt(undisturbed), learnt(on_one_rank)
    assert two.keys() - one.keys() == {tag for tag in two if tag.startswith("validation/")}
    for tag in ("loss/total", "train/accuracy", "optim/grad_norm"):
        assert one[tag].keys() == two[tag].keys() == set(range(1, STEPS + 1))
        assert list(one[tag].values()) == pytest.approx(list(two[tag].values()), rel=1e-4), tag

    assert "has no validation clips" in (on_one_rank / "said.txt").read_text()
    assert not list(on_one_rank.glob("*classification.json"))

    # A host that has not the files of all ranks takes them from the bucket.
    written = load_file(on_one_rank / AVERAGED_WEIGHTS)
    (on_one_rank / AVERAGED_WEIGHTS).unlink()
    next(whole_checkpoints(on_one_rank)[-1].glob("rank-*")).unlink()
    write_averaged(on_one_rank, load_run(on_one_rank / "config.yaml", "finetune").checkpoint.address)
    assert_same(load_file(on_one_rank / AVERAGED_WEIGHTS), written)


def test_epochs_that_are_validated_again_after_a_resume_are_noted_once(tmp_path):
    for epoch, precision in ((1, 0.5), (2, 0.9), (3, 0.6), (2, 0.4), (3, 0.7)):
        note_epoch(tmp_path / SCORES, epoch, {"map": precision}, "map")
    noted = json.loads((tmp_path / SCORES).read_text())
    assert [(epoch["epoch"], epoch["map"]) for epoch in noted["epochs"]] == [(1, 0.5), (2, 0.4), (3, 0.7)]
    assert noted["best_epoch"] == 3


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{", '{"epochs": 3}', '{"epochs": [{"epoch": "a"}]}', '{"epochs": [{"epoch": 1}]}', "[" * 10**5],
    ids=range(7),
)
def test_damaged_notes_and_scores_end_no_run(content, tmp_path):
    path = tmp_path / SCORES
    path.write_text(content)
    assert not (content[:1] != "{" and is_scored(path, STEPS))
    note_epoch(path, 4, {"map": 0.5}, "map")
    assert json.loads(path.read_text()) == {"metric": "map", "best_epoch": 4, "epochs": [{"epoch": 4, "map": 0.5}]}
    assert path.with_name(f"{SCORES}.damaged").read_text() == content


def test_cavmae_launch_knows_a_finetuning_run_by_its_sections(undisturbed, run_file):
    (undisturbed / AVERAGED_WEIGHTS).rename(undisturbed / "before.safetensors")
    (undisturbed / FINAL_SCORES).rename(undisturbed / "before.json")

    finished = fork_cavmae("launch", run_file, f"run_dir={undisturbed}", "--ranks-per-host", 1)

    assert finished.returncode == 0, finished.stderr
    # Nothing was left to do but this, whatever the ranks.
    assert_same(load_file(undisturbed / AVERAGED_WEIGHTS), load_file(undisturbed / "before.safetensors"))
    assert scores(undisturbed) == json.loads((undisturbed / "before.json").read_text())


ONE_EPOCH = ("train.epochs=1", "average.from_epoch=1", "average.to_epoch=1")


def test_bf16_stays_near_fp32_with_mixed_clips_and_an_average(undisturbed, run_file):
    """After the three steps of an epoch: losses within 1 %, weights within 20 % of how far they went."""
    rounded = finetune(run_file, run_file.parent / "bf16", "train.precision=bf16", *ONE_EPOCH, ranks=1)

    assert load_run(rounded / "config.yaml", "finetune").augment.mixup == 0.5
    exact, near = (learnt(run)["loss/total"] for run in (undisturbed, rounded))
    assert [near[step] for step in (1, 2, 3)] == pytest.approx([exact[step] for step in (1, 2, 3)], rel=0.01)
    before, wanted, got = (
        torch.cat([weights[name].flatten() for name in sorted(weights)])
        for weights in (fresh(run_file), weights_after(undisturbed, 3), load_file(rounded / AVERAGED_WEIGHTS))
    )
    assert 0 < (got - wanted).norm() < 0.2 * (wanted - before).norm()
    assert list(scores(rounded)["modes"]) == ["multimodal", "missingaudioonly", "missingvideoonly"]


def fresh(run_file: Path) -> dict[str, torch.Tensor]:
    cfg = load_run(run_file, "finetune")
    torch.manual_seed(cfg.train.seed)
    return dict(CAVMAEFT(cfg.model, 4).state_dict())


def test_the_audio_model_is_trained_on_clips_without_frames_as_on_the_same_clips_with_them(tiny_shards, run_file):
    folder = run_file.parent

    def drop_frames(number: int, record: dict[str, Any]) -> None:
        record |= {"frames": b"", "frame_offsets": bytes(4), "frame_times": b""}

    seen = small_shards(tiny_shards, folder / "seen", range(24), shard_clips=12)
    heard = small_shards(tiny_shards, folder / "heard", range(24), shard_clips=12, change=drop_frames)
    manifest = json.loads((heard / "manifest.json").read_text()) | {"require": "audio", "clips_without_frames": 24}
    (heard / "manifest.json").write_text(json.dumps(manifest))
    audio = "classifier.model=audio", "classifier.mode=audioonly", "train.epochs=1", "average.from_epoch=0"
    runs = [
        finetune(
            run_file, folder / name, *audio, "average.to_epoch=0", f"data.train={shards}", f"data.validation={shards}"
        )
        for name, shards in (("with", seen), ("without", heard))
    ]

    with_frames, without = (read_curves(run) for run in runs)
    assert without["loss/total"] == with_frames["loss/total"]  # bit by bit
    refused = fork_ranks(
        2, FINETUNE, str(run_file), f"run_dir={folder / 'sees'}", f"data.train={heard}", scratch=folder
    )
    assert refused.returncode == 2 and "24 of 24 clips" in refused.stdout and "have no frames" in refused.stdout


def test_the_audio_model_begins_with_a_pretrained_one_and_its_running_mean_is_scored_in_its_mode(run_file):
    folder, cfg = run_file.parent, load_run(run_file, "finetune")
    save_official(CAVMAE(cfg.model).state_dict(), folder / "pretrained.pth")
    settings = (
        "classifier.model=audio", "classifier.mode=audioonly", f"init.from_checkpoint={folder / 'pretrained.pth'}",
        "train.ema_clips=16", "average.from_epoch=0", "average.to_epoch=0", "train.epochs=1", "evaluate.frames=1",
    )  # fmt: skip

    run = finetune(run_file, folder / "audio", *settings, "ds_config=ds_configs/zero3.json")

    mean = load_model(run, ema=True)
    written, said = scores(run, "ema.classification.json"), (run / "said.txt").read_text()
    assert mean.kind == "finetune-audio" and "scores of the running mean of the weights" in said
    assert "(pretrain); 4 start fresh (mlp_head.0.weight" in said
    assert list(written["modes"]) == ["audioonly"] and written["ema"] and not (run / AVERAGED_WEIGHTS).exists()
    clips = EvaluationClips(str(folder / "held-out"), inputs(mean.config))
    batch = collate([clips[place] for place in range(7)])
    with torch.inference_mode():
        logits = mean.model(*FrontEnd(inputs(mean.config), torch.device("cpu"))(batch))
    expected = classification_scores(one_hot(batch.labels, 4), logits.sigmoid())
    assert written["modes"]["audioonly"]["mean_average_precision"] == pytest.approx(expected.mean_average_precision)
