"""launch/pretrain.py, but the log-mels of a clip are not finite; int16 sound in a shard could not be so.

Arguments: the clip's place in the data, or "gradient": all is finite but that; then those of launch/pretrain.py.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.data.format.clips import Batch
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.tasks.pretrain import step
from cavmae_ds.tasks.pretrain import task as pretrain
from cavmae_ds.train_cli import main

BROKEN = sys.argv.pop(2)  # after the script and --local_rank


class BrokenSound(FrontEnd):
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        audio, images = super().__call__(batch)
        audio[batch.clip_index == int(BROKEN), 7, 3] = torch.nan
        return audio, images


if __name__ == "__main__":
    if BROKEN == "gradient":
        step.back_propagate = lambda engine, loss: engine.backward(loss * math.inf)
    else:
        pretrain.FrontEnd = BrokenSound
    main()
