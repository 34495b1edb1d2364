"""Inputs and a reader to a published data set: every input becomes a clip or a named rejection.

Knows nothing of what the inputs are. The sorted inputs are cut into parts of a fixed number. A part is
built aside and published whole, with the outcome of each of its inputs, so a second run knows what is left
and no kill loses more than a part. The root index.json comes last: a data set that has it is complete.
Layout of a data set:

    prepare.json   what was asked for; another question gets no answer here
    part-00000/    shards, their index.json, and part.json: the outcome of each input
    manifest.json  report.json  rejected.csv  index.json
"""

import csv
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import av
from pydantic import BaseModel, ConfigDict, Field

from cavmae_ds.data.decode_pool import Reader, Sample, decode_in_order
from cavmae_ds.data.inputs import Input
from cavmae_ds.data.rejects import ClipRejected
from cavmae_ds.data.schema import AUDIO_RATE_HZ, MDS_COLUMNS, DataSetFacts, Manifest
from cavmae_ds.data.settings import BuildSettings
from cavmae_ds.data.store import Store, open_store
from cavmae_ds.errors import DataError

SHARD_BYTES = 128 * 2**20
SHARD_HASHES = ["xxh3_64"]
DEFAULT_MAX_BAD_SHARE = 0.05

Progress = Callable[[int, int], None]  # hears (inputs done, inputs in all)

log = logging.getLogger(__name__)


def silent(done: int, total: int) -> None:
    """For whoever does not want to hear of the progress."""


class PrepareReport(BaseModel):
    """report.json: what became of the inputs."""

    model_config = ConfigDict(frozen=True)

    inputs: int
    clips: int
    rejected: dict[str, int]  # by RejectCode, most frequent first
    seconds: float  # of sound
    bytes: int  # of shards
    published: bool  # the share of rejected inputs was acceptable, index.json is there
    finished_before: bool = Field(default=False, exclude=True)  # nothing was left to do

    @property
    def bad_share(self) -> float:
        return 1 - self.clips / self.inputs


@dataclass(frozen=True)
class Outcome:
    """What became of one input: a clip of so many seconds, or a rejection."""

    source: str
    code: str | None = None
    detail: str | None = None
    seconds: float = 0.0


def build_data_set(
    out: str | Path,
    inputs: Sequence[Input],
    read: Reader,
    settings: BuildSettings,
    facts: DataSetFacts,
    *,
    workers: int,
    max_bad_share: float = DEFAULT_MAX_BAD_SHARE,
    progress: Progress = silent,
) -> PrepareReport:
    """Builds a data set of `inputs` at `out`, a folder or an s3:// prefix.

    Records come in the order of the inputs, whose clip ids must differ (see without_duplicates). `read` makes the clip of an input; it runs in other processes, so it is a function of a module, and what it
    loads every worker loads. Continues where an earlier run stopped. The records do not depend on `workers` or
    on interruptions. With more than `max_bad_share` of the inputs rejected, index.json is not written: the data
    set stays unpublished, and can be published by a later call that accepts more. Raises DataError when `out`
    holds a data set of other inputs or settings.
    """
    store = open_store(out)
    with store.building() as folder:
        _agree_on_plan(store, inputs, settings)
        if store.exists("index.json"):
            report = PrepareReport.model_validate_json(store.get_bytes("report.json"))
            return report.model_copy(update={"finished_before": True})
        _write_parts(store, folder, inputs, read, settings, workers, progress)
        return _publish(store, inputs, settings, facts, max_bad_share)


def _agree_on_plan(store: Store, inputs: Sequence[Input], settings: BuildSettings) -> None:
    plan = {
        "number of inputs": len(inputs),
        "names or labels of the inputs (sha256)": _fingerprint(inputs),
        **settings.model_dump(mode="json"),
    }
    if not store.exists("prepare.json"):
        if store.exists("index.json"):
            raise DataError(f"{store.url} already holds a data set from elsewhere; give another --out")
        store.put_bytes("prepare.json", _json(plan))
        return
    defaults = {name: field.default for name, field in type(settings).model_fields.items()}
    earlier = defaults | json.loads(store.get_bytes("prepare.json"))  # begun, perhaps, when there were fewer settings
    differing = [key for key in sorted({*plan, *earlier}) if plan.get(key) != earlier.get(key)]
    if differing:
        changes = ", ".join(f"{key} {earlier.get(key)!s:.80} then, {plan.get(key)!s:.80} now" for key in differing)
        raise DataError(
            f"{store.url} was begun differently: {changes}; repeat the first command, or give another --out"
        )


def _fingerprint(inputs: Iterable[Input]) -> str:
    """SHA-256 of the JSON list of all (clip_id, source, labels), made piece by piece."""
    digest = hashlib.sha256(b"[")
    for k, item in enumerate(inputs):
        row = json.dumps((item.clip_id, item.source, item.labels))
        digest.update((", " + row if k else row).encode())
    digest.update(b"]")
    return digest.hexdigest()


def _write_parts(
    store: Store,
    folder: Path,
    inputs: Sequence[Input],
    read: Reader,
    settings: BuildSettings,
    workers: int,
    progress: Progress,
) -> None:
    size = settings.inputs_per_part
    parts = {_part(k): inputs[k * size : (k + 1) * size] for k in range(-(-len(inputs) // size))}
    there = {name.split("/")[0] for name in store.names("part-") if name.endswith("/part.json")}
    left = {part: members for part, members in parts.items() if part not in there}
    done = len(inputs) - sum(map(len, left.values()))
    progress(done, len(inputs))
    if there:
        log.info("%d of %d parts are there already", len(there), len(parts))
    from streaming import MDSWriter  # five seconds to import: not for those who are refused or have finished

    members = [item for part in left.values() for item in part]
    with closing(decode_in_order(read, members, settings, workers)) as results:
        for part, expected in left.items():
            outcomes = []
            with MDSWriter(
                out=str(folder / part), columns=MDS_COLUMNS, hashes=SHARD_HASHES, size_limit=SHARD_BYTES
            ) as writer:
                for item, result in islice(results, len(expected)):
                    if not isinstance(result, ClipRejected):
                        writer.write(result)
                    outcomes.append(asdict(_outcome(item, result)))
                    done += 1
                    progress(done, len(inputs))
            (folder / part / "part.json").write_bytes(_json(outcomes))
            store.put_folder(part, folder / part, last="part.json")


def _outcome(item: Input, result: Sample | ClipRejected) -> Outcome:
    if isinstance(result, ClipRejected):
        return Outcome(item.source, result.code.value, result.detail)
    return Outcome(item.source, seconds=result["n_samples"] / AUDIO_RATE_HZ)


def _publish(
    store: Store, inputs: Sequence[Input], settings: BuildSettings, facts: DataSetFacts, max_bad_share: float
) -> PrepareReport:
    outcomes: list[Outcome] = []
    shards = []
    for k in range(-(-len(inputs) // settings.inputs_per_part)):
        outcomes += [Outcome(**row) for row in json.loads(store.get_bytes(f"{_part(k)}/part.json"))]
        for shard in json.loads(store.get_bytes(f"{_part(k)}/index.json"))["shards"]:
            shard["raw_data"]["basename"] = f"{_part(k)}/{shard['raw_data']['basename']}"
            shards.append(shard)
    refused = [outcome for outcome in outcomes if outcome.code]
    clips = len(outcomes) - len(refused)
    rejected = dict(Counter(str(outcome.code) for outcome in refused).most_common())
    report = PrepareReport(
        inputs=len(inputs),
        clips=clips,
        rejected=rejected,
        seconds=round(sum(outcome.seconds for outcome in outcomes), 3),
        bytes=sum(shard["raw_data"]["bytes"] for shard in shards),
        published=clips > 0 and len(refused) <= max_bad_share * len(inputs),
    )
    manifest = Manifest(**facts.model_dump(), clips=clips, rejected=rejected, tool_versions=_tool_versions())
    store.put_bytes("manifest.json", _json(manifest.model_dump(mode="json")))
    store.put_bytes("report.json", _json(report.model_dump(mode="json")))
    store.put_bytes("rejected.csv", _csv(refused))
    if report.published:
        store.put_bytes("index.json", json.dumps({"version": 2, "shards": shards}).encode())
    return report


def _part(number: int) -> str:
    return f"part-{number:05d}"


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _csv(refused: Iterable[Outcome]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["source", "code", "detail"])
    table.writerows((outcome.source, outcome.code, outcome.detail) for outcome in refused)
    return text.getvalue().encode()


def _tool_versions() -> dict[str, str]:
    packages = ("cavmae-ds", "av", "mosaicml-streaming", "numpy", "pillow", "simplejpeg", "soundfile")
    libraries = {name: ".".join(map(str, number)) for name, number in sorted(av.library_versions.items())}
    return {name: version(name) for name in packages} | libraries
