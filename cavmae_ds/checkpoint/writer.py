"""Saving in the background: every rank writes its file in a thread, the first rank makes a checkpoint of them.

What the threads say to each other (r: a rank), each save under its number:

    needs/r      bytes that r will write                                -> the leader of r's folder
    ready/r      leader r has made the folder, or why not               -> the ranks that share it
    written/r    size and hash of the file of r, or why there is none   -> rank 0
    agreed       the manifest of a finished checkpoint, or why not      -> all
    heard/r      r knows; the store is rank 0's, and goes with it       -> rank 0

Whatever dies in between leaves a `.partial` folder, which the next save or start removes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import save_file

from cavmae_ds.atomic_io import flush
from cavmae_ds.checkpoint.folder import commit, file_hash, partial, remove_partials
from cavmae_ds.checkpoint.layout import Piece, rank_file
from cavmae_ds.checkpoint.manifest import FileRecord, Manifest
from cavmae_ds.checkpoint.retention import Retention, thin_out
from cavmae_ds.checkpoint.shared_dir import Disk, Outcome
from cavmae_ds.checkpoint.uploads import Uploads
from cavmae_ds.distributed.mailbox import Talk, Unheard
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import distinct

log = logging.getLogger(__name__)

SAVE_LIMIT_S = 1800.0
"""A save is given up when another rank has said nothing for so long."""
_HEARD_LIMIT_S = 5.0
_SPARE_BYTES = 1 << 20  # for the manifest and the file system's own needs


class _Written(BaseModel):
    files: dict[str, FileRecord] = {}
    failure: str = ""


class _Agreed(BaseModel):
    manifest: Manifest | None = None
    failure: str = ""


class Writer:
    """The saves of a run, one at a time."""

    def __init__(self, disk: Disk, world: World, keep: Retention, uploads: Uploads | None = None):
        """All ranks call it. uploads: is told of every finished checkpoint, and closed with the writer."""
        self._disk, self._world, self._keep, self._uploads = disk, world, keep, uploads
        self._stop = Event()
        self._talk = Talk("saves", self._stop)
        self._number = 0
        self._thread: Thread | None = None
        self._outcomes: list[Outcome] = []

    def begin(self, step: int, pieces: Sequence[Piece], manifest: Manifest) -> None:
        """Save in the background; all ranks call it at the same steps. Waits for the save before.

        pieces: this rank's, on the CPU, left as they are until wait() returns. manifest: all but its files.
        """
        self.wait()
        self._number += 1
        self._thread = Thread(target=self._run, args=(self._number, step, pieces, manifest), daemon=True, name="save")
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is going on. Bounded: one that another rank does not finish is given up."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def finished(self) -> list[Outcome]:
        """Saves that have ended since this was last asked, oldest first."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self, limit_s: float = 10.0) -> None:
        """A save that is going on gets so much time; then it is given up."""
        if self._thread:
            self._thread.join(limit_s)
            self._stop.set()
            self._thread.join(limit_s)
        if self._uploads:
            self._uploads.close()

    def _run(self, number: int, step: int, pieces: Sequence[Piece], manifest: Manifest) -> None:
        started, agreed = time.monotonic(), _Agreed()
        try:
            agreed = self._save(number, partial(self._disk.root, step), pieces, manifest)
        except Exception as error:  # whatever it is, training goes on
            agreed.failure = _why(error)
        size = agreed.manifest.bytes if agreed.manifest else 0
        self._outcomes.append(Outcome(step, agreed.failure, time.monotonic() - started, size))
        if agreed.failure and self._world.is_first:
            log.warning("the checkpoint of step %d could not be saved: %s", step, agreed.failure)

    def _save(self, number: int, folder: Path, pieces: Sequence[Piece], manifest: Manifest) -> _Agreed:
        talk, rank = self._talk, self._world.rank
        try:
            written = self._write(number, folder, pieces)
        except (OSError, SafetensorError, Unheard) as error:
            written = _Written(failure=f"rank {rank}: {_why(error)}")
        talk.say(f"{number}/written/{rank}", written.model_dump_json())
        if self._world.is_first:
            agreed = self._agree(number, folder, manifest)
            talk.say(f"{number}/agreed", agreed.model_dump_json())
        else:
            agreed = _Agreed.model_validate_json(talk.hear(f"{number}/agreed", SAVE_LIMIT_S))
        if self._disk.leads:
            self._finish(folder, agreed.manifest)
        talk.say(f"{number}/heard/{rank}", "")
        if self._world.is_first:
            talk.hear_all([f"{number}/heard/{other}" for other in range(self._world.size)], _HEARD_LIMIT_S)
            talk.forget(self._keys(number))
        if self._uploads and agreed.manifest:  # of the first rank last: then all hosts have the folder under its name
            self._uploads.announce(agreed.manifest)
        return agreed

    def _write(self, number: int, folder: Path, pieces: Sequence[Piece]) -> _Written:
        """This rank's file, on the disk when this returns; none without pieces."""
        talk, disk, rank = self._talk, self._disk, self._world.rank
        talk.say(f"{number}/needs/{rank}", str(sum(piece.values.nbytes for piece in pieces)))
        if disk.leads:
            talk.say(f"{number}/ready/{rank}", self._prepare(number, folder))
        if failure := talk.hear(f"{number}/ready/{disk.leader}", SAVE_LIMIT_S):
            return _Written(failure=failure)
        if not pieces:
            return _Written()
        path = folder / rank_file(rank, self._world.size)
        save_file({piece.key: piece.values for piece in pieces}, path)
        # Read back: a tenth more work than to hash what lies in memory, and it is the file that is meant.
        record = FileRecord(bytes=path.stat().st_size, sha256=file_hash(path))
        flush(path)
        return _Written(files={path.name: record})

    def _prepare(self, number: int, folder: Path) -> str:
        """An empty folder with room for the files of all who share it; or why there is none."""
        root = folder.parent
        try:
            root.mkdir(parents=True, exist_ok=True)
            remove_partials(root)
            each = (int(self._talk.hear(f"{number}/needs/{rank}", SAVE_LIMIT_S)) for rank in self._disk.sharers)
            needed = sum(each, start=_SPARE_BYTES)
            free = shutil.disk_usage(root).free
            if free < needed:
                there, wanted = distinct(free / 1e6, needed / 1e6, ",.1f")
                return f"{root} has {there} MB free, {wanted} MB are needed"
            folder.mkdir()
        except (OSError, Unheard) as error:
            return _why(error)
        return ""

    def _agree(self, number: int, folder: Path, manifest: Manifest) -> _Agreed:
        """The checkpoint, finished, or the first failure of any rank."""
        files: dict[str, FileRecord] = {}
        try:
            for rank in range(self._world.size):
                text = self._talk.hear(f"{number}/written/{rank}", SAVE_LIMIT_S)
                written = _Written.model_validate_json(text)
                if written.failure:
                    return _Agreed(failure=written.failure)
                files |= written.files
            manifest = manifest.model_copy(update={"files": files})
            commit(folder, manifest)
        except (OSError, Unheard) as error:
            return _Agreed(failure=_why(error))
        return _Agreed(manifest=manifest)

    def _finish(self, folder: Path, manifest: Manifest | None) -> None:
        """What the leader of a folder does when it is known how the save went."""
        if manifest is None:  # another rank may still be writing; the next save removes what is left
            shutil.rmtree(folder, ignore_errors=True)
            return
        try:
            if not self._world.is_first:
                commit(folder, manifest)
            thin_out(folder.parent, self._keep, self._uploads.in_use if self._uploads else ())
        except OSError as error:
            log.warning("%s could not be put in order: %s", folder.parent, _why(error))

    def _keys(self, number: int) -> list[str]:
        kinds = ("needs", "ready", "written", "heard")
        return [f"{number}/agreed", *(f"{number}/{key}/{rank}" for key in kinds for rank in range(self._world.size))]


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
