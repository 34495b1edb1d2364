"""Weights of one kind from a checkpoint: those that were not kept are refused by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from cavmae_ds.checkpoint import checkpoint_root, read_weights
from cavmae_ds.checkpoint.folder import file_hash
from cavmae_ds.checkpoint.layout import MASTER, Piece, rank_file
from cavmae_ds.checkpoint.manifest import MANIFEST, FileRecord, Manifest, ParameterRecord, manifest_bytes
from cavmae_ds.errors import CheckpointError


def test_asking_for_a_mean_that_was_not_kept_names_the_key(tmp_path):
    folder = checkpoint_root(tmp_path) / "step-00000001"
    folder.mkdir(parents=True)
    piece, path = Piece(MASTER, "weight", 0, torch.ones(2)), folder / rank_file(0, 1)
    save_file({piece.key: piece.values}, path)
    manifest = Manifest(
        step=1, clips_seen=8, ranks=1, zero_stage=0, states=[MASTER],
        parameters={"weight": ParameterRecord(shape=[2], dtype="float32", trained=True)},
        files={path.name: FileRecord(bytes=path.stat().st_size, sha256=file_hash(path))},
    )  # fmt: skip
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest))

    assert read_weights(tmp_path)["weight"].equal(torch.ones(2))
    with pytest.raises(CheckpointError, match=r"no running mean .* train\.ema_clips"):
        read_weights(tmp_path, ema=True)
