"""`cavmae features`: what it writes in each format, of data sets and of videos, and what it says of unusable ones."""

from __future__ import annotations

import csv
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

import cavmae_ds
from cavmae_ds.cli import app
from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.clips import collate, decode_clip
from cavmae_ds.data.loading.shard_cache import ShardCache
from cavmae_ds.data.prepare.videos import PrepareSettings, prepare
from cavmae_ds.data.storage import open_store
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.errors import CheckpointError, ConfigError, DataError
from cavmae_ds.evaluation import feature_files
from cavmae_ds.evaluation.feature_files import FeatureFile
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.models.cavmae.state_dict import Kind
from cavmae_ds.models.common.weights import Weights
from cavmae_ds.weights.load import load_model
from cavmae_ds.weights.single_file import save_single_file
from tests.data.media_files import cut_short
from tests.data.small_shards import small_shards
from tests.weights.small_models import SIZES, small_model

CPU = torch.device("cpu")
MIB = 2**20


def features(*arguments: object, exit_code: int = 0) -> str:
    outcome = CliRunner().invoke(app, ["features", *map(str, arguments)], catch_exceptions=False)
    assert outcome.exit_code == exit_code, outcome.output
    return outcome.output


def weights_file(path: Path, kind: Kind = "pretrain", model: torch.nn.Module | None = None) -> Path:
    state = (model or small_model(kind)).state_dict()
    save_single_file(Weights(kind, SIZES, 0 if kind == "pretrain" else 5, dict(state), "made"), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return weights_file(tmp_path_factory.mktemp("model") / "model.safetensors")


def names_in(ids: np.ndarray) -> list[str]:
    """Of the bytes in a .safetensors file."""
    return [bytes(row).rstrip(b"\0").decode() for row in ids]


def rejected(out: Path) -> dict[str, str]:
    with out.with_suffix(".rejected.csv").open(newline="") as file:
        return {row["source"]: row["code"] for row in csv.DictReader(file)}


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@torch.inference_mode()
def one_clip_at_a_time(weights: Path, shards: Path, frames: range) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids, tokens [N, La, D] and [N, F, Lv, D]."""
    records, model, front_end = (
        ShardCache([str(shards)], DataConfig()),
        load_model(weights).model,
        FrontEnd(inputs(SIZES), CPU),
    )
    ids, sounds, images = [], [], []
    for place in range(records.num_samples):
        clip = decode_clip(records[place], inputs(SIZES), clip_index=place, epoch=0)
        clips = [clip._replace(frames=clip.frames[frame : frame + 1]) for frame in frames]
        tokens = [model.features(*front_end(collate([clip]))) for clip in clips]
        ids.append(clips[0].clip_id)
        sounds.append(tokens[0].audio[0])
        images.append(torch.stack([each.image[0] for each in tokens]))
    return ids, torch.stack(sounds).numpy(), torch.stack(images).numpy()


def test_shards_become_one_row_a_clip_in_order_with_its_name(model, tiny_shards, tmp_path):
    output = features(model, tiny_shards, "--out", tmp_path / "new" / "all.safetensors", "--workers", 2)

    found = load_file(tmp_path / "new" / "all.safetensors")
    ids, sounds, images = one_clip_at_a_time(model, tiny_shards, range(5, 6))
    assert names_in(found.pop("clip_id")) == ids
    assert found.keys() == {"audio", "image"} and found["audio"].dtype == np.float32
    np.testing.assert_allclose(found["audio"], sounds.mean(1), atol=1e-6)
    np.testing.assert_allclose(found["image"], images[:, 0].mean(1), atol=1e-6)
    assert "24 clips in" in output and "audio [24, 48], image [24, 48] float32" in output
    assert only(tmp_path / "new") == ["all.rejected.csv", "all.safetensors"]


def test_all_tokens_of_all_frames_in_half_precision(model, tiny_shards, tmp_path):
    out = tmp_path / "all.npz"
    features(model, tiny_shards, "--out", out, "--tokens", "--frames", 10, "--dtype", "float16", "--workers", 1)

    ids, sounds, images = one_clip_at_a_time(model, tiny_shards, range(10))
    with np.load(out, allow_pickle=False) as found:
        assert sorted(found) == ["audio", "clip_id", "image"]
        assert found["clip_id"].tolist() == ids
        assert found["audio"].dtype == found["image"].dtype == np.float16
        np.testing.assert_allclose(found["audio"], sounds, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found["image"], images, rtol=1e-3, atol=1e-4)


def test_a_parquet_file_of_many_row_groups_reads_back_as_arrays(model, tiny_shards, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="an extra")
    monkeypatch.setattr(feature_files, "ROW_GROUP_BYTES", 10 * 48 * 4 * 10)  # ten clips
    features(model, tiny_shards, "--out", tmp_path / "all.parquet", "--frames", 10)

    table = parquet.read_table(tmp_path / "all.parquet")
    ids, sounds, images = one_clip_at_a_time(model, tiny_shards, range(10))
    assert parquet.ParquetFile(tmp_path / "all.parquet").num_row_groups == 3
    assert table["clip_id"].to_pylist() == ids
    audio, image = (table[name].combine_chunks().to_numpy_ndarray() for name in ("audio", "image"))
    np.testing.assert_allclose(audio, sounds.mean(1), atol=1e-6)
    np.testing.assert_allclose(image, images.mean(2), atol=1e-6)  # [24, 10, 48]


def test_without_pyarrow_parquet_is_refused_before_anything_is_done(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ConfigError,
        match=r"needs pyarrow; pip install -c \S+ 'cavmae-ds\[features\]', or let --out end in",
    ):
        features(model, "nowhere", "--out", tmp_path / "x.parquet")


def test_videos_give_bitwise_what_their_shards_and_the_python_api_give(model, usual_videos, tmp_path):
    # Given videos of three encoders, and a fourth that is cut short
    folder, out = tmp_path / "videos", tmp_path / "videos.safetensors"
    folder.mkdir()
    for name in ("still.mp4", "stream.webm", "web.mp4"):
        shutil.copy(usual_videos / name, folder)
    good = sorted(folder.iterdir())
    cut_short(good[0], folder / "cut.mp4", 0.5)

    # When they are embedded, and prepared into shards that are embedded
    refused = features(model, folder, "--out", out, "--workers", 1, exit_code=3)
    absent = not out.exists()
    accepted = features(model, folder / "cut.mp4", *good, "--out", out, "--workers", 1, "--max-bad", 0.25)
    prepare(folder, str(tmp_path / "shards"), PrepareSettings(frame_size=64), workers=1, max_bad_share=0.25)
    features(model, tmp_path / "shards", "--out", tmp_path / "shards.safetensors", "--workers", 1)

    # Then a quarter of them is too many to lose unasked, and all ways lead to the same numbers
    assert absent and "1 of 4 clips (25.0%) cannot be used, allowed 5.0%" in refused
    assert rejected(out) == {str(folder / "cut.mp4"): "truncated"}
    assert "truncated" in accepted and "3 clips in" in accepted and "videos.rejected.csv" in accepted
    videos, shards = load_file(out), load_file(tmp_path / "shards.safetensors")
    assert names_in(shards["clip_id"]) == [path.with_suffix("").name for path in good]
    assert names_in(videos["clip_id"]) == [str(path.with_suffix("")).lstrip("/") for path in good]
    of_api = cavmae_ds.load(model).embed(good)
    for name, rows in of_api._asdict().items():
        assert np.array_equal(videos[name], shards[name]) and np.array_equal(videos[name], rows.numpy())


def test_a_damaged_record_is_named_and_the_others_are_embedded(model, tiny_shards, tmp_path):
    def damage(number, record):
        if number == 2:
            record["frames"] = b"\0" * len(record["frames"])

    shards = small_shards(tiny_shards, tmp_path / "shards", range(4), shard_clips=2, change=damage)
    out = tmp_path / "three.safetensors"
    output = features(model, shards, "--out", out, "--max-bad", 0.3)
    whole = tmp_path / "all.safetensors"
    features(model, tiny_shards, "--out", whole)
    assert rejected(out) == {"clip 2": "damaged_frame"} and "damaged_frame" in output
    np.testing.assert_allclose(load_file(out)["image"], load_file(whole)["image"][[0, 1, 3]], atol=1e-6)


def test_a_model_that_only_hears_writes_audio_alone(tiny_shards, tmp_path):
    hears = weights_file(tmp_path / "hears.safetensors", "finetune-audio")
    features(hears, tiny_shards, "--out", tmp_path / "sound.npz", "--frames", 10)
    with np.load(tmp_path / "sound.npz") as found:
        assert sorted(found) == ["audio", "clip_id"] and found["audio"].shape == (24, 48)


def test_shards_in_a_bucket_are_read_as_those_in_a_folder(model, tiny_shards, tmp_path, s3_bucket, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store = open_store(f"s3://{s3_bucket}/clips")
    for path in tiny_shards.rglob("*"):
        if path.is_file():
            store.put_bytes(path.relative_to(tiny_shards).as_posix(), path.read_bytes())
    for address, name in ((f"s3://{s3_bucket}/clips", "far"), (tiny_shards, "near")):
        features(model, address, "--out", tmp_path / f"{name}.npz", "--workers", 1)
    with np.load(tmp_path / "far.npz") as far, np.load(tmp_path / "near.npz") as near:
        assert all(np.array_equal(far[name], near[name]) for name in near)


def diverged(folder: Path) -> Path:
    broken = small_model("pretrain")
    with torch.no_grad():
        broken.norm_a.bias.fill_(torch.nan)
    return weights_file(folder / "diverged.safetensors", model=broken)


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        (lambda f, m, s: (m, s, "--out", f / "x.csv"), ConfigError, r"must end in \.safetensors, \.npz, \.parquet"),
        (lambda f, m, s: (m, s, "--out", f / "there.npz"), ConfigError, "is a folder; give the name of a file"),
        (lambda f, m, s: (m, s, "--out", f / "file" / "x.npz"), ConfigError, "cannot write .*x.npz.: (File|Not)"),
        (lambda f, m, s: (m, f / "none.mp4", "--out", f / "x.npz"), DataError, "is neither a video, a folder, a list"),
        (lambda f, m, s: (m, s, f / "file", "--out", f / "x.npz"), DataError, "is a data set and .*file is not"),
        (lambda f, m, s: (diverged(f), s, "--out", f / "x.npz"), CheckpointError, "are not finite in float32: the tr"),
        (lambda f, m, s: (f / "none.pth", s, "--out", f / "x.npz"), CheckpointError, "cannot read"),
    ],
    ids=["format", "folder", "no folder", "no video", "both kinds", "not finite", "no model"],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_one_sentence(arguments, kind, sentence, model, tiny_shards, tmp_path):
    (tmp_path / "there.npz").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(kind, match=sentence):
        features(*arguments(tmp_path, model, tiny_shards), "--workers", 1)
    assert not (tmp_path / "x.npz").exists() and not list(tmp_path.glob(".*"))


def test_a_file_that_was_there_stays_until_the_new_one_is_whole(model, tmp_path):
    (tmp_path / "notes.mp4").write_text("Remember the milk.")
    (tmp_path / "old.npz").write_bytes(b"older")
    features(model, tmp_path / "notes.mp4", "--out", tmp_path / "old.npz", "--workers", 1, "--max-bad", 1, exit_code=3)
    assert (tmp_path / "old.npz").read_bytes() == b"older"
    assert only(tmp_path) == ["notes.mp4", "old.npz", "old.rejected.csv"]


@pytest.mark.parametrize(
    ("suffix", "most_bytes", "left"),
    [(".npz", 100_000, []), (".npz", 250_000, ["x.rejected.csv"]), (".safetensors", 250_000, ["x.rejected.csv"])],
)
def test_a_disk_that_takes_no_more_is_one_sentence_and_no_file(suffix, most_bytes, left, model, tiny_shards, tmp_path):
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most))  # audio takes 221 kB, image 74 kB
    try:
        with pytest.raises(ConfigError, match=rf"cannot write .*x\{suffix}.: .*File too large"):
            features(model, tiny_shards, "--out", tmp_path / f"x{suffix}", "--tokens", "--workers", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert only(tmp_path) == left


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".parquet"])
def test_memory_holds_a_batch_whatever_the_number_of_clips(suffix, tmp_path, monkeypatch):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet", reason="an extra")
    monkeypatch.setattr(feature_files, "ROW_GROUP_BYTES", MIB)
    rows = np.arange(16 * MIB // 4, dtype=np.float32).reshape(16, -1)  # 16 clips of 1 MiB
    out = tmp_path / f"large{suffix}"
    with FeatureFile(out, "float32") as file, no_more_memory_than(48 * MIB):
        for batch in range(6):
            file.add([f"clip {batch} {k}" for k in range(16)], {"audio": rows})
        file.write()
    if suffix == ".safetensors":
        assert np.array_equal(load_file(out)["audio"][80:], rows)


@contextmanager
def no_more_memory_than(bytes_more: int) -> Iterator[None]:
    """Inside, the process may take so many bytes more of its own; files that are mapped do not count."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmData"))
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(line.split()[1]) * 1024 + bytes_more, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))
