"""`cavmae evaluate` on models of every kind: what it writes, against sums made clip by clip, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from cavmae_ds.cli import app
from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.clips import collate, decode_clip
from cavmae_ds.data.loading.shard_cache import ShardCache
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.errors import CheckpointError, ConfigError, DataError, UserError
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.models.cavmae.state_dict import Kind
from cavmae_ds.models.common.weights import Weights
from cavmae_ds.weights.load import load_model
from cavmae_ds.weights.single_file import save_single_file
from tests.weights.small_models import SIZES, run_folder, small_model

CPU = torch.device("cpu")
TOLD = "loss: {kind: bce}\nclassifier: {mode: multimodal}\n"


def evaluate(*arguments) -> str:
    outcome = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def single_file(path: Path, kind: Kind, model: torch.nn.Module | None = None) -> Path:
    model = model or small_model(kind)
    save_single_file(Weights(kind, SIZES, 0 if kind == "pretrain" else 5, dict(model.state_dict()), "made"), path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished finetuning run, as far as its averaged weights are concerned."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(TOLD)
    single_file(folder / "averaged.safetensors", "finetune")
    return folder


@torch.inference_mode()
def one_clip_at_a_time(weights: Path, shards: Path, frames: range) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N], and logits [F, N, 5] of each of these frames."""
    records, model, front_end = (
        ShardCache([str(shards)], DataConfig()),
        load_model(weights).model,
        FrontEnd(inputs(SIZES), CPU),
    )
    labels, logits = [], []
    for place in range(24):
        clip = decode_clip(records[place], inputs(SIZES), clip_index=place, epoch=0)
        clips = [clip._replace(frames=clip.frames[frame : frame + 1]) for frame in frames]
        labels.append(int(clips[0].labels[0]))
        logits.append(torch.cat([model(*front_end(collate([clip]))) for clip in clips]))
    return np.array(labels), torch.stack(logits, 1).numpy()


def test_averaged_weights_are_scored_by_the_mean_probability_of_ten_frames_in_every_mode(run, tiny_shards):
    output = evaluate(run / "averaged.safetensors", "--data", tiny_shards, "--mode", "all")

    scores = json.loads((run / "averaged.classification.json").read_text())
    assert list(scores["modes"]) == ["multimodal", "audioonly", "videoonly", "missingaudioonly", "missingvideoonly"]
    labels, logits = one_clip_at_a_time(run / "averaged.safetensors", tiny_shards, range(10))
    probabilities, truth = 1 / (1 + np.exp(-logits)), np.eye(5)[labels]
    expected = [average_precision_score(truth[:, k], probabilities.mean(0)[:, k]) for k in range(4)]
    found = scores["modes"]["multimodal"]
    assert [one["average_precision"] for one in found["classes"]] == [*map(pytest.approx, expected), None]
    assert found["mean_average_precision"] == pytest.approx(np.mean(expected))
    assert found["frames"] == list(range(10)) and found["scored_classes"] == 4
    for frame, alone in found["by_frame"].items():
        assert alone["accuracy"] == (probabilities[int(frame)].argmax(1) == labels).mean()
    assert len({alone["mean_average_precision"] for alone in found["by_frame"].values()}) > 1
    assert scores["modes"]["audioonly"]["frames"] == []  # a frame is not looked at
    assert scores["probabilities"] == "sigmoid" and "1 of 5 classes have no clip and are left out" in output
    names = [one["name"] for one in found["classes"]]
    assert names[4] == "class 4" and names[0] in output and f"{found['mean_average_precision']:.2%}" in output

    for mode in scores["modes"]:
        with Image.open(run / f"averaged.classification-{mode}.png") as picture:
            assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 100  # not a blank page


def test_one_frame_is_the_middle_one_and_mode_loss_and_frames_are_taken_from_the_run(tiny_shards, tmp_path):
    run_folder(tmp_path, small_model("finetune"))
    (tmp_path / "config.yaml").write_text("loss: {kind: ce}\nclassifier: {mode: multimodal}\nevaluate: {frames: 1}\n")

    evaluate(tmp_path, "--data", tiny_shards)

    scores = json.loads((tmp_path / "classification.json").read_text())
    assert list(scores["modes"]) == ["multimodal"] and scores["probabilities"] == "softmax"
    labels, logits = one_clip_at_a_time(tmp_path, tiny_shards, range(5, 6))
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum(1, keepdims=True)
    found = scores["modes"]["multimodal"]
    assert found["frames"] == [5] and found["accuracy"] == (probabilities.argmax(1) == labels).mean()
    expected = [average_precision_score(labels == k, probabilities[:, k]) for k in range(4)]
    assert found["mean_average_precision"] == pytest.approx(np.mean(expected))


def test_a_file_alone_is_scored_by_softmax_where_every_clip_has_one_class(tmp_path, tiny_shards):
    file = single_file(tmp_path / "alone.safetensors", "finetune")
    evaluate(file, "--data", tiny_shards, "--mode", "audioonly")
    assert json.loads((tmp_path / "alone.classification.json").read_text())["probabilities"] == "softmax"


def test_a_finetuned_model_retrieves_by_its_features_whatever_its_number_of_classes(run, tiny_shards):
    evaluate(run / "averaged.safetensors", "--data", tiny_shards, "--what", "retrieval", "--frames", "10")
    scores = json.loads((run / "averaged.retrieval.json").read_text())
    assert scores["pool"] == 24 and scores["frames"] == list(range(10)) and scores["ties"] == "against the query"
    assert scores["chance_class_precision_at_1"] == 0.25


def test_only_classes_that_begin_as_asked_are_compared(tmp_path, tiny_shards):
    file = single_file(tmp_path / "base.safetensors", "pretrain")
    first = json.loads((tiny_shards / "manifest.json").read_text())["classes"][0]
    evaluate(file, "--data", tiny_shards, "--classes-by", first)
    scores = json.loads((tmp_path / "base.retrieval.json").read_text())
    assert scores["chance_class_precision_at_1"] == 1 / 16  # 6 of 24 clips, with one another


def diverged(folder: Path) -> Path:
    model = small_model("finetune")
    with torch.no_grad():
        model.mlp_head[1].bias.fill_(torch.nan)
    return single_file(folder / "diverged.safetensors", "finetune", model)


@pytest.mark.parametrize(
    ("make", "options", "kind", "sentence"),
    [
        (lambda f: single_file(f / "m.safetensors", "pretrain"), ["--what", "classification"], ConfigError,
         "is no classifier"),
        (lambda f: single_file(f / "m.safetensors", "finetune"), ["--probabilities", "softmax", "--mode", "deaf"],
         ConfigError, "--mode must be all or of multimodal, audioonly"),
        (lambda f: single_file(f / "m.safetensors", "finetune-audio"),
         ["--probabilities", "softmax", "--mode", "videoonly"], ConfigError, "of audioonly, missingaudioonly for this"),
        (lambda f: single_file(f / "m.safetensors", "finetune-audio"), ["--what", "retrieval"], ConfigError,
         "only hears"),
        (lambda f: single_file(f / "m.safetensors", "pretrain"), ["--classes-by", "/s/"], ConfigError,
         "begins with '/s/'; the shards name"),
        (diverged, ["--probabilities", "sigmoid"], CheckpointError, "are no numbers"),
        (lambda f: f / "none.safetensors", [], CheckpointError, "cannot read|No such file"),
    ],
    ids=["no classifier", "no mode", "no eyes", "no frames", "no class", "not finite", "no file"],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused_in_one_sentence(make, options, kind, sentence, tmp_path, tiny_shards):
    assert issubclass(kind, UserError)
    with pytest.raises(kind, match=sentence):
        CliRunner().invoke(
            app, ["evaluate", str(make(tmp_path)), "--data", str(tiny_shards), *options], catch_exceptions=False
        )
    assert not list(tmp_path.glob("*.json"))


def test_shards_of_more_classes_than_the_model_has_are_refused(tmp_path, tiny_shards):
    model = small_model("finetune").state_dict()
    head = {name: tensor[:3].clone() for name, tensor in model.items() if name.startswith("mlp_head.1")}
    save_single_file(Weights("finetune", SIZES, 3, dict(model) | head, "made"), tmp_path / "three.safetensors")
    with pytest.raises(DataError, match=r"name 4 classes, the model in .* has 3; prepare the clips with the list"):
        evaluate(tmp_path / "three.safetensors", "--data", tiny_shards)
