"""Inputs and a reader to a data set: each input becomes clips or a named rejection, no kill loses more than a part.

Knows nothing of what the inputs are. The sorted inputs are cut into parts of a fixed number. A part is built
aside and published whole, with the outcome of each of its inputs, so a second run knows what is left, and several
machines can share the parts. The root index.json comes last: a data set that has it is complete. Its layout:

    prepare.json   what was asked for; another question gets no answer here
    part-00000/    shards, their index.json, and part.json: the outcome of each input
    manifest.json  report.json  rejected.csv  sample_weights.npy  class_weights.csv  index.json
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cavmae_ds.data.format.manifest import DataSetFacts
from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, MDS_COLUMNS, SCHEMA_VERSION
from cavmae_ds.data.prepare.decode_pool import Decoded, Reader, Sample, Splitter, decode_in_order
from cavmae_ds.data.prepare.inputs import Input
from cavmae_ds.data.prepare.publishing import OUTCOMES, Outcome, PrepareReport, outcomes_json, publish, to_json
from cavmae_ds.data.prepare.rejects import ClipRejected
from cavmae_ds.data.prepare.settings import BuildSettings
from cavmae_ds.data.storage import Store, open_store
from cavmae_ds.errors import ConfigError, DataError

SCHEMA = "schema of the records"
SHARD_BYTES = 128 * 2**20
SHARD_HASHES = ["xxh3_64"]
DEFAULT_MAX_BAD_SHARE = 0.05

Progress = Callable[[int, int], None]  # hears (inputs done, inputs in all)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """One of `of` builders of a data set. It builds the parts whose number leaves `number` when divided by `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """From "3/8", the third of eight. Raises ConfigError."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ConfigError(f"--shard must be i/n with 1 <= i <= n, for example 3/8, got {text!r}")
        return cls(int(number) - 1, int(of))


ALONE = Share(0, 1)


class PartsMissing(NamedTuple):
    """What a share says that has finished before others: nothing is published yet."""

    missing: list[str]  # parts
    parts: int  # in all


def silent(done: int, total: int) -> None:
    """For whoever does not want to hear of the progress."""


def build_data_set(
    out: str | Path,
    inputs: Sequence[Input],
    read: Reader,
    settings: BuildSettings,
    facts: DataSetFacts,
    *,
    workers: int,
    split: Splitter | None = None,
    share: Share = ALONE,
    max_bad_share: float = DEFAULT_MAX_BAD_SHARE,
    progress: Progress = silent,
) -> PrepareReport | PartsMissing:
    """Builds a data set of `inputs` at `out`, a folder or an s3:// prefix.

    Records come in the order of the inputs, whose clip ids must differ (see without_duplicates). `read` makes the
    clip of an input; `split`, if given, first cuts an input into those that are read. Both run in other processes,
    so they are functions of a module, and what it loads every worker loads.

    Continues where an earlier run stopped. With `share` several processes, on one machine or many, build one data
    set: whoever finds all parts there publishes, the others return PartsMissing. The bytes depend neither on
    `workers` and `share` nor on interruptions. With more than `max_bad_share` of the inputs rejected, index.json is
    not written: the data set stays unpublished, and can be published by a later call that accepts more. Raises
    DataError when `out` holds a data set of other inputs or settings.
    """
    store = open_store(out)
    with store.building("" if share == ALONE else f"-{share.number + 1}-of-{share.of}") as folder:
        _agree_on_plan(store, inputs, settings)
        if store.exists("index.json"):
            report = PrepareReport.model_validate_json(store.get_bytes("report.json"))
            return report.model_copy(update={"finished_before": True})
        size = settings.inputs_per_part
        parts = {f"part-{k:05d}": inputs[k * size : (k + 1) * size] for k in range(-(-len(inputs) // size))}
        there = _finished(store)
        left = {part: parts[part] for part in list(parts)[share.number :: share.of] if part not in there}
        if left:
            log.info("%d of %d parts are there already, %d are to be built here", len(there), len(parts), len(left))
            members = (item for part in left.values() for item in part)
            with closing(decode_in_order(read, members, settings, workers, split)) as results:
                _write_parts(store, folder, left, results, progress)
        if missing := sorted(parts.keys() - _finished(store)):
            return PartsMissing(missing, len(parts))
        return publish(store, folder, list(parts), len(inputs), facts, max_bad_share)


def _finished(store: Store) -> set[str]:
    return {name.split("/")[0] for name in store.names("part-") if name.endswith(f"/{OUTCOMES}")}


def _agree_on_plan(store: Store, inputs: Sequence[Input], settings: BuildSettings) -> None:
    plan = {
        "number of inputs": len(inputs),
        "names or labels of the inputs (sha256)": _fingerprint(inputs),
        SCHEMA: SCHEMA_VERSION,
        **settings.model_dump(mode="json"),
    }
    if not store.exists("prepare.json"):
        if store.exists("index.json"):
            raise DataError(f"{store.url} already holds a data set from elsewhere; give another --out")
        store.put_bytes("prepare.json", to_json(plan))
    # Read back even so: of two that begin at once with different settings, the plan of one is there.
    defaults = {name: field.default for name, field in type(settings).model_fields.items()}
    begun = {SCHEMA: 1} | defaults  # perhaps when there were fewer settings
    earlier = begun | json.loads(store.get_bytes("prepare.json"))
    if earlier[SCHEMA] != SCHEMA_VERSION and not store.exists("index.json"):
        raise DataError(
            f"{store.url} was begun by another version, whose records have schema {earlier[SCHEMA]!s:.20}, not "
            f"{SCHEMA_VERSION}: finish it with that version, or give another --out"
        )
    plan[SCHEMA] = earlier[SCHEMA]
    differing = [key for key in sorted({*plan, *earlier}) if plan.get(key) != earlier.get(key)]
    if differing:
        changes = ", ".join(f"{key} {earlier.get(key)!s:.80} then, {plan.get(key)!s:.80} now" for key in differing)
        raise DataError(
            f"{store.url} was begun differently: {changes}; repeat the first command, or give another --out"
        )


def _fingerprint(inputs: Iterable[Input]) -> str:
    """SHA-256 of the JSON list of all (clip_id, source, labels and a weight if given), made piece by piece."""
    digest = hashlib.sha256(b"[")
    for k, item in enumerate(inputs):
        row = json.dumps((item.clip_id, item.source, item.labels, *([] if item.weight is None else [item.weight])))
        digest.update((", " + row if k else row).encode())
    digest.update(b"]")
    return digest.hexdigest()


def _write_parts(
    store: Store, folder: Path, left: Mapping[str, Sequence[Input]], results: Iterator[Decoded], progress: Progress
) -> None:
    from streaming import MDSWriter  # five seconds to import: not for those who are refused or have finished

    done, total = 0, sum(map(len, left.values()))
    progress(done, total)
    for part, members in left.items():
        outcomes = []
        with MDSWriter(
            out=str(folder / part), columns=MDS_COLUMNS, hashes=SHARD_HASHES, size_limit=SHARD_BYTES
        ) as writer:
            end = done + len(members)
            while done < end:
                item, result, last = next(results)
                if not isinstance(result, ClipRejected):
                    writer.write(result)
                outcomes.append(_outcome(item, result))
                done += last
                progress(done, total)
        (folder / part / OUTCOMES).write_bytes(outcomes_json(outcomes))
        store.put_folder(part, folder / part, last=OUTCOMES)


def _outcome(item: Input, result: Sample | ClipRejected) -> Outcome:
    if isinstance(result, ClipRejected):
        return Outcome(item.shown, result.code.value, result.detail)
    seconds = result["n_samples"] / AUDIO_RATE_HZ
    return Outcome(item.shown, seconds=seconds, labels=item.labels, flags=int(result["flags"]), weight=item.weight)
