"""What all sections have in common, and the kinds of numbers they hold."""

from __future__ import annotations

from enum import Enum
from math import isqrt
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Folder = Annotated[Path, Field(strict=False)]  # YAML has text only


class OnResume(Enum):
    """What a resume does about a key whose value is not the checkpoint's; config/on_resume.py has the table of all."""

    FIXED = "fixed"
    LEARNT = "learnt"
    ORDER = "order"
    CANDIDATES = "candidates"
    TUNABLE = "tunable"
    LOCATION = "location"
    START = "start"
    FREE = "free"


class Section(BaseModel):
    """Frozen, strict about types, and closed: an unknown key is a mistake, not an extension."""

    on_resume: ClassVar[OnResume]
    """The kind of its keys, but for those with a kind in their annotation; none where each key has its own."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def multiple(name: str, value: int, of: str, divisor: int) -> None:
    """Raises ValueError, naming the nearest values that would fit, unless `divisor` divides `value`."""
    if value % divisor:
        below = value - value % divisor
        near = f"{below} or {below + divisor}" if below else f"{divisor}"
        raise ValueError(f"{name} must be a multiple of {of} = {divisor}, got {value}; {near} would fit")


def divisors(number: int) -> list[int]:
    """All of a positive number, ascending."""
    below = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return sorted({*below, *(number // n for n in below)})


def filled_in(values: Any, table: dict[str, dict[str, Any]], key: str) -> Any:
    """A section's plain values, completed by what the table says for values[key]; explicit values win.

    An unknown name is left for the section's own check to refuse.
    """
    if not isinstance(values, dict) or not isinstance(values.get(key), str):
        return values
    return {**table.get(values[key], {}), **values}
