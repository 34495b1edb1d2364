"""Which checkpoints are kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from cavmae_ds.checkpoint.folder import remove, step_of, whole_checkpoints_in


class Retention(NamedTuple):
    """How many checkpoints stay."""

    last: int
    """The newest so many, at least one."""
    every: int = 0
    """And those after multiples of so many steps; 0: no others."""

    def superseded(self, steps: Sequence[int]) -> list[int]:
        """Steps of finished checkpoints that may go, oldest first."""
        older = sorted(steps)[: -self.last]
        return [step for step in older if not (self.every and step % self.every == 0)]


def thin_out(root: Path, keep: Retention, in_use: Collection[int] = ()) -> list[Path]:
    """Remove superseded checkpoints below `root`, but for those in use; what was removed."""
    found = {step_of(folder.name) or 0: folder for folder in whole_checkpoints_in(root)}
    gone = [found[step] for step in keep.superseded(list(found)) if step not in in_use]
    for folder in gone:
        remove(folder)
    return gone
