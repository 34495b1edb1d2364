"""spec/data-path.md 6, faults 1 to 3: what is read is what was written, or it is said what is wrong, and in time."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.shards import check_shards
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.loading.download import BadShard, ShardError, ShardStream, cache_folder
from cavmae_ds.data.loading.order import EpochShape
from cavmae_ds.data.loading.shard_cache import ShardCache
from cavmae_ds.data.loading.stream import ClipStream
from cavmae_ds.data.storage import open_store
from cavmae_ds.errors import ConfigError, DataError
from cavmae_ds.models.cavmae.config import ModelConfig
from tests.data.small_shards import small_shards

MODEL = ModelConfig(embed_dim=32, num_heads=4, image_size=64, audio_frames=64)
IMPATIENCE_S = 4.0


@pytest.fixture(scope="module")
def eight_shards(tiny_shards, tmp_path_factory) -> Path:
    return small_shards(tiny_shards, tmp_path_factory.mktemp("eight") / "shards", range(24), shard_clips=3)


@pytest.fixture
def address(s3_bucket, eight_shards) -> str:
    """The eight shards in a bucket of their own."""
    url = f"s3://{s3_bucket}/eight"
    store = open_store(url)
    for file in eight_shards.iterdir():
        store.put_bytes(file.name, file.read_bytes())
    return url


@pytest.fixture
def cfg(address, tmp_path) -> DataConfig:
    return DataConfig(train=address, cache=tmp_path / "cache", workers=0, download_retries=2)


def ids(shards: ShardCache) -> list[str]:
    return [shards[place]["clip_id"] for place in range(len(shards))]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:1000], lambda content: b""])
def test_a_shard_that_was_damaged_in_the_cache_is_fetched_again(damage, cfg, eight_shards):
    assert ids(ShardCache([cfg.train], cfg)) == ids(ShardCache([str(eight_shards)], cfg))
    kept = cache_folder(cfg.train, cfg.cache) / "shard.00004.mds"
    kept.write_bytes(damage(kept.read_bytes()))

    again = ShardCache([cfg.train], cfg)

    for place in range(24):
        assert again[place]["frames"] == ShardCache([str(eight_shards)], cfg)[place]["frames"]
    assert kept.read_bytes() == (eight_shards / kept.name).read_bytes()


def test_a_shard_is_checked_once_for_each_start_and_not_each_time_it_is_read(cfg):
    shards = ShardCache([cfg.train], cfg)
    before = shards[12]
    kept = cache_folder(cfg.train, cfg.cache) / "shard.00004.mds"
    kept.write_bytes(flipped(kept.read_bytes()))  # in the middle one of its three records
    assert [shards[place]["clip_id"] == before["clip_id"] for place in (12, 13, 14)] == [True, False, False]
    assert flipped(kept.read_bytes()) == open_store(cfg.train).get_bytes(kept.name)
    ShardCache([cfg.train], cfg)[12]
    assert kept.read_bytes() == open_store(cfg.train).get_bytes(kept.name)


def test_a_shard_that_is_damaged_in_the_bucket_is_named_and_not_kept(cfg):
    store = open_store(cfg.train)
    store.put_bytes("shard.00004.mds", flipped(store.get_bytes("shard.00004.mds")))
    shards = ShardCache([cfg.train], cfg)
    for _ in range(2):
        with pytest.raises(BadShard, match=f"'shard.00004.mds' of '{cfg.train}' is damaged"):
            shards[12]
    assert shards[0]["clip_id"] != shards[23]["clip_id"]
    kept = {path.name for path in cache_folder(cfg.train, cfg.cache).iterdir()}
    assert kept == {"index.json", "shard.00000.mds", "shard.00007.mds"}


def test_the_clips_of_a_bad_shard_give_their_places_to_the_next_shard_the_same_ones_on_every_world(cfg):
    store = open_store(cfg.train)
    store.put_bytes("shard.00004.mds", flipped(store.get_bytes("shard.00004.mds")))
    replaced = []
    for ranks, cache in ((1, "one"), (2, "two")):
        own = cfg.model_copy(update={"cache": cfg.cache / cache})
        given = {}
        for rank in range(ranks):
            stream = ClipStream(
                own,
                InputSpec(log_mel_frames=64, frame_size=64),
                EpochShape(1, ranks, 1, 8 // ranks),
                host=0,
                local_rank=rank,
                seed=3,
            )
            work = stream._work(0, 0, 1).tolist()
            given |= {place: (clip.clip_index, clip.bad) for (place, _), clip in zip(work, stream, strict=False)}
        replaced.append({place: clip for place, clip in given.items() if clip[1]})
        assert len(given) == 24
    assert {place: clip for place, (clip, _) in replaced[0].items()} == {12: 15, 13: 16, 14: 17}
    assert replaced[0] == replaced[1]
    assert len({line for _, line in replaced[0].values()}) == 1  # so that it is said once


def test_an_index_in_the_cache_that_is_older_than_the_bucket_is_not_believed(cfg, tiny_shards, tmp_path):
    ids(ShardCache([cfg.train], cfg))
    small_shards(tiny_shards, tmp_path / "new", range(12), shard_clips=4)
    for file in (tmp_path / "new").iterdir():
        open_store(cfg.train).put_bytes(file.name, file.read_bytes())
    assert ids(ShardCache([cfg.train], cfg)) == ids(ShardCache([str(tmp_path / "new")], cfg))


def test_a_missing_object_ends_after_a_few_attempts_with_its_name_and_the_cause(cfg):
    store = open_store(cfg.train)
    store._client.delete_object(Bucket=store.bucket, Key=store._key("shard.00004.mds"))
    started = time.monotonic()
    with pytest.raises(ShardError, match=rf"{cfg.train}/shard.00004.mds could not be fetched in 3 attempts.*404"):
        ShardCache([cfg.train], cfg)[12]
    assert time.monotonic() - started < 20


def test_wrong_keys_in_the_middle_of_a_run_end_it_without_showing_them(cfg, monkeypatch):
    shards = ShardCache([cfg.train], cfg)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-shown")
    with pytest.raises(ShardError, match=r"shard.00000.mds could not be fetched in 3 attempts.*403") as said:
        shards[0]
    assert "never-shown" not in str(said.value)


@pytest.mark.parametrize("known", ["nothing", "the index"])
def test_a_server_that_accepts_and_never_answers_is_given_up_in_time(known, cfg, monkeypatch):
    cfg = cfg.model_copy(update={"download_timeout_seconds": IMPATIENCE_S})
    shards = ShardCache([cfg.train], cfg) if known == "the index" else None
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(DataError, match=r"(?i)timeout|timed out"):
            shards[0] if shards else check_shards(cfg.train, MODEL.image_size, cfg)
        assert time.monotonic() - started < 5 * IMPATIENCE_S  # on a busy machine


def test_a_cache_limit_is_kept_and_what_was_evicted_comes_back(cfg, eight_shards):
    size = max(path.stat().st_size for path in eight_shards.glob("*.mds"))
    limited = cfg.model_copy(update={"cache_limit_gib": 4.5 * size / 2**30})
    shards = ShardCache([cfg.train], limited)
    reference = ids(ShardCache([str(eight_shards)], limited))
    for _ in range(2):
        for place in np.random.default_rng(0).permutation(24):
            assert shards[place]["clip_id"] == reference[place]
            assert sum(path.stat().st_size for path in cfg.cache.rglob("*.mds")) <= 4.5 * size
    assert len(list(eight_shards.glob("*.mds"))) == 8  # read in place: never evicted


def test_what_an_earlier_run_without_a_limit_left_in_the_cache_counts_and_goes_first(cfg, eight_shards):
    ids(ShardCache([cfg.train], cfg))
    size = max(path.stat().st_size for path in eight_shards.glob("*.mds"))
    limited = cfg.model_copy(update={"cache_limit_gib": 4.5 * size / 2**30})
    (cache_folder(cfg.train, cfg.cache) / "shard.00000.mds").unlink()
    shards = ShardCache([cfg.train], limited)
    assert shards[0]["clip_id"]
    assert len(list(cfg.cache.rglob("*.mds"))) <= 4


def test_a_limit_below_four_shards_is_refused_with_the_number(cfg, eight_shards):
    size = max(path.stat().st_size for path in eight_shards.glob("*.mds"))
    with pytest.raises(ConfigError, match=r"data.cache_limit_gib must hold 4 of the largest shard.*give at least 0\.0"):
        check_shards(cfg.train, MODEL.image_size, cfg.model_copy(update={"cache_limit_gib": 3.9 * size / 2**30}))
    assert (
        check_shards(cfg.train, MODEL.image_size, cfg.model_copy(update={"cache_limit_gib": 0.01})).tolist() == [3] * 8
    )


def test_downloads_of_killed_processes_are_never_trusted_and_go_after_six_hours(cfg):
    ids(ShardCache([cfg.train], cfg))
    folder = cache_folder(cfg.train, cfg.cache)
    old, young = folder / ".shard.00000.mds.77.1.part", folder / ".shard.00001.mds.78.1.part"
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, time.time() - 6 * 3600 - 60))
    os.utime(young, (0, time.time() - 6 * 3600 + 60))
    ids(ShardCache([cfg.train], cfg))
    assert young.exists() and not old.exists()


def test_a_local_folder_is_checked_as_well(cfg, eight_shards, tmp_path):
    shutil.copytree(eight_shards, tmp_path / "shards")
    path = tmp_path / "shards" / "shard.00001.mds"
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(BadShard, match=r"'shard.00001.mds'"):
        ids(ShardCache([str(tmp_path / "shards")], cfg))
    assert path.exists()  # it may be the only copy


def test_a_shard_without_a_hash_is_not_trusted(cfg, eight_shards, tmp_path):
    shutil.copytree(eight_shards, tmp_path / "shards")
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    index["shards"][0]["raw_data"]["hashes"] = {}
    (tmp_path / "shards" / "index.json").write_text(json.dumps(index))
    with pytest.raises(BadShard, match=r"'shard.00000.mds'"):
        ShardCache([str(tmp_path / "shards")], cfg)[0]


def test_shards_in_the_temporary_folder_are_for_this_user_alone(address, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cfg = DataConfig(train=address, workers=0)
    folder = cache_folder(address, None)
    folder.mkdir(mode=0o755)  # as an earlier version made it
    assert len(ids(ShardCache([address], cfg))) == 24
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda folder: folder.symlink_to("."), "is a link"),
        (lambda folder: folder.symlink_to("nowhere"), "is no folder"),
        (lambda folder: folder.touch(), "is no folder"),
        (lambda folder: (folder.mkdir(), os.chown(folder, 65534, 65534)), "belongs to the user with id 65534"),
    ],
    ids=["link", "dangling link", "file", "another user's"],
)
def test_a_cache_in_the_temporary_folder_that_another_user_controls_is_refused(make, found, monkeypatch, tmp_path):
    if os.getuid() and "user" in found:
        pytest.skip("only root gives folders away")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_folder("s3://bucket/shards", None)
    make(folder)
    with pytest.raises(DataError) as refused:
        ShardStream("s3://bucket/shards", DataConfig())
    assert str(refused.value) == (
        f"the folder {folder} for cached shards {found}, it must be a folder of this user's own; remove it, or set "
        "data.cache"
    )
