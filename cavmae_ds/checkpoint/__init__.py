"""Checkpoints: a folder `step-00000120` is whole or it is not there."""

from typing import TYPE_CHECKING, Any

from cavmae_ds.checkpoint.folder import checkpoint_root, whole_checkpoints

if TYPE_CHECKING:
    from cavmae_ds.checkpoint.weights import read_weights

__all__ = ["checkpoint_root", "read_weights", "whole_checkpoints"]


def __getattr__(name: str) -> Any:
    """read_weights brings torch along, which `cavmae --help` need not wait for."""
    if name == "read_weights":
        from cavmae_ds.checkpoint.weights import read_weights

        return read_weights
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
