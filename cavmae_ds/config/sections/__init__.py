"""Every section of a run as a frozen, typed, validated model. Defaults are the official base recipe's.

Sources of the defaults: spec/cav-mae.md 1.1 (model), 1.7 (masks), 1.8 (losses), 3.4 (statistics), 4 (training).
"""

from cavmae_ds.config.sections.data import DataConfig, SourceConfig
from cavmae_ds.config.sections.losses import ContrastiveConfig, LossConfig
from cavmae_ds.config.sections.model import MaskConfig, ModelConfig
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.config.sections.training import CheckpointConfig, MonitorConfig, OptimConfig, TrainConfig

__all__ = [
    "CheckpointConfig",
    "ContrastiveConfig",
    "DataConfig",
    "LossConfig",
    "MaskConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimConfig",
    "RunConfig",
    "SourceConfig",
    "TrainConfig",
]
