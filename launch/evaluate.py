"""Evaluation on every rank: `deepspeed --num_gpus 8 launch/evaluate.py RUN_OR_FILE --data SHARDS`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from cavmae_ds.evaluation.scoring_command import evaluate
from cavmae_ds.train_cli import main

if __name__ == "__main__":
    main(evaluate)
