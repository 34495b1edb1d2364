"""Records read by place are what training streams, and a damaged shard is named."""

import json
import pickle
import shutil

import numpy as np
import pytest

from cavmae_ds.data.format.records import Records
from cavmae_ds.errors import DataError
from tests.data.stock_reader import StockReader


def test_records_by_place_are_those_that_streaming_gives(tiny_shards):
    streamed = StockReader(tiny_shards)
    records = pickle.loads(pickle.dumps(Records(str(tiny_shards))))  # as in another process

    for places in (range(24), [0, 1, 5, 23]):
        for found, place in zip(records.read(places), places, strict=True):
            assert found.keys() == streamed[place].keys()
            assert all(np.array_equal(found[column], streamed[place][column]) for column in found)
    assert len(records) == 24


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json is missing in"):
        Records(str(tmp_path))


@pytest.fixture
def copied(tmp_path, tiny_shards):
    return shutil.copytree(tiny_shards, tmp_path / "copied")


def spoiled(copied, change):
    index = json.loads((copied / "index.json").read_bytes())
    change(index["shards"][0])
    (copied / "index.json").write_text(json.dumps(index))
    return str(copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shard: shard.pop("samples"), "index.json in .* is damaged"),
        (lambda shard: shard["raw_data"].update(basename="../../etc/passwd"), "lies outside"),
        (lambda shard: shard["column_encodings"].__setitem__(0, "pkl"), "its columns are"),
    ],
)
def test_an_index_that_cannot_be_is_refused(copied, change, words):
    with pytest.raises(DataError, match=words):
        Records(spoiled(copied, change))


def test_a_shard_that_is_cut_or_does_not_fit_the_index_is_named(copied):
    shard = copied / "part-00000" / "shard.00000.mds"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"part-00000/shard\.00000\.mds in .* is damaged"):
        list(Records(str(copied)).read(range(24)))

    shard.write_bytes(content)
    with pytest.raises(DataError, match="its head does not fit the index"):
        list(Records(spoiled(copied, lambda shard: shard.update(samples=23))).read([0]))
