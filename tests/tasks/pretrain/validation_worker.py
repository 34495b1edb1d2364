"""Run by every rank: validates a fresh model, as pretraining would, and says the losses.

Arguments: a run file, then a file for the first rank's results.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from cavmae_ds.tasks import load_run
from cavmae_ds.tasks.pretrain.task import Pretraining


def main() -> None:
    run_file, *overrides, results = sys.argv[2:]  # the first argument is the launcher's --local_rank
    import os

    cfg = load_run(Path(run_file), "pretrain", overrides)
    from cavmae_ds.training.loop import open_run

    with open_run(Pretraining(cfg, Pretraining.resolve(cfg, int(os.environ["WORLD_SIZE"])))) as run:
        validation = run.task._validation
        losses = validation()
        assert run.engine.training and run.engine.module.training
        seen = sorted(place for group in validation._groups for place in group)
        if run.world.is_first:
            values = {name: float(value) for name, value in losses.items()}
            Path(results).write_text(json.dumps({"losses": values, "seen": seen}))


if __name__ == "__main__":
    main()
