"""A tiny run that draws all there is."""

from __future__ import annotations

from pathlib import Path

RUN = """\
run_dir: {folder}/run
ds_config: ds_configs/zero2.json
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, decoder_embed_dim: 16, decoder_depth: 1,
  decoder_num_heads: 2, image_size: 64, audio_frames: 112}}
data: {{train: {shards}, workers: {workers}}}
contrastive: {{direction: both}}
optim: {{schedule: constant, clip_grad_norm: 0.1, learning_rate: 1.0e-3}}
train: {{global_batch: 8, micro_batch: 2, steps: {steps}, precision: fp32}}
checkpoint: {{every_steps: 2}}
monitor: {{log_every: 1, pictures_every: 0, norms_every: 1}}
"""


def run_file(folder: Path, shards: Path, steps: int = 3, workers: int = 0) -> str:
    path = folder / "run.yaml"
    path.write_text(RUN.format(folder=folder, shards=shards, steps=steps, workers=workers))
    return str(path)
