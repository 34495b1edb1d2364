"""Optimizers, parameter groups and learning-rate schedules."""

from cavmae_ds.optim.build import build_optimizer, parameter_groups
from cavmae_ds.optim.layerwise import LayerwiseOptimizer
from cavmae_ds.optim.schedule import learning_rate_share

__all__ = ["LayerwiseOptimizer", "build_optimizer", "learning_rate_share", "parameter_groups"]
