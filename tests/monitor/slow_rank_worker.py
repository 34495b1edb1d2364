"""Started on every rank: pretrains as launch/pretrain.py does, but rank 1 takes its time in every forward pass."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.train_cli import main

if os.environ["RANK"] == "1":
    forward = CAVMAE.forward

    def slow_forward(*args, **kwargs):
        time.sleep(0.1)
        return forward(*args, **kwargs)

    CAVMAE.forward = slow_forward

if __name__ == "__main__":
    main()
