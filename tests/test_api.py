"""The Python API: one call to load a model, one to embed videos or arrays."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cavmae_ds
from cavmae_ds.data.format.schema import decode_frame
from cavmae_ds.data.prepare.inputs import video_input
from cavmae_ds.data.prepare.media import read_clip
from cavmae_ds.errors import CheckpointError, ConfigError, DataError
from cavmae_ds.evaluation import embedding
from cavmae_ds.models.cavmae.state_dict import Kind
from cavmae_ds.models.common.weights import Weights
from cavmae_ds.weights.official import save_official
from cavmae_ds.weights.single_file import save_single_file
from tests.data.media_files import numbered_video, tone, write_media
from tests.ranks import CHECKOUT
from tests.weights.small_models import SIZES, run_folder, small_model

RATE_HZ = 44_100


def weights_file(path: Path, kind: Kind = "pretrain") -> Path:
    state = small_model(kind).state_dict()
    save_single_file(Weights(kind, SIZES, 0 if kind == "pretrain" else 5, dict(state), "made"), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run and a video, named as in the README."""
    folder = tmp_path_factory.mktemp("api")
    for name in ("mine", "base"):
        run_folder(folder / "runs" / name, small_model("pretrain"))
    numbered_video(folder / "clip.mp4", seconds=2.0)
    return folder


@pytest.fixture(scope="module")
def model(folder) -> cavmae_ds.Embedder:
    return cavmae_ds.load(folder / "runs" / "base")


@pytest.fixture(scope="module")
def deaf_to_pictures(tmp_path_factory) -> cavmae_ds.Embedder:
    return cavmae_ds.load(weights_file(tmp_path_factory.mktemp("sound") / "audio.safetensors", "finetune-audio"))


def same(one: cavmae_ds.Embedding, other: cavmae_ds.Embedding) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_importing_the_package_brings_nothing_along():
    probe = "import sys, cavmae_ds; print({'torch', 'numpy', 'av', 'pydantic'} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", probe], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="module 'cavmae_ds' has no attribute 'lode'"):
        cavmae_ds.lode  # noqa: B018


def test_the_examples_of_the_readme_and_of_the_docstring_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (lines,) = (block for block in re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.S))
    exec(lines, {})
    assert capsys.readouterr().out == "torch.Size([48]) torch.Size([48])\n"
    outcome = doctest.DocTestRunner().run(doctest.DocTestFinder().find(embedding.load, "load", globs={})[0])
    assert outcome.attempted == 4 and outcome.failed == 0


def test_a_model_comes_from_a_run_an_official_file_or_our_own(folder, model, tmp_path):
    clip = folder / "clip.mp4"
    ours = weights_file(tmp_path / "one.safetensors")
    assert same(cavmae_ds.load(ours, device="cpu").embed(clip), model.embed(clip))

    state = small_model("pretrain").state_dict()
    save_official(dict(state), tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match="48 wide"):  # what no file tells is asked for
        cavmae_ds.load(tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match="give a run folder"):
        cavmae_ds.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"clip_seconds: .* less than or equal to 30, got 31"):
        cavmae_ds.load(ours, clip_seconds=31)


def test_several_videos_are_rows_in_the_order_given(folder, model, tmp_path, monkeypatch):
    other = numbered_video(tmp_path / "other.mp4", seconds=1.5, pitch_hz=900)
    monkeypatch.setattr(embedding, "BATCH", 2)

    three = model.embed([other, str(folder / "clip.mp4"), other])

    assert three.audio.shape == three.image.shape == (3, SIZES.embed_dim)
    for row, path in enumerate((other, folder / "clip.mp4", other)):
        one = model.embed(path)
        assert torch.allclose(three.audio[row], one.audio, atol=1e-6)
        assert torch.allclose(three.image[row], one.image, atol=1e-6)
    assert not torch.allclose(three.audio[0], three.audio[1], atol=1e-3)


def test_the_sound_and_frame_that_prepare_takes_of_a_video_embed_as_the_video_does(folder, model):
    record = read_clip(video_input(folder, "clip.mp4"), model.settings)
    sound, frame = record.audio, decode_frame(record.frames[5])

    both = model.embed(waveform=sound, sample_rate=16_000, image=frame)

    assert same(both, model.embed(folder / "clip.mp4"))
    as_tensors = model.embed(waveform=torch.from_numpy(sound), sample_rate=16_000, image=torch.from_numpy(frame))
    assert same(both, as_tensors)


def test_one_modality_alone_is_embedded_as_beside_the_other(folder, model):
    record = read_clip(video_input(folder, "clip.mp4"), model.settings)
    sound, frame = record.audio, decode_frame(record.frames[5])
    both = model.embed(folder / "clip.mp4")
    heard, seen = model.embed(waveform=sound, sample_rate=16_000), model.embed(image=frame)
    assert heard.image is None and torch.equal(heard.audio, both.audio)
    assert seen.audio is None and torch.equal(seen.image, both.image)


def test_a_waveform_is_resampled_and_cut_as_the_sound_of_a_video(tmp_path, model):
    # Given a video whose sound is known sample by sample, two channels, longer than a clip
    sound = np.stack([tone(440, 11.0), tone(700, 11.0)]) * np.linspace(0.2, 1, round(11 * RATE_HZ))
    frames = [np.full((64, 64, 3), 9 * k, np.uint8) for k in range(22)]
    video = write_media(tmp_path / "long.mkv", frames=frames, fps=2, sound=sound)
    samples = np.round(sound * 32767).astype(np.int16)

    # When its samples are given instead, then it is heard alike
    expected = model.embed(video).audio
    assert torch.equal(model.embed(waveform=samples, sample_rate=RATE_HZ).audio, expected)
    assert torch.equal(model.embed(waveform=samples[0] / 32768, sample_rate=RATE_HZ).audio, expected)
    assert not torch.equal(model.embed(waveform=samples[1], sample_rate=RATE_HZ).audio, expected)


def test_an_image_of_any_size_is_cut_to_a_square_of_the_models(model):
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, :90], wide[:, 100:200], wide[:, 210:] = 255, (200, 30, 60), 128  # what is seen is the middle
    square = np.full((64, 64, 3), (200, 30, 60), np.uint8)
    assert torch.allclose(model.embed(image=wide).image, model.embed(image=square).image, atol=0.05)
    assert not torch.allclose(model.embed(image=wide).image, model.embed(image=square[..., ::-1]).image, atol=0.05)


def test_a_model_that_only_hears_gives_audio_and_refuses_images(folder, deaf_to_pictures):
    one = deaf_to_pictures.embed(folder / "clip.mp4")
    several = deaf_to_pictures.embed([folder / "clip.mp4"])
    assert one.image is None and several.image is None
    assert one.audio.shape == (SIZES.embed_dim,) and several.audio.shape == (1, SIZES.embed_dim)
    with pytest.raises(DataError, match="only hears: leave out the image"):
        deaf_to_pictures.embed(image=np.zeros((64, 64, 3), np.uint8))


SECOND = np.zeros(16_000, np.float32)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "either videos, or waveform"),
        ({"clips": "a.mp4", "image": np.zeros((64, 64, 3), np.uint8)}, "either videos, or waveform"),
        ({"waveform": SECOND}, "either videos, or waveform"),
        ({"clips": []}, "at least one video, got none"),
        ({"clips": "nowhere.mp4"}, r"'nowhere.mp4' cannot be embedded: the file is missing.*\(No such file"),
        ({"waveform": SECOND, "sample_rate": 10}, "whole Hz, 1000 to 768000, got 10"),
        ({"waveform": SECOND, "sample_rate": 44_100.5}, "whole Hz, 1000 to 768000, got 44100.5"),
        ({"waveform": np.zeros((16_000, 2)), "sample_rate": 16_000}, r"\[channels, samples\], got \[16000, 2\]"),
        ({"waveform": SECOND.astype(np.int32), "sample_rate": 16_000}, "or int16, got int32"),
        ({"waveform": SECOND + 3e4, "sample_rate": 16_000}, "within -1 and 1, got 3e"),
        ({"waveform": SECOND * np.nan, "sample_rate": 16_000}, "within -1 and 1, got nan"),
        ({"waveform": SECOND[:200], "sample_rate": 16_000}, "at least 25 ms, got 200 samples at 16000 Hz"),
        ({"image": np.zeros((64, 64, 3), np.float32)}, r"RGB, got float32 \[64, 64, 3\]"),
        ({"image": np.zeros((3, 64, 64), np.uint8)}, r"RGB, got uint8 \[3, 64, 64\]"),
    ],
)
def test_what_cannot_be_embedded_is_refused_in_one_sentence(arguments, sentence, model):
    with pytest.raises(DataError, match=sentence):
        model.embed(**arguments)
