"""Ranks that die, freeze, get stuck or give up are named by the others: watches of one process on a real store."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from torch.distributed import PrefixStore, Store, TCPStore

from cavmae_ds.config.sections.watch import WatchConfig
from cavmae_ds.fault_tolerance.heartbeat_monitor import Watch
from cavmae_ds.fault_tolerance.heartbeat_store import Beat, Board
from tests.ranks import CHECKOUT

CFG = WatchConfig().model_copy(update={"silence_seconds": 3.0})  # no user may be so impatient


class Ranks:
    """Watches on one store; each notes the exit code with which it would have ended its process."""

    def __init__(self, folder: Path):
        self._server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._stacks = folder / "stacks"
        self.codes: dict[int, int] = {}
        self.watches: list[Watch] = []

    def store(self) -> Store:
        return PrefixStore("watch", TCPStore("127.0.0.1", self._server.port, is_master=False))

    def start(self, rank: int, size: int, cfg: WatchConfig = CFG) -> Watch:
        def end(code: int) -> None:
            self.codes[rank] = code

        self.watches.append(Watch(cfg, rank, size, self._stacks, self.store(), end))
        return self.watches[-1]

    def until(self, happened: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.codes
            time.sleep(0.02)


@pytest.fixture
def ranks(tmp_path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path)
    yield ranks
    for watch in reversed(ranks.watches):  # the first rank waits for the others
        watch.close()


def test_nobody_ends_while_all_live_and_get_on(ranks, capfd):
    watches = [ranks.start(rank, 3, CFG.model_copy(update={"stuck_seconds": 4.0})) for rank in range(3)]
    for step in range(1, 6):  # longer than stuck_seconds
        time.sleep(1)
        for watch in watches:
            watch.at(step, "computing")
    assert not ranks.codes and not capfd.readouterr().err


def test_a_silent_rank_is_named_by_all_others_with_what_it_was_at(ranks, capfd):
    ranks.start(0, 3), ranks.start(1, 3)
    gone = Beat(rank=2, host="far-away", pid=os.getpid(), started=0, number=3, step=12, doing="waiting for clips")
    Board(ranks.store(), 2, 3).tell(gone)
    ranks.until(lambda: len(ranks.codes) == 2)
    assert ranks.codes == {0: 69, 1: 69}
    said = sorted(filter(None, capfd.readouterr().err.splitlines()))
    sentence = "rank 2 (host far-away, step 12, waiting for clips) gave no sign of life for 3 s"
    assert said == [f"rank 0: {sentence}", f"rank 1: {sentence}"]


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_dies_before_its_first_sign_of_life_is_named_too(gone, ranks, capfd):
    ranks.start(1 - gone, 2)
    ranks.until(lambda: ranks.codes == {1 - gone: 69})
    sentence = f"rank {gone} (host unknown, step 0, starting) gave no sign of life for 3 s"
    assert capfd.readouterr().err.split("\n") == ["", f"rank {1 - gone}: {sentence}", ""]


def test_the_others_notice_the_silence_of_the_first_rank(ranks, capfd):
    ranks.start(1, 2)
    Board(ranks.store(), 0, 2).tell(Beat(rank=0, host="far-away", pid=1, started=0, number=3, step=7))
    ranks.until(lambda: bool(ranks.codes))
    assert ranks.codes == {1: 69}
    assert "rank 1: rank 0 (host far-away, step 7, starting) gave no sign of life for 3 s" in capfd.readouterr().err


def test_after_a_lost_connection_the_silent_rank_is_named_sooner(ranks, capfd):
    patient = CFG.model_copy(update={"silence_seconds": 600.0})
    first, second = ranks.start(0, 3, patient), ranks.start(1, 3, patient)
    Board(ranks.store(), 2, 3).tell(Beat(rank=2, host="far-away", pid=1, started=0))
    time.sleep(1.5)
    second.lost(RuntimeError("[gloo] Connection closed by peer"))
    assert ranks.codes == {0: 69, 1: 69}
    assert capfd.readouterr().err.count("rank 2 (host far-away, step 0, starting) gave no sign of life") == 2
    assert first is ranks.watches[0]


def test_a_lost_connection_between_living_ranks_is_said_as_that(ranks):
    _, second = ranks.start(0, 2), ranks.start(1, 2)
    time.sleep(1.5)
    lost = second.lost(RuntimeError("[gloo] Connection closed by peer [10.0.0.2]:1234\nmore"))
    assert lost.code == 69 and not ranks.codes
    assert str(lost).endswith("though all answer: [gloo] Connection closed by peer [10.0.0.2]:1234")


@pytest.mark.parametrize("speaker", [0, 2])
def test_why_a_rank_stops_is_repeated_by_the_others_and_becomes_their_exit_code(speaker, ranks, capfd):
    watches = [ranks.start(rank, 3) for rank in range(3)]
    watches[speaker].at(5, "computing")
    watches[speaker].farewell("shard 'a.mds' is damaged", 2)
    others = {0, 1, 2} - {speaker}
    ranks.until(lambda: len(ranks.codes) == 2, seconds=5)
    assert ranks.codes == dict.fromkeys(others, 2)
    said = filter(None, capfd.readouterr().err.splitlines())
    sentence = f"rank {speaker} (host {socket.gethostname()}, step 5, computing) stopped: shard 'a.mds' is damaged"
    assert sorted(said) == [f"rank {rank}: {sentence}" for rank in sorted(others)]


def test_a_rank_that_lives_but_gets_no_further_is_named_and_its_stacks_are_kept(ranks, capfd, tmp_path):
    impatient = CFG.model_copy(update={"stuck_seconds": 4.0})
    first, second = ranks.start(0, 2, impatient), ranks.start(1, 2, impatient)
    for watch in (first, second):
        watch.at(4, "computing")
    first.at(5, "computing")  # and now it waits for the other one in a collective
    ranks.until(lambda: len(ranks.codes) == 2)
    assert ranks.codes == {0: 69, 1: 69}
    said = capfd.readouterr().err
    assert f"rank 1 (host {socket.gethostname()}, step 4, computing) got no further for 4 s" in said
    assert "rank 0 (host" not in said
    for rank in range(2):
        assert "test_watch.py" in (tmp_path / "stacks" / f"rank-{rank}.txt").read_text()


def test_a_frozen_process_of_the_same_host_is_killed_after_the_rank_that_gave_it_up_has_ended(ranks, tmp_path):
    """DeepSpeed's launcher ends with the code of the first rank that it sees ended."""
    frozen = psutil.Popen(["sleep", "60"])
    frozen.suspend()
    beat = Beat(rank=1, host=socket.gethostname(), pid=frozen.pid, started=frozen.create_time())
    program = f"""
import sys, time
sys.path.insert(0, {str(CHECKOUT)!r})
from torch.distributed import TCPStore
from cavmae_ds.fault_tolerance.heartbeat_store import Beat, Board
from cavmae_ds.fault_tolerance.heartbeat_monitor import WatchConfig, Watch
from pathlib import Path
server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
Board(server, 1, 2).tell(Beat.model_validate_json({beat.model_dump_json()!r}))
watch = Watch(WatchConfig().model_copy(update={{"silence_seconds": 1.0}}), 0, 2, Path("stacks"), server)
time.sleep(30)
"""
    rank = psutil.Popen([sys.executable, "-c", program], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while rank.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    assert frozen.status() == psutil.STATUS_STOPPED  # nobody has asked for the rank's code yet
    assert rank.wait() == 69
    assert frozen.wait(timeout=10) == -signal.SIGKILL


def test_a_verdict_of_success_or_of_no_sense_from_a_stranger_is_ignored_and_said_once(ranks, capfd):
    _, second = ranks.start(0, 2), ranks.start(1, 2)
    strangers = '{"sentence": "a stranger says so", "code": 0}', '{"code": 69}', "\x00"
    for message in strangers:
        ranks.store().set("verdict", message)
        time.sleep(1.5)
    ranks.store().set("beat/1", '{"rank": 77, "host": "x", "pid": 1, "started": 0}')
    time.sleep(1.2)
    assert not ranks.codes
    assert capfd.readouterr().err.count("which no rank of this run does (code: Value error, 0 is the exit") == 2
    second.farewell("shard 'a.mds' is damaged", 2)  # and a real one still comes through
    ranks.until(lambda: ranks.codes == {0: 2}, seconds=5)
    said = capfd.readouterr().err
    assert (
        "ignored" not in said
        and f"rank 0: rank 1 (host {socket.gethostname()}, step 0, starting) stopped: shard" in said
    )


def test_a_batch_that_comes_is_progress_and_other_ranks_see_whether_it_is_waited_for(ranks):
    watch, other = ranks.start(0, 1), Board(ranks.store(), 1, 2)
    seen: list[tuple[str, int]] = []

    def look(doing: str) -> None:
        """The next sign of life in which the rank is at this."""
        ranks.until(lambda: bool(other.beats()) and other.beats()[0].doing == doing, seconds=5)
        seen.append((doing, other.beats()[0].moves))

    def source() -> Iterator[int]:
        look("waiting for clips")
        yield 1
        look("waiting for clips")
        yield 2

    for _ in watch.batches(source()):
        look("computing")
    assert seen == [("waiting for clips", 1), ("computing", 2), ("waiting for clips", 3), ("computing", 4)]
