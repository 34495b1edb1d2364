"""All sections of a run, and what they must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from cavmae_ds.config.sections.base import Folder, Section, multiple
from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.config.sections.losses import ContrastiveConfig, LossConfig
from cavmae_ds.config.sections.model import MaskConfig, ModelConfig
from cavmae_ds.config.sections.training import CheckpointConfig, MonitorConfig, OptimConfig, TrainConfig
from cavmae_ds.config.sections.watch import WatchConfig


class RunConfig(Section):
    """One run: a YAML file holds the differences from these defaults."""

    run_dir: Folder = Path("runs/default")
    """Folder of the run: resolved config, checkpoints, TensorBoard logs, final weights."""
    ds_config: Folder = Path("ds_configs/zero2.json")
    """Engine mechanics for DeepSpeed (ZeRO stage, buckets); relative to here or to the checkout."""
    model: ModelConfig = ModelConfig()
    mask: MaskConfig = MaskConfig()
    loss: LossConfig = LossConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="before")
    @classmethod
    def _warm_up_in_clips(cls, values: Any) -> Any:
        """Run files used to give the warm-up in steps: that many times the global batch."""
        optim, train = (values.get(name) if isinstance(values, dict) else None for name in ("optim", "train"))
        if not isinstance(optim, dict) or not isinstance(train, dict) or not isinstance(optim.get("warmup_steps"), int):
            return values
        if "warmup_clips" in optim:
            raise ValueError(
                "optim.warmup_steps and optim.warmup_clips are both given; keep warmup_clips, the warm-up in clips"
            )
        global_batch = train.get("global_batch", TrainConfig.model_fields["global_batch"].default)
        if not isinstance(global_batch, int):
            return values
        others = {key: value for key, value in optim.items() if key != "warmup_steps"}
        return {**values, "optim": others | {"warmup_clips": optim["warmup_steps"] * global_batch}}

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        if self.contrastive.chunks is not None:
            multiple("train.global_batch", self.train.global_batch, "contrastive.negatives", self.contrastive.chunks)
        if self.contrastive.two_pass and not self.loss.contrastive_weight:
            raise ValueError(
                "contrastive.two_pass needs a contrastive loss, got loss.contrastive_weight 0; "
                "raise it or set two_pass: false"
            )
        for key in ("validate_every", "probe_every"):
            every = getattr(self.monitor, key)
            if every and not (self.data.validation or self.data.validation_share):
                raise ValueError(
                    f"monitor.{key} is {every}, but there is nothing to validate on; "
                    "set data.validation or data.validation_share"
                )
        if self.watch.stuck_seconds <= self.data.timeout_seconds:
            raise ValueError(
                f"watch.stuck_seconds must be larger than data.timeout_seconds = {self.data.timeout_seconds:g}, got "
                f"{self.watch.stuck_seconds:g}; a rank may wait so long for a batch"
            )
        return self
