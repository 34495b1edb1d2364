"""The tasks: `task` in a run file -> what its sections are and what it does; and reading run files.

A task is a folder and a line in TASKS. Its config is imported without the rest, so that a mistyped key is refused
before torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from cavmae_ds.config.load import read_values, validate
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.errors import ConfigError, shortened
from cavmae_ds.models import DEFAULT_FAMILY, family_of

if TYPE_CHECKING:
    from cavmae_ds.data.input_spec import InputSpec
    from cavmae_ds.tasks.task import Task

TASKS: dict[str, tuple[str, str]] = {
    "pretrain": ("cavmae_ds.tasks.pretrain.config:PretrainConfig", "cavmae_ds.tasks.pretrain.task:Pretraining"),
    "finetune": ("cavmae_ds.tasks.finetune.config:FinetuneConfig", "cavmae_ds.tasks.finetune.task:Finetuning"),
}
"""Name -> where the base of its run files (a RunConfig) and its Task are."""


def task_of(cfg: RunConfig) -> type[Task]:
    """The class of the run's task."""
    return _load(TASKS[cfg.task][1])


def inputs_of(cfg: RunConfig) -> InputSpec:
    """What the run's model reads of a clip."""
    return family_of(cfg.model.family).inputs(cfg.model, cfg.model_kind)


@cache
def run_class(task: str, family: str = DEFAULT_FAMILY) -> type[RunConfig]:
    """The class of run files of a task that trains a model of a family. Raises ConfigError for unknown names."""
    if task not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {shortened(repr(task))}")
    base, members = _load(TASKS[task][0]), family_of(family)
    sections: dict[str, Any] = {"model": (members.config, members.config()), **members.sections.get(task, {})}
    return create_model(base.__name__, __base__=base, __doc__=base.__doc__, **sections)


def run_classes() -> list[type[RunConfig]]:
    """Of all tasks, for the default family."""
    return [run_class(task) for task in TASKS]


def load_run(path: Path, task: str = "", overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file, apply overrides of the form `section.key=value`, check everything.

    task: of the script that reads it; by default what the file says, else what its sections are of. Raises ConfigError:
    no such file, not YAML, a run of another task, bad override, unknown key (with the nearest right one), wrong type,
    value out of range, sections that contradict each other.
    """
    return validate_run(read_values(path, overrides), task)


def validate_run(values: dict[str, Any], task: str = "") -> RunConfig:
    """Check plain values (as read from YAML); see load_run for the errors."""
    named = values.get("task")
    if task and named is not None and named != task:
        script = _script(named) if isinstance(named, str) and named in TASKS else "launch/train.py"
        raise ConfigError(
            f"task is {shortened(repr(named))} in a run file for {_script(task)}; start it with {script}, or leave the "
            "key out"
        )
    chosen = task or task_by_sections(named, values)
    model = values.get("model")
    family = model.get("family", DEFAULT_FAMILY) if isinstance(model, dict) else DEFAULT_FAMILY
    kind = run_class(chosen, family if isinstance(family, str) else str(family))
    _refuse_sections_of_other_tasks(values, chosen)
    return validate(values, kind)


def task_by_sections(named: Any, sections: Iterable[str]) -> str:
    """The task that a run file names; without the key the first one with a section that the default task has not."""
    if named is not None:
        return str(named)
    first, *others = TASKS
    unknown = set(sections) - _sections(first)
    return next((task for task in others if unknown & _sections(task)), first)


def _refuse_sections_of_other_tasks(values: dict[str, Any], task: str) -> None:
    own = _sections(task)
    for other in TASKS:
        foreign = sorted(values.keys() & (_sections(other) - own))
        if foreign:
            raise ConfigError(
                f"section {', '.join(map(repr, foreign))} belongs to a run for {_script(other)}, this is "
                f"{_script(task)}; start it with that, or leave the section out"
            )


def _sections(task: str) -> set[str]:
    return set(_load(TASKS[task][0]).model_fields)


def _script(task: str) -> str:
    return _load(TASKS[task][0]).script


def _load(address: str) -> Any:
    module, _, name = address.partition(":")
    return getattr(import_module(module), name)
