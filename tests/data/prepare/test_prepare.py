"""Folders of videos become data sets: complete, repeatable, and honest about what was left out."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil
import pytest

from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.format.schema import ClipFlag, audio_of, frame_of, frame_times_of, labels_of
from cavmae_ds.data.prepare.settings import PrepareSettings
from cavmae_ds.data.prepare.videos import prepare
from cavmae_ds.errors import DataError
from tests.data.media_files import (
    cut_short,
    number_of,
    numbered_frame,
    numbered_video,
    tone,
    write_media,
)
from tests.data.stock_reader import StockReader
from tests.ranks import CAVMAE, fork_cavmae

SMALL = PrepareSettings(frame_size=72, inputs_per_part=4)


def clips_in(out):
    return {sample["clip_id"]: sample for sample in StockReader(out)}


def contents(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def rejections_in(out):
    with (out / "rejected.csv").open(newline="") as file:
        return {row["source"]: row["code"] for row in csv.DictReader(file)}


@pytest.fixture(scope="session")
def six_videos(tmp_path_factory):
    """Two-second videos that differ in tone."""
    folder = tmp_path_factory.mktemp("six")
    for k in range(6):
        numbered_video(folder / f"clip {k}.mp4", seconds=2.0, pitch_hz=200 + 100 * k)
    return folder


@pytest.fixture
def many_videos(tmp_path, six_videos):
    """Sixty names for the six videos."""
    folder = tmp_path / "many"
    folder.mkdir()
    for k, video in zip(range(60), cycle(sorted(six_videos.iterdir())), strict=False):
        os.link(video, folder / f"{k:02d}.mp4")
    return folder


def add_bad_files(folder, whole):
    """Six files of which none can be a clip; returns the reason expected for each."""
    frames = [numbered_frame(k) for k in range(30)]
    cut_short(whole, folder / "cut.mp4", 0.5)
    (folder / "notes.mp4").write_text("Remember the milk.\n" * 20)
    (folder / "zero.mp4").write_bytes(b"")
    write_media(folder / "dumb.mp4", frames=frames)
    write_media(folder / "blind.mp4", sound=tone(440, 3))
    write_media(folder / "silent.mkv", frames=frames, sound=0 * tone(440, 3))
    return {
        "cut.mp4": "truncated",
        "notes.mp4": "not_media",
        "zero.mp4": "empty_file",
        "dumb.mp4": "no_audio",
        "blind.mp4": "no_video",
        "silent.mkv": "silent_audio",
    }


@pytest.mark.parametrize("good", ["six_videos", "usual_videos"])
def test_good_videos_become_clips_and_each_bad_one_is_named_with_its_reason(tmp_path, request, good):
    # Given six good videos, one under an awkward name, among six bad ones
    folder, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(request.getfixturevalue(good), folder)
    first = min(folder.glob("*.mp4"))
    reasons = add_bad_files(folder, first)
    first.rename(folder / "-a 'so called' \"name\".mp4")

    # When they are prepared
    refused = fork_cavmae("prepare", folder, "--out", out, "--workers", 2)
    unpublished = not (out / "index.json").exists()
    accepted = fork_cavmae("prepare", folder, "--out", out, "--workers", 2, "--max-bad", 0.5)

    # Then half of the inputs is too many to lose unasked, and enough when asked for
    assert refused.returncode == 3, refused.stderr
    assert unpublished
    assert "50.0% of the inputs were rejected" in refused.stderr
    assert accepted.returncode == 0, accepted.stderr
    assert rejections_in(out) == reasons
    assert all(code in accepted.stdout for code in reasons.values())
    assert (
        f"the data set is in {out}; next: cavmae inspect {out} --out look.html, then cavmae stats {out}"
        in accepted.stdout
    )
    clips = clips_in(out)
    assert len(clips) == 6
    assert "-a 'so called' \"name\"" in clips
    for clip in clips.values():
        assert audio_of(clip).any()
        assert frame_of(clip, 9).shape == (224, 224, 3)


def test_when_no_input_becomes_a_clip_no_share_is_blamed(tmp_path):
    (tmp_path / "videos").mkdir()
    numbered_video(tmp_path / "videos" / "v.mp4", seconds=2.0)
    options = ("--audio-track", 2, "--max-bad", 1, "--workers", 1)

    refused = fork_cavmae("prepare", tmp_path / "videos", "--out", tmp_path / "out", *options)

    assert refused.returncode == 3
    assert (
        "out is not published: no input became a clip; see rejected.csv there, then mend the inputs\n" in refused.stderr
    )
    assert rejections_in(tmp_path / "out") == {"v.mp4": "no_audio"}


def test_records_hold_what_the_videos_show_and_the_table_says(tmp_path, six_videos):
    table = tmp_path / "train.csv"
    rows = [f"{video},{'beep; music' if k % 2 else ''}" for k, video in enumerate(sorted(six_videos.iterdir()))]
    table.write_text("\ufeffpath,labels\n" + "\n".join(rows) + "\n", encoding="utf-8")

    settings = PrepareSettings(frame_size=72, classes=("music", "speech", "beep"))
    report = prepare(table, tmp_path / "out", settings, workers=2)

    clips = list(clips_in(tmp_path / "out").values())
    manifest = Manifest.read((tmp_path / "out" / "manifest.json").read_bytes())
    assert (report.clips, report.rejected, report.published) == (6, {}, True)
    assert [clip["clip_id"] for clip in clips] == sorted(clip["clip_id"] for clip in clips)
    assert [labels_of(clip).tolist() for clip in clips] == [[], [0, 2]] * 3
    assert [number_of(frame_of(clips[0], k)) for k in range(10)] == [2 * k for k in range(10)]
    assert all(ClipFlag(clip["flags"]) == ClipFlag.SHORT for clip in clips)
    np.testing.assert_allclose(frame_times_of(clips[0]), [0.2 * k for k in range(10)], atol=1e-3)
    assert manifest.classes == ("music", "speech", "beep")
    assert manifest.clips == 6


def test_the_number_of_workers_does_not_change_a_byte(tmp_path, many_videos):
    prepare(many_videos, tmp_path / "one", SMALL, workers=1)
    prepare(many_videos, tmp_path / "three", SMALL, workers=3)

    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_a_run_killed_in_the_middle_and_repeated_equals_an_undisturbed_one(tmp_path, many_videos):
    # Given a run that is killed, without warning, when it has published its third part
    out, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    script = (
        "import sys; from pathlib import Path; from cavmae_ds.data.prepare.videos import PrepareSettings, prepare;"
        "settings = PrepareSettings(frame_size=72, inputs_per_part=4);"
        "prepare(Path(sys.argv[1]), sys.argv[2], settings, workers=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, many_videos, out], start_new_session=True)
    wait_for(lambda: (out / "part-00002").exists())
    process.kill()
    process.wait()
    assert not (out / "index.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*/*")}
    assert before
    wait_for(lambda: not group_is_alive(process.pid))  # its workers notice and leave

    # When the same is asked again
    prepare(many_videos, out, SMALL, workers=2)

    # Then the result is the same, and what was there was not made again
    prepare(many_videos, undisturbed, SMALL, workers=2)
    assert contents(out) == contents(undisturbed)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def group_is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def test_a_finished_data_set_is_left_alone(tmp_path, six_videos):
    first = prepare(six_videos, tmp_path / "out", SMALL, workers=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    second = prepare(six_videos, tmp_path / "out", SMALL, workers=2)

    assert (first.finished_before, second.finished_before) == (False, True)
    assert (second.clips, second.bytes) == (first.clips, first.bytes)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_other_settings_or_inputs_are_refused_where_a_data_set_was_begun(tmp_path, six_videos):
    out = tmp_path / "out"
    prepare(six_videos, out, SMALL, workers=1)
    before = contents(out)
    fewer = tmp_path / "fewer.txt"
    fewer.write_text("\n".join(map(str, sorted(six_videos.iterdir())[:5])))

    with pytest.raises(DataError, match=r"frame_size 72 then, 64 now.*another --out"):
        prepare(six_videos, out, SMALL.model_copy(update={"frame_size": 64}), workers=1)
    with pytest.raises(DataError, match="number of inputs 6 then, 5 now"):
        prepare(fewer, out, SMALL, workers=1)
    assert contents(out) == before


def test_an_input_that_hangs_is_given_up_and_one_that_kills_its_worker_is_named(tmp_path, six_videos):
    # Given two pipes that nobody writes to, so that reading them waits for ever
    folder = tmp_path / "videos"
    shutil.copytree(six_videos, folder)
    os.mkfifo(folder / "hangs.mp4")
    os.mkfifo(folder / "kills.mp4")

    def kill_the_reader():
        with reader_kept_waiting(folder / "kills.mp4"):
            [worker] = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)

    # When the only worker is killed while it reads the second
    killer = threading.Thread(target=kill_the_reader)
    killer.start()
    settings = SMALL.model_copy(update={"time_limit_s": 3.0})
    report = prepare(folder, tmp_path / "out", settings, workers=1, max_bad_share=0.5)
    killer.join()

    # Then both are named and the others are there
    assert report.clips == 6
    assert rejections_in(tmp_path / "out") == {"hangs.mp4": "timeout", "kills.mp4": "worker_crashed"}


@contextmanager
def reader_kept_waiting(pipe):
    """Waits until somebody reads the pipe, and gives him nothing."""
    ends = []

    def opened():
        with suppress(OSError):  # nobody reads yet
            ends.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return ends

    wait_for(opened)
    try:
        yield
    finally:
        os.close(ends[0])


def test_a_second_run_at_the_same_time_is_refused(tmp_path, six_videos):
    refusals = []

    def start_another(done, total):
        if not refusals:
            with pytest.raises(DataError, match="another process is writing") as caught:
                prepare(six_videos, tmp_path / "out", SMALL, workers=1)
            refusals.append(caught.value)

    report = prepare(six_videos, tmp_path / "out", SMALL, workers=1, progress=start_another)

    assert refusals
    assert report.clips == 6


def test_two_inputs_with_one_clip_id_give_one_clip(tmp_path, six_videos):
    folder = tmp_path / "videos"
    shutil.copytree(six_videos, folder)
    numbered_video(folder / "clip 3.mkv", seconds=2.0)

    report = prepare(folder, tmp_path / "out", SMALL, workers=2, max_bad_share=0.2)

    assert report.clips == 6
    assert rejections_in(tmp_path / "out") == {"clip 3.mp4": "duplicate_id"}


def test_a_name_that_is_not_utf8_is_reported_in_readable_form(tmp_path, six_videos):
    folder = tmp_path / "videos"
    shutil.copytree(six_videos, folder)
    (folder / "clip 0.mp4").rename(folder / os.fsdecode(b"caf\xe9.mp4"))

    report = prepare(folder, tmp_path / "out", SMALL, workers=1, max_bad_share=0.5)

    assert report.clips == 5
    assert rejections_in(tmp_path / "out") == {r"caf\udce9.mp4": "unreadable"}


def test_made_up_videos_become_train_and_eval_shards_that_share_class_numbers(tmp_path):
    made = tmp_path / "made"
    shape = ("--clips", 10, "--classes", 4, "--size", 64, "--seconds", 1.2)
    results = [fork_cavmae("synthesize", "--out", made, *shape)]
    for name in ("train", "eval"):
        options = ("--classes", made / "classes.txt", "--frame-size", 64)
        results.append(fork_cavmae("prepare", made / f"{name}.csv", "--out", tmp_path / name, *options))

    assert [result.returncode for result in results] == [0, 0, 0], results
    names = (made / "classes.txt").read_text().split()
    for split, clips in (("train", 8), ("eval", 2)):
        assert Manifest.read((tmp_path / split / "manifest.json").read_bytes()).classes == tuple(names)
        labels = {clip_id: labels_of(clip).tolist() for clip_id, clip in clips_in(tmp_path / split).items()}
        assert len(labels) == clips
        assert all(f"videos/{names[number]}-" in clip_id for clip_id, [number] in labels.items())


@contextmanager
def preparing_what_hangs(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The command, and a pipe that it takes for a video; what it says and how it ends is checked afterwards."""
    video = tmp_path / "videos" / "hangs.mp4"
    video.parent.mkdir()
    os.mkfifo(video)
    process = subprocess.Popen(
        [CAVMAE, "prepare", video.parent, "--out", tmp_path / "out"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    yield process, video
    assert process.returncode == 130
    wait_for(lambda: not group_is_alive(process.pid))


def interrupt(process: subprocess.Popen[str]) -> str:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    return process.communicate(timeout=20)[1]


def test_an_interrupted_command_ends_at_once_and_leaves_no_process(tmp_path):
    with preparing_what_hangs(tmp_path) as (process, video), reader_kept_waiting(video):
        assert "Traceback" not in interrupt(process)


def test_so_does_one_whose_decoding_processes_are_just_starting(tmp_path):
    with preparing_what_hangs(tmp_path) as (process, _):
        wait_for(lambda: any("spawn_main" in " ".join(one.cmdline()) for one in psutil.Process(process.pid).children()))
        time.sleep(0.1)  # they import now
        assert "Traceback" not in interrupt(process)


def test_the_command_line_says_what_must_change_in_one_sentence(tmp_path):
    missing = fork_cavmae("prepare", tmp_path / "nowhere", "--out", tmp_path / "out")
    no_classes = fork_cavmae("prepare", tmp_path, "--out", tmp_path / "out", "--classes", tmp_path / "no.txt")

    for result, words in ((missing, "neither a folder"), (no_classes, "--classes")):
        assert result.returncode == 2
        assert result.stderr.startswith("cavmae: error: ")
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_index_names_every_shard_with_its_hash(tmp_path, many_videos):
    prepare(many_videos, tmp_path / "out", SMALL, workers=2)

    shards = json.loads((tmp_path / "out" / "index.json").read_bytes())["shards"]

    assert sum(shard["samples"] for shard in shards) == 60
    for shard in shards:
        data = shard["raw_data"]
        assert (tmp_path / "out" / data["basename"]).stat().st_size == data["bytes"]
        assert list(data["hashes"]) == ["xxh3_64"]
