"""The model families: `model.family` in a run file -> ModelFamily. A family is a folder and a line in FAMILIES."""

from __future__ import annotations

from importlib import import_module

from cavmae_ds.errors import ConfigError, shortened
from cavmae_ds.models.family import ModelFamily

FAMILIES: dict[str, str] = {"cavmae": "cavmae_ds.models.cavmae"}
"""Name -> module whose FAMILY it is; imported when it is asked for."""


def family_of(name: str) -> ModelFamily:
    """The family of a model section. Raises ConfigError for a name that is not registered."""
    if name not in FAMILIES:
        raise ConfigError(f"model.family must be one of {', '.join(FAMILIES)}, got {shortened(repr(name))}")
    return import_module(FAMILIES[name]).FAMILY
