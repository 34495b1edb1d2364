"""What leaves the process: no password, no control byte; and starts on a disk or with streams that are not there."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cavmae_ds.errors import for_display, values_without_secrets, without_secrets
from cavmae_ds.monitor.curves import Curves
from cavmae_ds.monitor.log import LOG, LogWriter, read_log
from cavmae_ds.terminal import log_to_stderr
from tests.ranks import PRETRAIN, fork_cavmae, fork_script

PASSWORD = "hun/t#er?2@"


@pytest.fixture
def endpoint_with_password(monkeypatch) -> str:
    """Nobody listens there."""
    endpoint = f"http://user:{PASSWORD}@127.0.0.1:9"
    monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
    return endpoint


def run_file(folder: Path, **sections: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(json.dumps({"run_dir": str(folder / "run"), "train": {"steps": 1}, **sections}))
    return path


def test_a_password_in_the_endpoint_stands_in_nothing_that_is_printed_or_written(endpoint_with_password, tmp_path):
    run = run_file(tmp_path, data={"train": "s3://bucket/x"})
    commands = [
        fork_cavmae("inspect", "s3://bucket/x"),
        fork_cavmae("doctor", run, "--seconds", 10, "--json", tmp_path / "found.json"),
        fork_script(PRETRAIN, run),
    ]
    for done in commands:
        assert done.returncode == 2
        assert "127.0.0.1:9" in done.stdout + done.stderr and "hun" not in done.stdout + done.stderr
    assert "127.0.0.1:9" in (tmp_path / "found.json").read_text()
    assert "hun" not in (tmp_path / "found.json").read_text()


def test_no_log_holds_a_password_also_not_in_a_traceback(endpoint_with_password, tmp_path, monkeypatch, capsys):
    LogWriter(tmp_path / LOG).write(1, {"event": "checkpoint", "failure": f"nobody at {endpoint_with_password}/x"})
    assert read_log(tmp_path)[0]["failure"] == "nobody at http://***@127.0.0.1:9/x"

    monkeypatch.setattr(logging.root, "handlers", [])
    log_to_stderr(logging.WARNING)
    try:
        raise ValueError(f"invalid endpoint {endpoint_with_password}")
    except ValueError:
        logging.getLogger("test").exception("\x1b[31mfailed")
    printed = capsys.readouterr().err
    assert "hun" not in printed and "Traceback" in printed and printed.startswith("\\x1b[31mfailed")


@pytest.mark.parametrize("text", ["s3://a@b@bucket/x", "see 'https://me:p@ss@host:9000/bucket?x' and token=abc"])
def test_what_is_before_the_last_at_sign_of_a_host_is_left_out(text):
    assert not {"a@b", "p@ss", "abc"} & set(without_secrets(text).replace("'", " ").replace("/", " ").split())
    assert "***@" in without_secrets(text)
    assert values_without_secrets({"a": [text, 1, None]}) == {"a": [without_secrets(text), 1, None]}


def test_control_characters_are_shown_as_python_writes_them():
    assert for_display("a\x1b[31m\x9b\r\n\tü漢\udcff\u202e") == "a\\x1b[31m\\x9b\\r\n\tü漢\\udcff\\u202e"


@pytest.mark.parametrize("name", ["/proc/x", "/dev/null", "file/run", "n" * 256])
def test_a_run_dir_that_cannot_be_made_is_one_sentence(name, tmp_path):
    (tmp_path / "file").touch()

    done = fork_script(PRETRAIN, run_file(tmp_path, data={"train": "shards"}), f"run_dir={tmp_path / name}")

    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"pretrain: error: run_dir: cannot write '{tmp_path / name}': ")


def test_a_process_whose_streams_were_closed_ends_as_it_should(tmp_path):
    program = (
        "from cavmae_ds.terminal import open_standard_streams; open_standard_streams();"
        "file = open('file', 'w'); assert file.fileno() > 2, file; print('x');"
        "import sys; sys.stdout = None; from cavmae_ds.fault_tolerance.exit import leave; leave(0)"
    )
    closed = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", program]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run(closed, cwd=tmp_path, env=here).returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_a_run_folder_that_is_deleted_is_made_again_and_that_is_said_once(tmp_path, capfd):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("train: {steps: 9}\n")
    curves = Curves(run_dir, 0)
    curves.draw(1, {"loss/total": 1.0})
    shutil.rmtree(run_dir)
    for step in (2, 3):
        curves.draw(step, {"loss/total": float(step)})
    curves.close()

    assert (run_dir / "config.yaml").read_text() == "train: {steps: 9}\n"
    assert [point["step"] for point in read_log(run_dir)] == [2, 3]
    assert list((run_dir / "tensorboard").iterdir())
    printed = "".join(capfd.readouterr())
    assert printed.count("was deleted") == 1 and "Traceback" not in printed


def test_a_folder_of_curves_that_cannot_be_written_is_one_line_at_its_begin_and_one_at_its_end(tmp_path, capfd):
    curves = Curves(tmp_path, 0)
    curves.draw(1, {"loss/total": 1.0})
    shutil.move(tmp_path / "tensorboard", tmp_path / "aside")
    (tmp_path / "tensorboard").touch()  # the same to TensorBoard as a file system that became read-only
    for step in range(2, 12):
        curves.draw(step, {"loss/total": float(step)})
    (tmp_path / "tensorboard").unlink()
    for step in (12, 13):
        curves.draw(step, {"loss/total": float(step)})
    curves.close()

    assert [point["step"] for point in read_log(tmp_path)] == list(range(1, 14))
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed and len(printed.strip().splitlines()) == 2, printed
    assert printed.index("curves cannot be written") < printed.index("curves are written again")
