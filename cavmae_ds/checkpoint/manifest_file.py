"""manifest.json of a checkpoint: its text with a checksum of its own, and what its fields must agree on."""

from __future__ import annotations

import json
import math
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

if TYPE_CHECKING:
    from cavmae_ds.checkpoint.folder import Manifest

CHECKSUM = "checksum"
CHECKSUM_SINCE = 3  # the format
_NO_SECTIONS = ("run_dir", "ds_config", "task")


def manifest_bytes(manifest: Manifest) -> bytes:
    """The file's content."""
    values = from_json(manifest.model_dump_json())
    return json.dumps({CHECKSUM: checksum(values)} | values, indent=1).encode()


def checked_fields(values: Any) -> tuple[dict[str, Any], int]:
    """The fields of a manifest but its checksum, and its format; below 3 it needs no checksum, and 1 is not written.

    Raises ValueError if it is no object, or not the one that its checksum was computed of.
    """
    if not isinstance(values, dict):
        raise ValueError("it holds no object")
    fields = {key: value for key, value in values.items() if key != CHECKSUM}
    version = fields.get("format", 1)
    if not isinstance(version, int):
        raise ValueError("its format is no number")
    if (version >= CHECKSUM_SINCE or CHECKSUM in values) and values.get(CHECKSUM) != checksum(fields):
        raise ValueError("its checksum is not that of its content")
    return fields, version


def contradiction(manifest: Manifest, step: int | None) -> str:
    """What in a manifest cannot be, to follow its name; empty if nothing.

    step: of the checkpoint's name, where it has one.
    """
    if step is not None and step != manifest.step:
        return f": it says step {manifest.step}"
    for name, section in manifest.config.items():
        if name not in _NO_SECTIONS and not isinstance(section, dict):
            return f": config.{name} is no section"
    batch = manifest.config.get("train", {}).get("global_batch")
    if batch is not None and manifest.clips_seen != manifest.step * batch:
        return f": clips_seen is {manifest.clips_seen}, not {manifest.step} steps x {batch} clips"
    elements = sum(math.prod(parameter.shape) for parameter in manifest.parameters.values())
    if manifest.files and elements > manifest.bytes:
        return f": parameters have {elements} elements, its files {manifest.bytes} bytes"
    return ""


def checksum(fields: dict[str, Any]) -> str:
    return sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
