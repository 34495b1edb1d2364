"""Decoding in processes that may hang or die: one task a clip, a time limit each, results in input order."""

import logging
import multiprocessing
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from pebble import ProcessExpired, ProcessPool

from cavmae_ds.data.inputs import Input
from cavmae_ds.data.media import read_clip
from cavmae_ds.data.rejects import ClipRejected, RejectCode
from cavmae_ds.data.schema import ClipRecord
from cavmae_ds.data.settings import ClipSettings

CLIPS_AHEAD_PER_WORKER = 8  # decoded or being decoded, waiting for their turn: about half a megabyte each

log = logging.getLogger(__name__)


def decode_in_order(
    inputs: Iterable[Input], settings: ClipSettings, time_limit_s: float, workers: int
) -> Generator[tuple[Input, ClipRecord | ClipRejected], None, None]:
    """Each input with its clip or the reason there is none, in the order given, whatever the workers do."""
    # Spawned, not forked: the parent runs threads, and a worker needs none of the parent's memory.
    pool = ProcessPool(max_workers=workers, context=multiprocessing.get_context("spawn"))
    left = iter(inputs)
    ahead: deque[tuple[Input, Future[ClipRecord]]] = deque()
    try:
        while True:
            for item in islice(left, CLIPS_AHEAD_PER_WORKER * workers - len(ahead)):
                ahead.append((item, _begin(pool, item, settings, time_limit_s)))
            if not ahead:
                return
            item, task = ahead.popleft()
            yield item, _result(task, item, time_limit_s)
    finally:
        pool.stop()
        pool.join()


def _begin(pool: ProcessPool, item: Input, settings: ClipSettings, time_limit_s: float) -> Future[ClipRecord]:
    if item.rejected:
        known: Future[ClipRecord] = Future()
        known.set_exception(item.rejected)
        return known
    arguments = (item.path, item.clip_id, item.source, item.labels, settings)
    return pool.schedule(read_clip, arguments, timeout=time_limit_s)


def _result(task: Future[ClipRecord], item: Input, time_limit_s: float) -> ClipRecord | ClipRejected:
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
