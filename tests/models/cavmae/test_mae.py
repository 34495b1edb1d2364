"""The adaptation of an ImageNet MAE: every row of spec/cav-mae.md 2, and what is refused."""

import argparse

import pytest
import torch

from cavmae_ds.errors import CheckpointError
from cavmae_ds.models.cavmae.mae import adapt_mae, read_mae
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.positions import position_table
from tests.weights.small_models import SIZES, small_mae

OFFICIAL_DEPTHS = SIZES.model_copy(update={"modality_specific_depth": 11, "decoder_depth": 8})


def assert_rows_of_the_table(mae: dict, adapted: dict, sizes) -> set[str]:
    """Section 2, row by row; returns the names that a row accounts for."""
    accounted = set()

    def same(name: str, value: torch.Tensor) -> None:
        assert torch.equal(adapted[name], value), name
        accounted.add(name)

    last = sizes.modality_specific_depth
    for name, value in mae.items():
        first, _, rest = name.partition(".")
        number, _, part = rest.partition(".")
        if first == "blocks" and int(number) < last:
            same(f"blocks_a.{rest}", value)
            same(f"blocks_v.{rest}", value)
        elif first == "blocks":
            same(f"blocks_u.0.{part}", value)
            if part.startswith("norm"):
                norm, kind = part.split(".")
                same(f"blocks_u.0.{norm}_a.{kind}", value)
                same(f"blocks_u.0.{norm}_v.{kind}", value)
        elif first == "norm":
            for target in ("norm", "norm_a", "norm_v"):
                same(f"{target}.{rest}", value)
        elif first in ("mask_token", "decoder_embed", "decoder_blocks", "decoder_norm"):
            same(name, value)
    for kind in ("weight", "bias"):
        same(f"patch_embed_v.proj.{kind}", mae[f"patch_embed.proj.{kind}"])
        same(f"decoder_pred_v.{kind}", mae[f"decoder_pred.{kind}"])
    same("patch_embed_a.proj.weight", mae["patch_embed.proj.weight"].sum(1, keepdim=True))
    same("patch_embed_a.proj.bias", mae["patch_embed.proj.bias"])
    same("pos_embed_v", mae["pos_embed"][:, 1:])
    same("decoder_pos_embed_v", mae["decoder_pos_embed"][:, 1:])
    return accounted


def assert_the_rest_is_fresh(adapted: dict, accounted: set[str], sizes) -> None:
    columns = sizes.audio_frames // 16
    for name in set(adapted) - accounted:
        if "pos_embed_a" in name:
            assert torch.equal(adapted[name], position_table(adapted[name].shape[-1], 8, columns)), name
        elif "modality" in name:
            assert 0.01 < adapted[name].std() < 0.03, name
        elif not name.startswith("decoder_pred_a"):
            assert name.split(".")[2][-2:] in ("_a", "_v"), name
            assert adapted[name].eq(1 if name.endswith("weight") else 0).all(), name


@pytest.mark.parametrize("frames", [96, 208])
def test_every_row_of_the_adaptation_and_nothing_else(frames):
    """With the official oddities of spec/cav-mae.md 6, trap 9: first 256 rows, summed colours."""
    sizes = OFFICIAL_DEPTHS.model_copy(update={"audio_frames": frames})
    mae = small_mae(sizes)
    adapted = adapt_mae(mae, sizes)
    accounted = assert_rows_of_the_table(mae, adapted, sizes)
    assert_the_rest_is_fresh(adapted, accounted, sizes)
    for kind in ("weight", "bias"):
        assert torch.equal(adapted[f"decoder_pred_a.{kind}"], mae[f"decoder_pred.{kind}"][:256])
    assert len(adapted) == 647
    CAVMAE(sizes).load_state_dict(adapted, strict=True)


def test_the_audio_head_may_be_the_mean_of_the_colours_of_each_pixel():
    mae = small_mae(SIZES)
    adapted = adapt_mae(mae, SIZES, audio_head="colour_mean")
    for kind in ("weight", "bias"):
        rows = mae[f"decoder_pred.{kind}"]
        for pixel in (0, 17, 255):
            expected = (rows[3 * pixel] + rows[3 * pixel + 1] + rows[3 * pixel + 2]) / 3
            torch.testing.assert_close(adapted[f"decoder_pred_a.{kind}"][pixel], expected)


def test_two_shared_blocks_take_the_last_two():
    sizes = SIZES.model_copy(update={"modality_specific_depth": 1, "shared_depth": 2})
    mae = small_mae(sizes)
    adapted = adapt_mae(mae, sizes)
    assert torch.equal(adapted["blocks_u.1.mlp.fc1.weight"], mae["blocks.2.mlp.fc1.weight"])
    assert torch.equal(adapted["blocks_u.0.norm2_v.bias"], mae["blocks.1.norm2.bias"])
    assert not any(name.startswith("blocks_a.1.") for name in adapted)


def test_what_starts_fresh_hangs_on_the_seed_alone():
    mae, drawn = small_mae(SIZES), []
    for before in (0, 3):
        torch.manual_seed(5)
        torch.rand(before)
        drawn.append(adapt_mae(mae, SIZES)["modality_a"])
    torch.manual_seed(5)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], CAVMAE(SIZES).modality_a)


def test_a_training_checkpoint_with_its_command_line_is_read(tmp_path):
    mae = small_mae(SIZES)
    torch.save({"model": mae, "epoch": 799, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "mae.pth")
    torch.save({f"module.{name}": tensor for name, tensor in mae.items()}, tmp_path / "bare.pth")
    for name in ("mae.pth", "bare.pth"):
        assert read_mae(tmp_path / name).keys() == mae.keys()


def test_another_size_no_decoder_and_more_than_an_mae_are_refused():
    mae = small_mae(SIZES)
    encoder = {name: t for name, t in mae.items() if not name.startswith(("decoder", "mask_token"))}
    deeper = SIZES.model_copy(update={"modality_specific_depth": 3})
    shallower = SIZES.model_copy(update={"modality_specific_depth": 1})
    wider = SIZES.model_copy(update={"embed_dim": 64})
    for state, sizes, message in (
        (encoder, SIZES, "it must come with its decoder"),
        (mae, deeper, r"no MAE of 4 \+ 2 blocks: .* missing \(blocks_u\.0"),
        (mae, shallower, r"unexpected \(blocks_u\.1"),
        (mae, wider, r"another size than section model says: pos_embed_v .*\(1, 16, 48\).*\(1, 16, 64\)"),
        (mae | {"head.weight": torch.zeros(5, 48)}, SIZES, r"1 name is unexpected \(head\.weight\)"),
        (mae | {"blocks.last.norm": torch.zeros(5)}, SIZES, r"1 name is unexpected \(blocks\.last\.norm\)"),
        (mae | {"pos_embed": torch.zeros(5)}, SIZES, r"1 name is missing \(pos_embed_v\), 1 name is unexpected"),
    ):
        with pytest.raises(CheckpointError, match=message):
            adapt_mae(state, sizes)
