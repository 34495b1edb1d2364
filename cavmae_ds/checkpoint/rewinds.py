"""Going back: where a loss rose and stayed high, a run starts again from before, without the updates of those steps.

RUN/rewinds.json says which steps; it is written before the run ends, so the next start finds it. Checkpoints that were
saved after the loss rose say that they know nothing of it, and are set aside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic_core import from_json

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.checkpoint.manifest import Manifest, Rewind
from cavmae_ds.distributed.collectives import barrier, from_first_rank
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import CheckpointError

REWINDS = "rewinds.json"


class Rewinds:
    """Those of one run, the same on all ranks."""

    def __init__(self, run_dir: Path, world: World):
        """Raises CheckpointError if the file is damaged. All ranks together."""
        self._path, self._world = run_dir / REWINDS, world
        found = from_first_rank(read_rewinds(self._path) if world.is_first else [])
        if found is None:
            raise CheckpointError(
                f"{str(self._path)!r} is damaged; it says which steps this run leaves out: mend it, or remove it to "
                "leave out none"
            )
        self.all: list[Rewind] = found

    def leaves_out(self, step: int) -> bool:
        """Whether the update of a step (1-based) is left out."""
        return any(rewind.first <= step <= rewind.last for rewind in self.all)

    def left_behind(self, manifest: Manifest) -> bool:
        """Whether a checkpoint holds steps that were gone back from after it was saved."""
        return any(manifest.step >= rewind.first for rewind in self.all[len(manifest.rewinds) :])

    def adopt(self, rewinds: Sequence[Rewind]) -> None:
        """Take over what a checkpoint knows, where the file was lost."""
        if len(rewinds) > len(self.all):
            self.all = list(rewinds)

    def note(self, rewind: Rewind) -> None:
        """One more, on the disk when this returns. All ranks together."""
        self.all = [*self.all, rewind]
        if self._world.is_first:
            with written_whole(self._path) as unfinished:
                unfinished.write_text(json.dumps(self.all))
        barrier()


def read_rewinds(path: Path) -> list[Rewind] | None:
    """What the file says; none without it, None if it is no list of pairs of numbers."""
    if not path.is_file():
        return []
    try:
        found = [Rewind(int(first), int(last)) for first, last in from_json(path.read_bytes())]
    except (ValueError, TypeError, OverflowError):  # the last: an infinite number
        return None
    return found
