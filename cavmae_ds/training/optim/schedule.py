"""The learning rate as a pure function of the optimizer step."""

from __future__ import annotations

import math

from cavmae_ds.config.sections.training import OptimConfig


def learning_rate_share(
    step: int, cfg: OptimConfig, total_steps: int, steps_per_epoch: int, global_batch: int
) -> float:
    """Share of the peak learning rate that optimizer step `step` (0-based) uses.

    Warm-up: linear in the clips seen at the end of the step, so no step is wasted at zero. Then cosine from 1 to
    final_share at the last step; or the official step decay (spec/cav-mae.md 4.3): x decay_factor when
    decay_start_epoch epochs are done and every decay_every_epochs after; or constant.
    """
    if step * global_batch < cfg.warmup_clips:
        return min(1.0, (step + 1) * global_batch / cfg.warmup_clips)
    if cfg.schedule == "constant":
        return 1.0
    if cfg.schedule == "step":
        late = step // steps_per_epoch - cfg.decay_start_epoch
        drops = late // cfg.decay_every_epochs + 1 if late >= 0 else 0
        return cfg.decay_factor**drops
    warmup_steps = cfg.warmup_steps(global_batch)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    return cfg.final_share + (1 - cfg.final_share) * (1 + math.cos(math.pi * progress)) / 2
