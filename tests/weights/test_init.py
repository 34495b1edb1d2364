"""What a run starts from: loaded, refused, refitted, noted, and not done twice."""

import json
import logging
from functools import partial
from pathlib import Path

import pytest
import torch

from cavmae_ds.config.sections.init import InitConfig
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.models.cavmae.state_dict import recognise
from cavmae_ds.models.common.positions import position_table, refit_columns
from cavmae_ds.tasks import load_run, task_of, validate_run
from cavmae_ds.weights.init import examine_start, initialise, start_from
from cavmae_ds.weights.official import save_official
from cavmae_ds.weights.single_file import save_single_file
from tests.ranks import fork_ranks
from tests.weights.small_models import HEADS, SIZES, run_folder, small_mae, small_model

ALONE = World(rank=0, local_rank=0, size=1, hosts=1, device=torch.device("cpu"))


@pytest.fixture
def official(tmp_path) -> Path:
    """A pretrained model in an official file."""
    save_official(small_model("pretrain", seed=1).state_dict(), tmp_path / "official.pth")
    return tmp_path / "official.pth"


def test_a_pretrained_model_is_trained_further(official, caplog):
    model = small_model("pretrain")
    with caplog.at_level(logging.INFO):
        origin = start_from(model, InitConfig(from_checkpoint=official), SIZES)
    assert (origin.missing, origin.unexpected) == ([], [])
    given = small_model("pretrain", seed=1).state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in model.state_dict().items())
    assert caplog.messages == [f"initial weights: {len(given)} entries of {official} (pretrain)"]


def test_a_classifier_takes_all_but_the_decoder_and_keeps_its_fresh_head(official, caplog):
    model = small_model("finetune")
    fresh_head = model.mlp_head[1].weight.clone()
    with caplog.at_level(logging.INFO):
        origin = start_from(model, InitConfig(from_checkpoint=official), SIZES)
    given = small_model("pretrain", seed=1).state_dict()
    assert origin.missing == [f"mlp_head.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    assert origin.unexpected == [name for name in given if name.startswith(("decoder_", "mask_token"))]
    assert torch.equal(model.mlp_head[1].weight, fresh_head)
    assert torch.equal(model.blocks_v[1].norm1_v.bias, given["blocks_v.1.norm1_v.bias"])
    assert "; 4 start fresh (mlp_head.0.weight" in caplog.text and " are left behind (mask_token" in caplog.text


def test_an_audio_classifier_leaves_what_sees_behind_too(official):
    model = small_model("finetune-audio")
    origin = start_from(model, InitConfig(from_checkpoint=official), SIZES)
    assert len(origin.missing) == 4 and "blocks_v.0.norm1.weight" in origin.unexpected
    assert torch.equal(model.norm.bias, small_model("pretrain", seed=1).norm.bias)


def test_a_finetuned_model_is_finetuned_further_with_as_many_classes_and_starts_nothing_else(tmp_path):
    given = small_model("finetune", seed=1)
    save_official(given.state_dict(), tmp_path / "finetuned.pth")
    init = InitConfig(from_checkpoint=tmp_path / "finetuned.pth")
    model = small_model("finetune")
    assert start_from(model, init, SIZES).missing == [] and torch.equal(model.mlp_head[1].bias, given.mlp_head[1].bias)
    with pytest.raises(CheckpointError, match=r"\(finetune\) cannot start this run: .* missing \(mask_token"):
        start_from(small_model("pretrain"), init, SIZES)
    other = small_model("finetune")
    other.mlp_head[1] = torch.nn.Linear(48, 6)
    with pytest.raises(CheckpointError, match=r"mlp_head.1.weight is of shape \(5, 48\), needed is \(6, 48\)"):
        start_from(other, init, SIZES)


def test_a_model_of_other_depth_or_width_or_heads_is_refused_before_anything_is_written(official, tmp_path):
    deeper = SIZES.model_copy(update={"modality_specific_depth": 3})
    with pytest.raises(CheckpointError, match=r"other sizes .* set model: \{modality_specific_depth: 2\}, or"):
        start_from(small_model("finetune", sizes=deeper), InitConfig(from_checkpoint=official), deeper)
    shallower = SIZES.model_copy(update={"modality_specific_depth": 1})
    with pytest.raises(CheckpointError, match=r"set model: \{modality_specific_depth: 2\}"):
        start_from(small_model("finetune", sizes=shallower), InitConfig(from_checkpoint=official), shallower)
    wider = SIZES.model_copy(update={"embed_dim": 64})
    model = small_model("pretrain", sizes=wider)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"set model: \{embed_dim: 48\}"):
        start_from(model, InitConfig(from_checkpoint=official), wider)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    save_single_file(recognise(small_model("pretrain").state_dict(), "ours", **HEADS), tmp_path / "ours.safetensors")
    with pytest.raises(CheckpointError, match=r"set model: \{num_heads: 4\}"):
        start_from(
            small_model("pretrain"),
            InitConfig(from_checkpoint=tmp_path / "ours.safetensors"),
            SIZES.model_copy(update={"num_heads": 6}),
        )


def test_all_keys_of_section_model_that_must_change_are_named_together(tmp_path):
    pretrained, run = run_folder(tmp_path / "pretrained", small_model("pretrain")), tmp_path / "run"
    values = {"data": {"train": "shards"}, "train": {"epochs": 1}, "classifier": {"classes": 5}, "run_dir": run}
    cfg = validate_run(values | {"init": {"from_checkpoint": pretrained}}, "finetune")
    build = partial(task_of(cfg).build_model, cfg)
    needed = (
        r"set model: \{embed_dim: 48, num_heads: 4, modality_specific_depth: 2, image_size: 64, audio_frames: 96\}, or"
    )
    with pytest.raises(CheckpointError, match=needed):
        examine_start(cfg.init, cfg.model, run, build)
    fitting = cfg.model_copy(update={"model": SIZES})
    found = examine_start(cfg.init, SIZES, run, partial(task_of(fitting).build_model, fitting))
    assert found and [name for name in found.missing if not name.startswith("mlp_head.")] == []
    run_folder(run, small_model("finetune"))
    assert examine_start(cfg.init, cfg.model, run, build) is None, "a run with a checkpoint begins with that"


def test_a_shorter_sound_takes_the_first_columns_and_a_longer_one_must_be_interpolated(official):
    """spec/cav-mae.md 6, trap 26."""
    shorter, longer = (SIZES.model_copy(update={"audio_frames": frames}) for frames in (48, 160))
    model = small_model("pretrain", sizes=shorter)
    start_from(model, InitConfig(from_checkpoint=official), shorter)
    assert torch.equal(model.pos_embed_a, position_table(48, 8, 3))
    assert torch.equal(model.decoder_pos_embed_a, position_table(32, 8, 3))
    model = small_model("finetune", sizes=longer)
    with pytest.raises(CheckpointError, match=r"made for 96 frames: .* 6 columns cannot be trimmed to 10"):
        start_from(model, InitConfig(from_checkpoint=official), longer)
    start_from(model, InitConfig(from_checkpoint=official, positions="interpolate"), longer)
    assert torch.equal(model.pos_embed_a, refit_columns(position_table(48, 8, 6), 8, 10, "interpolate"))


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_an_mae_starts_pretraining_and_finetuning(kind, tmp_path):
    mae = small_mae(SIZES)
    torch.save({"model": mae}, tmp_path / "mae.pth")
    model = small_model(kind)
    origin = start_from(model, InitConfig(from_mae=tmp_path / "mae.pth"), SIZES)
    assert torch.equal(model.blocks_a[1].attn.qkv.weight, mae["blocks.1.attn.qkv.weight"])
    assert torch.equal(model.norm_v.bias, mae["norm.bias"])
    assert len(origin.missing) == (0 if kind == "pretrain" else 4)


def test_the_origin_is_noted_and_a_run_with_a_checkpoint_is_left_alone(official, tmp_path):
    run, init = tmp_path / "run", InitConfig(from_checkpoint=official)
    initialise(small_model("finetune"), init, SIZES, run, ALONE)
    note = json.loads((run / "init.json").read_text())
    assert note["source"] == str(official) and note["identity"].startswith("sha256:") and len(note["missing"]) == 4

    checkpoint = run / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    model = small_model("pretrain")
    before = model.norm.bias.clone()
    official.unlink()  # no longer needed
    initialise(model, init, SIZES, run, ALONE)
    assert torch.equal(model.norm.bias, before)


def test_two_origins_are_refused(tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text("train: {}\ninit: {from_mae: mae.pth, from_checkpoint: runs/base}\n")
    with pytest.raises(ConfigError, match=r"init: from_mae .* and from_checkpoint .* are both given; keep one"):
        load_run(run, "pretrain")
    run.write_text("train: {}\ninit: {from_mae: mae.pth, ema: true}\n")
    with pytest.raises(ConfigError, match="ema is a choice of from_checkpoint"):
        load_run(run, "pretrain")


def test_models_in_shards_start_from_the_whole_file(official, tmp_path):
    finished = fork_ranks(2, Path(__file__).with_name("init_worker.py"), str(tmp_path), scratch=tmp_path)
    assert finished.returncode == 0, finished.stdout
    given, results = small_model("pretrain", seed=1).state_dict(), torch.load(tmp_path / "results.pt")
    assert results["pretrain"].keys() == given.keys()
    assert results["finetune"].keys() == small_model("finetune").state_dict().keys()
    for kind, weights in results.items():
        fresh = [name for name in weights if name not in given]
        assert all(torch.equal(weights[name], given[name]) for name in weights if name in given), kind
        assert all(name.startswith("mlp_head.") for name in fresh) and len(fresh) == (0 if kind == "pretrain" else 4)
    assert results["finetune"]["mlp_head.1.weight"].std() > 0.1, "the head is drawn"
    assert json.loads((tmp_path / "run" / "init.json").read_text())["kind"] == "pretrain"
