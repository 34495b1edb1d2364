"""`cavmae launch --restarts 20`, but for the ranks, which note their clips: `supervisor.py FOLDER RUN.yaml ...`."""

from __future__ import annotations

import sys
from pathlib import Path

from cavmae_ds.launcher.hosts import HERE, Host
from cavmae_ds.launcher.supervisor import Supervisor
from cavmae_ds.tasks import load_run

if __name__ == "__main__":
    folder, run, *overrides = sys.argv[1:]
    program = [str(Path(__file__).with_name("noting_rank.py")), folder, run, *overrides]
    cfg = load_run(Path(run), "pretrain", overrides)
    supervisor = Supervisor(
        program, [Host(HERE, 2)], restarts=20, min_hosts=1, run_dir=cfg.run_dir, address=cfg.checkpoint.address,
        train=cfg.train, data=cfg.data, watch=cfg.watch,
    )  # fmt: skip
    sys.exit(supervisor.run())
