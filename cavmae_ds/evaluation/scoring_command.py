"""`cavmae evaluate`: scores of any trained model, as a table and as JSON. Heavy imports when it runs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.terminal import DisplayConsole, read_lines

if TYPE_CHECKING:
    from cavmae_ds.evaluation.gallery import Gallery
    from cavmae_ds.evaluation.inference import Judged, Pooled

GALLERIES = (".html", ".png")

console = DisplayConsole(soft_wrap=True)


class What(str, Enum):
    """What is scored."""

    retrieval = "retrieval"
    classification = "classification"


class WeightsOf(str, Enum):
    """Which weights of a run folder."""

    last = "last"
    ema = "ema"
    averaged = "averaged"


class Probabilities(str, Enum):
    """What turns a classifier's outputs into probabilities."""

    sigmoid = "sigmoid"
    softmax = "softmax"


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="Run folder, official .pth, or .safetensors file.")
    ],
    data: Annotated[str, typer.Option(help="Folder or s3:// address of the clips, as `cavmae prepare` wrote them.")],
    weights: Annotated[
        WeightsOf | None,
        typer.Option(
            help="Of a run folder: those of its newest checkpoint, their running mean (train.ema_clips), or what a "
            "finetuning run averaged over epochs.",
            show_default="last",
        ),
    ] = None,
    what: Annotated[
        What | None, typer.Option(help="By default classification for a finetuned model, else retrieval.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(help="What a classifier is given: modes with commas between, or all.", show_default="the run's"),
    ] = "",
    frames: Annotated[
        str,
        typer.Option(
            metavar="1|10|LIST",
            help="The middle frame alone, all ten, or those of a list, 0,5,9: their probabilities, or features, are "
            "averaged.",
            show_default="evaluate.frames of a finetuned run, else 10; 1 for retrieval",
        ),
    ] = "",
    probabilities: Annotated[
        Probabilities | None,
        typer.Option(
            help="Where a clip may have several classes, or exactly one.",
            show_default="as the run's loss, else by the labels",
        ),
    ] = None,
    classes_by: Annotated[
        str,
        typer.Option(help="Only classes whose name or official id begins so count: in retrieval, and for --per-class."),
    ] = "",
    ids: Annotated[Path | None, typer.Option(help="Only the clips that this file names, one id a line.")] = None,
    per_class: Annotated[
        int, typer.Option(min=0, help="Only the first so many clips of each class, by their ids; 0: all.")
    ] = 0,
    gallery: Annotated[
        Path | None, typer.Option(help="Retrieval: also show what is found, on a page (.html) or a picture (.png).")
    ] = None,
    queries: Annotated[int, typer.Option(min=1, max=100, help="Clips that the gallery searches by.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Clips of one forward pass.")] = 32,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,
) -> None:
    """Score a pretrained model by retrieval, a finetuned one by classification. Every clip is used once.

    \b
    retrieval       find the frame of a sound, and the sound of a frame; writes retrieval.json
    classification  mean average precision, AUC, d', accuracy; each class; writes classification.json and,
                    for each mode, classification-MODE.png: curves, classes, confusions

    They are written into the run folder; beside a file, FILE.safetensors, as FILE.retrieval.json; so for
    --weights ema and averaged: ema.retrieval.json. On several GPUs: deepspeed launch/evaluate.py, with the same
    arguments.

    \b
    Examples:
      cavmae evaluate runs/quickstart --data quickstart/shards/eval --gallery found.html
      cavmae evaluate runs/as20k --weights averaged --data shards/eval
      cavmae evaluate runs/vggsound --data shards/test --mode all --frames 1
      cavmae evaluate runs/base --data shards/test --per-class 5
      deepspeed --num_gpus 8 launch/evaluate.py runs/base --data shards/test
    """
    if "RANK" in os.environ:  # before torch: a store that is gone is no news
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from cavmae_ds.evaluation.distributed_eval import agreed, evaluating_together
    from cavmae_ds.evaluation.inference import open_judged
    from cavmae_ds.evaluation.subsets import among

    with evaluating_together() as world:
        path, ema = agreed(world, lambda: _weights_of(model, weights))
        wanted = agreed(world, lambda: read_lines("--ids", ids) if ids else None)
        judged = replace(open_judged(path, data, ema, world), batch=batch)
        chosen = what or (What.classification if judged.loaded.classes else What.retrieval)
        looked_at = agreed(world, lambda: _frames(judged, frames, chosen))
        agreed(world, lambda: _check_gallery(gallery, chosen))
        of_retrieval = {"--classes-by": classes_by and not per_class}
        of_classification = {"--mode": mode, "--probabilities": probabilities}
        agreed(world, lambda: _check_used(chosen, of_retrieval, of_classification))
        judged = among(judged, wanted, per_class, classes_by)
        subset = {"ids": str(ids) if ids else None, "per_class": per_class}
        origin = {"weights": str(path), "data": data, "ema": ema, "step": judged.loaded.step}
        told = _Told(path, ema, origin | subset)
        if chosen == What.classification:
            _score_classification(judged, looked_at, mode, probabilities, told)
            return
        pooled, scores = _score_retrieval(judged, looked_at, classes_by, told)
        if pooled and gallery:
            from cavmae_ds.evaluation.gallery import make_gallery

            title = f"{path}: retrieval among {len(judged.places):,} clips of {data}"
            _write_gallery(make_gallery(judged, pooled, looked_at, queries, title, scores), gallery)


class _Told(NamedTuple):
    """Where scores are written, and what is written beside them."""

    path: Path
    ema: bool
    origin: dict[str, Any]

    def output(self, name: str) -> Path:
        """See scores_file."""
        from cavmae_ds.evaluation.scores import scores_file

        return scores_file(self.path, self.ema, name)

    def write(self, name: str, values: dict[str, Any]) -> None:
        """As JSON. Raises ConfigError if it cannot be written."""
        from cavmae_ds.atomic_io import written_whole

        with written_whole(self.output(name)) as unfinished:
            unfinished.write_text(json.dumps(values | self.origin, indent=1))


def _weights_of(model: Path, weights: WeightsOf | None) -> tuple[Path, bool]:
    """What load_model takes: where they are, and whether it is their running mean."""
    if weights and not model.is_dir():
        raise CheckpointError(f"--weights chooses among those of a run folder, {str(model)!r} is none; leave it out")
    if weights != WeightsOf.averaged:
        return model, weights == WeightsOf.ema
    from cavmae_ds.evaluation.run_folder import AVERAGED_WEIGHTS

    if not (model / AVERAGED_WEIGHTS).is_file():
        raise CheckpointError(
            f"run folder {str(model)!r} holds no {AVERAGED_WEIGHTS}: a finetuning run writes it at its end, if "
            "it averages (average.from_epoch)"
        )
    return model / AVERAGED_WEIGHTS, False


def _frames(judged: Judged, asked: str, what: What) -> tuple[int, ...]:
    """Numbers of frames, from 0."""
    from cavmae_ds.evaluation.inference import EVERY_FRAME, MIDDLE_ALONE

    default = judged.run.get("evaluate", {}).get("frames", 10) if what == What.classification else 1
    text = asked or str(default)
    if text in ("1", "10"):
        return MIDDLE_ALONE if text == "1" else EVERY_FRAME
    numbers = text.removesuffix(",").split(",")
    chosen = tuple(int(number) for number in numbers if number.isdecimal() and int(number) in EVERY_FRAME)
    if "," not in text or len(set(chosen)) < len(numbers):
        raise ConfigError(
            "--frames must be 1 (the middle one), 10 (all) or different numbers from 0 to 9 with commas, such as 0,5,9 "
            f"or 3, (the comma tells it from a count), got {text!r}"
        )
    return chosen


def _check_gallery(gallery: Path | None, what: What) -> None:
    if gallery and gallery.suffix.lower() not in GALLERIES:
        raise ConfigError(f"--gallery must end in {' or '.join(GALLERIES)}, got {str(gallery)!r}")
    if gallery and what != What.retrieval:
        raise ConfigError("--gallery shows what is retrieved; this is a classifier: add --what retrieval")


def _check_used(what: What, of_retrieval: dict[str, Any], of_classification: dict[str, Any]) -> None:
    """Raises ConfigError for options, name -> value, that would be ignored."""
    unused = of_retrieval if what == What.classification else of_classification
    other = What.retrieval if what == What.classification else What.classification
    for option in (name for name, value in unused.items() if value):
        raise ConfigError(f"{option} has no use in {what.value}: leave it out, or score by --what {other.value}")


def _score_retrieval(
    judged: Judged, frames: tuple[int, ...], class_prefix: str, told: _Told
) -> tuple[Pooled | None, dict[str, Any]]:
    """By all ranks; the first one writes, speaks and has the features and scores."""
    from cavmae_ds.evaluation.inference import pooled_features
    from cavmae_ds.evaluation.scores import retrieval

    pooled = pooled_features(judged, frames, class_prefix)
    if pooled is None:
        return None, {}
    values, table = retrieval(judged, pooled)
    told.write("retrieval.json", values | {"frames": frames, "classes_by": class_prefix})
    console.print(table)
    return pooled, values


def _write_gallery(gallery: Gallery, out: Path) -> None:
    from cavmae_ds.atomic_io import written_whole
    from cavmae_ds.evaluation.gallery_page import gallery_page
    from cavmae_ds.evaluation.gallery_picture import draw_gallery

    with written_whole(out) as unfinished:
        if out.suffix.lower() == ".html":
            unfinished.write_text(gallery_page(gallery), "utf-8")
        else:
            draw_gallery(gallery).savefig(unfinished, dpi=110)
    console.print(f"{len(gallery.queries)} queries and what they find are shown in {out}")


def _score_classification(
    judged: Judged, frames: tuple[int, ...], mode: str, asked: Probabilities | None, told: _Told
) -> None:
    """By all ranks; the first one writes and speaks."""
    from cavmae_ds.atomic_io import written_whole
    from cavmae_ds.evaluation.classification_pictures import draw_classification
    from cavmae_ds.evaluation.scores import classification

    values, tables, found = classification(judged, frames, mode, asked.value if asked else "")
    if not found:
        return
    names = judged.names_of(range(judged.loaded.classes))
    for name, one in found.items():
        figure = draw_classification(one.scores, one.targets, one.probabilities, names, name)
        with written_whole(told.output(f"classification-{name}.png")) as unfinished:
            figure.savefig(unfinished, dpi=110)
    told.write("classification.json", values)
    for table in tables:
        console.print(table)
