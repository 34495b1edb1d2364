"""How loader workers hand batches over: what of a host that takes, and the reason when it does not suffice.

Each tensor of a batch is a file in /dev/shm and, in the worker and in its rank, an open file. A worker that gets none
would only print a traceback from a thread of its queue, and its rank would wait for the batch until a time-out.
"""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from typing import Any

import psutil
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, CLIP_SECONDS, MIN_COMMON_SECONDS
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.errors import ConfigError, DataError, WorkerLost
from cavmae_ds.fault_tolerance.shared_memory_leftovers import FOLDER

PREFETCHED = 2
"""Batches of a worker that are ready before they are asked for (prefetch_factor)."""
BATCHES_OF_A_WORKER = PREFETCHED + 1
"""That lie in shared memory: those ahead, and the one that is handed over."""
LONGEST_TEMPORARY_FOLDER = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes: a socket's whole name may have 107 (man 7 unix), the rest is how multiprocessing calls it."""
FILES, FILES_OF_A_RANK, FILES_OF_A_WORKER = 512, 8, 16
"""Open at a time [E]: by any process, for each rank that meets at the first one, for each loader worker."""
LEAST_FILES = 48
"""Open in a rank, with its connections, before it has loader workers; 2 ranks with a worker each were seen with 75."""
_KEPT_FREE = 256 << 10  # semaphores, and streaming's states of shards: a page for each file
_MIB = 2**20


def memory_needed(
    ranks: int, workers: int, clips: int, inputs: InputSpec, batches: int = BATCHES_OF_A_WORKER, seconds: float = 0.0
) -> int:
    """Bytes of /dev/shm for the loader workers of a host's ranks, with micro-batches of so many clips."""
    return ranks * workers * batches * clips * decoded_clip_bytes(inputs, seconds or CLIP_SECONDS)


def decoded_clip_bytes(inputs: InputSpec, seconds: float = CLIP_SECONDS) -> int:
    """Sound in int16 and frames in uint8, as workers hand them over. Frames that stay whole may take more."""
    heard = min(seconds, inputs.audio_seconds or seconds) if inputs.log_mel_frames else 0.0
    return int(heard * AUDIO_RATE_HZ) * 2 + inputs.frames * inputs.frame_size**2 * 3


def files_needed(ranks: int, workers: int, base: int = FILES) -> int:
    """Files that the first rank, where all ranks meet, and its loader workers have open."""
    return base + FILES_OF_A_RANK * ranks + FILES_OF_A_WORKER * workers


def check_open_files(ranks: int, workers: int) -> None:
    """Refuse a limit under which ranks could not even meet and start their loader workers. Raises ConfigError."""
    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], files_needed(ranks, workers, LEAST_FILES)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise ConfigError(
            f"ulimit -n allows a process {limit} open files, one of {ranks} ranks with data.workers = {workers} needs "
            f"{needed}; set ulimit -n {files_needed(ranks, workers)}, or fewer data.workers"
        )


def check_loading(ranks: int, workers: int, clips: int, inputs: InputSpec) -> None:
    """Refuse a host on which loader workers could not hand over even the shortest clips. Raises ConfigError.

    ranks: of this host. More may be needed (`cavmae doctor` says how much); later a limit is met with DataError, see
    shortage().
    """
    if not workers:
        return
    check_temporary_folder(workers)
    space = shutil.disk_usage(FOLDER)
    least = memory_needed(ranks, workers, clips, inputs, PREFETCHED, MIN_COMMON_SECONDS)
    if space.free < least + _KEPT_FREE:
        most = memory_needed(ranks, workers, clips, inputs)
        raise ConfigError(
            f"{FOLDER} has {_mib(space.free)} of {_mib(space.total)} free, {ranks} ranks x {workers} data.workers x "
            f"{PREFETCHED} prefetched batches of {clips} clips take at least {_mib(least)}, semaphores and states of "
            f"shards {_mib(_KEPT_FREE)}; {larger(space.total - space.free + most)}, or fewer data.workers"
        )


def check_temporary_folder(workers: int) -> None:
    """Refuse a temporary folder that worker processes could not hand their batches over through. Raises ConfigError.

    They do it through sockets there; with a longer name the first batch would be waited for until the time-out.
    """
    folder = tempfile.gettempdir()
    if workers and len(os.fsencode(folder)) > LONGEST_TEMPORARY_FOLDER:
        raise ConfigError(
            f"the temporary folder {folder!r} has a name of {len(os.fsencode(folder))} bytes, at most "
            f"{LONGEST_TEMPORARY_FOLDER} leave room for the sockets of data.workers; set TMPDIR to a shorter one"
        )


def larger(size: int) -> str:
    """How /dev/shm gets a size of at least so many bytes."""
    gib = -(-size // 2**30)
    return f"mount -o remount,size={gib}G {FOLDER} (Docker: --shm-size={gib}g)"


def shortage(error: BaseException, workers: int, batch_bytes: int = 0) -> str | None:
    """Which limit of the host an error is about, what there is of it and what is needed; None for other errors.

    workers: of a rank. batch_bytes: of the batch that could not be handed over, if it is known.
    """
    said, number = str(error), getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in said:
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        return (
            f"too many open files: ulimit -n allows a process {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}, with "
            f"{workers} loader workers up to {files_needed(ranks, workers)} may be open; raise it, or set fewer "
            "data.workers"
        )
    space = shutil.disk_usage(FOLDER)
    of_disk = number != errno.ENOSPC or space.free >= _KEPT_FREE
    if of_disk and "unable to allocate shared memory" not in said:  # torch's, with whatever errno was last
        return None
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed = ranks * workers * BATCHES_OF_A_WORKER * batch_bytes
    takes = f", a batch takes {_mib(batch_bytes)} and all that are prefetched {_mib(needed)}" if batch_bytes else ""
    return (
        f"{FOLDER} is too small: {_mib(space.free)} of {_mib(space.total)} are free, {ranks} ranks x {workers} loader "
        f"workers hold up to {BATCHES_OF_A_WORKER} batches each there{takes}; {larger(space.total + needed)}, or fewer "
        "data.workers"
    )


def micro_batches(loader: DataLoader) -> Iterator[Any]:
    """What the loader gives; what goes wrong in a worker comes out as the sentence it began as, or as a DataError.

    Raises WorkerLost if a worker is gone in the middle of handing a batch over.
    """
    try:
        yield from loader
    except DataError as error:  # torch put the worker's whole traceback into the message
        _remove_batches_of_workers()
        sentence = str(error).strip().splitlines()[-1].rpartition("Error: ")[2]
        raise DataError(sentence) from error
    except (ConnectionError, EOFError) as error:
        raise WorkerLost(f"{type(error).__name__} in the middle of a batch") from error
    except (OSError, RuntimeError) as error:
        if reason := shortage(error, loader.num_workers):
            raise DataError(reason) from error
        if "timed out" not in str(error):
            raise
        raise DataError(
            f"no batch came within data.timeout_seconds = {loader.timeout:g}; is the storage of the shards alive?"
        ) from error


def _remove_batches_of_workers() -> None:
    """Those on their way when loading ends, which no process would open any more."""
    with suppress(psutil.Error):
        for worker in psutil.Process().children():
            _remove_batches_of(worker.pid)


def _remove_batches_of(pid: int) -> None:
    with suppress(OSError):  # looking into a folder takes an open file, and none may be left
        for path in FOLDER.glob(f"torch_{pid}_*"):
            path.unlink(missing_ok=True)


def worker_context(workers: int) -> BaseContext | None:
    """For DataLoader(multiprocessing_context=...): what a worker cannot hand over becomes a DataError in its rank."""
    if not workers:
        return None
    context = copy.copy(multiprocessing.get_context())
    context.Queue = lambda maxsize=0: _ResultQueue(maxsize, workers, context)  # type: ignore[method-assign]
    return context


class _ResultQueue(Queue):
    """Of results (number, batch); the reason stands in for a batch that its thread cannot send."""

    def __init__(self, maxsize: int, workers: int, context: BaseContext):
        super().__init__(maxsize, ctx=context)
        self._workers = workers

    def __getstate__(self) -> Any:
        return self._workers, super().__getstate__()

    def __setstate__(self, state: Any) -> None:
        self._workers, rest = state
        super().__setstate__(rest)

    def _on_queue_feeder_error(self, error: BaseException, result: Any) -> None:  # concurrent.futures has one, too
        number, batch = result
        _remove_batches_of(os.getpid())  # torch leaves a file that it could not fill
        reason = shortage(error, self._workers, _tensor_bytes(batch))
        failure = DataError(reason or f"a batch could not be handed over: {type(error).__name__}: {error}")
        self.put((number, ExceptionWrapper((DataError, failure, None), "in a loader worker")))


def _tensor_bytes(batch: Any) -> int:
    if isinstance(batch, torch.Tensor):
        return batch.nbytes
    return sum(map(_tensor_bytes, batch)) if isinstance(batch, (list, tuple)) else 0


def _mib(size: int) -> str:
    return f"{size / _MIB:.3g} MiB"
