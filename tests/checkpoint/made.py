"""Small whole checkpoints, written as ranks write them, without ranks."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from cavmae_ds.checkpoint.folder import commit, file_hash, partial, step_name
from cavmae_ds.checkpoint.layout import EMA, MASTER, rank_file
from cavmae_ds.checkpoint.manifest import FileRecord, Manifest, ParameterRecord

ELEMENTS = 100


def make_checkpoint(root: Path, step: int, ranks: int = 2, **fields: object) -> Path:
    """One vector "weight", cut into a part for each rank, all of its elements `step`; its mean is half of that."""
    folder = partial(root, step)
    folder.mkdir(parents=True)
    files = {}
    for rank in range(ranks):
        path, part = folder / rank_file(rank, ranks), torch.full((ELEMENTS,), float(step))
        save_file({f"{MASTER}:weight:{rank * ELEMENTS}": part, f"{EMA}:weight:{rank * ELEMENTS}": part / 2}, path)
        files[path.name] = FileRecord(bytes=path.stat().st_size, sha256=file_hash(path))
    weight = ParameterRecord(shape=[ranks * ELEMENTS], dtype="float32", trained=True)
    manifest = Manifest(
        step=step, clips_seen=8 * step, ranks=ranks, zero_stage=2, states=[MASTER, EMA], files=files,
        parameters={"weight": weight}, identity={"train.seed": 3},
        config={"model": {"embed_dim": 32}, "data": {"audio_mean": -4.2, "audio_std": 4.5}}, **fields,
    )  # fmt: skip
    commit(folder, manifest)
    return root / step_name(step)


def flip_a_byte(path: Path) -> None:
    """In its middle; size and time of change stay as they are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
