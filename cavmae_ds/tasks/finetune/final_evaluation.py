"""What a finetuning run ends with: its averaged weights as a file, and scores of what it has learnt."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.checkpoint.folder import read_manifest
from cavmae_ds.checkpoint.layout import AVERAGED, EMA, MASTER
from cavmae_ds.checkpoint.store import open_checkpoints
from cavmae_ds.checkpoint.weights import assemble, export_weights
from cavmae_ds.data.format.clips import Batch
from cavmae_ds.data.loading.evaluation import ValidationClips
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.distributed.collectives import copy_from_first_rank, from_first_rank
from cavmae_ds.distributed.process_group import World
from cavmae_ds.evaluation.inference import EVERY_FRAME, MIDDLE_ALONE, Judged
from cavmae_ds.evaluation.run_folder import AVERAGED_WEIGHTS
from cavmae_ds.evaluation.scores import classification, scores_file
from cavmae_ds.fault_tolerance.heartbeat_monitor import Watch
from cavmae_ds.models import family_of
from cavmae_ds.tasks.finetune.config import FinetuneConfig
from cavmae_ds.tasks.finetune.plan import FinetunePlan
from cavmae_ds.terminal import DisplayConsole
from cavmae_ds.weights.load import LoadedModel

log = logging.getLogger(__name__)

FINAL_SCORES = "classification.json"
"""What `cavmae evaluate` writes of the weights that are scored, under the name that it gives it (see scores_file), and
after which step."""
STATES = {AVERAGED: "the averaged weights", EMA: "the running mean of the weights", MASTER: "the last weights"}
MISSING: dict[str, tuple[str, ...]] = {"multimodal": ("missingaudioonly", "missingvideoonly")}
"""By the mode that was trained: those that test it with less than it was trained with."""


@dataclass(frozen=True)
class _WatchedJudged(Judged):
    """Every batch is a move: all frames in all modes may take longer than anything before."""

    watch: Watch = field(kw_only=True)

    def batches(self, frame: int) -> Iterator[Batch]:
        return self.watch.batches(super().batches(frame))


@dataclass(frozen=True)
class FinetuneEnd:
    """To be called by all ranks together when all steps are done and saved."""

    cfg: FinetuneConfig
    numbers: FinetunePlan
    world: World
    clips: ValidationClips | None
    front_end: FrontEnd
    """Without augmentation."""
    build_model: Callable[[], Any]
    """The classifier, on the current device."""

    def __call__(self, start: int, watch: Watch) -> None:
        """Write the averaged weights, if there are; score them, else the running mean, else the last weights.

        The first rank writes FINAL_SCORES and logs a table. A run that had done all its steps, and was
        scored, when this process began is left alone. Raises CheckpointError for outputs that are no numbers, DataError
        for damaged clips or if no clip has a label.
        """
        cfg, step = self.cfg, self.numbers.total_steps
        state = AVERAGED if cfg.average.on else EMA if cfg.train.ema_clips else MASTER
        if cfg.average.on and self.world.is_first:
            write_averaged(cfg.run_dir, cfg.checkpoint.address)
        if self.clips is None:
            log.info("the run has no validation clips to score what it learnt by: see data.validation")
        elif not from_first_rank(start == step and is_scored(scores_file(*self._weights(state), FINAL_SCORES), step)):
            watch.at(step, "evaluating")
            self._score(state, self.clips, watch)

    def _weights(self, state: str) -> tuple[Path, bool]:
        """As load_model takes them: where they are, and whether it is their running mean."""
        run_dir = self.cfg.run_dir
        return run_dir / AVERAGED_WEIGHTS if state == AVERAGED else run_dir, state == EMA

    def _score(self, state: str, clips: ValidationClips, watch: Watch) -> None:
        """As `cavmae evaluate` scores these weights."""
        cfg = self.cfg
        judged = _WatchedJudged(
            self._model(state), self.front_end, clips.clips, self.numbers.class_names, (),
            cfg.model_dump(mode="json"), self.world, clips.places, batch=cfg.evaluate.batch, watch=watch,
        )  # fmt: skip
        frames = MIDDLE_ALONE if cfg.evaluate.frames == 1 else EVERY_FRAME
        modes = (cfg.classifier.mode, *MISSING.get(cfg.classifier.mode, ()))
        values, tables, found = classification(judged, frames, ",".join(modes))
        if not found:  # not the first rank
            return
        weights, ema = self._weights(state)
        file = scores_file(weights, ema, FINAL_SCORES)
        origin = {"weights": str(weights), "data": clips.addresses, "ema": ema, "step": self.numbers.total_steps}
        with written_whole(file) as unfinished:
            unfinished.write_text(json.dumps(values | origin, indent=1))
        log.info("\nscores of %s, all of them in %s:\n%s", STATES[state], file, _as_text(tables))

    def _model(self, state: str) -> LoadedModel:
        """The classifier without its engine, float32. The first rank reads its weights: hosts may share no disk."""
        cfg = self.cfg
        with torch.device("meta"):
            model = self.build_model()
        model = model.to_empty(device=self.world.device).eval()
        if self.world.is_first:
            with _newest_checkpoint(cfg.run_dir, cfg.checkpoint.address) as folder:
                model.load_state_dict(assemble(folder, read_manifest(folder), state))
        weights, source = model.state_dict(), str(cfg.run_dir)
        copy_from_first_rank(weights.values())
        kind, classes = family_of(cfg.model.family).state_dict().kind_of(weights, source)
        mean, std = cfg.data.audio_mean, cfg.data.audio_std
        return LoadedModel(model, kind, cfg.model, self.front_end.inputs, classes, mean, std, source)


def write_averaged(run_dir: Path, address: str) -> None:
    """The averaged weights of the newest checkpoint, as one file in the run folder. Raises CheckpointError.

    address: checkpoint.address.
    """
    with _newest_checkpoint(run_dir, address) as folder:
        export_weights(folder, run_dir / AVERAGED_WEIGHTS, AVERAGED)


@contextmanager
def _newest_checkpoint(run_dir: Path, address: str) -> Iterator[Path]:
    """A folder with the files of all ranks. Raises CheckpointError."""
    newest = whole_checkpoints(run_dir)[-1]
    manifest = read_manifest(newest)
    if all((newest / name).is_file() for name in manifest.files):
        yield newest
        return
    # Hosts without a common disk have the files of their own ranks; all of them are in the bucket.
    store, name = open_checkpoints(f"{address}/{newest.name}")
    with store.opened(name, manifest, lambda count: None) as folder:
        yield folder


def is_scored(path: Path, step: int) -> bool:
    """Whether there are scores that, as far as they tell, are of this step. A damaged file has none."""
    try:
        return path.is_file() and json.loads(path.read_bytes()).get("step", step) == step
    except (ValueError, AttributeError, RecursionError):
        return False


def _as_text(tables: list[Table]) -> str:
    text = io.StringIO()
    DisplayConsole(file=text, width=100).print(*tables)
    return text.getvalue()
