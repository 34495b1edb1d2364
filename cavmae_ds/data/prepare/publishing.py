"""From finished parts to a published data set: report, rejected.csv, manifest, weights and, last, the index.

Reads part after part and keeps no list of outcomes: data sets have millions of them. All of it is a function
of the parts, so several machines may publish the same data set, one after another or at once.
"""

import csv
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from cavmae_ds.data.format.balance import write_sample_weights
from cavmae_ds.data.format.manifest import DataSetFacts, Manifest
from cavmae_ds.data.format.schema import ClipFlag
from cavmae_ds.data.storage import Store

OUTCOMES = "part.json"


class PrepareReport(BaseModel):
    """report.json: what became of the inputs."""

    model_config = ConfigDict(frozen=True)

    inputs: int
    clips: int
    rejected: dict[str, int]  # by RejectCode, most frequent first; of windows, where inputs are cut into them
    seconds: float  # of sound
    bytes: int  # of shards
    published: bool  # the share of rejected inputs was acceptable, index.json is there
    finished_before: bool = Field(default=False, exclude=True)  # nothing was left to do

    @property
    def bad_share(self) -> float:
        refused = sum(self.rejected.values())
        return refused / (self.clips + refused)


@dataclass(frozen=True)
class Outcome:
    """What became of an input, or of one window of it: a clip of so many seconds, or a rejection."""

    source: str
    code: str | None = None
    detail: str | None = None
    seconds: float = 0.0
    labels: tuple[int, ...] = ()
    flags: int = 0  # of ClipFlag
    weight: float | None = None  # given for balanced sampling


def outcomes_json(outcomes: Sequence[Outcome]) -> bytes:
    """The content of a part's part.json."""
    return to_json([asdict(outcome) for outcome in outcomes])


def publish(
    store: Store, folder: Path, parts: Sequence[str], inputs: int, facts: DataSetFacts, max_bad_share: float
) -> PrepareReport:
    """Writes what stands beside the parts; index.json only if no more than `max_bad_share` was rejected.

    `folder` is scratch space. Calling it again writes the same bytes.
    """
    clips, seconds, without_audio, without_frames = 0, 0.0, 0, 0
    given = array("d")  # weights, where they were given for balanced sampling: 8 bytes a clip
    rejected: Counter[str] = Counter()
    with (folder / "rejected.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["source", "code", "detail"])
        for outcome in _outcomes(store, parts):
            if outcome.code:
                rejected[outcome.code] += 1
                table.writerow((outcome.source, outcome.code, outcome.detail))
            else:
                clips += 1
                seconds += outcome.seconds
                without_audio += bool(outcome.flags & ClipFlag.NO_SOUND)
                without_frames += bool(outcome.flags & ClipFlag.NO_PICTURE)
                if outcome.weight is not None:
                    given.append(outcome.weight)
    shards = _shards(store, parts)
    report = PrepareReport(
        inputs=inputs,
        clips=clips,
        rejected=dict(rejected.most_common()),
        seconds=round(seconds, 3),
        bytes=sum(shard["raw_data"]["bytes"] for shard in shards),
        published=clips > 0 and rejected.total() <= max_bad_share * (clips + rejected.total()),
    )
    manifest = Manifest(
        **facts.model_dump(),
        clips=clips,
        clips_without_audio=without_audio,
        clips_without_frames=without_frames,
        rejected=report.rejected,
        tool_versions=_tool_versions(),
    )
    store.put_bytes("manifest.json", to_json(manifest.model_dump(mode="json")))
    store.put_bytes("report.json", to_json(report.model_dump(mode="json")))
    store.put_file("rejected.csv", folder / "rejected.csv")
    if report.published:
        _write_weights(store, parts, facts, given if len(given) == clips else None)
        store.put_bytes("index.json", json.dumps({"version": 2, "shards": shards}).encode())
    return report


def _outcomes(store: Store, parts: Sequence[str]) -> Iterator[Outcome]:
    for part in parts:
        for row in from_json(store.get_bytes(f"{part}/{OUTCOMES}")):
            yield Outcome(**row)


def _shards(store: Store, parts: Sequence[str]) -> list[dict[str, Any]]:
    """The shards of all parts, as the root index lists them.

    streaming's merge_index makes the same list, but moves it into place before it is whole, and fetches from S3
    by other rules than ours for credentials, time limits and errors.
    """
    shards = []
    for part in parts:
        for shard in from_json(store.get_bytes(f"{part}/index.json"))["shards"]:
            shard["raw_data"]["basename"] = f"{part}/{shard['raw_data']['basename']}"
            shards.append(shard)
    return shards


def _write_weights(store: Store, parts: Sequence[str], facts: DataSetFacts, given: Sequence[float] | None) -> None:
    if not facts.classes:
        return
    labels = (outcome.labels for outcome in _outcomes(store, parts) if not outcome.code)
    write_sample_weights(store, labels, facts.classes, facts.class_ids, given)


def to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _tool_versions() -> dict[str, str]:
    packages = ("cavmae-ds", "av", "mosaicml-streaming", "numpy", "pillow", "simplejpeg", "soundfile")
    libraries = {name: ".".join(map(str, number)) for name, number in sorted(av.library_versions.items())}
    return {name: version(name) for name in packages} | libraries
