"""Data sets in a folder and in a real object store behave alike, and mistakes are explained."""

import socket
from pathlib import Path

import pytest
from streaming import StreamingDataset

from cavmae_ds.checkpoint.bucket import open_bucket
from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.schema import audio_of
from cavmae_ds.data.loading.download import ShardStream
from cavmae_ds.data.prepare.settings import PrepareSettings
from cavmae_ds.data.prepare.videos import prepare
from cavmae_ds.data.storage import open_store
from cavmae_ds.errors import ConfigError, DataError
from tests.data.media_files import numbered_video

PART_FILES = ("shard.00000.mds", "index.json", "part.json")


@pytest.fixture(params=["folder", "s3"])
def url(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"s3://{request.getfixturevalue('s3_bucket')}/some/prefix"


def test_what_is_put_is_listed_and_read_back(url, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one").write_bytes(b"1")
    (folder / "two").write_bytes(b"2" * 100_000)
    store = open_store(url)

    with store.building():
        store.put_bytes("a.json", b"old")
        store.put_bytes("a.json", b"new")
        store.put_folder("part-0", folder, last="one")

    store = open_store(url)
    assert store.names("") == ["a.json", "part-0/one", "part-0/two"]
    assert store.names("part-") == ["part-0/one", "part-0/two"]
    assert (store.exists("a.json"), store.exists("a.jso"), store.exists("part-0")) == (True, False, False)
    assert store.get_bytes("a.json") == b"new"
    assert store.get_bytes("part-0/two") == b"2" * 100_000
    assert store.sizes("part-") == {"part-0/one": 1, "part-0/two": 100_000}
    assert store.get_range("a.json", 1, 3) == b"ew"
    assert store.get_range("a.json", 1, 99) == b"ew"


def test_a_missing_object_is_named(url):
    open_store(url).put_bytes("another.json", b"{}")  # or the folder itself would be missing
    with pytest.raises(DataError, match=r"index\.json is missing in .*(store|prefix)"):
        open_store(url).get_bytes("index.json")
    with pytest.raises(DataError, match=r"index\.json is missing in .*(store|prefix)"):
        open_store(url).get_range("index.json", 0, 4)


def test_an_address_of_another_kind_is_refused():
    with pytest.raises(DataError, match="gs://bucket/x is not supported; give a local folder or s3://"):
        open_store("gs://bucket/x")


def test_an_endpoint_with_a_password_is_used_without_it(s3_bucket, s3_server, monkeypatch):
    monkeypatch.setenv("S3_ENDPOINT_URL", s3_server.endpoint.replace("://", "://user:hunter2@"))
    store = open_store(f"s3://{s3_bucket}/x")
    store.put_bytes("a", b"content")
    assert store.get_bytes("a") == b"content" and "hunter2" not in store._client.meta.endpoint_url


def test_credentials_in_an_address_are_refused_before_they_are_written_down():
    with pytest.raises(DataError, match="credentials by the environment"):
        open_store("s3://me:hunter2@bucket/x")


def test_a_prefix_is_taken_literally_by_all_that_reads_and_writes(s3_bucket, s3_server, tmp_path):
    prefix = "a#b?c=d%20e%23+f&g"
    address = f"s3://{s3_bucket}/{prefix}"
    open_store(address).put_bytes("index.json", b"index")
    (tmp_path / "file").write_bytes(b"file")
    open_bucket(f"{address}/checkpoints").put(3, tmp_path / "file")
    ShardStream(address, DataConfig(cache=tmp_path))._download_once("index.json", tmp_path / "fetched")

    listed = s3_server.client().list_objects_v2(Bucket=s3_bucket)["Contents"]
    assert {entry["Key"] for entry in listed} == {f"{prefix}/index.json", f"{prefix}/checkpoints/step-00000003/file"}
    assert (tmp_path / "fetched").read_bytes() == open_store(address).get_bytes("index.json") == b"index"
    assert open_store(address).names("") == ["checkpoints/step-00000003/file", "index.json"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with (
        pytest.raises(ConfigError, match=r"cannot write .*Not a directory"),
        open_store(tmp_path / "file" / "out").building(),
    ):
        pass


def test_a_bucket_that_is_not_there_is_refused_by_name(s3_bucket):
    with pytest.raises(DataError, match="the bucket no-such-bucket does not exist"):
        open_store("s3://no-such-bucket/x")


def test_wrong_credentials_are_told_from_a_missing_bucket(s3_bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")

    with pytest.raises(DataError, match=r"access to .* was refused"):
        open_store(f"s3://{s3_bucket}/x")


def test_an_endpoint_where_nobody_answers_is_refused_by_address(s3_bucket, monkeypatch):
    with socket.socket() as taken:  # bound but not listening
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("S3_ENDPOINT_URL", address)

        with pytest.raises(DataError, match=f"cannot be reached at {address}"):
            open_store(f"s3://{s3_bucket}/x")


def test_a_data_set_prepared_into_a_bucket_equals_the_local_one_and_streams_back(
    tmp_path,
    s3_bucket,
):
    # Given a first run into the bucket that was lost before its second part and its index
    videos, remote = tmp_path / "videos", f"s3://{s3_bucket}/clips"
    videos.mkdir()
    for k in range(4):
        numbered_video(videos / f"{k}.mp4", seconds=2.0, pitch_hz=300 + 50 * k)
    settings = PrepareSettings(frame_size=72, inputs_per_part=2)
    local = prepare(videos, tmp_path / "local", settings, workers=2)
    half = open_store(remote)
    for name in (
        "prepare.json",
        *(f"part-00000/{name}" for name in PART_FILES),
    ):
        half.put_bytes(name, (tmp_path / "local" / name).read_bytes())

    # When it is repeated
    report = prepare(videos, remote, settings, workers=2)

    # Then the bucket holds what the folder holds, and streaming reads it
    assert report == local
    store = open_store(remote)
    files = [path for path in (tmp_path / "local").rglob("*") if path.is_file()]
    assert store.names("") == sorted(path.relative_to(tmp_path / "local").as_posix() for path in files)
    for path in files:
        assert store.get_bytes(path.relative_to(tmp_path / "local").as_posix()) == path.read_bytes()
    streamed = StreamingDataset(remote=remote, local=str(tmp_path / "cache"), batch_size=1, validate_hash="xxh3_64")
    assert [sample["clip_id"] for sample in streamed] == ["0", "1", "2", "3"]
    assert all(audio_of(sample).any() for sample in streamed)


def test_a_prepared_bucket_is_left_alone_by_a_second_run(tmp_path, s3_bucket):
    numbered_video(tmp_path / "a.mp4", seconds=2.0)
    remote = f"s3://{s3_bucket}/clips"
    prepare(Path(tmp_path), remote, PrepareSettings(frame_size=72), workers=1)

    assert prepare(Path(tmp_path), remote, PrepareSettings(frame_size=72), workers=1).finished_before
