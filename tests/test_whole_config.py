"""Who is handed the whole run config: those named here; everything else takes its own section, or values."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from cavmae_ds.tasks import TASKS
from tests.test_layers import PACKAGE, files

CONFIGS = {"RunConfig"} | {address.partition(":")[2] for address, _ in TASKS.values()}

MAY_TAKE_IT = {
    # What a resume compares, config.yaml, and what is shown of a run: every key counts.
    "checkpoint/identity.py": {"identity", "check_same_run", "_changes"},
    "checkpoint/runs.py": {"Checkpoints.__init__"},
    "config/history.py": {"write_config"},
    "config/load.py": {"to_yaml"},
    "monitor/texts.py": {"texts", "hyperparameters"},
    "train_cli.py": {"_show"},
    # A task is made from its run file; these make one, or ask one for a model or numbers.
    "tasks/__init__.py": {"task_of", "inputs_of"},
    "tasks/pretrain/comparison.py": {"across_clips", "comparison", "_whole"},
    "tasks/finetune/final_evaluation.py": {"FinetuneEnd.cfg"},
    "doctor/examine.py": {"Asked.cfg"},
    "doctor/space.py": {"parameters"},
}  # fmt: skip
"""File -> functions with a parameter, and classes with a field, that is a whole run config."""
FOLDERS = ("plan/", "tasks/task.py", "tasks/pretrain/task.py", "tasks/finetune/task.py")
"""Where any function may take it: tasks are made from run files, and a plan is of a whole run."""


def takers(source: str) -> set[str]:
    """Function, Class.function and Class.field of a module that take a run config."""
    return set(_takers(ast.parse(source), ""))


def _takers(node: ast.AST, above: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        name = above
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{above}{child.name}."
            if any(is_config(one.arg, one.annotation) for one in ast.walk(child.args) if isinstance(one, ast.arg)):
                yield name[:-1]
        elif isinstance(child, ast.ClassDef):
            name = f"{above}{child.name}."
        elif isinstance(node, ast.ClassDef) and isinstance(child, ast.AnnAssign):
            field = ast.unparse(child.target)
            if is_config(field, child.annotation):
                yield f"{above}{field}"
        yield from _takers(child, name)


def is_config(name: str, annotation: ast.expr | None) -> bool:
    """Whether a run config is part of the type, or hidden by Any; a class of them (type[RunConfig]) is none."""
    kind = re.sub(r"type\[\w+\]", "", ast.unparse(annotation) if annotation else "Any")
    return bool(CONFIGS.intersection(re.findall(r"\w+", kind))) or (name, kind) == ("cfg", "Any")


def test_only_those_named_take_the_whole_run_config():
    found = {path: takers((PACKAGE / path).read_text(encoding="utf-8")) for path in files()}
    assert {path: names for path, names in found.items() if names and not path.startswith(FOLDERS)} == MAY_TAKE_IT


def test_parameters_and_fields_are_noticed_however_they_are_written():
    source = """
def one(x, *, run: "RunConfig | None"): ...
def any_kind(cfg): ...
def sections(data: DataConfig, kind: type[RunConfig]) -> RunConfig: ...
class Part:
    runs: list[PretrainConfig]
    train: TrainConfig
    def __init__(self, *cfgs: FinetuneConfig): ...
"""
    assert takers(source) == {"one", "any_kind", "Part.runs", "Part.__init__"}
