"""The model families: `model.family` in a run file -> ModelFamily. A family is a folder and a line in FAMILIES."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from cavmae_ds.config.sections.model import ModelSection
from cavmae_ds.errors import ConfigError, shortened
from cavmae_ds.models.family import ModelFamily, StateDictAdapter

FAMILIES: dict[str, str] = {"cavmae": "cavmae_ds.models.cavmae"}
"""Name -> module whose FAMILY it is; imported when it is asked for."""
DEFAULT_FAMILY = ModelSection().family


def family_of(name: str) -> ModelFamily:
    """The family of a model section. Raises ConfigError for a name that is not registered."""
    if name not in FAMILIES:
        raise ConfigError(f"model.family must be one of {', '.join(FAMILIES)}, got {shortened(repr(name))}")
    return import_module(FAMILIES[name]).FAMILY


def model_section(values: Mapping[str, Any]) -> ModelSection:
    """Section `model` from plain values, as a manifest or a file's header has them.

    Raises ConfigError for an unknown family, ValueError for other values.
    """
    return family_of(str(values.get("family", DEFAULT_FAMILY))).config.model_validate(values)


def adapter_for(names: Collection[str]) -> StateDictAdapter:
    """Of the family that recognises names of parameters; if none does, of the default one, which will refuse them."""
    adapters = (family_of(name).state_dict() for name in FAMILIES)
    default = family_of(DEFAULT_FAMILY).state_dict()
    return next((adapter for adapter in adapters if adapter.recognises(names)), default)
