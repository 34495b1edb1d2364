"""What a command does to its folder and its buckets is undone before the next one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.documented.clean import CleanBuckets, CleanFolder


def contents(folder: Path) -> dict[str, object]:
    """Name -> target of a link, bytes of a file, None for a folder."""
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def original(tmp_path) -> Path:
    folder = tmp_path / "original"
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "log").write_text("one")
    (folder / "file").write_text("one")
    (folder / "link").symlink_to("runs")
    return folder


def append(folder: Path) -> None:
    with (folder / "runs" / "a" / "log").open("a") as log:
        log.write("two")


def replace_same_size_and_time(folder: Path) -> None:
    old = (folder / "file").stat()
    (folder / "new").write_text("two")
    (folder / "new").replace(folder / "file")
    os.utime(folder / "file", ns=(old.st_atime_ns, old.st_mtime_ns))


def link_becomes_folder(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link" / "deep").mkdir(parents=True)
    (folder / "link" / "deep" / "file").write_text("new")


def folder_becomes_link(folder: Path) -> None:
    shutil.rmtree(folder / "runs")
    (folder / "runs").symlink_to("file")


CHANGES = [
    append,
    replace_same_size_and_time,
    link_becomes_folder,
    folder_becomes_link,
    lambda folder: shutil.rmtree(folder / "runs"),
    lambda folder: shutil.copytree(folder / "runs", folder / "more" / "runs"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_is_as_it_was_made_and_the_original_is_never_touched(change, original, tmp_path):
    made = contents(original)
    clean = CleanFolder(original, tmp_path / "copy")
    for _ in range(2):  # also what was restored is restored again
        change(clean.path)
        assert contents(clean.path) != made
        clean.restore()
        assert contents(clean.path) == contents(original) == made


def test_buckets_hold_what_they_held_and_nothing_below_a_prefix_that_is_to_be_empty(original, s3_server):
    client, (one, other) = s3_server.client(), (f"clean-{os.urandom(4).hex()}" for _ in range(2))
    files = {
        (one, "a/log"): original / "runs/a/log",
        (one, "b/file"): original / "file",
        (other, "a/x"): original / "file",
    }
    buckets = CleanBuckets(client, files)

    def held() -> dict[tuple[str, str], bytes]:
        return {
            (bucket, found["Key"]): client.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()
            for bucket in (one, other)
            for found in client.list_objects_v2(Bucket=bucket).get("Contents", [])
        }

    made = {place: path.read_bytes() for place, path in files.items()}
    assert held() == made
    client.put_object(Bucket=one, Key="a/log", Body=b"two")
    client.put_object(Bucket=other, Key="new", Body=b"two")
    client.delete_object(Bucket=one, Key="b/file")
    buckets.restore()
    assert held() == made
    buckets.restore(without="a")
    assert held() == {(one, "b/file"): b"one"}
    buckets.restore()
    assert held() == made
