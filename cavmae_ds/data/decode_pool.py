"""Decoding in processes that may hang or die: one task a clip, a time limit each, results in input order."""

import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

from pebble import ProcessExpired, ProcessPool

from cavmae_ds.data.inputs import Input
from cavmae_ds.data.rejects import ClipRejected, RejectCode
from cavmae_ds.data.schema import ClipRecord
from cavmae_ds.data.settings import BuildSettings

CLIPS_AHEAD_PER_WORKER = 8  # decoded or being decoded, waiting for their turn: about half a megabyte each

# The clip of an input, or ClipRejected raised. Called in another process: a function of a module, that it can import.
Reader = Callable[[Any, Any], ClipRecord]  # (a kind of Input, its kind of BuildSettings)
Sample = dict[str, Any]  # a clip as MDSWriter takes it

log = logging.getLogger(__name__)


def decode_in_order(
    read: Reader, inputs: Iterable[Input], settings: BuildSettings, workers: int
) -> Generator[tuple[Input, Sample | ClipRejected], None, None]:
    """Each input with its clip or the reason there is none, in the order given, whatever the workers do."""
    # Spawned, not forked: the parent runs threads, and a worker needs none of the parent's memory.
    pool = ProcessPool(max_workers=workers, context=multiprocessing.get_context("spawn"))
    left = iter(inputs)
    ahead: deque[tuple[Input, Future[Sample]]] = deque()
    try:
        while True:
            for item in islice(left, CLIPS_AHEAD_PER_WORKER * workers - len(ahead)):
                ahead.append((item, _begin(pool, read, item, settings)))
            if not ahead:
                return
            item, task = ahead.popleft()
            yield item, _result(task, item, settings.time_limit_s)
    finally:
        pool.stop()
        pool.join()


def _begin(pool: ProcessPool, read: Reader, item: Input, settings: BuildSettings) -> Future[Sample]:
    if item.rejected:
        known: Future[Sample] = Future()
        known.set_exception(item.rejected)
        return known
    return pool.schedule(_read, (read, item, settings), timeout=settings.time_limit_s)


def _read(read: Reader, item: Input, settings: BuildSettings) -> Sample:
    """Runs in a worker, which also encodes: the one process that writes has nothing to compute."""
    return read(item, settings).to_mds(settings.audio_codec)


def _result(task: Future[Sample], item: Input, time_limit_s: float) -> Sample | ClipRejected:
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
        log.exception("decoding %s failed in an unforeseen way", item.source)
        return ClipRejected(RejectCode.WORKER_CRASHED, f"{type(error).__name__}: {error}")
