"""index.json and manifest.json that cannot be, or are of other shards, are refused by name, not by a traceback."""

from __future__ import annotations

import json
import shutil

import pytest

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.index import read_index
from cavmae_ds.data.format.shard_file import all_audio_and
from cavmae_ds.data.format.shards import check_shards
from cavmae_ds.data.loading.download import ShardError
from cavmae_ds.data.loading.shard_cache import ShardCache
from cavmae_ds.errors import DataError
from cavmae_ds.models.cavmae.config import ModelConfig

SIZES = ModelConfig(image_size=64)


def on_shard(**changes):
    return lambda index: index["shards"][0].update(changes)


DAMAGE = {
    "negative samples": (on_shard(samples=-1), "shards.0.samples: .* got -1"),
    "samples that are no whole number": (on_shard(samples=1.5), "shards.0.samples: .* got 1.5"),
    "samples that fit into no file": (on_shard(samples=2**40), "1099511627776 samples do not fit"),
    "a number as file name": (lambda index: index["shards"][0]["raw_data"].update(basename=7), "basename: .* got 7"),
    "a file elsewhere": (lambda index: index["shards"][0]["raw_data"].update(basename="../a"), "outside its folder"),
    "another version": (on_shard(version=99), "shards.0.version: .* got 99"),
    "another version of the index": (lambda index: index.update(version=99), "version: .* got 99"),
    "another format": (on_shard(format="json"), "shards.0.format: .* got 'json'"),
    "an unknown format": (on_shard(format="x" * 10_000), "shards.0.format: "),
    "a column of pickles": (
        on_shard(column_encodings=["pkl"] * 10),
        "columns are audio pkl.* expected audio bytes",
    ),
    "no shards": (lambda index: index.update(shards=[]), "shards: "),
    "shards that are text": (lambda index: index.update(shards="many"), "shards: .* got 'many'"),
    "a compressed shard": (on_shard(compression="zstd"), "compression: "),
}


@pytest.fixture
def copied(tmp_path, tiny_shards):
    return shutil.copytree(tiny_shards, tmp_path / "copied")


def rewrite(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("name", DAMAGE)
def test_an_index_that_cannot_be_is_refused_by_everybody_who_reads_it(name, copied):
    change, words = DAMAGE[name]
    rewrite(copied / "index.json", change)
    for read in (lambda: check_shards(str(copied), SIZES.image_size), lambda: ShardCache([str(copied)], DataConfig())):
        with pytest.raises(DataError, match=f"(?s)index.json in '{copied}' is damaged .*{words}") as refused:
            read()
        assert len(str(refused.value)) < 2000


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"version": 2, "shards": ' + b"9" * 5001 + b"}", b"\xff"])
def test_what_is_no_json_of_an_index_is_refused_by_a_sentence(content):
    with pytest.raises(DataError, match=r"index.json in 'somewhere' is damaged") as refused:
        read_index(content, "somewhere")
    assert len(str(refused.value)) < 500


def test_a_manifest_with_another_number_of_clips_than_the_index_is_named(copied):
    rewrite(copied / "manifest.json", lambda values: values.update(clips=1_000_000_000))
    with pytest.raises(DataError, match=r"manifest.json in .* says 1000000000 clips, index.json 24"):
        check_shards(str(copied), SIZES.image_size)


@pytest.mark.parametrize("samples", [20, 25])
def test_an_index_that_gives_a_shard_fewer_or_more_clips_than_it_holds_is_named_when_it_is_opened(samples, copied):
    rewrite(copied / "index.json", on_shard(samples=samples))
    cache = ShardCache([str(copied)], DataConfig())
    with pytest.raises(ShardError, match=rf"shard 'part-0.*mds' of .* holds 24 clips, index.json says {samples}"):
        cache.selected(3, all_audio_and(0))
