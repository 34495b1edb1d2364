"""What to type next for a run: commands with its own paths, by what kind of run it is and how far it has come."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import NamedTuple

from cavmae_ds.evaluation.run_folder import AVERAGED_WEIGHTS, ENDED, STOPPED, RunFolder


class NextStep(NamedTuple):
    """A command, and what it is for."""

    purpose: str
    command: str


def next_steps(run: RunFolder) -> Iterator[NextStep]:
    """The most useful first. Words in capitals are for the user to fill in."""
    folder = shlex.quote(str(run.path))
    if run.end != ENDED:
        stopped = run.end == STOPPED or not run.events
        when = "go on to the last step" if stopped else "go on to the last step, unless it still trains"
        yield NextStep(f"{when}: the command that started it, with its launcher", f"deepspeed {run.command}")
    yield NextStep(
        "curves and pictures; the tab *custom scalars* has the few charts to look at first",
        f"tensorboard --logdir {folder}",
    )
    if run.checkpoints:
        yield from _with_weights(run, folder)
    yield NextStep("beside another run: curves, and what differs in the settings", f"cavmae compare {folder} OTHER_RUN")


def _with_weights(run: RunFolder, folder: str) -> Iterator[NextStep]:
    data = shlex.quote(run.data)
    clips = ", on the clips it was trained on: better take others" if run.data == run.settings.get("data.train") else ""
    averaged = (run.path / AVERAGED_WEIGHTS).is_file()
    for purpose, command in run.run_class.next_steps(run.settings, folder, data, averaged):
        yield NextStep(f"{purpose}{clips}" if "evaluate" in command.split() else purpose, command)
    yield NextStep("features of clips for other code", f"cavmae features {folder} {data} --out features.safetensors")
    yield NextStep("one file of weights for other code", f"cavmae export {folder} --out model.safetensors")
