"""Any trained model before the clips of some shards: one process, float32, every clip once, in order.

N clips, B of them at a time, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cavmae_ds.config import DataConfig
from cavmae_ds.config.load import read_values
from cavmae_ds.config.sections.classify import Mode
from cavmae_ds.data.clips import MIDDLE_FRAME, Batch, collate
from cavmae_ds.data.front_end import FrontEnd
from cavmae_ds.data.schema import FRAMES_PER_CLIP
from cavmae_ds.data.shards import check_shards, read_manifest
from cavmae_ds.data.stream import EvaluationClips
from cavmae_ds.errors import CheckpointError, ConfigError, DataError
from cavmae_ds.evaluate.classification import Classification, classification_scores, one_hot
from cavmae_ds.evaluate.retrieval import Retrieval, retrieval_scores
from cavmae_ds.exchange.load import LoadedModel, load_model
from cavmae_ds.model.classifier import CAVMAEFT, MODES, ROUTES

EVERY_FRAME = tuple(range(FRAMES_PER_CLIP))
MIDDLE_ALONE = (MIDDLE_FRAME,)
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

    def able(self) -> tuple[Mode, ...]:
        """The modes that a classifier has the parameters for."""
        return tuple(mode for mode in MODES if set(ROUTES[mode].towers) <= set(self.loaded.model.modalities))


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


def open_judged(weights: Path, shards: str, ema: bool = False) -> Judged:
    """A run folder or a file of weights (see load_model), and shards whose frames must be of its size.

    Raises CheckpointError, ConfigError or DataError.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(weights, ema, device=device)
    run = _run_file(weights)
    sees = "v" in loaded.model.modalities
    manifest = read_manifest(shards, DataConfig())
    sizes = loaded.config if sees else loaded.config.model_copy(update={"image_size": manifest.frame_size})
    check_shards(shards, sizes)
    cache = run.get("data", {}).get("cache")
    clips = EvaluationClips(shards, Path(cache) if cache else None)
    if loaded.classes and len(manifest.classes) > loaded.classes:
        raise DataError(
            f"the shards in {shards!r} name {len(manifest.classes)} classes, the model in {loaded.source!r} has "
            f"{loaded.classes}; prepare the clips with the list of classes that it was finetuned with"
        )
    return Judged(loaded, FrontEnd(loaded.config, device), clips, manifest.classes, manifest.class_ids, run)


def classify(
    judged: Judged, modes: Sequence[Mode], frames: Sequence[int], probabilities: str = ""
) -> tuple[str, dict[Mode, ModeScores]]:
    """Score a classifier in some modes: full sound with each of these frames, probabilities averaged over the frames.

    probabilities: a key of PROBABILITIES, by default softmax where every clip has exactly one class; returned too.
    Raises CheckpointError for outputs that are no numbers, DataError for damaged clips and for clips that all lack a
    label.
    """
    model = cast(CAVMAEFT, judged.loaded.model)
    sums: dict[Mode, Tensor] = {}
    alone: dict[Mode, list[Classification]] = {mode: [] for mode in modes}
    targets = torch.empty(0)
    for frame in frames:
        looking = [mode for mode in modes if frame == frames[0] or "v" in ROUTES[mode].towers]
        if not looking:
            break
        found: dict[Mode, list[Tensor]] = {mode: [] for mode in looking}
        labels: list[list[int]] = []
        for batch in _batches(judged, frame):
            audio, images = judged.front_end(batch)
            for mode in looking:
                with torch.inference_mode():
                    found[mode].append(model(audio, images, mode).cpu())
            labels += batch.labels
        targets = one_hot(labels, judged.loaded.classes)
        probabilities = probabilities or ("softmax" if all(len(clip) == 1 for clip in labels) else "sigmoid")
        for mode in looking:
            outcome = PROBABILITIES[probabilities](torch.cat(found[mode]))  # [N, C]
            alone[mode].append(_scores(judged, targets, outcome))
            sums[mode] = sums[mode] + outcome if mode in sums else outcome
    scores = {mode: _of_mode(judged, mode, targets, sums[mode], frames, alone[mode]) for mode in modes}
    return probabilities, scores


def retrieve(judged: Judged, frames: Sequence[int], class_prefix: str = "") -> Retrieval:
    """Score retrieval by mean-pooled features after the modality norms; those of the image averaged over the frames.

    Only labels count whose class has a name or an id that begins with class_prefix. Raises ConfigError if there is none
    or the model does not see, DataError for damaged clips or fewer than 2.
    """
    if "v" not in judged.loaded.model.modalities:
        raise ConfigError(f"the model in {judged.loaded.source!r} only hears: it has nothing to retrieve frames by")
    counted = _classes_with(judged, class_prefix)
    if len(judged.clips) < 2:
        raise DataError(f"retrieval needs at least 2 clips, got {len(judged.clips)}")
    sounds: list[Tensor] = []
    labels: list[list[int]] = []
    image = torch.zeros(())
    for frame in frames:
        seen = []
        for batch in _batches(judged, frame):
            with torch.inference_mode():
                features = judged.loaded.model.features(*judged.front_end(batch))  # [B, L, D] each
            assert features.audio is not None and features.image is not None
            seen.append(features.image.mean(1))
            if frame == frames[0]:
                sounds.append(features.audio.mean(1))
                labels += [[label for label in clip if label in counted] for clip in batch.labels]
        image = torch.cat(seen) + image
    return retrieval_scores(torch.cat(sounds), image / len(frames), labels)


def _classes_with(judged: Judged, prefix: str) -> Container[int]:
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


def _batches(judged: Judged, frame: int) -> Iterator[Batch]:
    loader: Iterable[Batch] = DataLoader(judged.clips.with_frame(frame), batch_size=BATCH, collate_fn=collate)
    yield from loader


def _of_mode(
    judged: Judged, mode: Mode, targets: Tensor, total: Tensor, frames: Sequence[int], alone: list[Classification]
) -> ModeScores:
    looked_at = frames if "v" in ROUTES[mode].towers else ()
    if len(alone) == 1:
        return ModeScores(looked_at, alone[0], alone, targets, total)
    mean = (total / len(alone)).clamp(max=1)  # a sum of ones may round up
    return ModeScores(looked_at, _scores(judged, targets, mean), alone, targets, mean)


def _scores(judged: Judged, targets: Tensor, probabilities: Tensor) -> Classification:
    if not probabilities.isfinite().all():
        raise CheckpointError(f"the outputs of {judged.loaded.source!r} are no numbers: its training went wrong")
    if not targets.any():
        raise DataError("the clips have no labels to score a classifier by; prepare them with a list of labels")
    return classification_scores(targets, probabilities)


def _run_file(weights: Path) -> dict[str, Any]:
    """The resolved run file in the run folder that some weights are, or lie in."""
    path = (weights if weights.is_dir() else weights.parent) / "config.yaml"
    return read_values(path) if path.is_file() else {}
