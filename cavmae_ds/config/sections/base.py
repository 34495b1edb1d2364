"""What all sections have in common, and the kinds of numbers they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Folder = Annotated[Path, Field(strict=False)]  # YAML has text only


class Section(BaseModel):
    """Frozen, strict about types, and closed: an unknown key is a mistake, not an extension."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def multiple(name: str, value: int, of: str, divisor: int) -> None:
    """Raises ValueError, naming the nearest values that would fit, unless `divisor` divides `value`."""
    if value % divisor:
        below = value - value % divisor
        near = f"{below} or {below + divisor}" if below else f"{divisor}"
        raise ValueError(f"{name} must be a multiple of {of} = {divisor}, got {value}; {near} would fit")
