"""Scores of a model as JSON and as tables: what `cavmae evaluate` tells, and a finetuning run at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cavmae_ds.errors import ConfigError
from cavmae_ds.evaluation.distributed_eval import agreed
from cavmae_ds.evaluation.inference import Judged, ModeScores, Pooled, classify
from cavmae_ds.evaluation.retrieval import retrieval_scores
from cavmae_ds.evaluation.score_tables import class_table, mode_table, retrieval_table


def scores_file(weights: Path, ema: bool, name: str) -> Path:
    """Where scores, or pictures of them, of some weights are written: in the run folder, or beside the file.

    ema: they are those of the running mean of a run folder's weights, and do not overwrite those of the weights.
    """
    if weights.is_dir():
        return weights / (f"ema.{name}" if ema else name)
    return weights.with_suffix(f".{name}")


def retrieval(judged: Judged, pooled: Pooled) -> tuple[dict[str, Any], Table]:
    """On the first rank: what JSON tells of it, and a table. On the device of the model."""
    device = judged.world.device
    scores = retrieval_scores(pooled.audio.to(device), pooled.image.to(device), pooled.labels)
    values = scores._asdict() | {
        "ties": "against the query",
        "audio_to_image": scores.audio_to_image._asdict(),
        "image_to_audio": scores.image_to_audio._asdict(),
    }
    return values, retrieval_table(values)


def classification(
    judged: Judged, frames: Sequence[int], mode: str = "", probabilities: str | None = None
) -> tuple[dict[str, Any], list[Table], dict[str, ModeScores]]:
    """What JSON tells of it, tables, and the scores of each mode: on the first rank, nothing on the others.

    mode: modes with commas between, or all; by default the run's. probabilities: a key of PROBABILITIES, by default as
    the run's loss, else by the labels. By all ranks together. Raises ConfigError if the model is no classifier or
    cannot do that; also what classify raises.
    """
    modes = agreed(judged.world, lambda: _modes(judged, mode))
    kind, found = classify(judged, modes, frames, probabilities or _probabilities_of_run(judged))
    if not found:
        return {}, [], {}
    names = judged.names_of(range(judged.loaded.classes))
    values = {name: _mode_values(scores, names) for name, scores in found.items()}
    tables = [mode_table(found, kind), class_table(modes[0], values[modes[0]]["classes"])]
    return {"probabilities": kind, "modes": values}, tables, found


def _modes(judged: Judged, asked: str) -> list[str]:
    if not judged.loaded.classes:
        raise ConfigError(f"the model in {judged.loaded.source!r} is no classifier: finetune it first, or leave --what")
    able = judged.able()
    if asked == "all":
        return list(able)
    trained = judged.run.get("classifier", {}).get("mode")
    modes = asked.split(",") if asked else [trained or able[0]]
    for name in modes:
        if name not in able:
            raise ConfigError(f"--mode must be all or of {', '.join(able)} for this model, got {name!r}")
    return [name for name in able if name in modes]


def _probabilities_of_run(judged: Judged) -> str:
    """Those of the loss that the model was finetuned with, where that is known."""
    return {"bce": "sigmoid", "ce": "softmax"}.get(judged.run.get("loss", {}).get("kind"), "")


def _mode_values(found: ModeScores, names: list[str]) -> dict[str, Any]:
    """What JSON can hold of it: infinities, which d' may be, become null."""
    means = {name: value for name, value in found.scores._asdict().items() if name != "classes"}
    alone = [
        {"mean_average_precision": one.mean_average_precision, "accuracy": one.accuracy} for one in found.of_frames
    ]
    classes = [{"name": name} | _finite(one._asdict()) for name, one in zip(names, found.scores.classes, strict=True)]
    by_frame = dict(zip(map(str, found.frames), alone, strict=True)) if found.frames else {}
    return _finite(means) | {"frames": found.frames, "by_frame": by_frame, "classes": classes}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(value, float) and not math.isfinite(value) else value for k, value in values.items()}
