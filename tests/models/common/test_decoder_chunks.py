"""A decoder that runs in chunks, and an encoder that is computed twice: the same numbers, gradients included."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.models.cavmae.masking import draw_plans
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig, LossConfig
from cavmae_ds.tasks.pretrain.losses import PretrainLosses, contrast_within, pretrain_losses, reconstruction_loss

SIZES = {
    "embed_dim": 32, "num_heads": 4, "modality_specific_depth": 1, "decoder_embed_dim": 16, "decoder_depth": 1,
    "decoder_num_heads": 2, "image_size": 64, "audio_frames": 64,
}  # fmt: skip
CLIPS = 7
WEIGHTS = LossConfig(mae_weight=3.0, contrastive_weight=0.5)


def train(**switches) -> tuple[PretrainOutput, PretrainLosses, dict[str, torch.Tensor]]:
    """Output, losses and gradients of 7 clips in float64, with the same weights and masks each time."""
    cfg = ModelConfig(**SIZES, **switches)
    torch.manual_seed(1)
    model = CAVMAE(cfg).double()
    audio, images = torch.randn(CLIPS, 64, 128).double(), torch.randn(CLIPS, 3, 64, 64).double()
    plans = draw_plans(cfg, MaskConfig(), 0, 0, torch.arange(CLIPS))
    output = model(audio, images, plans, decoder_loss=partial(reconstruction_loss, cfg=WEIGHTS))
    losses = pretrain_losses(output, contrast_within(output, ContrastiveConfig()), WEIGHTS)
    losses.total.backward()
    return output, losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def stacked(losses: PretrainLosses) -> torch.Tensor:
    return torch.stack([*losses.terms().values()])


@pytest.fixture(scope="module")
def whole():
    return train()


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 8], ids=lambda chunk: f"{chunk}-clips")
def test_chunks_give_the_losses_and_gradients_of_the_whole_batch(chunk, whole):
    """Also where the last chunk is smaller, so that a mean of means would be wrong."""
    _, losses, gradients = train(decoder_chunk=chunk)
    torch.testing.assert_close(stacked(losses), stacked(whole[1]), rtol=1e-12, atol=0)
    assert gradients.keys() == whole[2].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, whole[2][name], rtol=1e-10, atol=1e-14, msg=name)


def test_the_first_chunk_s_predictions_stay_for_the_eye(whole):
    output, *_ = train(decoder_chunk=3)
    for chunked, all_of_them in zip(output.targets, whole[0].targets, strict=True):
        ours = chunked.prediction
        assert not ours.requires_grad
        torch.testing.assert_close(ours, all_of_them.prediction[:3].detach(), rtol=1e-12, atol=1e-14)


def test_in_bf16_the_decoder_s_gradients_are_summed_in_float32():
    """64 clips one at a time: a running sum in bf16 would stop growing, or lose what each adds."""
    from cavmae_ds.models.common.decoder_chunks import DecoderChunks, Reconstruction

    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    latents = torch.ones(512, 1, 1, dtype=torch.bfloat16, requires_grad=True)

    def loss_of(part: torch.Tensor, rows: slice) -> Reconstruction:
        loss = (part * weight).float().mean()
        return Reconstruction(loss, (loss,))

    DecoderChunks(1)(latents, lambda: [weight], loss_of).total.backward()
    assert weight.grad == 1  # 512 times 1/512; in bf16 the sum would stop at half


def test_recomputing_the_encoder_gives_the_same_bits_and_draws_nothing(whole):
    _, losses, gradients = train(checkpoint_towers=True)
    assert torch.equal(stacked(losses), stacked(whole[1]))
    assert all(torch.equal(gradient, whole[2][name]) for name, gradient in gradients.items())

    cfg = ModelConfig(**SIZES, checkpoint_towers=True)
    model, plans = CAVMAE(cfg).train(), draw_plans(cfg, MaskConfig(), 0, 0, torch.arange(2))
    inputs = torch.randn(2, 64, 128), torch.randn(2, 3, 64, 64)
    before = torch.get_rng_state()
    output = model(*inputs, plans)
    pretrain_losses(output, contrast_within(output, ContrastiveConfig()), WEIGHTS).total.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_comparison_can_start_before_the_decoder_runs():
    cfg = ModelConfig(**SIZES)
    model, plans = CAVMAE(cfg), draw_plans(cfg, MaskConfig(), 0, 0, torch.arange(2))
    order = []
    model.decoder_embed.register_forward_hook(lambda *_: order.append("decoder"))

    def pooled(audio: torch.Tensor, image: torch.Tensor) -> str:
        order.append("pooled")
        assert audio.shape == image.shape == (2, 32)
        return "on their way"

    output = model(torch.randn(2, 64, 128), torch.randn(2, 3, 64, 64), plans, on_pooled=pooled)

    assert order == ["pooled", "decoder"]
    assert output.started == "on their way"
