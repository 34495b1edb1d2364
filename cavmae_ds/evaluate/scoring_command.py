"""`cavmae evaluate`: scores of any trained model, as a table and as JSON. Heavy imports when it runs."""

from __future__ import annotations

import json
import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from cavmae_ds.config.sections.classify import Mode
from cavmae_ds.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cavmae_ds.evaluate.judging import Judged, ModeScores

LONGEST_TABLE = 20  # classes; of more the best and the worst are shown

console = Console(soft_wrap=True)


class What(str, Enum):
    """What is scored."""

    retrieval = "retrieval"
    classification = "classification"


class Frames(str, Enum):
    """How many frames of a clip are looked at."""

    middle = "1"
    every = "10"


class Probabilities(str, Enum):
    """What turns a classifier's outputs into probabilities."""

    sigmoid = "sigmoid"
    softmax = "softmax"


def evaluate(
    weights: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="Run folder, official .pth, or .safetensors file.")
    ],
    data: Annotated[str, typer.Option(help="Folder or s3:// address of the clips, as `cavmae prepare` wrote them.")],
    ema: Annotated[bool, typer.Option("--ema", help="Take the running mean of a run's weights.")] = False,
    what: Annotated[
        What | None, typer.Option(help="By default classification for a finetuned model, else retrieval.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(help="What a classifier is given: modes with commas between, or all.", show_default="the run's"),
    ] = "",
    frames: Annotated[
        Frames | None,
        typer.Option(
            help="The middle frame alone, or all: their probabilities, or features, are averaged.",
            show_default="evaluate.frames of a finetuned run, else 10; 1 for retrieval",
        ),
    ] = None,
    probabilities: Annotated[
        Probabilities | None,
        typer.Option(
            help="Where a clip may have several classes, or exactly one.",
            show_default="as the run's loss, else by the labels",
        ),
    ] = None,
    classes_by: Annotated[
        str, typer.Option(help="Retrieval: only classes whose name or official id begins so are compared.")
    ] = "",
) -> None:
    """Score a pretrained model by retrieval, a finetuned one by classification. Every clip is used once.

    \b
    retrieval       find the frame of a sound, and the sound of a frame; writes retrieval.json
    classification  mean average precision, AUC, d', accuracy; each class; writes classification.json and,
                    for each mode, classification-MODE.png: curves, classes, confusions

    They are written into the run folder; beside a file, FILE.safetensors, as FILE.retrieval.json.
    What a finetuning run averaged over epochs is the file averaged.safetensors in its folder.

    \b
    Examples:
      cavmae evaluate runs/quickstart --data quickstart/shards/eval
      cavmae evaluate runs/as20k/averaged.safetensors --data shards/eval
      cavmae evaluate runs/vggsound --data shards/test --mode all --frames 1
    """
    from cavmae_ds.evaluate.judging import EVERY_FRAME, MIDDLE_ALONE, open_judged

    judged = open_judged(weights, data, ema)
    chosen = what or (What.classification if judged.loaded.classes else What.retrieval)
    default = judged.run.get("evaluate", {}).get("frames", 10) if chosen == What.classification else 1
    looked_at = EVERY_FRAME if (frames.value if frames else str(default)) == Frames.every else MIDDLE_ALONE
    origin = {"weights": str(weights), "data": data, "ema": ema}
    if chosen == What.retrieval:
        values, tables = _retrieval(judged, looked_at, classes_by)
    else:
        values, tables, figures = _classification(judged, looked_at, mode, probabilities)
        for name, figure in figures.items():
            figure.savefig(_output(weights, f"{chosen.value}-{name}.png"), dpi=110)
    _output(weights, f"{chosen.value}.json").write_text(json.dumps(values | origin, indent=1))
    for table in tables:
        console.print(table)


def _output(weights: Path, name: str) -> Path:
    return weights / name if weights.is_dir() else weights.with_suffix(f".{name}")


def _retrieval(judged: Judged, frames: tuple[int, ...], class_prefix: str) -> tuple[dict[str, Any], list[Table]]:
    from cavmae_ds.evaluate.judging import retrieve

    scores = retrieve(judged, frames, class_prefix)
    values = scores._asdict() | {
        "frames": frames,
        "classes_by": class_prefix,
        "ties": "against the query",
        "audio_to_image": scores.audio_to_image._asdict(),
        "image_to_audio": scores.image_to_audio._asdict(),
    }
    return values, [_retrieval_table(values)]


def _classification(
    judged: Judged, frames: tuple[int, ...], mode: str, asked: Probabilities | None
) -> tuple[dict[str, Any], list[Table], dict[Mode, Figure]]:
    from cavmae_ds.evaluate.classification_pictures import draw_classification
    from cavmae_ds.evaluate.judging import classify

    if not judged.loaded.classes:
        raise ConfigError(f"the model in {judged.loaded.source!r} is no classifier: finetune it first, or leave --what")
    wanted = asked.value if asked else _probabilities_of_run(judged)
    probabilities, found = classify(judged, _modes(judged, mode), frames, wanted)
    names = [*judged.class_names, *(f"class {k}" for k in range(len(judged.class_names), judged.loaded.classes))]
    modes = {name: _mode_values(scores, names) for name, scores in found.items()}
    first, *_ = modes
    tables = [_mode_table(found, probabilities), _class_table(first, modes[first]["classes"])]
    figures = {
        name: draw_classification(one.scores, one.targets, one.probabilities, names, name)
        for name, one in found.items()
    }
    return {"probabilities": probabilities, "modes": modes}, tables, figures


def _modes(judged: Judged, asked: str) -> list[Mode]:
    able = judged.able()
    if asked == "all":
        return list(able)
    trained = judged.run.get("classifier", {}).get("mode")
    modes = asked.split(",") if asked else [trained or able[0]]
    for name in modes:
        if name not in able:
            raise ConfigError(f"--mode must be all or of {', '.join(able)} for this model, got {name!r}")
    return [name for name in get_args(Mode) if name in modes]


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


def _mode_table(found: dict[Mode, ModeScores], probabilities: str) -> Table:
    scores = next(iter(found.values())).scores
    left_out = len(scores.classes) - scores.scored_classes
    note = f"; {left_out} of {len(scores.classes)} classes have no clip and are left out" if left_out else ""
    table = Table(
        "mode", "frames", "mAP", "AUC", "d'", "accuracy", "mAP of one frame",
        title=f"classification of {scores.clips} clips, {probabilities}{note}",
    )  # fmt: skip
    for mode, (frames, means, alone, *_) in found.items():
        single = [one.mean_average_precision for one in alone]
        table.add_row(
            mode, str(len(frames) or "-"), f"{means.mean_average_precision:.2%}", _share(means.mean_auc, 2),
            "-" if means.d_prime is None else f"{means.d_prime:.3f}", f"{means.accuracy:.2%}",
            f"{min(single):.2%} to {max(single):.2%}" if len(single) > 1 else "-",
        )  # fmt: skip
    return table


def _class_table(mode: str, classes: list[dict[str, Any]]) -> Table:
    scored = sorted(
        (one for one in classes if one["positives"]), key=lambda one: one["average_precision"], reverse=True
    )
    title, half = f"classes, {mode}", LONGEST_TABLE // 2
    if len(scored) > LONGEST_TABLE:
        title, scored = f"the {half} best and {half} worst classes, {mode}", scored[:half] + scored[-half:]
    table = Table("class", "clips", "AP", "AUC", title=title)
    for one in scored:
        table.add_row(one["name"], str(one["positives"]), f"{one['average_precision']:.1%}", _share(one["auc"]))
    return table


def _retrieval_table(scores: dict[str, Any]) -> Table:
    table = Table("", "R@1", "R@5", "R@10", "median rank", "class P@1", title=f"retrieval among {scores['pool']} clips")
    for name, direction in (("V->A", "image_to_audio"), ("A->V", "audio_to_image")):
        row = scores[direction]
        recalls = [f"{row[f'recall_at_{k}']:.1%}" for k in (1, 5, 10)]
        table.add_row(name, *recalls, f"{row['median_rank']:.0f}", _share(row["class_precision_at_1"]))
    pool = scores["pool"]
    chances = [f"{min(1.0, k / pool):.1%}" for k in (1, 5, 10)]
    table.add_row("chance", *chances, f"{(pool + 1) / 2:.0f}", _share(scores["chance_class_precision_at_1"]))
    return table


def _share(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}%}"
