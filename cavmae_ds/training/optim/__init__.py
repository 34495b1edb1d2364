"""Optimizers, parameter groups and learning-rate schedules."""

from cavmae_ds.tasks.finetune.lr_scale import classifier_rate
from cavmae_ds.training.optim.build import all_alike, build_optimizer, parameter_groups
from cavmae_ds.training.optim.layerwise import LayerwiseOptimizer
from cavmae_ds.training.optim.schedule import learning_rate_share

__all__ = [
    "LayerwiseOptimizer",
    "all_alike",
    "build_optimizer",
    "classifier_rate",
    "learning_rate_share",
    "parameter_groups",
]
