"""index.json of a data set: the shards, checked before streaming, or anything else, works with it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator, model_validator

from cavmae_ds.data.format.layout import layout_of
from cavmae_ds.errors import DataError, shortened

INDEX = "index.json"
_SHARD_BYTES = 2**32  # offsets in a shard file are uint32


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardFile(_Strict):
    """A file below the data set's folder."""

    basename: str
    bytes: Annotated[int, Field(gt=0, lt=_SHARD_BYTES)]
    hashes: dict[str, str]

    @field_validator("basename")
    @classmethod
    def _lies_inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or not path.name:
            raise ValueError(f"the shard {shortened(name)!r} lies outside its folder")
        return name


class Shard(_Strict):
    """One shard, as MDSWriter describes it."""

    column_encodings: list[str]
    column_names: list[str]
    column_sizes: list[NonNegativeInt | None]
    compression: None
    format: Literal["mds"]
    hashes: list[str]
    raw_data: ShardFile
    samples: Annotated[int, Field(gt=0)]
    size_limit: NonNegativeInt | None
    version: Literal[2]
    zip_data: None

    @model_validator(mode="after")
    def _fits(self) -> Shard:
        try:
            columns = len(layout_of(self.column_names, self.column_encodings).encodings)
        except ValueError as error:
            found = ", ".join(
                f"{name} {kind}" for name, kind in zip(self.column_names, self.column_encodings, strict=False)
            )
            raise ValueError(f"its columns are {shortened(found, 400)}, {error}") from None
        if len(self.column_sizes) != columns:
            raise ValueError(f"it gives {len(self.column_sizes)} sizes of {columns} columns")
        if 4 * (self.samples + 2) > self.raw_data.bytes:
            raise ValueError(f"{self.samples} samples do not fit into {self.raw_data.bytes} bytes")
        return self


class Index(_Strict):
    """The whole file."""

    shards: Annotated[list[Shard], Field(min_length=1)]
    version: Literal[2]


def read_index(content: bytes, address: str) -> Index:
    """An index from its file's content. Raises DataError naming the field that does not fit."""
    try:
        return Index.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        got = "" if first["type"] in ("value_error", "missing", "json_invalid") else f", got {first['input']!r:.60}"
        problem = shortened(first["msg"].removeprefix("Value error, "), 1000)
        raise DataError(
            f"{INDEX} in {address!r} is damaged ({shortened(where)}: {problem}{got}); prepare the data set again"
        ) from None
