"""One file with its config inside, run folders, and which of them load_model takes for what."""

import pytest
import torch
from safetensors.torch import save_file

from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.state_dict import recognise, with_audio_frames
from cavmae_ds.models.common.positions import position_table
from cavmae_ds.models.common.weights import Weights
from cavmae_ds.weights.load import load_model, open_weights
from cavmae_ds.weights.official import save_official
from cavmae_ds.weights.single_file import header_of, save_single_file
from tests.weights.small_models import HEADS, SIZES, clips, run_folder, small_model

KINDS = ["pretrain", "finetune", "finetune-audio"]


def weights_of(kind) -> Weights:
    """With statistics of their own."""
    told = recognise(small_model(kind).state_dict(), "a model", **HEADS)
    return Weights(kind, SIZES, told.classes, told.tensors, "a model", audio_mean=-4.0, audio_std=3.5, step=7)


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_tells_everything_needed_to_use_it(kind, tmp_path):
    given = weights_of(kind)
    save_single_file(given, tmp_path / "one.safetensors")
    read = open_weights(tmp_path / "one.safetensors")
    assert (read.kind, read.model, read.classes) == (kind, SIZES, given.classes)
    assert (read.audio_mean, read.audio_std, read.heads_known) == (-4.0, 3.5, True)
    assert list(read.tensors) == list(given.tensors)
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in given.tensors.items())
    loaded = load_model(tmp_path / "one.safetensors")
    assert loaded.step == read.step == 7
    assert loaded.config.num_heads == 4 and loaded.model.normalisation.audio_mean == (-4.0,)


def test_a_safetensors_file_of_official_names_needs_no_header(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in small_model("finetune").state_dict().items()}
    save_file(state, tmp_path / "theirs.safetensors")
    read = open_weights(tmp_path / "theirs.safetensors", heads=4)
    assert (read.kind, read.classes, read.audio_mean) == ("finetune", 5, -5.081)


def test_a_damaged_file_or_an_unknown_header_is_refused(tmp_path):
    save_single_file(weights_of("pretrain"), tmp_path / "whole.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    told = header_of(weights_of("pretrain"))
    told["model"] = told["model"].replace("{", '{"moon": 1, ')
    save_file(dict(weights_of("pretrain").tensors), tmp_path / "new.safetensors", told)
    (tmp_path / "weights.bin").write_bytes(b"")
    for name, message in (
        ("half.safetensors", "no whole safetensors file"),
        ("new.safetensors", "a header that this version does not know"),
        ("none.safetensors", "cannot read|No such file"),
        ("weights.bin", r"give a run folder, an official \.pth file or a \.safetensors file"),
        ("nowhere", "give a run folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / name)
    with pytest.raises(CheckpointError, match="only run folders hold a running mean"):
        load_model(tmp_path / "whole.safetensors", ema=True)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_run_folder_is_a_model_with_the_runs_statistics(kind, tmp_path):
    loaded = load_model(run_folder(tmp_path, small_model(kind), audio_mean=-4.0, audio_std=3.5))
    assert (loaded.kind, loaded.config, loaded.audio_mean, loaded.audio_std) == (kind, SIZES, -4.0, 3.5)
    model, (audio, images) = small_model(kind), clips()
    model.normalisation = loaded.model.normalisation
    sight = None if kind == "finetune-audio" else images
    assert torch.equal(loaded.model.features(audio, sight).audio, model.features(audio, sight).audio)


def test_a_run_folder_without_a_checkpoint_or_a_mean_is_refused(tmp_path):
    run_folder(tmp_path / "run", small_model("pretrain"))
    with pytest.raises(CheckpointError, match="holds no running mean"):
        load_model(tmp_path / "run", ema=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_model(tmp_path)


def test_weights_for_another_length_keep_everything_but_the_position_tables(tmp_path):
    """spec/cav-mae.md 6, traps 26 and 27."""
    save_official(small_model("pretrain").state_dict(), tmp_path / "official.pth")
    given = open_weights(tmp_path / "official.pth", **HEADS)
    short = with_audio_frames(given, 48, "trim")
    assert short.model == ModelConfig(**(SIZES.model_dump() | {"audio_frames": 48}))
    changed = {name for name in given.tensors if not torch.equal(given.tensors[name], short.tensors[name])}
    assert changed == {"pos_embed_a", "decoder_pos_embed_a"}
    assert torch.equal(short.tensors["pos_embed_a"], position_table(48, 8, 3))
    with pytest.raises(ConfigError, match="must be a multiple of patch_size = 16, got 50; 48 or 64 would fit"):
        with_audio_frames(given, 50, "trim")
