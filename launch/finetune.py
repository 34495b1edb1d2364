"""What the launcher starts: `deepspeed --num_gpus 2 launch/finetune.py RUN.yaml [section.key=value ...]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from cavmae_ds.train_cli import finetune_command, main

if __name__ == "__main__":
    main(finetune_command)
