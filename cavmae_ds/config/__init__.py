"""Run configuration: sections, loading, and the numbers that follow from them."""

from cavmae_ds.config.sections import (
    CheckpointConfig,
    ContrastiveConfig,
    DataConfig,
    LossConfig,
    MaskConfig,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)

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
