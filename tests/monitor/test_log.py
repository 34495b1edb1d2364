"""log.jsonl and TensorBoard's files outlive whoever writes them: killed processes, resumes, a full disk."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.errors import DataError
from cavmae_ds.evaluation.roc_curves import read_curves
from cavmae_ds.monitor.curves import Curves
from cavmae_ds.monitor.log import LOG, LogWriter, read_log


@contextmanager
def no_file_may_grow_beyond(size: int) -> Iterator[None]:
    """As if the disk were full: the system refuses to write behind so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(kept=st.integers(0, 400), lines=st.integers(0, 3))
def test_a_line_that_was_cut_by_a_kill_is_no_point_and_does_not_spoil_the_next_one(tmp_path_factory, kept, lines):
    path = tmp_path_factory.mktemp("log") / LOG
    writer = LogWriter(path)
    for step in range(1, lines + 1):
        writer.write(step, {"loss/total": step / 3, "data/bad_clips": 0.0})
    writer.close()
    content = path.read_bytes()[:kept]  # what had reached the disk
    whole = content.count(b"\n")
    path.write_bytes(content)
    assert [point["step"] for point in read_log(path.parent)] == list(range(1, whole + 1))

    writer = LogWriter(path)
    writer.write(7, {"loss/total": 7 / 3})
    writer.close()

    points = read_log(path.parent)
    assert [point["step"] for point in points] == [*range(1, whole + 1), 7]
    assert points[-1]["loss/total"] == 7 / 3  # to the last bit
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_points_after_the_checkpoint_give_way_to_those_of_the_resumed_run_and_events_stay(tmp_path):
    writer = LogWriter(tmp_path / LOG)
    writer.write(0, {"event": "start"})
    for step in (1, 2, 3):
        writer.write(step, {"loss/total": float(step)})
    writer.write(3, {"event": "bad clip", "line": "clip 'a'"})
    writer.write(2, {"event": "resume"})
    writer.write(3, {"loss/total": 30.0})

    entries = read_log(tmp_path)

    assert [(e["step"], e.get("loss/total", e.get("event"))) for e in entries] == [
        (0, "start"), (1, 1.0), (2, 2.0), (3, "bad clip"), (2, "resume"), (3, 30.0),
    ]  # fmt: skip


def test_what_is_no_number_is_null_for_json_knows_no_nan(tmp_path):
    LogWriter(tmp_path / LOG).write(1, {"loss/total": math.nan, "optim/grad_norm": math.inf, "optim/lr": 1e-4})

    (point,) = read_log(tmp_path)
    assert (point["loss/total"], point["optim/grad_norm"], point["optim/lr"]) == (None, None, 1e-4)
    assert "NaN" not in (tmp_path / LOG).read_text()


def test_a_folder_without_a_log_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"log\.jsonl.*run folder"):
        read_log(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own writer
def test_a_full_disk_costs_points_and_is_said_once_and_the_run_draws_on_when_there_is_room(tmp_path, capfd):
    curves = Curves(tmp_path, 0)
    curves.draw(1, {"loss/total": 1.0})
    written = (tmp_path / LOG).stat().st_size
    with no_file_may_grow_beyond(written + 10):
        for step in (2, 3):
            curves.draw(step, {"loss/total": float(step)})
            curves.picture("reconstructions", np.zeros((64, 64, 3), np.uint8), step)
    assert (tmp_path / LOG).stat().st_size == written  # no half a line
    for step in (4, 5):
        curves.draw(step, {"loss/total": float(step)})
    curves.close()

    drawn = {1: 1.0, 4: 4.0, 5: 5.0}
    assert {point["step"]: point["loss/total"] for point in read_log(tmp_path)} == drawn
    assert read_curves(tmp_path)["loss/total"] == drawn
    assert capfd.readouterr().out.count("curves cannot be written") == 1


def test_a_resumed_run_purges_what_tensorboard_held_after_the_checkpoint(tmp_path: Path):
    for begin, steps in ((0, (1, 2, 3)), (1, (2,))):
        curves = Curves(tmp_path, begin)
        for step in steps:
            curves.draw(step, {"loss/total": 10.0 * begin + step})
        curves.close()

    assert read_curves(tmp_path)["loss/total"] == {1: 1.0, 2: 12.0}  # 3 is not drawn: nobody has come so far again
