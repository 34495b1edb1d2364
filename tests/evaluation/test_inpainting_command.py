"""`cavmae inpaint`: the picture, losses and sounds that it leaves, of every kind of weights; what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image
from typer.testing import CliRunner

from cavmae_ds.cli import app
from cavmae_ds.config.load import to_yaml
from cavmae_ds.data.loading.stream import EvaluationClips
from cavmae_ds.data.transforms.log_mel import HOP_SAMPLES, MEL_BINS, WINDOW_SAMPLES, LogMel
from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.evaluation.resynthesis import check_torchaudio, sound_of
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.models.common.weights import Weights
from cavmae_ds.tasks import load_run
from cavmae_ds.weights.official import save_official
from cavmae_ds.weights.single_file import save_single_file
from tests.weights.small_models import SIZES, run_folder, small_model

OFFICIAL_SIZES = SIZES.model_copy(update={"embed_dim": 64, "num_heads": 1, "decoder_num_heads": 1})
"""Small, and of widths from which the number of heads follows."""


def inpaint(*arguments) -> str:
    outcome = CliRunner().invoke(app, ["inpaint", *map(str, arguments)], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def single_file(folder: Path, kind: str = "pretrain") -> Path:
    weights = Weights(kind, SIZES, 0 if kind == "pretrain" else 5, dict(small_model(kind).state_dict()), "made")
    save_single_file(weights, folder / "small.safetensors")
    return folder / "small.safetensors"


def official_file(folder: Path) -> Path:
    save_official(small_model("pretrain", sizes=OFFICIAL_SIZES).state_dict(), folder / "official.pth")
    return folder / "official.pth"


def finished_run(folder: Path, *more: str) -> Path:
    """A run folder whose run hid 60 % of the sound in bands, and normalised patches, unless `more` says otherwise."""
    run_folder(folder, small_model("pretrain"))
    told = {"run_dir": str(folder), "data": {"train": "shards"}, "model": SIZES.model_dump(), "train": {"steps": 10}}
    (folder / "asked.yaml").write_text(json.dumps(told))
    asked = ["mask.audio_ratio=0.6", "mask.image_ratio=0.5", "mask.audio_mode=freq", "train.seed=5", *more]
    (folder / "config.yaml").write_text(to_yaml(load_run(folder / "asked.yaml", "pretrain", asked)))
    return folder


@pytest.mark.parametrize(
    ("make", "settings", "hidden"),
    [
        (finished_run, {"audio_ratio": 0.6, "image_ratio": 0.5, "audio_mode": "freq", "seed": 5}, "60%, freq"),
        (single_file, {"audio_ratio": 0.75, "image_ratio": 0.75, "audio_mode": "unstructured", "seed": 0}, "75%"),
        (official_file, {"audio_ratio": 0.75, "image_ratio": 0.75, "audio_mode": "unstructured", "seed": 0}, "75%"),
    ],
    ids=["run folder", "single file", "official file"],
)
def test_any_weights_are_drawn_as_their_run_hid_patches_else_as_officially(
    make, settings, hidden, tmp_path, tiny_shards
):
    output = inpaint(make(tmp_path), "--data", tiny_shards, "--out", tmp_path / "new" / "drawn.png", "--clips", 3)

    assert hidden in output and "3 clips drawn" in output
    with Image.open(tmp_path / "new" / "drawn.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 1000  # not a blank page
    written = json.loads((tmp_path / "new" / "drawn.json").read_text())
    assert written.items() >= settings.items()
    normalised = make is finished_run
    assert written["normalised_pixels"] == normalised
    assert ("more than the model knows" in output) == normalised
    clips = EvaluationClips(str(tiny_shards), inputs(SIZES))
    assert [(one["index"], one["clip"]) for one in written["clips"]] == [(k, clips[k].clip_id) for k in (0, 8, 16)]
    for name in ("audio", "image"):
        mean = sum(one[f"loss_{name}"] for one in written["clips"]) / 3
        assert f"{mean:.4f}" in output


def test_what_is_asked_for_comes_before_what_the_run_did_and_masks_are_the_same_each_time(tmp_path, tiny_shards):
    run, losses = finished_run(tmp_path / "run"), {}
    for name, options in {
        "mode": ["--mode", "time"], "again": ["--mode", "time"], "ratio": ["--audio-ratio", "0.3"],
        "raw": ["--raw-pixels"],
    }.items():  # fmt: skip
        inpaint(run, "--data", tiny_shards, "--out", tmp_path / f"{name}.png", "--clips", 1, *options)
        written = json.loads((tmp_path / f"{name}.json").read_text())
        losses[name] = [one["loss_audio"] for one in written["clips"]]
        if name == "mode":
            assert (written["audio_mode"], written["audio_ratio"]) == ("time", 0.6)
        if name == "raw":
            assert written["normalised_pixels"] is False
    assert losses["mode"] == losses["again"]
    assert len({tuple(one) for one in losses.values()}) == 3


@pytest.fixture(scope="module")
def sounds(tmp_path_factory, tiny_shards):
    """Folders of the sounds of three clips, where each side is hidden as a whole, and where part of both is."""
    folder = tmp_path_factory.mktemp("sounds")
    file = single_file(folder)
    for name, options in {"audio": ["--hide", "audio"], "image": ["--hide", "image"], "both": []}.items():
        options = [*options, "--clips", 3, "--out", folder / f"{name}.png", "--sound", folder / name]
        inpaint(file, "--data", tiny_shards, *options)
    return folder


def heard(path: Path) -> torch.Tensor:
    """The raw log-mel [T, 128] of a WAV file."""
    samples, rate_hz = soundfile.read(path, dtype="float32")
    assert rate_hz == 16_000 and samples.ndim == 1
    sound = torch.from_numpy(samples)[None]
    return LogMel()(sound, torch.tensor([sound.shape[1]]), (sound.shape[1] - WINDOW_SAMPLES) // HOP_SAMPLES + 1)[0]


def test_given_sounds_are_those_of_the_clips_and_rebuilt_ones_too_where_no_sound_is_hidden(sounds, tiny_shards):
    written = json.loads((sounds / "image.json").read_text())
    clips = EvaluationClips(str(tiny_shards), inputs(SIZES))
    for one in written["clips"]:
        sound = torch.from_numpy(clips[one["index"]].audio.copy())[None]
        log_mel = LogMel()(sound, torch.tensor([sound.shape[1]]), SIZES.audio_frames)[0]  # [96, 128]
        given, left, rebuilt = (sounds / "image" / name for name in one["sounds"])
        assert heard(given).shape == log_mel.shape
        assert (heard(given) - log_mel).abs().mean() < 0.6  # of values that spread by 4.5
        assert left.read_bytes() == rebuilt.read_bytes() == given.read_bytes()
        assert one["loss_audio"] is None and one["loss_image"] > 0


def test_a_sound_that_is_hidden_is_silent_and_the_rebuilt_one_is_not(sounds):
    for one in json.loads((sounds / "audio.json").read_text())["clips"]:
        given, left, rebuilt = (soundfile.read(sounds / "audio" / name)[0] for name in one["sounds"])
        assert abs(left).max() < 1e-3 and abs(rebuilt).max() > 1e-3 and len(given) == len(left) == len(rebuilt)
        assert one["loss_image"] is None and one["loss_audio"] > 0


def test_a_sound_hidden_in_part_is_quieter_than_given_and_each_clip_has_its_own(sounds):
    given = sorted((sounds / "both").glob("*-given.wav"))
    assert [path.name for path in given] == [f"0{k}-given.wav" for k in (1, 2, 3)]
    assert len({path.read_bytes() for path in (sounds / "both").iterdir()}) == 9
    for path in given:
        left = path.with_name(path.name.replace("given", "heard"))
        assert heard(left).mean() < heard(path).mean() - 1


@pytest.mark.parametrize("windows", [1, 2, 96])
def test_the_sound_of_a_log_mel_has_its_windows(windows):
    """Speech-like noise: what real sound is closer to than the tones of the synthetic clips."""
    samples = WINDOW_SAMPLES + HOP_SAMPLES * (windows - 1)
    draw = torch.Generator().manual_seed(3)
    noise = torch.randn(1, samples, generator=draw).cumsum(1) * 0.002  # louder in the bass, as speech is
    log_mel = LogMel()(noise, torch.tensor([samples]), windows)[0]

    sound = sound_of(log_mel)

    again = LogMel()(sound[None], torch.tensor([samples]), windows)[0]
    assert sound.shape == (samples,) and again.shape == (windows, MEL_BINS)
    if windows == 96:
        assert (again - log_mel).abs().mean() < 0.25
        assert torch.equal(sound, sound_of(log_mel))


def test_sounds_without_torchaudio_are_refused_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # as if it were not there
    with pytest.raises(ConfigError, match=r"pip install -c \S+/launch/constraints\.txt torch torchaudio, or leave"):
        inpaint(tmp_path, "--data", tmp_path, "--out", tmp_path / "drawn.png", "--sound", tmp_path / "sounds")
    assert not list(tmp_path.iterdir())


def test_a_torchaudio_that_was_built_for_another_torch_is_refused_with_what_to_install(monkeypatch, tmp_path):
    """As 2.11.1 beside torch 2.11.0: its library does not load, which is an OSError."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("import ctypes\nctypes.CDLL('libtorchaudio.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    expected = r"cannot be loaded beside this torch: libtorchaudio.*; pip install -c \S+ torch torchaudio, or leave"
    with pytest.raises(ConfigError, match=expected):
        check_torchaudio()


def diverged(folder: Path) -> Path:
    model = small_model("pretrain")
    with torch.no_grad():
        model.decoder_pred_v.bias.fill_(torch.nan)
    save_single_file(Weights("pretrain", SIZES, 0, dict(model.state_dict()), "made"), folder / "diverged.safetensors")
    return folder / "diverged.safetensors"


@pytest.mark.parametrize(
    ("make", "options", "kind", "sentence"),
    [
        (lambda f: single_file(f, "finetune"), [], ConfigError, "is a classifier without a decoder"),
        (lambda f: finished_run(f, "loss.mae_weight=0"), [], ConfigError, "its decoder has learnt nothing"),
        (single_file, ["--hide", "audio", "--image-ratio", "0.5"], ConfigError, "leave it out, or --audio-ratio"),
        (single_file, ["--audio-ratio", "1.5"], ConfigError, r"--audio-ratio must lie between 0 .* got 1\.5"),
        (single_file, ["--audio-ratio", "nan"], ConfigError, "--audio-ratio must lie between 0 .* got nan"),
        (single_file, ["--audio-ratio", "1", "--image-ratio", "1"], ConfigError, "must not both be 1"),
        (single_file, ["--audio-ratio", "0", "--image-ratio", "0"], ConfigError, "must not both be 0"),
        (single_file, ["--image-ratio", "0.99"], ConfigError, "which keeps 0"),
        (single_file, ["--out", "/proc/drawn.png"], ConfigError, "cannot write '/proc/drawn.png'"),
        (single_file, ["--out", "picture.json"], ConfigError, r"must be the name of a \.png file"),
        (diverged, [], CheckpointError, "are no numbers"),
    ],
    ids=["classifier", "no decoder", "two ways", "ratio", "no number", "nothing seen", "nothing hidden", "one patch",
         "no place", "no png", "diverged"],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_one_sentence(make, options, kind, sentence, tmp_path, tiny_shards):
    arguments = ["--out", str(tmp_path / "drawn.png"), *options]
    with pytest.raises(kind, match=sentence):
        inpaint(make(tmp_path), "--data", tiny_shards, *arguments)
    assert not list(tmp_path.glob("drawn*"))
