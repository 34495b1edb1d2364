"""What is compared: a run's settings and curves, read from its folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cavmae_ds.config.load import read_values
from cavmae_ds.errors import ConfigError
from cavmae_ds.monitor.log import BEGINNINGS, read_log

Axis = Literal["steps", "clips", "time"]

USUAL_TAGS = (
    "loss/total", "loss/mae_audio", "loss/mae_image", "loss/contrastive", "validation/total", "validation/map",
    "validation/accuracy", "probe/audio_to_image_recall_at_1",
)  # fmt: skip
HIGHER_IS_BETTER = ("accuracy", "recall", "precision", "per_second", "mfu", "/map", "/auc", "/d_prime")


class Point(NamedTuple):
    """One value of a curve."""

    step: int
    hours: float
    """Of training up to here; neither pauses between processes nor steps that were done again count."""
    value: float


@dataclass(frozen=True)
class ComparedRun:
    """A run among others."""

    name: str
    settings: dict[str, Any]
    """`optim.learning_rate` -> value, of every key."""
    curves: dict[str, list[Point]]
    """By tag, in the order of steps; points that are no number are left out."""

    def axis(self, tag: str, by: Axis) -> list[float]:
        """Where the points of a curve lie."""
        points = self.curves[tag]
        if by == "time":
            return [point.hours for point in points]
        each = self.settings["train.global_batch"] if by == "clips" else 1
        return [point.step * each for point in points]


def load_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Raises ConfigError or DataError for what is no run folder."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [_load(folder, name) for folder, name in zip(folders, names, strict=True)]


def differences(runs: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """Setting -> its value in each run, of the settings that are not the same in all; where a run lies is no matter."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "run_dir")
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def choose_tags(runs: Sequence[ComparedRun], wanted: Sequence[str]) -> list[str]:
    """The wanted curves, or the usual ones that are there. Raises ConfigError for one that no run has drawn."""
    drawn = sorted({tag for run in runs for tag in run.curves})
    for tag in wanted:
        if tag not in drawn:
            near = difflib.get_close_matches(tag, drawn, 3) or drawn
            raise ConfigError(f"--tags: no run has drawn {tag!r}; there are, for example, {', '.join(near[:5])}")
    tags = list(wanted) or [tag for tag in USUAL_TAGS if tag in drawn]
    if not tags:
        raise ConfigError(f"none of the runs has drawn a loss yet: {', '.join(run.name for run in runs)}")
    return tags


def best(points: Sequence[Point], tag: str) -> Point:
    """The lowest of a loss, the highest of what is a share of hits or a speed."""
    highest = any(word in tag for word in HIGHER_IS_BETTER)
    return (max if highest else min)(points, key=lambda point: point.value)


def settings_of(folder: Path) -> dict[str, Any]:
    """`optim.learning_rate` -> value, of every key of a run folder's config.yaml. Raises ConfigError for another."""
    config = folder / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{str(folder)!r} is no run folder: it has no config.yaml; give what run_dir names")
    settings = dict(_flat(read_values(config), ""))  # as written: of any kind of run, and of another version
    if "train.global_batch" not in settings:
        raise ConfigError(f"{str(config)!r} was not written by a run: it has no train.global_batch")
    return settings


def _load(folder: Path, name: str) -> ComparedRun:
    return ComparedRun(name, settings_of(folder), curves_of(read_log(folder)))


def curves_of(entries: Sequence[dict[str, Any]]) -> dict[str, list[Point]]:
    """Tag -> points in the order of steps, of what read_log returns; what is no number is left out."""
    curves: dict[str, dict[int, Point]] = {}
    seconds, before = 0.0, 0.0
    for entry in entries:
        if entry.get("event") not in BEGINNINGS:
            seconds += entry["time"] - before
        before = entry["time"]
        if "event" in entry:
            continue
        for tag, value in entry.items():
            if tag not in ("time", "step") and isinstance(value, (int, float)):
                curves.setdefault(tag, {})[entry["step"]] = Point(entry["step"], seconds / 3600, value)
    return {tag: [points[step] for step in sorted(points)] for tag, points in curves.items()}


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value) if isinstance(value, list) else value
