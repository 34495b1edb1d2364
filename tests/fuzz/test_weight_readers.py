"""Weights, checkpoints and their manifests: each works or is refused by one short sentence."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from cavmae_ds.checkpoint.commands import _contents, _overview
from cavmae_ds.checkpoint.engine_state import checked_scalars
from cavmae_ds.checkpoint.folder import file_hash, read_manifest, verify
from cavmae_ds.checkpoint.manifest import CHECKSUM, MANIFEST, DamagedCheckpoint, FileRecord, checksum, manifest_bytes
from cavmae_ds.checkpoint.rewinds import REWINDS, read_rewinds
from cavmae_ds.checkpoint.store import FolderStore, entries
from cavmae_ds.checkpoint.weights import assemble, export_weights
from cavmae_ds.errors import CheckpointError
from cavmae_ds.models.cavmae.mae import read_mae
from cavmae_ds.models.cavmae.state_dict import build, recognise
from cavmae_ds.models.common.weights import bare_names
from cavmae_ds.weights.official import load_official
from cavmae_ds.weights.single_file import load_single_file
from tests.checkpoint.made import make_checkpoint
from tests.fuzz.mutations import TIMEOUT_S, examples, mutated_bytes, mutated_json, mutated_values, works_or_is_refused
from tests.weights.small_models import HEADS, SIZES, small_model

pytestmark = [pytest.mark.timeout(TIMEOUT_S), pytest.mark.filterwarnings("ignore")]

FEW = {"modality_a": torch.ones(1, 1, 8), "norm.weight": torch.arange(8.0), "norm.bias": torch.zeros(8)}
SHAPES = [(), (0,), (1,), (8,), (1, 1, 0), (1, 1, 8), (1, 9, 8), (8, 3, 5, 5), (8, 1, 256, 256), (1, 1, 1, 0)]
STEP = "step-00000120"


def zipped(folder: Path) -> bytes:
    torch.save(FEW, folder / "few.pth")
    return (folder / "few.pth").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def state():
    return small_model("finetune").state_dict()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("fuzz") / "checkpoints", 120)


@examples(200)
@given(st.data(), st.sampled_from([True, False]))
def test_a_pth_file(folder, data, zip_file):
    path = folder / "few.pth"
    torch.save(FEW, path, _use_new_zipfile_serialization=zip_file)
    path.write_bytes(data.draw(mutated_bytes(path.read_bytes())))
    works_or_is_refused(lambda: load_official(path, **HEADS))
    works_or_is_refused(lambda: read_mae(path))


@examples(60)
@given(mutated_values({"model": {"a": [1, 2.0, "x"]}, "module.a": None, "epoch": 3}))
def test_a_pth_file_of_other_values(folder, values):
    for write in (torch.save, lambda values, path: path.write_bytes(pickle.dumps(values))):
        write(values, folder / "values.pth")
        works_or_is_refused(lambda: load_official(folder / "values.pth"))
        works_or_is_refused(lambda: read_mae(folder / "values.pth"))


@examples(150)
@given(st.data())
def test_names_and_shapes_of_no_model(state, data):
    tensors = dict(state)
    for name in data.draw(st.lists(st.sampled_from(list(state)), min_size=1, max_size=3)):
        shape = data.draw(st.sampled_from(SHAPES))
        match data.draw(st.sampled_from(["shape", "expanded", "remove", "rename", "dtype"])):
            case "shape":
                tensors[name] = torch.zeros(shape)
            case "expanded":
                tensors[name] = torch.zeros(1).expand(shape or 2**40)
            case "remove":
                tensors.pop(name, None)
            case "rename":
                tensors[data.draw(st.sampled_from(["", "module.x", "blocks_u.", "blocks_a.x.y"]))] = state[name]
            case "dtype":
                tensors[name] = state[name].to(data.draw(st.sampled_from([torch.int8, torch.bfloat16, torch.cfloat])))
    works_or_is_refused(lambda: build(recognise(bare_names(tensors, "these"), "these", **HEADS)))


@examples(200)
@given(st.data())
def test_a_safetensors_file(folder, state, data):
    """Its header is changed as JSON, or the file as bytes."""
    model = data.draw(mutated_json(SIZES.model_dump())).decode(errors="replace")
    texts = st.sampled_from(["1", "nan", "-inf", "0", "", "x" * 3000, "1e400"])
    header = {"model": model, "audio_mean": data.draw(texts), "audio_std": data.draw(texts)}
    kept = data.draw(
        st.sampled_from([header, {"model": SIZES.model_dump_json()} | {"audio_mean": "0", "audio_std": "1"}])
    )
    content = save(state, kept)
    length = int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        described = data.draw(mutated_values(json.loads(content[8 : 8 + length])))
        text = json.dumps(described).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + length :]
    elif data.draw(st.booleans()):
        content = data.draw(mutated_bytes(content[: 8 + length])) + content[8 + length :]
    path = folder / "model.safetensors"
    path.write_bytes(content)
    works_or_is_refused(lambda: build(load_single_file(path, **HEADS)))


def use(folder: Path) -> None:
    """What a resume, an export and `cavmae checkpoint inspect` do with a manifest that is read."""
    manifest = read_manifest(folder)
    list(_contents(manifest))
    checked_scalars(manifest)
    verify(folder, manifest)
    assemble(folder, manifest)
    export_weights(folder, folder.parent / "out.safetensors")


@examples(200)
@given(st.data(), st.booleans())
def test_a_manifest_of_a_checkpoint(checkpoint, data, resealed):
    path, content = checkpoint / MANIFEST, (checkpoint / MANIFEST).read_bytes()
    values = json.loads(content) | {
        "scalars": {"optimizer": {"step": 120.0}, "skipped_steps": 0, "scheduled_steps": 120}
    }
    del values[CHECKSUM]
    if resealed:
        values = data.draw(mutated_values(values))
        changed = json.dumps({CHECKSUM: checksum(values)} | values if isinstance(values, dict) else values).encode()
    else:
        changed = data.draw(mutated_bytes(content))
    try:
        path.write_bytes(changed)
        works_or_is_refused(lambda: use(checkpoint))
        store = FolderStore(checkpoint.parent)
        assert _overview(store, entries(store)).row_count == 1
        if not resealed and json_of(changed) != json_of(content):
            with pytest.raises(CheckpointError):  # no change of what it says goes unnoticed
                read_manifest(checkpoint)
    finally:
        path.write_bytes(content)


def json_of(content: bytes):
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


@examples(200)
@given(st.data())
def test_a_rank_file_whose_hash_is_right(checkpoint, data):
    manifest, path = read_manifest(checkpoint), checkpoint / "rank-00001-of-00002.safetensors"
    content, before = path.read_bytes(), (checkpoint / MANIFEST).read_bytes()
    try:
        path.write_bytes(data.draw(mutated_bytes(content)))
        record = FileRecord(bytes=path.stat().st_size, sha256=file_hash(path))
        files = manifest.files | {path.name: record}
        (checkpoint / MANIFEST).write_bytes(manifest_bytes(manifest.model_copy(update={"files": files})))
        works_or_is_refused(lambda: assemble(checkpoint, read_manifest(checkpoint)))
    finally:
        path.write_bytes(content)
        (checkpoint / MANIFEST).write_bytes(before)


@examples(100)
@given(mutated_json([[3, 8], [20, 30]]))
def test_the_file_of_rewinds(folder, content):
    (folder / REWINDS).write_bytes(content)
    works_or_is_refused(lambda: read_rewinds(folder / REWINDS))


def test_damage_of_a_checkpoint_is_told_from_what_may_come_back(checkpoint):
    """So that a start sets it aside and takes the one before."""
    path, content = checkpoint / MANIFEST, (checkpoint / MANIFEST).read_bytes()
    for damaged in (b"", b"[]", b"[" * 100_000, content[:-20], content.replace(b'"step": 120', b'"step": 999')):
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint):
            read_manifest(checkpoint)
    path.write_bytes(content)
