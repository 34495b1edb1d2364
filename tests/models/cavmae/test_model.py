"""CAVMAE beyond the recorded cases: initial weights, other sizes, what is seen, what is skipped, bf16."""

import pytest
import torch
import torch.nn.functional as F

from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.models.cavmae.masking import draw_plans
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.masking import Plans
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.models.common.patches import audio_to_patches, patches_to_audio
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig, LossConfig
from cavmae_ds.tasks.pretrain.losses import contrast_within, pretrain_losses

SMALL = dict(
    embed_dim=48,
    num_heads=4,
    modality_specific_depth=1,
    shared_depth=2,
    decoder_embed_dim=32,
    decoder_depth=1,
    decoder_num_heads=4,
    audio_frames=96,
    image_size=64,
)


def small(seed: int = 0, **changes) -> tuple[CAVMAE, torch.Tensor, torch.Tensor, Plans]:
    """A small model with inputs and masks for three clips."""
    torch.manual_seed(seed)
    cfg = ModelConfig(**{**SMALL, **changes})
    audio = torch.randn(3, cfg.audio_frames, cfg.mel_bins)
    images = torch.randn(3, 3, cfg.image_size, cfg.image_size)
    return CAVMAE(cfg), audio, images, draw_plans(cfg, MaskConfig(), seed, 0, torch.arange(3))


@pytest.fixture(scope="module")
def fresh_base() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return CAVMAE(ModelConfig(decoder_depth=2, modality_specific_depth=2)).state_dict()


def test_linear_maps_start_xavier_uniform_with_zero_biases(fresh_base):
    linear = {n: t for n, t in fresh_base.items() if n.endswith("weight") and t.ndim == 2}
    assert len(linear) == (2 + 2 + 1 + 2) * 4 + 3
    for name, weight in linear.items():
        fan_out, fan_in = weight.shape
        bound = (6 / (fan_in + fan_out)) ** 0.5  # qkv counts as one 3D x D matrix
        assert 0.99 * bound < weight.abs().max() <= bound, name
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01), name
        assert fresh_base[name.replace("weight", "bias")].eq(0).all(), name


def test_norms_start_as_the_identity(fresh_base):
    norms = {name: tensor for name, tensor in fresh_base.items() if "norm" in name}
    assert all(t.eq(1 if name.endswith("weight") else 0).all() for name, t in norms.items())


def test_patch_projections_start_xavier_uniform_over_whole_patches_and_keep_the_default_bias(fresh_base):
    for letter, fan_in in (("a", 256), ("v", 768)):
        weight = fresh_base[f"patch_embed_{letter}.proj.weight"]
        bias = fresh_base[f"patch_embed_{letter}.proj.bias"]
        bound = (6 / (768 + fan_in)) ** 0.5
        assert 0.99 * bound < weight.abs().max() <= bound
        assert 0.95 * fan_in**-0.5 < bias.abs().max() <= fan_in**-0.5


def test_tokens_start_normal_with_deviation_a_fiftieth(fresh_base):
    names = ["modality_a", "modality_v", "mask_token", "decoder_modality_a", "decoder_modality_v"]
    for name in names:
        assert fresh_base[name].std().item() == pytest.approx(0.02, rel=0.15), name


def test_shared_blocks_chain_in_the_contrastive_streams():
    # given a model without towers, so that its tokens can be computed by the official convolution
    model, audio, images, plans = small(modality_specific_depth=0, shared_depth=3)
    tokens = F.conv2d(
        audio.transpose(1, 2)[:, None],
        model.patch_embed_a["proj"].weight,
        model.patch_embed_a["proj"].bias,
        stride=16,
    )
    tokens = tokens.flatten(2).transpose(1, 2) + model.pos_embed_a + model.modality_a  # [B, L, D]
    # when each block continues where the one before ended
    x = torch.stack([tokens[b, plans.audio.keep[b]] for b in range(3)])
    for block in model.blocks_u:
        x = x + block.attn(block.norm1_a(x))
        x = x + block.mlp(block.norm2_a(x))
    # then that is the stream
    torch.testing.assert_close(model(audio, images, plans).audio_pooled, model.norm_a(x).mean(1))


def test_features_see_every_patch_and_agree_with_a_mask_that_hides_nothing():
    model, audio, images, _ = small()
    everything = draw_plans(ModelConfig(**SMALL), MaskConfig(), 0, 0, torch.arange(3))
    everything = Plans(*(p._replace(keep=p.restore, hidden=p.hidden[:, :0]) for p in everything))
    pooled = model(audio, images, everything, mae=False)
    features = model.features(audio, images)
    assert features.audio.shape == (3, 8 * 6, 48) and features.image.shape == (3, 4 * 4, 48)
    torch.testing.assert_close(features.audio.mean(1), pooled.audio_pooled)
    torch.testing.assert_close(features.image.mean(1), pooled.image_pooled)


def outcomes(output: PretrainOutput) -> list[torch.Tensor]:
    """What the model made of its inputs; the pooled image first, which sees no sound."""
    return [output.image_pooled, output.audio_pooled, *(target.prediction for target in output.targets)]


def test_what_is_hidden_cannot_be_seen_and_what_is_visible_is():
    model, audio, images, plans = small()
    before = model(audio, images, plans)
    patches = audio_to_patches(audio, model.audio_grid)
    hidden = patches.scatter(1, plans.audio.hidden[..., None].expand(-1, -1, 256), 1e3)
    visible = patches.scatter(1, plans.audio.keep[..., None].expand(-1, -1, 256), 1e3)
    for changed, same in ((hidden, True), (visible, False)):
        after = model(patches_to_audio(changed, model.audio_grid).contiguous(), images, plans)
        for now, then in zip(outcomes(after)[1:], outcomes(before)[1:], strict=True):
            assert torch.equal(now, then) == same


@pytest.mark.parametrize(
    "sizes",
    [
        dict(audio_frames=48, image_size=96),
        dict(audio_frames=208, mel_bins=64, image_size=32, shared_depth=3, modality_specific_depth=0),
        dict(patch_size=8, mlp_ratio=2.0, decoder_depth=3),
    ],
)
def test_any_size_of_whole_patches_trains(sizes):
    model, audio, images, plans = small(**sizes)
    output = model(audio, images, plans)
    losses = pretrain_losses(output, contrast_within(output, ContrastiveConfig()), LossConfig())
    losses.total.backward()
    assert output.target("audio").prediction.shape == (*plans.audio.hidden.shape, model.audio_grid.values)
    assert output.target("image").prediction.shape == (*plans.image.hidden.shape, model.image_grid.values)
    everything = model(audio, images, plans, all_patches=True)
    assert everything.target("image").prediction.shape == (3, model.image_grid.patches, model.image_grid.values)
    assert losses.total.isfinite() and model.mask_token.grad.norm() > 0


@pytest.mark.parametrize("trainable_positions", [False, True])
@pytest.mark.parametrize("weights", [(1.0, 0.01), (1.0, 0.0), (0.0, 1.0)], ids=["both", "mae", "contrastive"])
def test_exactly_the_parameters_called_unused_get_no_gradient(weights, trainable_positions):
    mae, contrastive = (weight > 0 for weight in weights)
    model, audio, images, plans = small(trainable_positions=trainable_positions)
    output = model(audio, images, plans, mae=mae, contrastive=contrastive)
    loss_cfg = LossConfig(mae_weight=weights[0], contrastive_weight=weights[1])
    contrast = contrast_within(output, ContrastiveConfig()) if contrastive else None
    pretrain_losses(output, contrast, loss_cfg).total.backward()
    idle = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert idle == model.unused_parameters(mae, contrastive) & trainable
    assert idle, "the branch blocks' modality norms are never used"


def test_parts_that_are_skipped_are_none_and_change_nothing_else():
    model, audio, images, plans = small()
    whole = model(audio, images, plans)
    without_decoder = model(audio, images, plans, mae=False)
    without_streams = model(audio, images, plans, contrastive=False)
    assert without_decoder.target("audio").prediction is None and without_decoder.target("image").prediction is None
    assert without_streams.audio_pooled is None and without_streams.image_pooled is None
    assert torch.equal(without_decoder.image_pooled, whole.image_pooled)
    assert torch.equal(without_streams.target("image").prediction, whole.target("image").prediction)


def test_a_bf16_model_takes_fp32_inputs_and_its_losses_stay_close():
    model, audio, images, plans = small()
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        output = model.to(dtype)(audio, images, plans)
        assert output.audio_pooled.dtype == output.target("image").prediction.dtype == dtype
        losses.append(pretrain_losses(output, contrast_within(output, ContrastiveConfig()), LossConfig()))
    exact, rounded = losses
    assert rounded.total.dtype == torch.float32
    assert rounded.mae["audio"].item() == pytest.approx(exact.mae["audio"].item(), rel=0.01)
    assert rounded.contrastive.item() == pytest.approx(exact.contrastive.item(), rel=0.1)


def test_inputs_of_another_size_are_refused():
    model, audio, images, plans = small()
    with pytest.raises(ValueError, match=r"96, 128\].*\[3, 80, 128\]"):
        model(audio[:, :80].contiguous(), images, plans)
    with pytest.raises(ValueError, match=r"3, 64, 64\].*\[3, 3, 64, 48\]"):
        model(audio, images[..., :48].contiguous(), plans)


def test_raw_bytes_and_log_mels_give_what_normalised_inputs_give():
    model, audio, images, plans = small()
    pixels = (images * 50 + 128).clamp(0, 255).to(torch.uint8)
    normal = training_normalisation()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (normal.image_mean, normal.image_std))
    normalised = model(audio, (pixels / 255 - mean) / std, plans)
    model.normalisation = normal
    raw = model(audio * normal.audio_std[0] + normal.audio_mean[0], pixels, plans)
    torch.testing.assert_close(outcomes(raw), outcomes(normalised), atol=2e-5, rtol=2e-5)
    contrasts = [contrast_within(x, ContrastiveConfig()) for x in (normalised, raw)]
    torch.testing.assert_close(
        *(pretrain_losses(x, c, LossConfig()).total for x, c in zip((normalised, raw), contrasts, strict=True))
    )
