"""Checkpoints: a folder `step-00000120` is whole or it is not there."""

from cavmae_ds.checkpoint.folder import checkpoint_root, whole_checkpoints
from cavmae_ds.checkpoint.weights import read_weights

__all__ = ["checkpoint_root", "read_weights", "whole_checkpoints"]
