"""Run configuration: sections, loading, and the numbers that follow from them."""

from cavmae_ds.config.sections.common import CommonConfig
from cavmae_ds.config.sections.data import DataConfig, SourceConfig
from cavmae_ds.config.sections.finetune import FinetuneConfig
from cavmae_ds.config.sections.guard import GuardConfig
from cavmae_ds.config.sections.init import InitConfig
from cavmae_ds.config.sections.losses import ContrastiveConfig, LossConfig
from cavmae_ds.config.sections.model import MaskConfig, ModelConfig
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.config.sections.training import CheckpointConfig, MonitorConfig, OptimConfig, TrainConfig
from cavmae_ds.config.sections.watch import WatchConfig

__all__ = [
    "CheckpointConfig",
    "CommonConfig",
    "ContrastiveConfig",
    "DataConfig",
    "FinetuneConfig",
    "GuardConfig",
    "InitConfig",
    "LossConfig",
    "MaskConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimConfig",
    "RunConfig",
    "SourceConfig",
    "TrainConfig",
    "WatchConfig",
]
