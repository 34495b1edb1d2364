"""Decoding in processes that may hang or die: one task a clip, a time limit each, results in input order."""

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, TypeVar

from pebble import ProcessExpired, ProcessPool

from cavmae_ds.data.format.schema import ClipRecord
from cavmae_ds.data.prepare.inputs import Input
from cavmae_ds.data.prepare.rejects import ClipRejected, RejectCode
from cavmae_ds.data.prepare.settings import BuildSettings

TASKS_AHEAD_PER_WORKER = 8  # done or being done, waiting for their turn: about half a megabyte each

# Both are called as f(a kind of Input, its kind of BuildSettings), may raise ClipRejected, and run in another
# process: they are functions of a module, which that process imports.
Reader = Callable[[Any, Any], ClipRecord]  # the clip of an input
Splitter = Callable[[Any, Any], list[Any]]  # the inputs that an input is cut into, in their order; at least one
Sample = dict[str, Any]  # a clip as MDSWriter takes it

Thing = TypeVar("Thing")

log = logging.getLogger(__name__)


class Decoded(NamedTuple):
    """What became of an input, or of one of those it was split into."""

    item: Input
    result: Sample | ClipRejected
    last: bool  # nothing more comes of the same input


def decode_in_order(
    read: Reader, inputs: Iterable[Input], settings: BuildSettings, workers: int, split: Splitter | None = None
) -> Generator[Decoded, None, None]:
    """Each input with its clip or the reason there is none, in the order given, whatever the workers do."""
    # Spawned, not forked: the parent runs threads, and a worker needs none of the parent's memory.
    pool = ProcessPool(max_workers=workers, context=multiprocessing.get_context("spawn"))
    with _deaf_to_interrupts():
        _ = pool.active  # asking starts it
    depth, limit_s = TASKS_AHEAD_PER_WORKER * workers, settings.time_limit_s

    def begin(item: Input, function: Callable[..., Thing], *arguments: Any) -> Future[Thing]:
        if item.rejected:
            known: Future[Thing] = Future()
            known.set_exception(item.rejected)
            return known
        return pool.schedule(function, arguments, timeout=limit_s)

    try:
        pieces: Iterator[tuple[Input, bool]] = ((item, True) for item in inputs)
        if split:
            lists = _ahead(inputs, lambda item: begin(item, split, item, settings), depth)
            pieces = (piece for item, task in lists for piece in _pieces(item, _result(task, item, limit_s)))
        for (item, last), task in _ahead(
            pieces, lambda piece: begin(piece[0], _sample, read, piece[0], settings), depth
        ):
            yield Decoded(item, _result(task, item, limit_s), last)
    finally:
        pool.stop()
        pool.join()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started inside, and by threads that are, never hear Ctrl-C: who started them ends them.

    A process that heard it while it imports would print a traceback.
    """
    resource_tracker.ensure_running()  # if it was started inside, it would end the deafness
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ahead(
    things: Iterable[Thing], begin: Callable[[Thing], Future[Any]], depth: int
) -> Iterator[tuple[Thing, Future[Any]]]:
    """Each thing with its task, in order; `depth` tasks are begun before the first of them is asked for."""
    left = iter(things)
    begun: deque[tuple[Thing, Future[Any]]] = deque()
    while True:
        begun.extend((thing, begin(thing)) for thing in islice(left, depth - len(begun)))
        if not begun:
            return
        yield begun.popleft()


def _pieces(item: Input, result: list[Input] | ClipRejected) -> Iterator[tuple[Input, bool]]:
    """What an input was split into, each with whether it is the last."""
    if isinstance(result, ClipRejected):
        result = [replace(item, rejected=result)]
    yield from ((piece, k == len(result) - 1) for k, piece in enumerate(result))


def _sample(read: Reader, item: Input, settings: BuildSettings) -> Sample:
    """Runs in a worker, which also encodes: the one process that writes has nothing to compute."""
    return read(item, settings).to_mds(settings.audio_codec)


def _result(task: Future[Thing], item: Input, time_limit_s: float) -> Thing | ClipRejected:
    try:
        return task.result()
    except ClipRejected as rejected:
        return rejected
    except TimeoutError:
        return ClipRejected(RejectCode.TIMEOUT, f"more than {time_limit_s:g} s")
    except ProcessExpired as death:
        return ClipRejected(RejectCode.WORKER_CRASHED, f"exit code {death.exitcode}")
    except BrokenProcessPool:
        raise  # no worker can be started: nothing about this clip
    except Exception as error:  # one odd file must not end a run over millions, but it must be named
        log.exception("decoding %s failed in an unforeseen way", item.shown)
        return ClipRejected(RejectCode.WORKER_CRASHED, f"{type(error).__name__}: {error}")
