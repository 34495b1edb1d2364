"""Ranks of one host: who can connect to them, and that they refuse a start together."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

from tests.ranks import fork_ranks, fork_script

WORKER = Path(__file__).with_name("listening_worker.py")


def test_the_ranks_of_one_host_listen_on_127_0_0_1_alone_and_refuse_together(tmp_path):
    out = tmp_path / "listening.json"
    finished = fork_ranks(2, WORKER, str(out), scratch=tmp_path)
    assert finished.returncode == 0, finished.stdout
    listening, reached = json.loads(out.read_text())
    assert {host for host, _ in listening} == {"127.0.0.1"} and len(listening) >= 3  # the store, gloo of each rank
    assert not reached
    for rank in range(2):  # what one rank alone refuses
        assert f"rank {rank} refuses: {socket.gethostname()}: no room" in finished.stdout


def test_a_port_that_another_run_has_is_one_sentence(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        rank = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2}
        for name, value in rank.items():
            monkeypatch.setenv(name, str(value))
        finished = fork_script(WORKER, "listening.json")
    *_, error = finished.stderr.splitlines()
    assert re.search(rf"ConfigError: .* at port {port} \(Address already in use\).*--master_port", error), (
        finished.stderr
    )
