"""Every key of a run file is of one kind, and docs/operations.md has the table of them."""

from __future__ import annotations

import pytest

from cavmae_ds.config.history import write_config
from cavmae_ds.config.on_resume import OnResume, settings, table, values_by_key
from cavmae_ds.errors import ConfigError
from cavmae_ds.tasks import TASKS, load_run, run_class, run_classes, validate_run
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from tests.ranks import CHECKOUT

RUNS = {"pretrain": {"train": {"steps": 1}}, "finetune": {"train": {"epochs": 1}, "classifier": {}}}


@pytest.mark.parametrize("task", TASKS)
def test_every_key_has_a_kind(task):
    kinds = {setting.key: setting.kind for setting in settings(run_class(task))}
    sources = {"data": {"sources": [{"remote": "/a", "repeat": 2.0}]}}
    resolved = validate_run(RUNS[task] | sources, task).model_dump(mode="json")
    assert kinds.keys() == values_by_key(resolved).keys()
    assert all(isinstance(kind, OnResume) for kind in kinds.values())


def test_a_key_that_both_kinds_of_runs_have_is_of_the_same_kind_in_both():
    pretraining, finetuning = ({setting.key: setting.kind for setting in settings(run)} for run in run_classes())
    assert all(pretraining[key] is finetuning[key] for key in pretraining.keys() & finetuning.keys())


def test_the_page_has_the_table_that_the_code_makes():
    page = (CHECKOUT / "docs" / "operations.md").read_text(encoding="utf-8")
    made = table(run_classes())
    assert f"\n\n{made}\n\n" in page, f"put this table into docs/operations.md:\n{made}"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("mask.ratio", "resume.allow names 'mask.ratio', which is no key of this run, did you mean 'mask.image_ratio'"),
        ("mask", "resume.allow names 'mask', which is no key of this run"),
        ("classifier.mode", "resume.allow names 'classifier.mode', which is no key of this run"),
        (
            "model.embed_dim=512",
            "resume.allow names 'model.embed_dim', which cannot change: it decides which parameters",
        ),
        ("optim.learning_rate", "resume.allow names 'optim.learning_rate', which a resume may change without it"),
    ],
)
def test_an_entry_that_could_allow_nothing_is_refused(entry, expected):
    with pytest.raises(ConfigError, match=f"^{expected}"):
        validate_run({"train": {"steps": 1}, "resume": {"allow": [entry]}})


def test_no_config_of_a_run_is_lost(tmp_path):
    def start(step: int, rate: float) -> PretrainConfig:
        cfg = validate_run({"run_dir": str(tmp_path / "run"), "train": {"steps": 9}, "optim": {"learning_rate": rate}})
        write_config(cfg, step)
        return cfg

    kept = [start(0, 1e-4), start(0, 1e-4), start(6, 2e-4), start(6, 3e-4), start(8, 4e-4)]
    names = ["config-until-step-00000006.yaml", "config-until-step-00000006-2.yaml", "config-until-step-00000008.yaml"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*names, "config.yaml"}
    assert [load_run(tmp_path / "run" / name, "pretrain") for name in [*names, "config.yaml"]] == kept[1:]
