"""launch/pretrain.py, but in one turn all sounds are far louder than any before, so that the loss rises.

Arguments: the turn; then those of launch/pretrain.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.data.format.clips import Batch
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.tasks.pretrain import task as pretrain
from cavmae_ds.train_cli import main

LOUD = int(sys.argv.pop(2))  # after the script and --local_rank


class LoudTurn(FrontEnd):
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        audio, images = super().__call__(batch)
        audio[batch.epoch == LOUD] *= 30
        return audio, images


if __name__ == "__main__":
    pretrain.FrontEnd = LoudTurn
    main()
