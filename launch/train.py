"""What the launcher starts: `deepspeed --num_gpus 2 launch/train.py RUN.yaml [section.key=value ...]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from cavmae_ds.train_cli import main, train_command

if __name__ == "__main__":
    main(train_command)
