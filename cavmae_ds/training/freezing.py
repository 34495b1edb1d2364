"""Which parameters a run trains."""

from __future__ import annotations

from typing import Any

from cavmae_ds.config.sections.common import RunConfig
from cavmae_ds.tasks.finetune.config import FinetuneConfig
from cavmae_ds.tasks.pretrain.config import PretrainConfig


def freeze_unused(model: Any, cfg: RunConfig) -> None:
    """Parameters that no loss of this run reaches stay as they are: no decay, no stale gradient (spec traps 3).

    So does everything but the head of a linear probe.
    """
    if isinstance(cfg, FinetuneConfig):
        unused = model.unused_parameters(cfg.classifier.mode)
        if cfg.classifier.freeze_base:
            unused |= {name for name, _ in model.named_parameters() if not name.startswith("mlp_head.")}
    else:
        assert isinstance(cfg, PretrainConfig)
        unused = model.unused_parameters(mae=cfg.loss.mae_weight > 0, contrastive=cfg.loss.contrastive_weight > 0)
    for name, parameter in model.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
