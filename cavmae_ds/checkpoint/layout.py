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

from cavmae_ds.errors import CheckpointError

MASTER, EMA, FROZEN = "master", "ema", "frozen"
"""States that are not the optimizer's: fp32 weights, their running means, parameters that no optimizer holds."""


class Piece(NamedTuple):
    """A stretch of one flattened parameter."""

    state: str
    """MASTER, EMA, FROZEN, or the optimizer's own name for it: exp_avg, exp_avg_sq, momentum_buffer."""
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

    def read(self, state: str, parameter: str, offset: int, into: Tensor) -> None:
        """Fill a 1-D tensor from element `offset` of the flattened parameter on, on any device, in its own dtype.

        Raises CheckpointError if no file holds them all, or one cannot be read.
        """
        wanted = [(offset, offset + into.numel())]
        known = 0
        while wanted:
            found = self._stretches.setdefault((state, parameter), [])
            for stretch in found[known:]:
                wanted = [left for part in wanted for left in _copy(stretch, part, offset, into)]
            known = len(found)
            if wanted and not self._unopened:
                start, stop = wanted[0]
                raise CheckpointError(
                    f"no file of the checkpoint holds elements {start} to {stop} of {state} {parameter}"
                )
            if wanted:
                self._open(self._unopened.pop())

    def _open(self, name: str) -> None:
        path = self._path(name)
        try:
            file = safe_open(path, framework="pt")
            keys = file.keys()
            for key in keys:
                state, parameter, offset = key.split(":")
                values = file.get_slice(key)
                stretch = _Stretch(int(offset), int(offset) + values.get_shape()[0], values)
                self._stretches.setdefault((state, parameter), []).append(stretch)
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"checkpoint file {str(path)!r} cannot be read: {error}") from error


class _Stretch(NamedTuple):
    start: int
    stop: int
    values: Any  # a slice of safetensors: what is indexed is read then


def _copy(stretch: _Stretch, part: tuple[int, int], offset: int, into: Tensor) -> list[tuple[int, int]]:
    """Fill what a stretch holds of the elements [start, stop) of a parameter; what is left of them."""
    start, stop = max(part[0], stretch.start), min(part[1], stretch.stop)
    if start >= stop:
        return [part]
    values: Tensor = stretch.values[start - stretch.start : stop - stretch.start]
    with torch.no_grad():
        into.narrow(0, start - offset, stop - start).copy_(values)
    return [left for left in ((part[0], start), (stop, part[1])) if left[0] < left[1]]
