"""From a YAML file and `section.key=value` overrides to a checked run, and back to YAML."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.config.yaml_reader import MOST_DEPTH, Dumper, parse_yaml, read_yaml
from cavmae_ds.errors import ConfigError, shortened

Kind = TypeVar("Kind", bound=RunConfig)

MOST_PROBLEMS = 8
"""Named in one sentence."""


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A run file with its overrides, as plain values. Raises ConfigError: see read_yaml; bad override."""
    values = read_yaml(Path(path))
    if not isinstance(values, dict):
        raise ConfigError(f"the run file {str(path)!r} must hold `section:` mappings, got {_kind(values)}")
    for override in overrides:
        _apply_override(values, override)
    return values


def validate(values: dict[str, Any], kind: type[Kind]) -> Kind:
    """Check plain values (as read from YAML) of a run of one class.

    Raises ConfigError: unknown key (with the nearest right one), wrong type, value out of range, sections that
    contradict each other.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise ConfigError("; ".join(_sentence(problem, kind) for problem in problems[:MOST_PROBLEMS]) + more) from None


def to_yaml(config: RunConfig) -> str:
    """The resolved config, every key with its value, loadable by load_run."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    shown = f"override {shortened(override)!r}"
    if not equals or len(parts) > MOST_DEPTH or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{shown} must read section.key=value, for example train.micro_batch=32")
    target = values
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{shown}: {part!r} is a value, not a section")
    target[parts[-1]] = parse_yaml(text, shown)


def _sentence(problem: ErrorDetails, kind: type[BaseModel]) -> str:
    """One problem as: which key, what it must be, what was got."""
    key = shortened(".".join(str(part) for part in problem["loc"]))
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r}{_nearest(problem['loc'], kind)}"
        case "missing":
            return f"missing key {key!r}: this run needs it"
        case "value_error":  # raised by a section's own validator, which names its fields
            said = problem["msg"].removeprefix("Value error, ")
            return f"{key}: {said}" if key else said
        case "model_type" | "model_attributes_type":
            return f"{key!r} must be a section of `key: value` lines, got {_kind(problem['input'])}"
        case "path_type":
            return f"{key!r} must be a path, got {_kind(problem['input'])}"
    rule = problem["msg"].replace("Input should be ", "must be ")
    rule = rule.replace("a valid integer", "an integer").replace("a valid tuple", "a list").replace("a valid ", "a ")
    got = json.dumps(problem["input"], default=str, skipkeys=True)
    return f"{key!r} {rule}, got {shortened(got)}"


def _nearest(location: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    """`, did you mean 'mask.audio_ratio'?`: the key of the same name elsewhere, else one spelled alike."""
    wrong = ".".join(str(part) for part in location)
    known = list(_all_keys(kind))
    same_name = [key for key in known if key.split(".")[-1] == str(location[-1])]
    siblings = [key for key in known if key.rpartition(".")[0] == wrong.rpartition(".")[0]]
    near = same_name or difflib.get_close_matches(wrong, siblings, 2) or difflib.get_close_matches(wrong, known, 1)
    if not near:
        return f"; allowed here: {', '.join(siblings)}"
    return f", did you mean {' or '.join(repr(key) for key in near)}?"


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _all_keys(kind, f"{prefix}{name}.")
    return keys


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
