"""Inputs as they come, all at once: each becomes a clip with its flags or is refused for its own reason."""

import pytest

from cavmae_ds.data.format.schema import ClipFlag, audio_of, frame_of
from cavmae_ds.data.prepare.rejects import RejectCode
from cavmae_ds.data.prepare.settings import PrepareSettings
from cavmae_ds.data.prepare.videos import prepare
from tests.data.nasty_corpus import write_corpus
from tests.data.prepare.test_prepare import clips_in, rejections_in
from tests.ranks import fork_cavmae

SHORT = ClipFlag.SHORT
OUTCOMES = {
    "-a 'so called' \"name\" %d:.mp4": SHORT,
    "0.3 s.mkv": RejectCode.TOO_SHORT,
    "3 minutes.mkv": ClipFlag(0),
    "5.1.mkv": SHORT,
    "8000 Hz.mkv": SHORT,
    "96000 Hz.mkv": SHORT,
    r"caf\udce9.mp4": RejectCode.UNREADABLE,
    "cover art.mp4": RejectCode.NO_VIDEO,
    "cut.mkv": RejectCode.TRUNCATED,
    "cut before the index.mp4": RejectCode.TRUNCATED,
    "dangling.mp4": RejectCode.UNREADABLE,
    "empty.mp4": RejectCode.EMPTY_FILE,
    "folder.mp4": RejectCode.UNREADABLE,
    "from 1.5 s.ts": SHORT,
    "grey.mkv": SHORT,
    "huge.mkv": RejectCode.TOO_LARGE,
    "loop.mp4": RejectCode.UNREADABLE,
    "lying.avi": SHORT,
    "missing.mp4": RejectCode.UNREADABLE,
    "no key frame first.ts": SHORT,  # from its key frame on
    "no picture.mp4": RejectCode.NO_VIDEO,
    "no sound.mp4": RejectCode.NO_AUDIO,
    "odd size.mkv": SHORT,
    "one pixel.mkv": SHORT,
    "pipe nobody writes to.mp4": RejectCode.TIMEOUT,
    "portrait.mp4": SHORT,
    "rotated.mp4": SHORT | ClipFlag.ROTATED,
    "silent.mkv": RejectCode.SILENT_AUDIO,
    "sound apart.mkv": RejectCode.NO_AV_OVERLAP,
    "sound late.mkv": SHORT | ClipFlag.AV_OFFSET_FILLED,
    "sound longer.mkv": SHORT,
    "sound shorter.mkv": SHORT,
    "spoilt a little.mp4": SHORT | ClipFlag.SOME_CORRUPT_FRAMES,
    "spoilt picture.mp4": RejectCode.CORRUPT_VIDEO,
    "spoilt sound.mp4": RejectCode.CORRUPT_AUDIO,
    "still.mkv": SHORT | ClipFlag.REPEATED_FRAMES,
    "ten bit.mkv": SHORT,
    "text.mp4": RejectCode.NOT_MEDIA,
    "twice.mkv": SHORT,
    "twice.mp4": RejectCode.DUPLICATE_ID,
    "uneven.mkv": SHORT | ClipFlag.VARIABLE_RATE | ClipFlag.REPEATED_FRAMES,
    "vp9.webm": SHORT,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def outcomes_in(out):
    found = {name.partition("@")[0]: RejectCode(code) for name, code in rejections_in(out).items()}
    for clip in clips_in(out).values():
        assert audio_of(clip).any()
        assert frame_of(clip, 9).shape == (64, 64, 3)
        found[clip["source"]] = ClipFlag(clip["flags"])
    return found


def test_every_input_of_the_corpus_has_its_own_outcome(tmp_path, corpus):
    options = ("--frame-size", 64, "--workers", 2, "--time-limit", 6, "--max-bad", 0.9)

    result = fork_cavmae("prepare", corpus, "--out", tmp_path, *options)

    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert outcomes_in(tmp_path) == OUTCOMES
    assert set(RejectCode) - set(OUTCOMES.values()) == {
        RejectCode.WORKER_CRASHED,
        RejectCode.UNKNOWN_LABEL,
        RejectCode.ENCRYPTED,
    }


def test_the_outcomes_are_the_same_in_windows_but_three_minutes_are_eighteen_clips(tmp_path, corpus):
    settings = PrepareSettings(frame_size=64, windows=True, time_limit_s=6)

    report = prepare(corpus, tmp_path, settings, workers=2, max_bad_share=0.9)

    assert outcomes_in(tmp_path) == OUTCOMES
    assert report.inputs == len(OUTCOMES)
    assert report.clips == sum(isinstance(outcome, ClipFlag) for outcome in OUTCOMES.values()) + 17
