"""manifest.json of a checkpoint: its fields, its text with a checksum of its own, and what the fields must agree on."""

from __future__ import annotations

import json
import math
from hashlib import sha256
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, StringConstraints, ValidationError
from pydantic_core import from_json

from cavmae_ds.errors import CheckpointError, shortened

FORMAT = 3
"""2 had no checksum of the manifest and is still read; 1 was DeepSpeed's own format in a folder with a manifest."""
MANIFEST = "manifest.json"
CHECKSUM = "checksum"
CHECKSUM_SINCE = 3  # the format
_NO_SECTIONS = ("run_dir", "ds_config", "task")

# Names come from data: one that could lead out of the folder is not accepted.
FileName = Annotated[str, StringConstraints(pattern=r"^rank-\d{5,}-of-\d{5,}\.safetensors$")]


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not what was written; the one before it may be."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileRecord(_Frozen):
    """What a file must be."""

    bytes: NonNegativeInt
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ParameterRecord(_Frozen):
    """What a parameter of the model is."""

    shape: list[NonNegativeInt]
    dtype: str
    """As torch prints it, without "torch."; a frozen parameter is saved in it, a trained one in float32."""
    trained: bool
    """An optimizer holds it; else it was frozen."""


class Rewind(NamedTuple):
    """Steps whose clips are seen without an update, because the loss rose there: first and last, counted from 1."""

    first: int
    last: int


class Manifest(_Frozen):
    """Everything about a checkpoint but its large tensors."""

    format: PositiveInt = FORMAT
    step: NonNegativeInt
    """Optimizer steps done."""
    clips_seen: NonNegativeInt
    ranks: PositiveInt
    """That wrote it; any other number can read it."""
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    states: list[str] = []
    """Kinds of values saved of the parameters: master, exp_avg, ema, ..."""
    rewinds: list[Rewind] = []
    """How often the run had gone back, and which steps it left out for that."""
    scalars: dict[str, Any] = {}
    """What the engine and the optimizer hold besides tensors."""
    identity: dict[str, Any] = {}
    """What must be the same for a resume to continue the same run: setting -> value."""
    parameters: dict[str, ParameterRecord] = {}
    config: dict[str, Any] = {}
    """The run's sections, as in its run file."""
    files: dict[FileName, FileRecord] = {}

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(record.bytes for record in self.files.values())

    @property
    def stamp(self) -> str:
        """The same only for checkpoints with the same content."""
        return sha256("".join(sorted(record.sha256 for record in self.files.values())).encode()).hexdigest()


def parse_manifest(content: bytes, address: str, step: int | None) -> Manifest:
    """A manifest from its file's content; see read_manifest for the errors. step: of the name, where it has one."""
    try:
        fields, version = checked_fields(from_json(content))
        if version not in (2, FORMAT):
            raise CheckpointError(
                f"checkpoint {address!r} has format {version}, this version of cavmae_ds reads {FORMAT}; go on with "
                "the version that wrote it, or choose another run_dir"
            )
        manifest = Manifest.model_validate(fields)
        problem = contradiction(manifest, step)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = f": {shortened(where)}: {shortened(first['msg'])}"
    except ValueError as error:
        problem = f" is no JSON of a manifest ({shortened(str(error))})"
    if problem:
        raise DamagedCheckpoint(f"checkpoint {address!r} is damaged: {MANIFEST}{problem}")
    return manifest


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
