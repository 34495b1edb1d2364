"""Run by every rank: notes which clips come, with which frame and which mask.

The one argument is a folder: cases.json there says what to read, case after case; rank-R.json is what rank R got.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.loading.order import EpochShape
from cavmae_ds.data.loading.stream import ClipStream, training_loader
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.models.cavmae.masking import draw_plans

SEED, GLOBAL_BATCH = 3, 8
MODEL = ModelConfig(embed_dim=32, num_heads=4, image_size=64, audio_frames=64)


def main() -> None:
    folder = Path(sys.argv[-1])
    world = open_world()
    cases = json.loads((folder / "cases.json").read_text())
    seen = {name: clips_of(world, **case) for name, case in cases.items()}
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(seen))
    close_world()


def clips_of(world: World, data: dict, windows: dict, accumulation: int, first_step: int, steps: int) -> list[dict]:
    """This rank's clips of so many optimizer steps. windows: what is read of them other than CAV-MAE does."""
    micro_batch = GLOBAL_BATCH // world.size // accumulation
    shape = EpochShape(1, world.size, accumulation, micro_batch)
    cfg = DataConfig(**data)
    clips = ClipStream(
        cfg,
        replace(inputs(MODEL), **windows),
        shape,
        host=0,
        local_rank=world.local_rank,
        seed=SEED,
        first_step=first_step,
    )
    seen = []
    for number, batch in enumerate(training_loader(clips, cfg, world.device)):
        if number == steps * accumulation:
            return seen
        plans = draw_plans(MODEL, MaskConfig(audio_mode="tf"), SEED, batch.epoch, batch.clip_index)
        for row in range(micro_batch):
            parts = (
                batch.frames[row],
                batch.audio[row, : batch.n_samples[row]],
                plans.audio.keep[row],
                plans.image.keep[row],
            )
            seen.append(
                {
                    "step": first_step + number // accumulation,
                    "turn": int(batch.epoch[row]),
                    "clip": int(batch.clip_index[row]),
                    **{
                        name: sha256(part.contiguous().numpy().tobytes()).hexdigest()
                        for name, part in zip(("frame", "sound", "audio_mask", "image_mask"), parts, strict=True)
                    },
                }
            )
    raise AssertionError("training clips never end")


if __name__ == "__main__":
    main()
