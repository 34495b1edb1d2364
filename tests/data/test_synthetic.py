"""Made-up videos: repeatable, different within a class, and a class can be told by eye and by ear."""

import csv

import av
import numpy as np
import pytest

from cavmae_ds.data.format.schema import decode_frame
from cavmae_ds.data.prepare.inputs import VideoInput
from cavmae_ds.data.prepare.media import read_clip
from cavmae_ds.data.prepare.settings import PrepareSettings
from cavmae_ds.data.synthetic import KINDS, synthesize
from cavmae_ds.errors import ConfigError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """64 videos of all classes, half of them to evaluate on."""
    folder = tmp_path_factory.mktemp("made")
    synthesize(folder, clips=64, seconds=1.6, size=64, eval_share=0.5, workers=2)
    return folder


def rows_of(table):
    with table.open(newline="") as file:
        return [(row["path"], row["labels"]) for row in csv.DictReader(file)]


def clip_of(path):
    return read_clip(VideoInput(clip_id="id", source=path.name, path=str(path)), PrepareSettings(frame_size=64))


def test_every_video_has_the_length_and_size_that_were_asked_for(made):
    with av.open(str(made / "videos" / "circle-000000.mp4")) as video:
        assert {stream.codec_context.name for stream in video.streams} == {"h264", "aac"}
    clip = clip_of(made / "videos" / "circle-000000.mp4")

    assert len(clip.audio) == round(1.6 * 16_000)
    np.testing.assert_allclose(clip.frame_times, [0.16 * i for i in range(10)], atol=1e-6)
    assert decode_frame(clip.frames[0]).shape == (64, 64, 3)


def test_both_splits_hold_every_class_and_share_no_video(made):
    train, evaluation = rows_of(made / "train.csv"), rows_of(made / "eval.csv")
    names = (made / "classes.txt").read_text().split()

    assert names == [kind.name for kind in KINDS]
    assert {label for _, label in train} == {label for _, label in evaluation} == set(names)
    assert (len(train), len(evaluation)) == (32, 32)
    paths = [path for path, _ in train + evaluation]
    assert len(set(paths)) == 64
    assert all((made / path).is_file() for path in paths)


def test_a_video_depends_on_seed_and_number_only(made, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    synthesize(same, clips=9, seconds=1.6, size=64, workers=1)
    synthesize(other, clips=9, seconds=1.6, size=64, workers=1, seed=1)

    for name in ("circle-000000.mp4", "circle-000008.mp4", "beam-000007.mp4"):
        assert (same / "videos" / name).read_bytes() == (made / "videos" / name).read_bytes()
        assert (other / "videos" / name).read_bytes() != (made / "videos" / name).read_bytes()


def test_videos_of_one_class_differ_in_sound_and_picture(made):
    first, second = (clip_of(made / "videos" / f"star-{k:06d}.mp4") for k in (3, 11))

    assert abs(np.corrcoef(first.audio, second.audio)[0, 1]) < 0.5
    pictures = [decode_frame(clip.frames[0]).astype(float) for clip in (first, second)]
    assert abs(pictures[0] - pictures[1]).mean() > 20


@pytest.mark.parametrize("sense", ["eye", "ear"])
def test_the_nearest_class_average_is_far_better_than_chance(made, sense):
    """Enough is in the data to be learned: even colour histograms and mean spectra tell classes apart."""

    def features(path):
        clip = clip_of(made / path)
        if sense == "ear":
            windows = clip.audio[: len(clip.audio) // 512 * 512].reshape(-1, 512) / 32768
            power = np.abs(np.fft.rfft(windows * np.hanning(512)))[:, :256] ** 2
            bands = np.log(power.reshape(len(power), 64, 4).mean(-1) + 1e-6)  # [windows, 64]
            return np.concatenate([bands.mean(0), bands.std(0)])
        colours = np.concatenate([decode_frame(jpeg).reshape(-1, 3) for jpeg in clip.frames])
        return np.histogramdd(colours, bins=5, range=[(0, 256)] * 3, density=True)[0].ravel() ** 0.5

    names = [kind.name for kind in KINDS]
    train, evaluation = rows_of(made / "train.csv"), rows_of(made / "eval.csv")
    centres = np.stack([np.mean([features(p) for p, label in train if label == n], axis=0) for n in names])

    guesses = [names[np.argmin(((centres - features(path)) ** 2).sum(1))] for path, _ in evaluation]

    right = np.mean([guess == label for guess, (_, label) in zip(guesses, evaluation, strict=True)])
    assert right > 0.4  # chance is 0.125


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"classes": 9}, "classes must lie between 1 and 8, got 9"),
        ({"size": 65}, "size must be an even number of pixels between 16 and 1024, got 65"),
        ({"seconds": 0.5}, "seconds and fps must lie between 1 and 60, got 0.5 and 12.5"),
        ({"clips": 2, "eval_share": 1.0}, "leave a clip to train on, got 2 and 1.0"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_with_what_is_allowed(tmp_path, wish, complaint):
    with pytest.raises(ConfigError, match=complaint):
        synthesize(tmp_path / "out", **wish)
    assert not (tmp_path / "out").exists()
