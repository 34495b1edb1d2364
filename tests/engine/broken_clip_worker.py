"""launch/pretrain.py, but log-mels of some clips are not finite; int16 sound in a shard could not be so.

Arguments: the clips' places in the data with commas between them, or "all"; then those of launch/pretrain.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds import pretrain
from cavmae_ds.data.clips import Batch
from cavmae_ds.data.front_end import FrontEnd
from cavmae_ds.launched import main

BROKEN = sys.argv.pop(2)  # after the script and --local_rank


class BrokenSound(FrontEnd):
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        audio, images = super().__call__(batch)
        for row, clip in enumerate(batch.clip_index.tolist()):
            if BROKEN == "all" or str(clip) in BROKEN.split(","):
                audio[row, 7, 3] = torch.nan
        return audio, images


if __name__ == "__main__":
    pretrain.FrontEnd = BrokenSound
    main()
