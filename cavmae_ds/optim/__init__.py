"""Optimizers, parameter groups and learning-rate schedules."""

from cavmae_ds.optim.build import all_alike, build_optimizer, parameter_groups
from cavmae_ds.optim.layerwise import LayerwiseOptimizer
from cavmae_ds.optim.rates import classifier_rate
from cavmae_ds.optim.schedule import learning_rate_share

__all__ = [
    "LayerwiseOptimizer",
    "all_alike",
    "build_optimizer",
    "classifier_rate",
    "learning_rate_share",
    "parameter_groups",
]
