"""Ranks watch each other: who dies, freezes or gets stuck is named, and the others end instead of waiting for ever.

Every rank gives a sign of life once a second. The first rank hears them all and gives a verdict on who is missing; the
others watch the first rank and hear its verdicts. A rank that ends for a reason of its own leaves its sentence as a
verdict too. One thread talks to the store, and may hang there when a link is cut; another one counts how long nothing
new was heard, and ends this process.
"""

from __future__ import annotations

import faulthandler
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
from torch.distributed import Store

from cavmae_ds.config.sections.watch import WatchConfig
from cavmae_ds.distributed.process_group import World, is_lost_connection, open_store
from cavmae_ds.errors import UserError, WorkerLost
from cavmae_ds.fault_tolerance.exit import ExitCode, Leaving, PeerLost, leave, say
from cavmae_ds.fault_tolerance.heartbeat_store import Beat, Board, Verdict
from cavmae_ds.fault_tolerance.kill_frozen import kill_when_ended

BEAT_S = 1.0
LOST_SILENCE_S = 4.0
"""Silence enough to give a rank up, once a connection is known to be lost."""
_LISTEN_S = 3.0  # what a rank that ends allows the others to hear of it
_SOON_S = BEAT_S / 5
_NAMED = 4  # ranks in a sentence
_SAME_START_S = 2.0  # two looks at a process differ by the rounding of the boot time

Item = TypeVar("Item")


@dataclass
class _Heard:
    """The last beat of a rank, and for how long there was no newer one, and none that got on."""

    beat: Beat
    silent_s: float = 0.0
    still_s: float = 0.0


class Watch:
    """One rank's part. Two threads work for it until close()."""

    def __init__(
        self, cfg: WatchConfig, rank: int, size: int, stacks: Path, store: Store, end: Callable[[int], object] = leave
    ):
        """stacks: folder for what stuck ranks are at. store: a connection for this alone. end: ends this process."""
        self._cfg, self._rank, self._size, self._stacks, self._end = cfg, rank, size, stacks, end
        me = psutil.Process()
        self._me = Beat(rank=rank, host=socket.gethostname(), pid=me.pid, started=me.create_time())
        watched = range(size) if rank == 0 else [0]  # from now on, also if they die before their first beat
        unheard = {peer: Beat(rank=peer, host="unknown", pid=0, started=0) for peer in watched}
        self._heard = {peer: _Heard(beat) for peer, beat in (unheard | {rank: self._me.model_copy()}).items()}
        self._verdict: Verdict | None = None
        self._to_tell: Verdict | None = None
        self._leaving = False
        self._hurry, self._told, self._all_know, self._closed = (threading.Event() for _ in range(4))
        self._board = Board(store, rank, size)
        self._talking = threading.Thread(target=self._talk, name="watch", daemon=True)
        self._talking.start()
        threading.Thread(target=self._judge, name="watch", daemon=True).start()

    def at(self, step: int, doing: str) -> None:
        """This rank gets on: it has done so many steps, and begins with this."""
        self._me.step = step
        self._on(doing)

    def batches(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Pass batches through; every one that comes is a move."""
        source = iter(batches)
        while True:
            self._on("waiting for clips")
            try:
                batch = next(source)
            except StopIteration:
                return
            self._on("computing")
            yield batch

    def farewell(self, sentence: str, code: ExitCode) -> None:
        """Tell the others why this rank ends, and that they end with it. Takes a few seconds at most."""
        self._leaving = True
        self._tell(Verdict(sentence=f"{self._me} stopped: {sentence}", code=code))
        self._linger()

    def end_all(self, sentence: str, code: ExitCode) -> None:
        """End all ranks, this one too, for a reason that a thread has found."""
        say(f"rank {self._rank}: {sentence}")
        self.farewell(sentence, code)
        self._end(code)

    def lost(self, error: BaseException) -> PeerLost:
        """What to raise in place of an error that says no more than that some connection is gone.

        Usually it does not come to that: the other end is soon found silent, or has left a sentence, and this process
        ends here.
        """
        self._me.alarmed = True
        self._hurry.set()
        time.sleep(2 * LOST_SILENCE_S)
        reason = (str(error).splitlines() or [""])[0]
        return PeerLost(f"lost the connection to another rank, though all answer: {reason}")

    def close(self) -> None:
        """This rank has ended as it should."""
        self._closed.set()
        self._hurry.set()
        self._talking.join(2 * _LISTEN_S)

    def _on(self, doing: str) -> None:
        self._me.doing = doing
        self._me.moves += 1

    def _talk(self) -> None:
        try:
            while not self._closed.is_set():
                self._exchange()
                if self._verdict and self._rank:
                    return
                self._hurry.wait(_SOON_S if self._verdict else BEAT_S)
                self._hurry.clear()
            self._depart()
        except Exception:  # the store is gone, and with it its host or the first rank: the judge counts on
            self._me.alarmed = True

    def _exchange(self) -> None:
        self._me.number += 1
        self._board.tell(self._me)
        for beat in (self._me.model_copy(), *self._board.beats()):
            self._note(beat)
        told = self._to_tell
        verdict = self._board.pronounce(told) if told else self._board.verdict()
        if verdict and not self._verdict:
            self._verdict = verdict
            if self._rank:
                self._board.acknowledge()
        if told:
            self._told.set()
        if verdict and self._rank == 0 and self._board.acknowledged() >= self._size - 1 - len(verdict.silent):
            self._all_know.set()

    def _depart(self) -> None:
        """Say goodbye; the first rank, with which the store ends, does so last."""
        self._me.left = True
        self._board.tell(self._me)
        waited_s = 0.0
        while self._rank == 0 and not all(beat.left for beat in self._board.beats()) and waited_s < _LISTEN_S:
            time.sleep(_SOON_S)
            waited_s += _SOON_S

    def _note(self, beat: Beat) -> None:
        heard = self._heard[beat.rank]
        if beat.number != heard.beat.number:
            heard.silent_s = 0
        if beat.moves != heard.beat.moves:
            heard.still_s = 0
        heard.beat = beat

    def _judge(self) -> None:
        last = time.monotonic()
        while not self._closed.wait(BEAT_S / 2):
            now = time.monotonic()
            # Not more than was slept: when this process, or the whole machine, was frozen, the others have no blame.
            passed = min(now - last, BEAT_S)
            last = now
            for heard in list(self._heard.values()):
                heard.silent_s += passed
                heard.still_s += passed
            verdict = self._verdict or self._found()
            if verdict:
                self._carry_out(verdict)
                return

    def _found(self) -> Verdict | None:
        """Who is silent for too long, or no further; the first rank looks at all others, they look at it."""
        everybody = [heard for heard in self._heard.values() if not heard.beat.left]
        alarmed = any(heard.beat.alarmed for heard in everybody) or self._me.alarmed
        limit = LOST_SILENCE_S if alarmed else self._cfg.silence_seconds
        silent = [heard for heard in everybody if heard.silent_s > limit and heard.beat.rank != self._rank]
        if silent:
            beats = [heard.beat for heard in silent]
            seconds = min(heard.silent_s for heard in silent)
            sentence = f"{_names(beats)} gave no sign of life for {seconds:.0f} s"
            return Verdict(sentence=sentence, code=ExitCode.LOST, silent=beats)
        if self._rank == 0 and any(heard.still_s > self._cfg.stuck_seconds for heard in everybody):
            # Those who wait for others in a collective have come further than those they wait for.
            least = min(heard.beat.moves for heard in everybody)
            beats = [heard.beat for heard in everybody if heard.beat.moves == least]
            sentence = (
                f"{_names(beats)} got no further for {self._cfg.stuck_seconds:g} s (watch.stuck_seconds); "
                f"what all ranks were at is in {self._stacks}"
            )
            return Verdict(sentence=sentence, code=ExitCode.LOST, stuck=True)
        return None

    def _carry_out(self, verdict: Verdict) -> None:
        if self._leaving:
            return
        if self._verdict is None:
            if self._rank == 0:
                self._tell(verdict)
            verdict = self._verdict or verdict
        say(f"rank {self._rank}: {verdict.sentence}")
        if verdict.stuck:
            self._write_stacks()
        self._linger()
        here = [beat for beat in verdict.silent if beat.host == self._me.host and beat.pid != self._me.pid]
        if frozen := _processes(here):  # they must not wake up and go on by themselves
            kill_when_ended(psutil.Process(), frozen)
        self._end(verdict.code)

    def _tell(self, verdict: Verdict) -> None:
        self._to_tell = verdict
        self._hurry.set()
        self._told.wait(_LISTEN_S)

    def _linger(self) -> None:
        """The store ends with the first rank: it stays until all have heard the verdict."""
        if self._rank == 0:
            self._all_know.wait(_LISTEN_S)

    def _write_stacks(self) -> None:
        with suppress(OSError):
            self._stacks.mkdir(parents=True, exist_ok=True)
            with (self._stacks / f"rank-{self._rank}.txt").open("w") as file:
                faulthandler.dump_traceback(file)


@contextmanager
def watching(cfg: WatchConfig, world: World, stacks: Path) -> Iterator[Watch]:
    """A watch; whatever ends this rank inside is told to the others.

    Raises PeerLost in place of an error of a collective that failed because another rank is gone, and of torch's when a
    loader worker is.
    """
    patience = timedelta(seconds=2 * cfg.silence_seconds)  # silence is for the judge to end, not for the connection
    watch = Watch(cfg, world.rank, world.size, stacks, open_store("watch", patience))
    try:
        yield watch
    except Exception as error:
        _hear_no_more_of_workers()
        lost = watch.lost(error) if is_lost_connection(error) else _lost_worker(error)
        if lost:
            watch.farewell(str(lost), lost.code)
            raise lost from error
        known = isinstance(error, (UserError, Leaving))
        sentence = str(error) if known else f"{type(error).__name__}: {error}"
        code = error.code if isinstance(error, Leaving) else ExitCode.REFUSED if known else ExitCode.DEFECT
        watch.farewell(sentence, code)
        raise
    watch.close()


def _hear_no_more_of_workers() -> None:
    """Every further worker that ends would raise torch's error again, in the middle of what is done about this one."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _lost_worker(error: Exception) -> PeerLost | None:
    """What to raise in place of the loader's error, or of torch's, which comes up wherever the main thread is when
    SIGCHLD arrives.
    """
    said = str(error)
    of_torch = isinstance(error, RuntimeError) and said.startswith("DataLoader worker (pid")
    if not (of_torch or isinstance(error, WorkerLost)):
        return None
    return PeerLost(f"a loader worker is gone ({said.strip(' .')}); was there too little memory?")


def _names(beats: list[Beat]) -> str:
    named = ", ".join(map(str, beats[:_NAMED]))
    return f"{named} and {len(beats) - _NAMED} more" if len(beats) > _NAMED else named


def _processes(beats: Sequence[Beat]) -> list[psutil.Process]:
    """Those of this host that gave these signs of life, and their loader workers."""
    found: list[psutil.Process] = []
    for beat in beats:
        with suppress(psutil.Error):
            process = psutil.Process(beat.pid)
            if abs(process.create_time() - beat.started) < _SAME_START_S:
                found += [process, *process.children(recursive=True)]
    return found
