"""By hand, bytes of CAV-MAE that grow with the micro-batch: what each op of the model saves for backward.

One clip's tokens are counted in each stack of blocks; a block saves BLOCK_SAVES of them. Two kinds of op differ between
the references (CPU) and the kernels (CUDA): see `on_cuda`. Checked against torch's own saved tensors on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.models.cavmae.masking import audio_grid, image_grid
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.plan.states import FP32, bytes_per_value
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from tests.plan.formulas_flops import Stack, block_stacks

INT64 = 8

BLOCK_SAVES = (
    # tensor that autograd keeps, times the width, times the hidden width of the MLP
    ("norm1: input", 1, 0),
    ("qkv: input", 1, 0),
    ("attention: q, k, v", 3, 0),
    ("attention: output, which the projection reads", 1, 0),
    ("norm2: input", 1, 0),
    ("fc1: input", 1, 0),
    ("GELU: input", 0, 1),
    ("fc2: input", 0, 1),
)
"""Values per token that one block saves; beside them 4 statistics of norms and an fp32 log-sum-exp a head."""


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch on one GPU, at the moment backward begins."""

    inputs: int
    """Log-mels, frames and masks."""
    towers: int
    """Visible patches and the two towers."""
    shared: int
    """The shared blocks' three passes with their norms."""
    decoder: int
    """Decoder, heads, predictions and their error; of one chunk when the decoder runs in chunks."""
    chunk_sums: int
    """Decoder in chunks: gradients of the latents, and of the decoder's parameters: fp32 sums and one chunk's."""
    workspace: int
    """Gradients in flight, or a block run again, as far as they outgrow what backward has freed by then [E]."""

    @property
    def saved(self) -> int:
        """What forward leaves behind, inputs apart. The chunks of a decoder leave less: the total is their peak."""
        return self.towers + self.shared + self.decoder + self.chunk_sums

    @property
    def total(self) -> int:
        return self.inputs + self.saved + self.workspace


def activations(cfg: PretrainConfig, clips: int, on_cuda: bool = True) -> Activations:
    """What a micro-batch of so many clips saves for backward.

    on_cuda=False counts as the CPU's references do: statistics of norms in the run's precision, the decoder's input
    saved once more, errors of the prediction in fp32.
    """
    model, mask, loss, precision = cfg.model, cfg.mask, cfg.loss, cfg.train.precision
    value = bytes_per_value(precision)
    statistic = FP32 if on_cuda else value
    stacks, mae, contrastive = block_stacks(model, mask), loss.mae_weight > 0, loss.contrastive_weight > 0
    block = {name: _block(stack, model.mlp_ratio, value, statistic) for name, stack in stacks._asdict().items()}
    in_decoder = (min(model.decoder_chunk, clips) or clips) if mae else 0

    def stack_bytes(name: str) -> int:
        """A stack of the encoder: all that its blocks save, or only their inputs."""
        stack: Stack = getattr(stacks, name)
        return stack.depth * (stack.tokens * stack.width * value if model.checkpoint_towers else block[name])

    visible = _visible_values(model, stacks.audio_tower.tokens, stacks.image_tower.tokens) * value
    towers = visible + stack_bytes("audio_tower") + stack_bytes("image_tower")
    shared = 0
    if contrastive:
        for name in ("audio_shared", "image_shared"):
            tokens = getattr(stacks, name).tokens
            shared += stack_bytes(name) + tokens * (model.embed_dim * value + 2 * statistic)
    if mae:  # the last norm's output is what the decoder reads
        shared += stack_bytes("joint") + stacks.joint.tokens * (2 * model.embed_dim * value + 2 * statistic)

    per_clip_decoder = stacks.decoder.depth * block["decoder"] + _heads(model, mask, value, statistic, on_cuda)
    decoder = in_decoder * per_clip_decoder
    in_flight = (model.mlp_ratio + 2) * value  # gradients of a block's widest op, of its input and of its output
    for_decoder = int(in_flight * in_decoder * stacks.decoder.tokens * model.decoder_embed_dim)
    for_encoder = int(in_flight * clips * stacks.joint.tokens * model.embed_dim)
    if model.checkpoint_towers:
        for_encoder = max(for_encoder, clips * max(block[name] for name in stacks._fields if name != "decoder"))
    chunk_sums = 0
    if mae and model.decoder_chunk:
        chunk_sums = clips * stacks.joint.tokens * model.embed_dim * value + decoder_parameters(model) * (FP32 + value)
    return Activations(
        inputs=clips * input_bytes(model),
        towers=clips * towers,
        shared=clips * shared,
        decoder=decoder,
        chunk_sums=chunk_sums,
        workspace=max(for_decoder, for_encoder - decoder),  # the decoder's is free when the encoder's turn comes
    )


def input_bytes(model: ModelConfig) -> int:
    """One clip on the device: fp32 log-mel, uint8 frame, and the ids kept, hidden and restored of its masks."""
    patches = model.audio_patches + model.image_patches
    return model.audio_frames * model.mel_bins * FP32 + 3 * model.image_size**2 + 2 * patches * INT64


def decoder_parameters(model: ModelConfig) -> int:
    """Trained ones, whose gradients a decoder in chunks keeps apart."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CAVMAE(model).decoder_parameters())


def _block(stack: Stack, mlp_ratio: float, value: int, statistic: int) -> int:
    hidden = int(stack.width * mlp_ratio)
    values = sum(widths * stack.width + hiddens * hidden for _, widths, hiddens in BLOCK_SAVES)
    return stack.tokens * (values * value + 4 * statistic + stack.heads * FP32)


def _visible_values(model: ModelConfig, audio: int, image: int) -> int:
    """Values of the visible patches, which the embedding's weights need again."""
    return audio * audio_grid(model).values + image * image_grid(model).values


def _heads(model: ModelConfig, mask: MaskConfig, value: int, statistic: int, on_cuda: bool) -> int:
    """One clip from the decoder's last block to the loss; on the CPU also the rows that unshuffle places."""
    stacks, width = block_stacks(model, mask), model.decoder_embed_dim
    every = stacks.decoder.tokens
    hidden_audio = model.audio_patches - stacks.audio_tower.tokens
    hidden_image = model.image_patches - stacks.image_tower.tokens
    hidden = hidden_audio + hidden_image
    predicted = hidden_audio * audio_grid(model).values + hidden_image * image_grid(model).values
    # Taking the hidden tokens out keeps all; norm input and output, which the heads read; then prediction and error.
    kept = every * width * value + hidden * (2 * width * value + 2 * statistic)
    error = predicted * (value if on_cuda else FP32)
    placed = 0 if on_cuda else every * width * value
    return kept + predicted * value + error + placed
