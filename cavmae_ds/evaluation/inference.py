"""Any trained model before the clips of some shards: float32, every clip once, on one process or all ranks.

The clips are cut into groups, in order: a group is one forward pass. Each rank has a run of them, so that results in
the order of the ranks are in the order of the clips, and the numbers are those of one process.

N clips, n of them on this rank, B at a time, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from cavmae_ds.config.load import read_values
from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.clips import Batch, collate
from cavmae_ds.data.format.shards import check_shards, read_manifest
from cavmae_ds.data.loading.evaluation import groups_of
from cavmae_ds.data.loading.selection import MIDDLE_POSITION, POSITIONS
from cavmae_ds.data.loading.stream import EvaluationClips
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import CheckpointError, ConfigError, DataError
from cavmae_ds.evaluation.classification import Classification, classification_scores, one_hot
from cavmae_ds.evaluation.distributed_eval import agreed, alone, to_all, to_first
from cavmae_ds.weights.load import LoadedModel, load_model

EVERY_FRAME = tuple(range(POSITIONS))
"""Positions of frames, evenly over the clip: see evaluation_selection."""
MIDDLE_ALONE = (MIDDLE_POSITION,)
BATCH = 32

PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(-1)}
"""How logits [B, C] become probabilities: of clips with several classes, and of clips with exactly one."""


@dataclass(frozen=True)
class Judged:
    """A model, the clips it is judged by, and what its run was told, as far as that is known."""

    loaded: LoadedModel
    front_end: FrontEnd
    clips: EvaluationClips
    class_names: tuple[str, ...]
    """Of the shards; a label k means the k-th. A classifier may have more classes."""
    class_ids: tuple[str, ...]
    """The official id of each, where known."""
    run: dict[str, Any]
    """config.yaml of the run folder that the weights are, or lie in; empty if there is none."""
    world: World
    places: NDArray[np.int64]
    """Of the N clips that count, ascending."""
    batch: int = field(default=BATCH, kw_only=True)
    """Clips of one forward pass."""

    def able(self) -> tuple[str, ...]:
        """The modes that a classifier has the parameters for."""
        return self.loaded.model.modes

    def names_of(self, labels: Iterable[int]) -> list[str]:
        """Names of classes, also of those that only the model has."""
        named = len(self.class_names)
        return [self.class_names[k] if k < named else f"class {k}" for k in labels]

    def batches(self, frame: int) -> Iterator[Batch]:
        """This rank's clips, seen at one position."""
        groups, world = groups_of(self.places, self.batch), self.world
        first, end = (len(groups) * rank // world.size for rank in (world.rank, world.rank + 1))
        loader: Iterable[Batch] = DataLoader(
            self.clips.at_position(frame), batch_sampler=groups[first:end], collate_fn=collate
        )
        yield from loader


class ModeScores(NamedTuple):
    """What a classifier scores in one mode."""

    frames: Sequence[int]
    """Those whose probabilities are averaged; none where frames are not looked at."""
    scores: Classification
    of_frames: list[Classification]
    """Each of these frames alone, or the only scores."""
    targets: Tensor
    """[N, C] of 0 and 1."""
    probabilities: Tensor
    """[N, C], averaged."""


class Pooled(NamedTuple):
    """Features of N clips, mean-pooled after the modality norms, on the CPU; row i is the clip at places[i]."""

    audio: Tensor
    """[N, D]."""
    image: Tensor
    """[N, D], averaged over the frames."""
    labels: list[list[int]]
    """Class ids that count."""


def open_judged(weights: Path, shards: str, ema: bool = False, world: World | None = None) -> Judged:
    """A run folder or a file of weights (see load_model), and shards whose frames must be of its size.

    By all ranks together. Raises CheckpointError, ConfigError or DataError.
    """
    world = world or alone()
    loaded, manifest, run = agreed(world, lambda: _loaded(weights, shards, ema, world.device))
    cache = run.get("data", {}).get("cache")
    clips = EvaluationClips(shards, loaded.inputs, Path(cache) if cache else None)
    return Judged(
        loaded, FrontEnd(loaded.inputs, world.device), clips, manifest.classes, manifest.class_ids, run, world,
        np.arange(len(clips)),
    )  # fmt: skip


def _loaded(weights: Path, shards: str, ema: bool, device: torch.device) -> tuple[LoadedModel, Any, dict[str, Any]]:
    loaded = load_model(weights, ema, device=device)
    sees = loaded.inputs.frames > 0
    manifest = read_manifest(shards, DataConfig())
    hears = "a" in loaded.model.modalities
    check_shards(shards, loaded.inputs.frame_size if sees else None, reads_audio=hears)
    if loaded.classes and len(manifest.classes) > loaded.classes:
        raise DataError(
            f"the shards in {shards!r} name {len(manifest.classes)} classes, the model in {loaded.source!r} has "
            f"{loaded.classes}; prepare the clips with the list of classes that it was finetuned with"
        )
    return loaded, manifest, _run_file(weights)


def classify(
    judged: Judged, modes: Sequence[str], frames: Sequence[int], probabilities: str = ""
) -> tuple[str, dict[str, ModeScores]]:
    """Score a classifier in some modes: full sound with each of these frames, probabilities averaged over the frames.

    probabilities: a key of PROBABILITIES, by default softmax where every clip has exactly one class; returned too.
    By all ranks together; the first has the scores, the others none. Raises CheckpointError for outputs that are no
    numbers, DataError for damaged clips and for clips that all lack a label.
    """
    world, classes, model = judged.world, judged.loaded.classes, judged.loaded.model
    sums: dict[str, Tensor] = {}
    alone: dict[str, list[Classification]] = {mode: [] for mode in modes}
    targets = torch.empty(0)
    for frame in frames:
        looking = [mode for mode in modes if frame == frames[0] or model.reads_frames(mode)]
        if not looking:
            break
        own, own_labels = agreed(world, partial(_logits, judged, looking, frame))
        if frame == frames[0]:
            labels = [clip for part in to_all(world, own_labels) for clip in part]
            agreed(world, partial(_check_labels, labels))
            probabilities = probabilities or ("softmax" if all(len(clip) == 1 for clip in labels) else "sigmoid")
            targets = one_hot(labels, classes)
        parts = to_first(world, own)
        for mode in looking if parts else ():
            outcome = PROBABILITIES[probabilities](torch.cat([part[mode] for part in parts]))  # [N, C]
            alone[mode].append(classification_scores(targets, outcome))
            sums[mode] = sums[mode] + outcome if mode in sums else outcome
    return probabilities, {
        mode: _of_mode(frames if model.reads_frames(mode) else (), targets, sums[mode], alone[mode]) for mode in sums
    }


def _logits(judged: Judged, modes: Sequence[str], frame: int) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Of this rank's clips: logits [n, C] in each mode, and their labels."""
    model = judged.loaded.model
    found: dict[str, list[Tensor]] = {mode: [torch.zeros(0, judged.loaded.classes)] for mode in modes}
    labels: list[list[int]] = []
    for batch in judged.batches(frame):
        audio, images = judged.front_end(batch)
        for mode in modes:
            with torch.inference_mode():
                found[mode].append(_numbers(judged, model(audio, images, mode)))
        labels += batch.labels
    return {mode: torch.cat(parts) for mode, parts in found.items()}, labels


def pooled_features(judged: Judged, frames: Sequence[int], class_prefix: str = "") -> Pooled | None:
    """What clips are retrieved by (spec/cav-mae.md 5.2), those of the image averaged over the frames.

    Only labels count whose class has a name or an id that begins with class_prefix. By all ranks together; the first
    has them. Raises ConfigError if there is no such class or the model does not see, CheckpointError for features that
    are no numbers, DataError for damaged clips or fewer than 2.
    """
    counted = agreed(judged.world, lambda: _check_retrieval(judged, class_prefix))
    parts = to_first(judged.world, agreed(judged.world, lambda: _own_features(judged, frames)))
    if not parts:
        return None
    audio, image, labels = zip(*parts, strict=True)
    kept = [[label for label in clip if label in counted] for of_rank in labels for clip in of_rank]
    return Pooled(torch.cat(audio), torch.cat(image), kept)


def _own_features(judged: Judged, frames: Sequence[int]) -> Pooled:
    """Of this rank's n clips, with all their labels."""
    nothing = torch.zeros(0, judged.loaded.config.embed_dim)
    sounds, image = [nothing], torch.zeros(())
    labels: list[list[int]] = []
    for frame in frames:
        seen = [nothing]
        for batch in judged.batches(frame):
            with torch.inference_mode():
                features = judged.loaded.model.features(*judged.front_end(batch))  # [B, L, D] each
            assert features.audio is not None and features.image is not None
            seen.append(_numbers(judged, features.image.mean(1)))
            if frame == frames[0]:
                sounds.append(_numbers(judged, features.audio.mean(1)))
                labels += batch.labels
        image = torch.cat(seen) + image
    return Pooled(torch.cat(sounds), image / len(frames), labels)


def _check_retrieval(judged: Judged, class_prefix: str) -> set[int]:
    if not judged.loaded.inputs.frames:
        raise ConfigError(f"the model in {judged.loaded.source!r} only hears: it has nothing to retrieve frames by")
    if len(judged.places) < 2:
        raise DataError(f"retrieval needs at least 2 clips, got {len(judged.places)}")
    return classes_with(judged, class_prefix)


def classes_with(judged: Judged, prefix: str) -> set[int]:
    """Labels of the classes whose name or official id begins with a prefix. Raises ConfigError if there are none."""
    everything = range(len(judged.class_names))
    ids = judged.class_ids or [""] * len(everything)
    found = {k for k in everything if judged.class_names[k].startswith(prefix) or ids[k].startswith(prefix)}
    if prefix and not found:
        raise ConfigError(
            f"no class has a name or an id that begins with {prefix!r}; the shards name "
            f"{', '.join(judged.class_names[:8]) or 'none'}"
        )
    return found


def _of_mode(frames: Sequence[int], targets: Tensor, total: Tensor, alone: list[Classification]) -> ModeScores:
    """frames: none where the mode reads none."""
    if len(alone) == 1:
        return ModeScores(frames, alone[0], alone, targets, total)
    mean = (total / len(alone)).clamp(max=1)  # a sum of ones may round up
    return ModeScores(frames, classification_scores(targets, mean), alone, targets, mean)


def _numbers(judged: Judged, outputs: Tensor) -> Tensor:
    """On the CPU. Raises CheckpointError if some are not finite."""
    if not outputs.isfinite().all():
        raise CheckpointError(f"the outputs of {judged.loaded.source!r} are no numbers: its training went wrong")
    return outputs.cpu()


def _check_labels(labels: Sequence[Sequence[int]]) -> None:
    if not any(labels):
        raise DataError("the clips have no labels to score a classifier by; prepare them with a list of labels")


def _run_file(weights: Path) -> dict[str, Any]:
    """The resolved run file in the run folder that some weights are, or lie in."""
    path = (weights if weights.is_dir() else weights.parent) / "config.yaml"
    return read_values(path) if path.is_file() else {}
