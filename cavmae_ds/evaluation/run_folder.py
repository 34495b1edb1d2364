"""What a run folder holds, whatever kind of run wrote it and however far it has come."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cavmae_ds.checkpoint.folder import step_of, whole_checkpoints
from cavmae_ds.compare.runs import Point, curves_of, settings_of
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.monitor.log import BEGINNINGS, LOG, read_log
from cavmae_ds.tasks import run_class, task_by_sections

AVERAGED_WEIGHTS = "averaged.safetensors"
"""Of a finetuning run that is over: the mean of the weights after some epochs (section average)."""
SCORES = ("retrieval.json", "classification.json")
"""What `cavmae evaluate` writes, with one of ORIGINS in front."""
ORIGINS = ("", "ema.", "averaged.")
ENDED, STOPPED = "end", "stop"
"""Events of log.jsonl: all steps are done; the process left early."""


@dataclass(frozen=True)
class RunFolder:
    """A run as its folder tells of it. Nothing but config.yaml has to be there."""

    path: Path
    settings: dict[str, Any]
    """`optim.learning_rate` -> value, of every key."""
    curves: dict[str, list[Point]]
    checkpoints: list[Path]
    """Whole ones, oldest first."""
    events: list[dict[str, Any]]
    """Of log.jsonl."""
    last_written: float
    """Time of the last line of log.jsonl, seconds since 1970; 0 without one."""

    @property
    def run_class(self) -> type[RunConfig]:
        """Of its task; a run older than the key `task` has sections that only its task has."""
        return run_class(task_by_sections(self.settings.get("task"), {key.split(".")[0] for key in self.settings}))

    @property
    def step(self) -> int:
        """Optimizer steps done, as far as was written."""
        drawn = [points[-1].step for points in self.curves.values()]
        return max([0, *drawn, *(step_of(folder.name) or 0 for folder in self.checkpoints)])

    @property
    def total_steps(self) -> int | None:
        """Of the whole run; unknown before its first event."""
        begun = self._newest(*BEGINNINGS)
        return begun.get("numbers", {}).get("total_steps") if begun else None

    @property
    def end(self) -> str:
        """ENDED or STOPPED; empty while the newest process trains, or if it was killed."""
        last = self._newest(*BEGINNINGS, ENDED, STOPPED)
        return last["event"] if last and last["event"] not in BEGINNINGS else ""

    @property
    def command(self) -> str:
        """To resume it: the script with the arguments that it was last started with."""
        script = self.run_class.script
        begun = self._newest(*BEGINNINGS) or {}
        try:
            words = shlex.split(begun.get("environment", {}).get("command", ""))[2:]  # python, the script
        except ValueError:  # a quote went with a secret that was left out
            words = []
        kept = [word for word in words if not word.startswith(("--local_rank", "--local-rank"))]
        return shlex.join([script, *(kept or [str(self.path / "config.yaml")])])

    @property
    def data(self) -> str:
        """Where clips to evaluate with are: those of validation, or of scores that are there, else of training."""
        scored = [scores.get("data") for scores in self.scores().values() if scores]
        known = (self.settings.get("data.validation"), *scored, self.settings.get("data.train"))
        return next((one for one in known if one and isinstance(one, str)), "SHARDS")

    def scores(self) -> dict[str, dict[str, Any] | None]:
        """File name -> what is in it, None if it cannot be read, of each file of scores that is there."""
        names = [origin + name for name in SCORES for origin in ORIGINS]
        return {name: _json_object(self.path / name) for name in names if (self.path / name).is_file()}

    def _newest(self, *events: str) -> dict[str, Any] | None:
        return next((entry for entry in reversed(self.events) if entry["event"] in events), None)


def open_run_folder(path: Path) -> RunFolder:
    """Raises ConfigError if it is no run folder."""
    settings = settings_of(path)
    entries = read_log(path) if (path / LOG).is_file() else []
    return RunFolder(
        path, settings, curves_of(entries), whole_checkpoints(path), [one for one in entries if "event" in one],
        entries[-1]["time"] if entries else 0.0,
    )  # fmt: skip


def _json_object(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
