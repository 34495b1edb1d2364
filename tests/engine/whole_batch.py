"""One small training problem: a global batch of 8 clips, and what one plain torch process makes of it."""

from __future__ import annotations

import torch
from torch import Tensor

from cavmae_ds.config import RunConfig
from cavmae_ds.config.derived import RunNumbers
from cavmae_ds.config.load import validate_config
from cavmae_ds.engine import freeze_unused
from cavmae_ds.losses import PretrainLosses, own_candidates, pretrain_losses
from cavmae_ds.model.cavmae import CAVMAE
from cavmae_ds.model.masking import draw_plans
from cavmae_ds.optim import adamw, learning_rate_share, parameter_groups

CLIPS, STEPS = 8, 3


def run_config(stage: int, ranks: int, accumulation: int, contrastive: float, direction: str = "v2a") -> RunConfig:
    """CAV-MAE small enough to train 8 clips in milliseconds; clipping and decay on, so that they are compared too."""
    return validate_config(
        {
            "ds_config": f"ds_configs/zero{stage}.json",
            "model": {
                "embed_dim": 32, "num_heads": 4, "modality_specific_depth": 1, "shared_depth": 2,
                "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
                "image_size": 64, "audio_frames": 64,
            },
            "loss": {"contrastive_weight": contrastive},
            "contrastive": {"direction": direction},
            # eps above rounding noise: Adam would blow up the gradient of key biases, which is zero but for rounding
            "optim": {
                "learning_rate": 1e-3, "eps": 1e-5, "weight_decay": 0.05, "clip_grad_norm": 0.5, "warmup_steps": 1,
            },
            "train": {
                "global_batch": CLIPS, "micro_batch": CLIPS // ranks // accumulation, "steps": STEPS,
                "precision": "fp32", "seed": 7,
            },
        }
    )  # fmt: skip


def numbers(cfg: RunConfig, ranks: int) -> RunNumbers:
    """The derived numbers, without shards to count."""
    accumulation = CLIPS // ranks // cfg.train.micro_batch
    return RunNumbers(ranks, CLIPS, CLIPS, accumulation, 1, STEPS, CLIPS * STEPS, 0, 0, 0.0, 0, 0.0, 0.0)


def clips(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-mels [8, 64, 128], images [8, 3, 64, 64] and clip indices [8] of one optimizer step."""
    draw = torch.Generator().manual_seed(100 + step)
    shared = torch.randn(CLIPS, 1, 1, generator=draw)  # something that sound and picture have in common
    audio = torch.randn(CLIPS, 64, 128, generator=draw) + shared
    images = torch.randn(CLIPS, 3, 64, 64, generator=draw) + shared[..., None]
    return audio, images, torch.arange(CLIPS) * 1000 + step


def fresh_model(cfg: RunConfig) -> CAVMAE:
    """The model with the initial weights that every variant starts from."""
    torch.manual_seed(cfg.train.seed)
    model = CAVMAE(cfg.model)
    freeze_unused(model, cfg)
    return model


def train_on_one_process(cfg: RunConfig) -> tuple[list[PretrainLosses], dict[str, Tensor]]:
    """Plain torch, no engine, no ranks, the whole batch at once: the truth. Losses of each step, final parameters."""
    model = fresh_model(cfg)
    optimizer = adamw(
        parameter_groups(model.named_parameters(), cfg.optim.weight_decay), cfg.optim, torch.device("cpu")
    )
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = cfg.optim.learning_rate * learning_rate_share(step, cfg.optim, STEPS, 1)
        audio, images, index = clips(step)
        plans = draw_plans(cfg.model, cfg.mask, cfg.train.seed, 0, index)
        output = model(audio, images, plans, contrastive=cfg.loss.contrastive_weight > 0)
        candidates = own_candidates(output) if cfg.loss.contrastive_weight else None
        losses.append(pretrain_losses(output, candidates, cfg.loss, cfg.contrastive))
        optimizer.zero_grad()
        losses[-1].total.backward()
        torch.nn.utils.clip_grad_norm_(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            cfg.optim.clip_grad_norm,
        )
        optimizer.step()
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}
