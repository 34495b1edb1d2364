"""Several machines build one data set, and processes die at any moment: the result is the same to the byte."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from functools import partial
from itertools import cycle

import numpy as np
import pytest
from streaming.base.util import merge_index

from cavmae_ds.data.format.balance import balance, read_sample_weights
from cavmae_ds.data.prepare.building import ALONE, PartsMissing, Share
from cavmae_ds.data.prepare.settings import PrepareSettings
from cavmae_ds.data.prepare.videos import prepare
from cavmae_ds.data.storage import open_store
from cavmae_ds.errors import ConfigError, DataError
from tests.data.media_files import numbered_video
from tests.data.prepare.test_prepare import clips_in, contents, group_is_alive, wait_for
from tests.ranks import fork_cavmae

SMALL = PrepareSettings(frame_size=32, inputs_per_part=2)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A table of 60 names, with labels, for two short videos."""
    folder = tmp_path_factory.mktemp("labelled")
    videos = [numbered_video(folder / f".{k}.mkv", seconds=1.2, pitch_hz=300 + 200 * k) for k in range(2)]
    rows = ["path,labels"]
    for k, video in zip(range(60), cycle(videos), strict=False):
        os.link(video, folder / f"{k:02d}.mkv")
        rows.append(f"{k:02d}.mkv,{('', 'cat', 'cat;dog')[k % 3]}")
    (folder / "all.csv").write_text("\n".join(rows))
    return folder / "all.csv"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, labelled):
    """The data set that one process makes in one go."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    prepare(labelled, out, SMALL, workers=2)
    return out


def build(labelled, out, share):
    """Runs in a process of its own, which leads a group of its own."""
    os.setsid()
    prepare(labelled, out, SMALL, workers=1, share=share)


def started(labelled, out, share=ALONE):
    # A server that has imported everything forks them: ten times five seconds are too many.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["streaming", "tests.data.prepare.test_prepare_shares"])
    process = context.Process(target=build, args=(labelled, out, share))
    process.start()
    return process


def test_shares_build_their_own_parts_and_the_last_to_end_publishes(tmp_path, labelled, undisturbed):
    out = tmp_path / "out"

    first = prepare(labelled, out, SMALL, workers=1, share=Share(1, 3))
    second = prepare(labelled, out, SMALL, workers=1, share=Share(0, 3))
    there = sorted(path.name for path in parts_in(out))
    third = prepare(labelled, out, SMALL, workers=1, share=Share(2, 3))
    again = prepare(labelled, out, SMALL, workers=1, share=Share(1, 3))

    names = [f"part-{k:05d}" for k in range(30)]
    assert first == PartsMissing(sorted({*names} - {*names[1::3]}), 30)
    assert second == PartsMissing(names[2::3], 30)
    assert there == sorted(names[0::3] + names[1::3])
    assert (third.clips, third.published, again.finished_before) == (60, True, True)
    assert contents(out) == contents(undisturbed)


def test_a_share_whose_publishing_was_lost_publishes_when_it_is_repeated(tmp_path, labelled, undisturbed):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    for name in ("index.json", "report.json", "manifest.json", "sample_weights.npy"):
        (out / name).unlink()

    report = prepare(labelled, out, SMALL, workers=1, share=Share(1, 3))

    assert report.published
    assert contents(out) == contents(undisturbed)


def test_what_was_begun_when_there_were_fewer_settings_is_continued(tmp_path, labelled, undisturbed):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    plan = json.loads((out / "prepare.json").read_text())
    for added_later in ("windows", "frame_rule", "audio_codec"):
        del plan[added_later]
    (out / "prepare.json").write_text(json.dumps(plan))

    assert prepare(labelled, out, SMALL, workers=1).finished_before
    with pytest.raises(DataError, match="audio_codec pcm16 then, flac now"):
        prepare(labelled, out, SMALL.model_copy(update={"audio_codec": "flac"}), workers=1)


def test_shares_at_once_in_a_bucket_equal_one_process_in_a_folder(labelled, undisturbed, s3_bucket):
    remote = f"s3://{s3_bucket}/clips"
    processes = [started(labelled, remote, Share(k, 2)) for k in range(2)]
    for process in processes:
        process.join(120)

    assert [process.exitcode for process in processes] == [0, 0]
    store = open_store(remote)
    assert {name: store.get_bytes(name) for name in store.names("")} == contents(undisturbed)


def test_the_same_share_is_refused_while_it_is_being_built_and_another_is_not(tmp_path, labelled):
    out, answers = tmp_path / "out", []

    def meanwhile(done, total):
        if not answers:
            with pytest.raises(DataError, match="another process is writing") as refusal:
                prepare(labelled, out, SMALL, workers=1, share=Share(0, 3))
            answers.append(refusal)
            answers.append(prepare(labelled, out, SMALL, workers=1, share=Share(1, 3)))

    prepare(labelled, out, SMALL, workers=1, share=Share(0, 3), progress=meanwhile)

    assert isinstance(answers[1], PartsMissing)


def test_the_command_says_in_one_line_what_other_shares_still_owe(tmp_path, labelled):
    options = ("--out", tmp_path / "out", "--frame-size", 32, "--workers", 1)

    wrong = fork_cavmae("prepare", labelled, *options, "--shard", "3/2")
    idle = fork_cavmae("prepare", labelled, *options, "--shard", "2/2")  # all 60 inputs are in the first part

    assert wrong.returncode == 2
    assert wrong.stderr == "cavmae: error: --shard must be i/n with 1 <= i <= n, for example 3/8, got '3/2'\n"
    assert idle.returncode == 0, idle.stderr
    assert "lacks 1 of 1 parts, the first is part-00000" in " ".join(idle.stdout.split())


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1.0/2"])
def test_a_share_that_makes_no_sense_is_refused(text):
    with pytest.raises(ConfigError, match="i/n"):
        Share.parse(text)


def test_the_index_is_the_one_that_streaming_merges(tmp_path, undisturbed):
    parts = [str(path) for path in sorted(undisturbed.glob("part-*/index.json"))]

    merge_index(parts, str(tmp_path))

    assert json.loads((tmp_path / "index.json").read_text()) == json.loads((undisturbed / "index.json").read_text())


def test_the_weights_beside_the_shards_belong_to_the_records(undisturbed):
    clips = clips_in(undisturbed)
    labels = [np.frombuffer(clip["labels"], "<i4").tolist() for clip in clips.values()]

    weights = read_sample_weights(open_store(undisturbed), len(clips))

    np.testing.assert_array_equal(weights, balance(labels, 2).sample_weights)
    assert weights[0] == 0 < weights[1] < weights[2]


def test_killed_ten_times_at_random_moments_it_ends_as_if_undisturbed(tmp_path, labelled, undisturbed):
    # Given a build that is killed ten times, with its workers or without: early, or some parts later
    out, rng, before = tmp_path / "out", random.Random(7), {}
    for k in range(10):
        process = started(labelled, out)
        parts = len(parts_in(out)) + rng.randint(0, 2)
        if k not in (0, 5):
            wait_for(lambda parts=parts: len(parts_in(out)) >= parts)
        time.sleep(rng.uniform(0, 0.3))
        kill = os.killpg if k % 2 else os.kill
        with suppress(ProcessLookupError):  # not yet the leader of a group
            kill(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        wait_for(partial(has_ended, process.pid))  # workers left alone notice and leave
        finished = {path: path.stat().st_mtime_ns for path in out.glob("part-*/*")}
        assert before.items() <= finished.items()  # a finished part is not made again
        before = finished
    assert len(parts_in(out)) > 5
    assert not (out / "index.json").exists()

    # When it is left alone at last
    prepare(labelled, out, SMALL, workers=2)

    # Then nothing is lost, doubled, or made again
    there = {name: content for name, content in contents(out).items() if not name.startswith(".")}
    assert there == contents(undisturbed)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.glob("part-*/*")}.items()


def parts_in(out):
    return list(out.glob("part-*"))


def has_ended(group):
    return not group_is_alive(group)
