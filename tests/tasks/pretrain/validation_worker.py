"""Run by every rank: validates a fresh model, as pretraining would, and says the losses.

Arguments: a run file, then a file for the first rank's results.
"""

import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from cavmae_ds.config.load import load_config
from cavmae_ds.training.batch_plan import derive


def main() -> None:
    run_file, *overrides, results = sys.argv[2:]  # the first argument is the launcher's --local_rank
    import os

    cfg = load_config(Path(run_file), overrides)
    from cavmae_ds.tasks.pretrain.task import pretraining_parts
    from cavmae_ds.training.loop import open_run

    numbers = derive(cfg, int(os.environ["WORLD_SIZE"]))
    with open_run(cfg, numbers, partial(pretraining_parts, cfg, numbers)) as run:
        validation = run.parts.validation
        losses = validation()
        assert run.engine.training and run.engine.module.training
        seen = sorted(place for group in validation._groups for place in group)
        if run.world.is_first:
            Path(results).write_text(json.dumps({"losses": [float(term) for term in losses], "seen": seen}))


if __name__ == "__main__":
    main()
