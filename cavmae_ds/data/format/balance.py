"""How often balanced sampling draws each clip: the official class and sample weights, stored beside the shards.

Source of the formulas: spec/cav-mae.md 3.3.
"""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cavmae_ds.data.storage import Store
from cavmae_ds.errors import DataError, shortened

SAMPLE_WEIGHTS = "sample_weights.npy"
CLASS_WEIGHTS = "class_weights.csv"
WEIGHT_SCALE, COUNT_OFFSET = 1000.0, 0.01


class Balance(NamedTuple):
    """Counts and weights of C classes and N clips."""

    class_counts: NDArray[np.int64]  # [C] clips that carry the class
    class_weights: NDArray[np.float64]  # [C] 1000 / (count + 0.01)
    sample_weights: NDArray[np.float64]  # [N] sum of the clip's class weights; 0 without a label


def balance(labels: Iterable[Sequence[int]], classes: int) -> Balance:
    """Weights of clips with these class ids, each below `classes`. A clip without labels is never drawn: weight 0."""
    lengths, ids = array("q"), array("i")  # millions of clips: a few bytes each, not a list each
    for clip in labels:
        lengths.append(len(clip))
        ids.extend(clip)
    flat = np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32)  # [labels of all clips]
    counts = np.bincount(flat, minlength=classes)
    class_weights = WEIGHT_SCALE / (counts + COUNT_OFFSET)
    clip_of_label = np.repeat(np.arange(len(lengths)), np.asarray(lengths, np.int64))
    sample_weights = np.zeros(len(lengths))
    np.add.at(sample_weights, clip_of_label, class_weights[flat])
    return Balance(counts, class_weights, sample_weights)


def write_sample_weights(
    store: Store,
    labels: Iterable[Sequence[int]],
    classes: Sequence[str],
    class_ids: Sequence[str] = (),
    given: Sequence[float] | None = None,
) -> None:
    """Stores sample_weights.npy, float64 [clips] in the order of the records, and class_weights.csv beside it.

    labels: class ids of each clip in that order. classes, class_ids: name and official id (mid) of each class.
    `given` sample weights, one a clip, win over computed ones. Where no clip has a label, and no weight is
    given, there is nothing to balance and nothing is written.
    """
    computed = balance(labels, len(classes))
    if given is None and not computed.class_counts.any():
        return
    weights = computed.sample_weights if given is None else np.array(given, np.float64)
    if len(weights) != len(computed.sample_weights):
        raise ValueError(f"{len(weights)} weights for {len(computed.sample_weights)} clips")
    content = io.BytesIO()
    np.save(content, weights, allow_pickle=False)
    store.put_bytes(CLASS_WEIGHTS, _class_table(computed, classes, class_ids or [""] * len(classes)))
    store.put_bytes(SAMPLE_WEIGHTS, content.getvalue())


def read_sample_weights(store: Store, clips: int) -> NDArray[np.float64]:
    """Weight of each clip, float64 [clips], in the order of the records; 0 means never drawn.

    Raises DataError when there are none, or when they cannot be the weights of so many clips.
    """
    if not store.exists(SAMPLE_WEIGHTS):
        raise DataError(
            f"{store.url} has no {SAMPLE_WEIGHTS}, so it cannot be sampled in balance: its clips have no labels or it "
            "was prepared by an older version; `cavmae inspect` shows which, then prepare it again with labels"
        )
    content = store.get_bytes(SAMPLE_WEIGHTS)
    try:
        weights = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # numpy reads the head as Python, so anything; MemoryError for a shape that none holds
        raise DataError(
            f"{SAMPLE_WEIGHTS} in {store.url} is damaged ({shortened(str(error))!r}); prepare it again"
        ) from error
    if weights.dtype != np.float64 or weights.shape != (clips,):
        raise DataError(
            f"{SAMPLE_WEIGHTS} in {store.url} holds {weights.dtype} {list(weights.shape)}, expected one float64 for "
            f"each of {clips} clips; prepare the data set again"
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise DataError(
            f"{SAMPLE_WEIGHTS} in {store.url} must hold finite numbers from 0 up, not all of them 0; prepare the data "
            "set again"
        )
    return weights


def _class_table(computed: Balance, classes: Sequence[str], class_ids: Sequence[str]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["index", "mid", "display_name", "count", "weight"])
    counted = zip(class_ids, classes, computed.class_counts.tolist(), computed.class_weights.tolist(), strict=True)
    table.writerows((number, *row) for number, row in enumerate(counted))
    return text.getvalue().encode()
