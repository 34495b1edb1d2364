"""A host that is lost is left out, and comes back; ranks that only wait stand for a training run."""

from __future__ import annotations

import sys

import pytest

from tests.multinode.hosts import two_hosts, wait_until, why_not
from tests.ranks import CHECKOUT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

SUPERVISOR = """\
import sys
from cavmae_ds.tasks import validate_run
from cavmae_ds.launcher.hosts import Host
from cavmae_ds.launcher.supervisor import Supervisor
if __name__ == "__main__":
    cfg = validate_run({
        "run_dir": "unused", "train": {"global_batch": 2, "micro_batch": 1, "steps": 1},
        "watch": {"silence_seconds": 5}, "contrastive": {"two_pass": True},
    })
    hosts = [Host("node-a", 1), Host("node-b", 1)]
    supervisor = Supervisor(
        sys.argv[1:], hosts, restarts=3, min_hosts=1, run_dir=cfg.run_dir, address=cfg.checkpoint.address,
        train=cfg.train, data=cfg.data, watch=cfg.watch,
    )
    sys.exit(supervisor.run())
"""
# The first time together they wait; when the link is cut the rank of node-a ends, as its watch would have it. Alone it
# waits until node-b is back, and ends. The second time together both are done.
RANK = """\
import os, socket, sys, time
from pathlib import Path
folder, host = Path(sys.argv[2]), socket.gethostname()
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.1)
assert os.environ["AWS_SECRET_ACCESS_KEY"] == "hidden"
world = int(os.environ["WORLD_SIZE"])
if world == 1:
    (folder / "alone").touch()
    wait_for("back")
    sys.exit(69)
if not (folder / "back").exists():
    (folder / f"waiting-{host}").touch()
    wait_for("cut" if host == "node-a" else "never")
    sys.exit(69)
"""


def test_a_lost_host_is_left_out_of_the_next_attempt_and_taken_back_when_it_answers(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "supervisor.py").write_text(SUPERVISOR)
    log = tmp_path / "log"

    def happened(*names: str) -> bool:
        assert started.poll() is None, log.read_text()
        return all((tmp_path / name).exists() for name in names)

    with two_hosts() as (a, b):
        started = a.start(
            sys.executable, str(tmp_path / "supervisor.py"), str(tmp_path / "rank.py"), str(tmp_path),
            log=log, AWS_SECRET_ACCESS_KEY="hidden", DS_ACCELERATOR="cpu", PYTHONPATH=str(CHECKOUT),
        )  # fmt: skip
        wait_until(lambda: happened("waiting-node-a", "waiting-node-b"), 120, "no ranks")
        command_lines = [process.info["cmdline"] for process in b.processes()]
        assert command_lines and "hidden" not in str(command_lines)

        a.set_link("down")
        (tmp_path / "cut").touch()
        wait_until(lambda: happened("alone"), 120, "no attempt without node-b")
        wait_until(lambda: not b.processes(), 60, "ranks that nobody has use for")  # though nobody could tell them

        a.set_link("up")
        (tmp_path / "back").touch()
        assert started.wait(120) == 0, log.read_text()
        assert not a.processes() and not b.processes()

    said = [line for line in log.read_text().splitlines() if line.startswith("launch: ")]
    assert said[0] == "launch: 2 hosts x 1 rank: node-a, node-b"
    assert said[1] == "launch: ended with exit code 69 on node-a, 255 on node-b"
    assert said[3].startswith("launch: node-b does not answer: ")
    assert said[4] == "launch: 1 host x 1 rank: node-a"
    assert said[-1] == "launch: 2 hosts x 1 rank: node-a, node-b"
