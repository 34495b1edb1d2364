"""Files of finetuning runs: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from cavmae_ds.config.load import to_yaml
from cavmae_ds.errors import ConfigError
from cavmae_ds.models.cavmae.classifier import CAVMAEFT
from cavmae_ds.tasks import load_run, validate_run
from cavmae_ds.tasks.finetune.config import FinetuneConfig
from cavmae_ds.tasks.finetune.task import Finetuning

TRAIN = {"epochs": 15, "global_batch": 36, "micro_batch": 9}


def finetuning(**sections) -> FinetuneConfig:
    return validate_run({"train": TRAIN, "classifier": {"mode": "audioonly"}} | sections, "finetune")


def test_a_resolved_run_file_is_read_back_as_it_was(tmp_path):
    cfg = finetuning(average={"from_epoch": 3, "to_epoch": 15}, augment={"mixup": 0.25})
    (tmp_path / "run.yaml").write_text(to_yaml(cfg))
    assert load_run(tmp_path / "run.yaml", "finetune") == cfg


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"train": {"steps": 5}}, "train.epochs must be given"),
        ({"average": {"from_epoch": 3, "to_epoch": 16}}, "average.to_epoch must be at most train.epochs = 15, got 16"),
        ({"average": {"from_epoch": 3}}, "got 3 to 0"),
        ({"loss": {"kind": "ce"}}, "set evaluate.metric accuracy, or loss.kind bce"),
        ({"classifier": {"mode": "audio"}}, "'classifier.mode' must be 'multimodal', 'audioonly'"),
        ({"classifier": {"model": "audio"}}, "classifier: mode must be audioonly or missingaudioonly for model audio"),
        ({"model": {"decoder_chunk": 4}}, "a classifier has no decoder"),
        ({"augment": {"mixupp": 1}}, "did you mean 'augment.mixup'"),
        (
            {"mask": {"audio_ratio": 0.5}},
            "section 'mask' belongs to a run for launch/pretrain.py, this is launch/finet",
        ),
    ],
)
def test_a_mistake_is_told_in_one_sentence(sections, said):
    with pytest.raises(ConfigError) as refused:
        finetuning(**sections)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("classifier", "parameters", "trained"),
    [
        ({"model": "audio", "mode": "audioonly"}, 86_129_423, 86_129_423 - 49 * 2 * 768),  # but for 49 norms
        ({"model": "audio", "mode": "missingaudioonly", "freeze_base": True}, 86_129_423, 406_799),
        ({"freeze_base": True}, 164_907_023, 406_799),
    ],
)
def test_what_there_is_and_what_of_it_is_trained_is_counted(classifier, parameters, trained):
    numbers = Finetuning.resolve(finetuning(classifier=classifier), 1, clips=72)
    assert (numbers.parameters, numbers.trainable_parameters) == (parameters, trained)


def test_a_finetuning_run_is_no_pretraining_run():
    with pytest.raises(ConfigError, match=r"section 'classifier' belongs to a run for launch/finetune\.py"):
        validate_run({"train": TRAIN, "classifier": {}}, "pretrain")


def test_a_pretraining_recipe_cannot_be_finetuned():
    recipe = Path(__file__).resolve().parents[3] / "launch" / "recipes" / "base.yaml"
    assert "classifier" not in yaml.safe_load(recipe.read_text())
    with pytest.raises(ConfigError, match="missing key 'classifier'"):
        load_run(recipe, "finetune")


def test_with_layer_decay_every_parameter_is_trained_slower_the_further_it_is_from_the_head():
    cfg = finetuning(
        model={"preset": "tiny", "modality_specific_depth": 2, "shared_depth": 1},
        classifier={"layer_decay": 0.5, "head_lr_ratio": 8},
    )
    with torch.device("meta"):
        names = [name for name, _ in CAVMAEFT(cfg.model, 3).named_parameters()]
    rates: dict[float, set[str]] = {}
    for name in names:
        rate = Finetuning.lr_scale(cfg)(name)
        rates.setdefault(rate, set()).add(".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]))
    assert rates == {
        8: {"mlp_head"},
        1: {"norm", "norm_a", "norm_v"},
        1 / 2: {"blocks_u.0"},
        1 / 4: {"blocks_a.1", "blocks_v.1"},
        1 / 8: {"blocks_a.0", "blocks_v.0"},
        1 / 16: {"modality_a", "modality_v", "pos_embed_a", "pos_embed_v", "patch_embed_a", "patch_embed_v"},
    }
