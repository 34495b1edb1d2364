"""When a run is started again, and when there is no point: ranks that end as they are told, under the real launcher."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cavmae_ds.launcher import supervisor
from cavmae_ds.launcher.hosts import HERE, Host
from cavmae_ds.launcher.supervisor import Supervisor, summary
from cavmae_ds.retry import Backoff
from cavmae_ds.tasks import validate_run

# Ends with the next code of the plan, after saving a checkpoint if the plan says so; "wait": stops when it is told to.
RANK = """\
import json, os, signal, sys, time
from pathlib import Path
plan = Path(sys.argv[2])
(end, step), *rest = json.loads(plan.read_text())
plan.write_text(json.dumps(rest))
assert os.environ["WORLD_SIZE"] == os.environ["LOCAL_SIZE"] == "1"
if step:
    folder = plan.parent / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()
if end == "wait":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    (plan.parent / "ready").touch()
    time.sleep(60)
sys.exit(end)
"""


def supervised(folder: Path, plan: Sequence[tuple[int | str, int]], restarts: int, **data: str) -> tuple[int, list]:
    """Exit code of a run whose attempts end by plan, (exit code, step of a new checkpoint), and what is left of it."""
    (folder / "rank.py").write_text(RANK)
    (folder / "plan.json").write_text(json.dumps(plan))
    train = {"global_batch": 2, "micro_batch": 2, "steps": 1}
    cfg = validate_run({"run_dir": str(folder), "train": train, "data": data})
    program = [str(folder / "rank.py"), str(folder / "plan.json")]
    code = Supervisor(
        program, [Host(HERE, 1)], restarts, min_hosts=1, run_dir=folder, address=cfg.checkpoint.address,
        train=cfg.train, data=cfg.data, watch=cfg.watch,
    ).run()  # fmt: skip
    return code, json.loads((folder / "plan.json").read_text())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(supervisor, "_BACKOFF", Backoff(0.1, 300.0))


def test_a_run_that_gets_further_is_started_again_and_one_that_does_not_is_given_up(tmp_path, capfd):
    code, rest = supervised(tmp_path, [(69, 0), (1, 8), (69, 0), (0, 0)], restarts=1)
    assert (code, rest) == (69, [[0, 0]])
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("launch: ")]
    assert said == [
        "launch: 1 host x 1 rank: localhost",
        "launch: ended with exit code 69 on localhost",
        "launch: restart 1 of 1 from step 0 in 0.1 s",
        "launch: 1 host x 1 rank: localhost",
        "launch: ended with exit code 1 on localhost",
        "launch: restart 1 of 1 from step 8 in 0.1 s",
        "launch: 1 host x 1 rank: localhost",
        "launch: ended with exit code 69 on localhost",
        "launch: giving up after 2 failures without a checkpoint in between (--restarts)",
    ]


@pytest.mark.parametrize("end", [2, 75])
def test_what_must_change_first_and_what_was_stopped_is_not_started_again(end, tmp_path):
    assert supervised(tmp_path, [(end, 0), (0, 0)], restarts=3) == (end, [[0, 0]])


def test_a_signal_goes_to_the_ranks_and_ends_the_run_for_good(tmp_path):
    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=send, daemon=True).start()
    assert supervised(tmp_path, [("wait", 0), (0, 0)], restarts=3) == (75, [[0, 0]])
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_restart_waits_for_a_bucket_that_is_away(tmp_path, s3_bucket, monkeypatch):
    there, said = os.environ["S3_ENDPOINT_URL"], []
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there

    def tell(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith("waiting"):  # as soon as it is missed it comes back
            os.environ["S3_ENDPOINT_URL"] = there

    monkeypatch.setattr(supervisor, "_tell", tell)
    assert supervised(tmp_path, [(69, 0), (0, 0)], restarts=1, train=f"s3://{s3_bucket}/shards") == (0, [])
    waited = [number for number, sentence in enumerate(said) if sentence.startswith("waiting for the shards: ")]
    assert waited == [len(said) - 2] and "cannot be reached at http://127.0.0.1:9" in said[-2]


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((0, 0), 0),
        ((69, 255), 69),
        ((0, 69), 69),
        ((69, 1), 1),
        ((247, 69), 247),
        ((69, 2), 2),  # its neighbours only notice that it has gone
        ((75, 69), 75),
    ],
)
def test_one_exit_code_is_made_of_those_of_all_hosts(codes, code):
    assert summary({f"node-{number}": code for number, code in enumerate(codes)}) == code
