"""What stands beside the shards of a data set, and the shards: each works or is refused by one short sentence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streaming import MDSWriter

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.balance import SAMPLE_WEIGHTS, read_sample_weights
from cavmae_ds.data.format.index import INDEX
from cavmae_ds.data.format.layout import layout_of
from cavmae_ds.data.format.manifest import Manifest
from cavmae_ds.data.format.records import Records
from cavmae_ds.data.format.schema import (
    COLUMNS_OF_SCHEMA_1,
    COLUMNS_WITH_TARGETS,
    MDS_COLUMNS,
    audio_of,
    frame_count,
    frame_of,
    frame_times_of,
    labels_of,
)
from cavmae_ds.data.format.shard_file import Contents, Selection, all_audio_and, read_clip
from cavmae_ds.data.format.shards import check_shards
from cavmae_ds.data.format.targets import Target, pack_targets, targets_of
from cavmae_ds.data.inspect.inspection import inspect_data_set
from cavmae_ds.data.loading.shard_cache import ShardCache
from cavmae_ds.data.prepare.publishing import OUTCOMES
from cavmae_ds.data.storage import open_store
from cavmae_ds.models.cavmae.config import ModelConfig
from tests.data.format.test_layout import clip
from tests.data.format.test_schema import record
from tests.fuzz.mutations import TIMEOUT_S, examples, mutated_bytes, mutated_json, works_or_is_refused

pytestmark = pytest.mark.timeout(TIMEOUT_S)

CLIPS, SIZES, PART = 3, ModelConfig(image_size=32), "part-00000"
MANIFEST = Manifest(
    channel="first", clip_seconds=1.0, frame_size=32, jpeg_quality=95, classes=("Dog", "Cat", "Rain", "Bell"),
    clips=CLIPS, rejected={"unreadable": 1}, tool_versions={"av": "16"},
)  # fmt: skip
NOTES = [{"clip_id": f"c{k}", "code": "", "seconds": 0.06, "labels": [1], "flags": 1} for k in range(CLIPS)]


RECORDS = (
    record(),
    clip(0),
    clip(3, samples=0),
    clip(2, targets=pack_targets([Target(0.5, np.eye(5, dtype=np.uint8))])),
)


def as_schema_1(sample: dict) -> dict:
    """The columns of a clip with ten frames as the schema before had them."""
    offsets, times = np.frombuffer(sample["frame_offsets"], "<u4"), np.frombuffer(sample["frame_times"], "<f4")
    return sample | {"frame_offsets": offsets, "frame_times": times}


@pytest.fixture(scope="module", params=[1, 2])
def data_set(request, tmp_path_factory):
    """One shard of a few clips, as prepare writes it, or wrote it with schema 1."""
    folder = tmp_path_factory.mktemp("fuzz") / "shards"
    columns = MDS_COLUMNS if request.param == 2 else COLUMNS_OF_SCHEMA_1
    with MDSWriter(out=str(folder / PART), columns=columns, hashes=["xxh3_64"]) as writer:
        for _ in range(CLIPS):
            writer.write(record().to_mds() if request.param == 2 else as_schema_1(record().to_mds()))
    index = json.loads((folder / PART / INDEX).read_text())
    index["shards"][0]["raw_data"]["basename"] = f"{PART}/shard.00000.mds"
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "manifest.json").write_text(MANIFEST.model_dump_json())
    (folder / PART / OUTCOMES).write_text(json.dumps(NOTES))
    np.save(folder / SAMPLE_WEIGHTS, np.ones(CLIPS))
    return folder


def read_everything(folder) -> None:
    records = Records(str(folder))
    list(records.read(range(len(records))))
    inspect_data_set(records, verify=True)


def use(folder) -> bool:
    """Each way to a data set: before a run, in a run, and by the commands that look at it."""
    address = str(folder)
    works_or_is_refused(lambda: read_everything(folder))
    works_or_is_refused(lambda: read_sample_weights(open_store(address), CLIPS))
    works_or_is_refused(lambda: check_shards(address, SIZES.image_size))
    return works_or_is_refused(lambda: ShardCache([address], DataConfig()).selected(CLIPS - 1, all_audio_and(0)))


def changed(folder, name: str, content: bytes) -> bool:
    before = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(content)
        return use(folder)
    finally:
        (folder / name).write_bytes(before)


def look_at(sample: dict) -> None:
    """All that any reader makes of a record."""
    audio_of(sample), labels_of(sample), frame_times_of(sample)
    for k in range(min(frame_count(sample), 20)):
        frame_of(sample, k)
    if "targets" in sample:
        targets_of(sample)


@examples(300)
@given(st.data())
def test_the_columns_of_a_record(tmp_path_factory, data):
    whole = data.draw(st.sampled_from(RECORDS)).to_mds(data.draw(st.sampled_from(["pcm16", "flac"])))
    column = data.draw(st.sampled_from([name for name, value in whole.items() if isinstance(value, bytes)]))
    sample = whole | {column: data.draw(mutated_bytes(whole[column]))}
    columns = COLUMNS_WITH_TARGETS if "targets" in whole else MDS_COLUMNS
    folder = tmp_path_factory.getbasetemp() / "columns"
    with MDSWriter(out=str(folder), columns=columns, exist_ok=True) as writer:
        writer.write(sample)
    layout = layout_of(sorted(columns), [columns[name] for name in sorted(columns)])

    def every_frame(contents: Contents) -> Selection:
        return Selection(tuple(range(min(len(contents.frame_times), 20))), 0, contents.n_samples)

    works_or_is_refused(lambda: look_at(sample))
    works_or_is_refused(lambda: read_clip(str(folder / "shard.00000.mds"), 0, every_frame, layout))


def test_whole_records_are_looked_at_without_complaint():
    for each in RECORDS:
        look_at(each.to_mds())


def test_the_data_set_is_whole(data_set):
    assert use(data_set)
    assert not inspect_data_set(Records(str(data_set)), verify=True).faults
    assert check_shards(str(data_set), SIZES.image_size).tolist() == [CLIPS]


@examples(150)
@given(st.data())
def test_an_index(data_set, data):
    changed(data_set, INDEX, data.draw(mutated_json(json.loads((data_set / INDEX).read_text()))))


@examples(120)
@given(mutated_json(json.loads(MANIFEST.model_dump_json())))
def test_a_manifest(data_set, content):
    changed(data_set, "manifest.json", content)


@examples(60)
@given(mutated_json(NOTES))
def test_the_notes_of_a_part(data_set, content):
    changed(data_set, f"{PART}/{OUTCOMES}", content)


@examples(60)
@given(st.data())
def test_weights_of_clips(data_set, data):
    changed(data_set, SAMPLE_WEIGHTS, data.draw(mutated_bytes((data_set / SAMPLE_WEIGHTS).read_bytes())))


@examples(80)
@given(st.data())
def test_a_shard_whose_hash_is_right(data_set, tmp_path_factory, data):
    """Hostile, not damaged: the index is of it."""
    from streaming.base.hashing import get_hash

    folder = tmp_path_factory.getbasetemp() / "hostile"
    shutil.copytree(data_set, folder, dirs_exist_ok=True)
    path, index = folder / PART / "shard.00000.mds", json.loads((folder / INDEX).read_text())
    content = path.read_bytes()
    head = data.draw(mutated_bytes(content[:400])) + content[400:]
    path.write_bytes(head)
    index["shards"][0]["raw_data"].update(bytes=len(head), hashes={"xxh3_64": get_hash("xxh3_64", head)})
    (folder / INDEX).write_text(json.dumps(index))
    use(folder)
