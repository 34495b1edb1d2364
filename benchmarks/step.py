"""One training step of CAV-MAE base as pretraining does it, without DeepSpeed: bf16 autocast, AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from cavmae_ds.kernels.launching import references
from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.models.cavmae.masking import draw_plans
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig, LossConfig
from cavmae_ds.tasks.pretrain.losses import contrast_within, pretrain_losses

WAYS = "kernels", "eager", "kernels + compile", "compile"
"""What is worth most first: the product, and what it is compared with."""


@contextmanager
def training_step(
    clips: int, way: str, device: str = "cuda", model_cfg: ModelConfig | None = None, backend: str = "inductor"
) -> Iterator[Callable[[], torch.Tensor]]:
    """A function that does one whole step and gives its loss: masks, forward, losses, backward, AdamW.

    way: references (eager, compile) or kernels, in a model compiled by the backend or as it is.
    """
    if way not in WAYS:
        raise ValueError(f"way must be one of {WAYS}, got {way!r}")
    cfg, mask, loss, contrast = model_cfg or ModelConfig(), MaskConfig(), LossConfig(), ContrastiveConfig()
    with ExitStack() as stack:
        if "kernels" not in way:
            stack.enter_context(references())
        torch.manual_seed(0)
        model = CAVMAE(cfg).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
        audio = torch.randn(clips, cfg.audio_frames, cfg.mel_bins, device=device)
        images = torch.randn(clips, 3, cfg.image_size, cfg.image_size, device=device)
        clip_index = torch.arange(clips, device=device)
        if "compile" in way:
            model.compile(backend=backend)
            stack.callback(torch.compiler.reset)

        def step() -> torch.Tensor:
            plans = draw_plans(cfg, mask, 0, 0, clip_index)
            with torch.autocast(device, torch.bfloat16):
                output: PretrainOutput = model(audio, images, plans)
            total = pretrain_losses(output, contrast_within(output, contrast), loss).total
            total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return total.detach()

        yield step
