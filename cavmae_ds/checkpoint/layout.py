"""What a checkpoint is made of: stretches of parameters, of their optimizer moments and of their running means.

Each piece says for itself where it belongs, so the files of any number of ranks at any ZeRO stage hold the same values
under the same names, and any other number of ranks finds its own stretches in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cavmae_ds.checkpoint.manifest import DamagedCheckpoint

MASTER, FROZEN = "master", "frozen"
"""States that are not the optimizer's: fp32 weights, and parameters that no optimizer holds, and buffers."""
EMA, AVERAGED = MEANS = "ema", "averaged"
"""States that are running means of the fp32 weights (ema.py)."""


class Piece(NamedTuple):
    """A stretch of one flattened parameter."""

    state: str
    """MASTER, FROZEN, one of MEANS, or the optimizer's own name for it: exp_avg, exp_avg_sq, momentum_buffer."""
    parameter: str
    """Its name in the model."""
    offset: int
    """First element in the flattened parameter."""
    values: Tensor
    """[n] on the CPU; float32, frozen parameters in the dtype they train in."""

    @property
    def key(self) -> str:
        """Its name in a rank's file."""
        return f"{self.state}:{self.parameter}:{self.offset}"


def rank_file(rank: int, ranks: int) -> str:
    """The name of one rank's file in a checkpoint."""
    return f"rank-{rank:05d}-of-{ranks:05d}.safetensors"


class PieceReader:
    """Any stretch of any parameter out of the rank files of one checkpoint.

    Files are opened when they are needed, those first that most likely hold what this rank wants: with as many ranks at
    the same stage as before that is one file.
    """

    def __init__(self, files: Sequence[str], path: Callable[[str], Path], rank: int = 0, ranks: int = 1):
        """files: names in the order of the ranks that wrote them. path: where a file lies; asked once for each needed.

        rank: that reads, of `ranks` that share everything out among them.
        """
        count = len(files)
        likely = range(rank * count // ranks, -(-(rank + 1) * count // ranks))
        # What is not shared out lies with the first rank. The rest is for layouts that are cut otherwise.
        order = sorted(range(count), key=lambda file: (file not in likely, file != 0, abs(file - likely.start)))
        self._unopened = [files[file] for file in reversed(order)]
        self._path = path
        self._stretches: dict[tuple[str, str], list[_Stretch]] = {}

    @property
    def states(self) -> set[str]:
        """That the files opened so far hold something of."""
        return {state for (state, _), stretches in self._stretches.items() if stretches}

    def locate(self, state: str, parameter: str, offset: int, numel: int) -> list[_Stretch]:
        """Open files until so many elements of the flattened parameter are found, from element `offset` on.

        Raises DamagedCheckpoint if no file holds them all, or one cannot be read; or what `path` raises.
        """
        found: list[_Stretch] = []
        wanted, looked = [(offset, offset + numel)], 0
        while wanted:
            known = self._stretches.setdefault((state, parameter), [])
            for stretch in known[looked:]:
                found += [stretch.cut(*part) for part in wanted if stretch.overlaps(*part)]
                wanted = [left for part in wanted for left in stretch.leaves(*part)]
            looked = len(known)
            if wanted and not self._unopened:
                first, last = wanted[0]
                raise DamagedCheckpoint(
                    f"no file of the checkpoint holds elements {first} to {last} of {state} {parameter}"
                )
            if wanted:
                self._open(self._unopened.pop())
        return found

    @torch.no_grad()
    def read(self, state: str, parameter: str, offset: int, into: Tensor) -> None:
        """Fill a 1-D tensor from element `offset` of the flattened parameter on, on any device; see locate."""
        for part in self.locate(state, parameter, offset, into.numel()):
            into.narrow(0, part.start - offset, part.stop - part.start).copy_(part.values())

    def _open(self, name: str) -> None:
        path = self._path(name)
        try:
            file = safe_open(path, framework="pt")
            keys = file.keys()
            for key in keys:
                state, parameter, offset = key.split(":")
                slices = file.get_slice(key)
                (elements,) = slices.get_shape()  # not one dimension: ValueError
                stretch = _Stretch(int(offset), int(offset) + elements, 0, slices)
                self._stretches.setdefault((state, parameter), []).append(stretch)
        except (OSError, SafetensorError, ValueError) as error:
            raise DamagedCheckpoint(f"checkpoint file {str(path)!r} cannot be read: {error}") from error


class _Stretch(NamedTuple):
    """Elements [start, stop) of a parameter in an open file, where they are the ones from `first` on of `slices`."""

    start: int
    stop: int
    first: int
    slices: Any  # of safetensors: what is indexed is read then

    def overlaps(self, start: int, stop: int) -> bool:
        return max(start, self.start) < min(stop, self.stop)

    def cut(self, start: int, stop: int) -> _Stretch:
        inner = max(start, self.start)
        return _Stretch(inner, min(stop, self.stop), self.first + inner - self.start, self.slices)

    def leaves(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What this does not hold of [start, stop)."""
        left = (start, min(stop, self.start)), (max(start, self.stop), stop)
        return [part for part in left if part[0] < part[1]]

    def values(self) -> Tensor:
        return self.slices[self.first : self.first + self.stop - self.start]
