"""Files of weights, read without running what is in them."""

from __future__ import annotations

import argparse
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from cavmae_ds.errors import CheckpointError, shortened


def read_pth(path: Path) -> dict[str, Any]:
    """The dict in a .pth file: tensors and plain values on the CPU, nothing that runs code. Raises CheckpointError."""
    _check_sums(path)
    try:
        # MAE's own training script adds its command line, which is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # of the unpickler, which a damaged file can make raise anything
        raise CheckpointError(
            f"{str(path)!r} is no file of weights alone: torch.load refuses it ({_why(error)})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} must hold a dict of tensors by name, got {type(content).__name__}")
    return content


def _why(error: Exception) -> str:
    """What torch.load complained of, without its advice to switch its safety off."""
    text = str(error)
    if "Weights only load failed" in text:
        said = re.search(r"WeightsUnpickler error: (.+?)(?: was not an allowed|$)", text, re.MULTILINE)
        return shortened(said[1], 200) if said else "damaged pickle"
    return shortened(" ".join(text.split()), 200) or type(error).__name__


def _check_sums(path: Path) -> None:
    """A .pth file is a zip archive with a CRC of each entry, which torch does not compare. Raises CheckpointError."""
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{str(path)!r} is empty: the file has 0 bytes; copy it again")
        if not zipfile.is_zipfile(path):  # what torch wrote before 1.6 has no sums
            return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise unreadable(path, error) from error
    except CheckpointError:
        raise
    except Exception as error:  # zipfile's own, zlib's, struct's, RuntimeError for an encrypted entry
        raise CheckpointError(f"{str(path)!r} is damaged: {shortened(str(error), 200)}; copy it again") from error
    if damaged:
        raise CheckpointError(
            f"{str(path)!r} is damaged: its entry {shortened(damaged)!r} does not have the CRC it was written with; "
            "copy it again, or save it again if torch.serialization.set_crc32_options(False) left the CRC out"
        )


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """What to raise for a file that is not there or not to be read."""
    return CheckpointError(f"cannot read {str(path)!r}: {error.strerror or error}")
