"""The doctor on every rank: `deepspeed --hostfile launch/hostfile launch/doctor.py [RUN.yaml]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from cavmae_ds.doctor.command import doctor
from cavmae_ds.train_cli import main

if __name__ == "__main__":
    main(doctor)
