"""Files of weights, read without running what is in them."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch

from cavmae_ds.errors import CheckpointError


def read_pth(path: Path) -> dict[str, Any]:
    """The dict in a .pth file: tensors and plain values on the CPU, nothing that runs code. Raises CheckpointError."""
    try:
        # MAE's own training script adds its command line, which is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} is no file of weights alone: torch.load refuses it ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} must hold a dict of tensors by name, got {type(content).__name__}")
    return content


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """What to raise for a file that is not there or not to be read."""
    return CheckpointError(f"cannot read {str(path)!r}: {error.strerror or error}")
