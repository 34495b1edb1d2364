"""A rank of pretraining that notes the clips of every step, and takes its time while a file asks for it.

`noting_rank.py FOLDER RUN.yaml [section.key=value ...]`: FOLDER/rank-0.jsonl gets a line [step, clips] for every step;
each takes FOLDER/pace seconds longer, while that file is there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from cavmae_ds import train_cli
from cavmae_ds.data.transforms.front_end import Ready
from cavmae_ds.tasks.task import StepOutput
from cavmae_ds.training import loop

PACE = "pace"


def main() -> None:
    folder, steps = Path(sys.argv.pop(2)), loop._steps  # after --local_rank
    loop._steps = lambda run, *others: steps(noting(run, folder), *others)
    train_cli.main()


def noting(run: loop.Run, folder: Path) -> loop.Run:
    numbers, take_step = count(run.start + 1), run.task.training_step
    notes = (folder / f"rank-{run.world.rank}.jsonl").open("a", buffering=1)

    def step(micro_batches: Iterable[Ready]) -> StepOutput:
        clips: list[int] = []

        def noted() -> Iterator[Ready]:
            for ready in micro_batches:
                clips.extend(ready.batch.clip_index.tolist())
                yield ready

        done = take_step(noted())
        notes.write(json.dumps([next(numbers), clips]) + "\n")
        with suppress(FileNotFoundError):
            time.sleep(float((folder / PACE).read_text()))
        return done

    run.task.training_step = step
    return run


if __name__ == "__main__":
    main()
