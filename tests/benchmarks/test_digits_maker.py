"""The data set of the digits benchmark, from recordings made here."""

from __future__ import annotations

import colorsys
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from benchmarks import digits
from benchmarks.digits_maker import make_digits, read_recordings
from cavmae_ds.errors import DataError, UserError
from tests.data.official_files import SPEAKERS, write_recordings


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_made_digits_pair_recordings_with_ten_images_in_two_splits(tmp_path):
    recordings = read_recordings(write_recordings(tmp_path / "recordings"))
    make_digits(tmp_path / "out", recordings, size=32)

    listings = {
        split: json.loads((tmp_path / "out" / f"{split}.json").read_text())["data"] for split in ("train", "test")
    }
    assert {split: {clip["video_id"][-1] for clip in clips} for split, clips in listings.items()} == {
        "train": {"5"},
        "test": {"4"},
    }
    assert list(map(len, listings.values())) == [60, 60]
    for clip in listings["train"]:
        digit, speaker, _ = clip["video_id"].split("_")
        assert clip["labels"] == f"/d/{digit},/s/{speaker}"
        sound, rate_hz = soundfile.read(clip["wav"])
        assert (rate_hz, sound.shape) == (16_000, (8_000,))
        assert np.abs(np.fft.rfft(sound)).argmax() == (200 + 100 * int(digit)) / 2  # bins of 2 Hz
        for k in range(10):
            image = Image.open(Path(clip["video_path"]) / f"frame_{k}" / f"{clip['video_id']}.jpg")
            assert (image.mode, image.size) == ("RGB", (32, 32))
    classes = (tmp_path / "out" / "class_labels.csv").read_text().splitlines()
    assert (classes[1], classes[11], len(classes)) == ("0,/d/0,zero", "10,/s/george,speaker george", 17)


def test_the_ink_tells_the_speaker_only_where_asked(tmp_path):
    recordings = read_recordings(write_recordings(tmp_path / "recordings"))
    spread = {}
    for ink in ("speaker", "random"):
        make_digits(tmp_path / ink, recordings, size=64, limit=30, ink=ink)
        hues = []
        for path in (tmp_path / ink / "frames").rglob("?_nicolas_?.jpg"):  # the fourth of six: half of the circle
            pixels = np.asarray(Image.open(path)).reshape(-1, 3) / 255
            hues.append(colorsys.rgb_to_hsv(*pixels[np.ptp(pixels, axis=1).argmax()])[0])
        spread[ink] = np.abs(np.array(hues) - 0.5).max()
    assert spread["speaker"] < 0.06 < 0.3 < spread["random"]


def test_a_folder_and_a_tar_of_it_make_the_same_files_and_a_seed_repeats(tmp_path):
    folder = write_recordings(tmp_path / "recordings")
    with tarfile.open(tmp_path / "recordings.tar.gz", "w:gz") as archive:
        archive.add(folder, "any/name")
    made = []
    for recordings, seed in ((folder, 0), (tmp_path / "recordings.tar.gz", 0), (folder, 1)):
        make_digits(tmp_path / "out", read_recordings(recordings), size=32, limit=5, seed=seed)
        made.append(files_of(tmp_path / "out"))
        (tmp_path / "out").rename(tmp_path / f"out-{len(made)}")
    assert made[0] == made[1] != made[2]
    assert len([name for name in made[0] if name.endswith(".wav")]) == 10


def cut(path: Path) -> None:
    folder = write_recordings(path.with_name("recordings"))
    with tarfile.open(path, "w:xz") as archive:
        archive.add(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_without_one(path: Path) -> None:
    (write_recordings(path) / "3_theo_5.wav").unlink()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "neither a folder nor a whole tar file"),
        (lambda path: path.write_text("PK"), "neither a folder nor a whole tar file"),
        (cut, "neither a folder nor a whole tar file"),
        (lambda path: path.mkdir(), r"of 6 speakers, got 0 of 0"),
        (lambda path: write_recordings(path, SPEAKERS[:5]), r"of 6 speakers, got 100 of 5"),
        (write_without_one, r"of 6 speakers, got 119 of 6, without 3_theo_5"),
    ],
)
def test_recordings_that_are_missing_are_refused_with_where_to_get_them(tmp_path, make, words):
    make(tmp_path / "fsdd")
    with pytest.raises(DataError, match=f"--recordings .*fsdd .*{words}.*git clone .*https://github.com/Jakobovski"):
        read_recordings(tmp_path / "fsdd")


@pytest.mark.parametrize("sound", [b"RIFF", np.zeros((100, 2)), np.zeros(0)])
def test_a_recording_that_is_not_mono_sound_is_named(tmp_path, sound):
    folder = write_recordings(tmp_path / "recordings")
    if isinstance(sound, bytes):
        (folder / "3_theo_5.wav").write_bytes(sound)
    else:
        soundfile.write(folder / "3_theo_5.wav", sound, 8000)
    with pytest.raises(DataError, match=r"recording 3_theo_5\.wav"):
        make_digits(tmp_path / "out", read_recordings(folder), size=32)
    assert not (tmp_path / "out" / "class_labels.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "--recordings is needed to make the digits; `git clone --branch v1.0.10 "),
        ({"seeds": "0;1"}, "--seeds must be whole numbers"),
        ({"setting": ["embed_dim=16"]}, "--set must be SECTION.KEY=VALUE"),
        ({"setting": ["model.embed_dim=["]}, "--set model.embed_dim must have a YAML value"),
    ],
)
def test_arguments_of_the_benchmark_are_checked_before_anything_is_made(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(UserError) as refusal:
        digits.main(out=tmp_path / "digits", ranks=1, **arguments)
    assert words in str(refusal.value)
    assert not (tmp_path / "digits").exists()
