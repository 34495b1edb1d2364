"""Started on every rank by the deepspeed launcher: notes which clips come, with which frame and which mask."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.config import DataConfig, MaskConfig, ModelConfig
from cavmae_ds.data.order import EpochShape
from cavmae_ds.data.stream import ClipStream, training_loader
from cavmae_ds.distributed import close_world, open_world
from cavmae_ds.model.masking import draw_plans

SEED, GLOBAL_BATCH = 3, 8
MODEL = ModelConfig(embed_dim=32, num_heads=4, image_size=64, audio_frames=64)


def main() -> None:
    shards, accumulation, workers, first_step, steps, folder = sys.argv[-6:]
    world = open_world()
    micro_batch = GLOBAL_BATCH // world.size // int(accumulation)
    shape = EpochShape(1, world.size, int(accumulation), micro_batch)
    cfg = DataConfig(train=shards, workers=int(workers))
    clips = ClipStream(cfg, shape, host=0, local_rank=world.local_rank, seed=SEED, first_step=int(first_step))
    seen = []
    for number, batch in enumerate(training_loader(clips, cfg, world.device)):
        if number == int(steps) * int(accumulation):
            break
        plans = draw_plans(MODEL, MaskConfig(audio_mode="tf"), SEED, batch.epoch, batch.clip_index)
        for row in range(micro_batch):
            parts = (
                batch.images[row],
                batch.audio[row, : batch.n_samples[row]],
                plans.audio.keep[row],
                plans.image.keep[row],
            )
            seen.append(
                {
                    "step": int(first_step) + number // int(accumulation),
                    "epoch": int(batch.epoch[row]),
                    "clip": int(batch.clip_index[row]),
                    **{
                        name: sha256(part.contiguous().numpy().tobytes()).hexdigest()
                        for name, part in zip(("frame", "sound", "audio_mask", "image_mask"), parts, strict=True)
                    },
                }
            )
    (Path(folder) / f"rank-{world.rank}.json").write_text(json.dumps(seen))
    close_world()


if __name__ == "__main__":
    main()
