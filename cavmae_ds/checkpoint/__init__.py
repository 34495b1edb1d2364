"""Checkpoints: a folder `step-00000120` is whole or it is not there."""

from cavmae_ds.checkpoint.runs import checkpoint_root, full_weights, read_weights, resume, save, whole_checkpoints

__all__ = ["checkpoint_root", "full_weights", "read_weights", "resume", "save", "whole_checkpoints"]
