"""Which of the clips of some shards a model is judged by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from cavmae_ds.errors import ConfigError
from cavmae_ds.evaluation.distributed_eval import agreed, to_all
from cavmae_ds.evaluation.inference import Judged, classes_with

NAMED = 5


def among(judged: Judged, ids: Collection[str] | None, per_class: int, class_prefix: str = "") -> Judged:
    """The same with fewer clips: those with these ids, and of them the first per_class of each class (0: all).

    Classes are those that classes_with finds for class_prefix. By all ranks together. Raises ConfigError naming ids
    that no clip has, or if nothing is left.
    """
    if ids is None and not per_class:
        return judged
    counted = agreed(judged.world, lambda: classes_with(judged, class_prefix))
    own = agreed(judged.world, lambda: _own_names(judged))
    names = [clip for part in to_all(judged.world, own) for clip in part]
    places = agreed(judged.world, lambda: _places(judged, names, ids, per_class, counted))
    return replace(judged, places=np.array(places))


def first_of_each_class(
    names: Sequence[tuple[str, Collection[int]]], clips: int, classes: Collection[int]
) -> list[int]:
    """Places of the first so many clips of each class in the order of their ids, ascending; names: id and labels.

    A clip of several classes counts for each of them, and is there once.
    """
    left = dict.fromkeys(classes, clips)
    chosen = []
    for place in sorted(range(len(names)), key=lambda place: names[place][0]):
        wanting = [label for label in names[place][1] if left.get(label)]
        for label in wanting:
            left[label] -= 1
        if wanting:
            chosen.append(place)
    return sorted(chosen)


def _own_names(judged: Judged) -> list[tuple[str, list[int]]]:
    """Ids and labels of this rank's run of clips."""
    world, total = judged.world, len(judged.clips)
    first, end = (total * rank // world.size for rank in (world.rank, world.rank + 1))
    return [judged.clips.name_and_labels(place) for place in range(first, end)]


def _places(
    judged: Judged, names: list[tuple[str, list[int]]], ids: Collection[str] | None, per_class: int, classes: set[int]
) -> list[int]:
    places = list(range(len(names)))
    if ids is not None:
        wanted = set(ids)
        if unknown := sorted(wanted - {clip_id for clip_id, _ in names}):
            shown = ", ".join(map(repr, unknown[:NAMED])) + (", ..." if len(unknown) > NAMED else "")
            raise ConfigError(f"--ids: {len(unknown)} of {len(wanted)} ids are those of no clip: {shown}")
        places = [place for place in places if names[place][0] in wanted]
    if per_class:
        chosen = first_of_each_class([names[place] for place in places], per_class, classes)
        places = [places[k] for k in chosen]
    if not places:
        raise ConfigError("--ids and --per-class leave no clip to judge by")
    return places
