"""A checkpoint is what was written, or it is said what is not."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.checkpoint import checkpoint_root, whole_checkpoints
from cavmae_ds.checkpoint.folder import partial, read_manifest, set_aside, verify
from cavmae_ds.checkpoint.manifest import MANIFEST, DamagedCheckpoint, checksum
from cavmae_ds.checkpoint.retention import Retention, thin_out
from cavmae_ds.errors import CheckpointError
from tests.checkpoint.made import flip_a_byte, make_checkpoint

RANK_1 = "rank-00001-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path):
    return make_checkpoint(tmp_path, 120)


def test_a_checkpoint_as_it_was_written_is_whole(folder):
    read = []
    manifest = read_manifest(folder)
    verify(folder, manifest, read=read.append)
    assert sum(read) == manifest.bytes > 0


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (flip_a_byte, "is not what was written"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes long, not"),
    ],
)
def test_one_byte_too_few_or_otherwise_is_named(damage, what, folder):
    damage(folder / RANK_1)
    with pytest.raises(DamagedCheckpoint, match=f"{RANK_1} .*{what}"):
        verify(folder, read_manifest(folder))
    verify(folder, read_manifest(folder), share=slice(0, None, 2))  # the rank that reads the other file


def test_every_file_is_in_the_share_of_one_rank(tmp_path):
    folder = make_checkpoint(tmp_path, 5, ranks=7)
    manifest = read_manifest(folder)
    read = []
    for rank in range(3):
        verify(folder, manifest, slice(rank, None, 3), read.append)
    assert sum(read) == manifest.bytes


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lambda text: text[: len(text) // 2], "manifest.json is no JSON"),
        (lambda text: "", "manifest.json is no JSON"),
        (lambda text: text.replace('"step": 120', '"step": 121'), "checksum"),
        (lambda text: text.replace('"checksum": ', '"other": '), "checksum"),
        (lambda text: "[]", "manifest.json"),
    ],
)
def test_a_manifest_that_is_not_what_was_written_is_damage(content, what, folder):
    path = folder / MANIFEST
    path.write_text(content(path.read_text()))
    with pytest.raises(DamagedCheckpoint, match=what):
        read_manifest(folder)


CONTRADICTIONS = {
    "negative step": ({"step": -1}, "manifest.json: step"),
    "step of another folder": ({"step": 119}, "manifest.json: it says step 119"),
    "clips of other steps": ({"clips_seen": 961}, "clips_seen is 961, not 120 steps x 8 clips"),
    "a file outside": ({"files": {f"../{RANK_1}": {"bytes": 1, "sha256": "0" * 64}}}, "manifest.json: files"),
    "an absolute file": ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "manifest.json: files"),
    "a section that is a number": ({"config": {"init": 3}}, "config.init is no section"),
    "parameters larger than the files": (
        {"parameters": {"weight": {"shape": [2**40, 2**40], "dtype": "float32", "trained": True}}},
        "parameters have",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
@pytest.mark.parametrize("version", [2, 3])
def test_a_manifest_that_contradicts_itself_or_its_folder_is_damage(name, version, folder):
    changes, what = CONTRADICTIONS[name]
    path = folder / MANIFEST
    values = json.loads(path.read_text())
    values["config"]["train"] = {"global_batch": 8}
    del values["checksum"]
    values |= changes | {"format": version}
    if version == 3:  # written so: the checksum tells nothing
        values["checksum"] = checksum(values)
    path.write_text(json.dumps(values))
    with pytest.raises(DamagedCheckpoint, match=what) as refused:
        read_manifest(folder)
    assert len(str(refused.value)) < 500


def test_a_checkpoint_of_the_format_before_has_no_checksum_and_is_read(folder):
    path = folder / MANIFEST
    values = json.loads(path.read_text())
    del values["checksum"]
    path.write_text(json.dumps(values | {"format": 2}))
    assert read_manifest(folder).step == 120


@pytest.mark.parametrize("version", [1, 4])
def test_another_format_is_refused_and_is_no_damage(version, folder):
    path = folder / MANIFEST
    values = json.loads(path.read_text())
    if version == 1:
        del values["format"], values["checksum"]  # DeepSpeed's own files had a manifest without them
    else:
        values["format"] = version
        del values["checksum"]
        values["checksum"] = checksum(values)
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"has format {version}, this version of cavmae_ds reads 3") as refusal:
        read_manifest(folder)
    assert not isinstance(refusal.value, DamagedCheckpoint)


def test_only_finished_checkpoints_count(tmp_path):
    root = checkpoint_root(tmp_path)
    for step in (100_000_000, 99_999_999, 20, 3):
        make_checkpoint(root, step)
    partial(root, 30).mkdir()
    (root / "step-00000040").mkdir()  # no manifest
    shutil.copytree(root / "step-00000003", root / "step-00000050.damaged")
    shutil.copytree(root / "step-00000003", root / "step-best")
    names = ["step-00000003", "step-00000020", "step-99999999", "step-100000000"]  # as text the last one sorts first
    assert [folder.name for folder in whole_checkpoints(tmp_path)] == names


def test_what_is_set_aside_keeps_its_files_and_leaves_room_for_another(folder):
    first = set_aside(folder)
    second = set_aside(make_checkpoint(folder.parent, 120))
    assert {first.name, second.name} == {"step-00000120.damaged", "step-00000120.1.damaged"}
    assert (first / RANK_1).is_file() and (second / RANK_1).is_file() and not folder.exists()


def test_a_step_that_is_saved_again_takes_the_place_of_the_older_one(folder):
    older = read_manifest(folder)
    newer = make_checkpoint(folder.parent, 120, ranks=3)
    assert newer == folder and read_manifest(folder).ranks == 3 and read_manifest(folder).stamp != older.stamp
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000120"]


@given(steps=st.sets(st.integers(0, 10_000)), last=st.integers(1, 5), every=st.integers(0, 300))
def test_the_newest_and_the_multiples_are_kept_and_nothing_else(steps, last, every):
    gone = Retention(last, every).superseded(list(steps))
    kept = steps - set(gone)
    newest = set(sorted(steps)[-last:])
    assert set(gone) <= steps and newest <= kept
    assert all(step in newest or (every and step % every == 0) for step in kept)
    assert not every or all(step % every for step in gone)
    assert gone == sorted(gone)


def test_thinning_out_leaves_what_is_in_use(tmp_path):
    for step in (1, 2, 3, 4):
        make_checkpoint(tmp_path, step)
    gone = thin_out(tmp_path, Retention(1), in_use={2})
    assert [folder.name for folder in gone] == ["step-00000001", "step-00000003"]
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
