"""CAV-MAE for pretraining: two towers, shared blocks run three times, one decoder (spec/cav-mae.md 1).

B clips; La, Lv patches of audio and image; Ka, Kv visible ones; D width of the encoder, E of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cavmae_ds.data.transforms.normalise import Normalisation
from cavmae_ds.kernels.unshuffle import unshuffle
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.encoder import ALREADY_NORMALISED, Encoder, is_reached
from cavmae_ds.models.common.blocks import Block, Modality, run_blocks
from cavmae_ds.models.common.decoder_chunks import DecoderChunks, Reconstruction
from cavmae_ds.models.common.masking import Plans
from cavmae_ds.models.common.output import Features, PretrainOutput, Target
from cavmae_ds.models.common.patches import Picture, select


class CAVMAE(Encoder):
    """The official model: its parameter names, order and shapes, at any size the config allows."""

    def __init__(self, cfg: ModelConfig, normalisation: Normalisation = ALREADY_NORMALISED):
        """normalisation: what to do to the inputs' values; by default they come normalised."""
        super().__init__(cfg, normalisation, cfg.trainable_positions)
        width, decoder_width = cfg.embed_dim, cfg.decoder_embed_dim

        def token() -> nn.Parameter:
            return nn.Parameter(torch.zeros(1, 1, decoder_width))

        self.mask_token, self.decoder_modality_a, self.decoder_modality_v = token(), token(), token()
        self.decoder_pos_embed_a = self._positions("a", decoder_width, cfg.trainable_positions)
        self.decoder_pos_embed_v = self._positions("v", decoder_width, cfg.trainable_positions)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, cfg.decoder_num_heads, cfg.mlp_ratio) for _ in range(cfg.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.decoder_pred_a = nn.Linear(decoder_width, self.audio_grid.values)
        self.decoder_pred_v = nn.Linear(decoder_width, self.image_grid.values)
        self.decoder_chunks = DecoderChunks(cfg.decoder_chunk)
        self.draw_initial_weights()

    def forward(
        self,
        audio: Tensor | None,
        images: Tensor | None,
        plans: Plans | None,
        mae: bool = True,
        contrastive: bool = True,
        all_patches: bool = False,
        on_pooled: Callable[[Tensor, Tensor], Any] | None = None,
        decoder_loss: Callable[[PretrainOutput], Reconstruction] | None = None,
    ) -> PretrainOutput | Features:
        """Log-mels [B, frames, mel bins] and images [B, 3, H, W] (uint8 or float) to what the losses need.

        mae=False skips the decoder, contrastive=False the two pooled passes; all_patches predicts the visible patches
        too, in the order of the picture. on_pooled is given the pooled features before the decoder runs. With
        cfg.decoder_chunk and a decoder_loss (a mean over the clips of an output) the decoder runs chunk by chunk.
        Without plans nothing is hidden and the outcome is Features (see there). Raises ValueError for inputs of another
        size than the config's.
        """
        if plans is None:
            return self._features(audio, images)
        assert audio is not None and images is not None
        sound, sight = self._sound(audio), self._sight(images)
        a = self._tower("a", sound, plans.audio.keep)  # [B, Ka, D]
        v = self._tower("v", sight, plans.image.keep)  # [B, Kv, D]
        pooled: tuple[Tensor | None, Tensor | None] = (None, None)
        predictions: tuple[Tensor | None, Tensor | None] = (None, None)
        started = None
        if contrastive:
            audio_pooled, image_pooled = pooled = self._shared(a, "a").mean(1), self._shared(v, "v").mean(1)  # [B, D]
            started = on_pooled(audio_pooled, image_pooled) if on_pooled else None
        if mae:
            latents = self._shared(torch.cat([a, v], dim=1))  # [B, Ka + Kv, D]
            if decoder_loss and self.decoder_chunks.clips:
                output = PretrainOutput(*pooled, _targets(sound, sight, plans, *predictions), started)
                return self._decode_in_chunks(latents, output, decoder_loss)
            predictions = self._decode(latents, plans, all_patches)
        # Made once, at the end: dynamo (torch 2.11) cannot trace _replace of a tuple that it has made.
        return PretrainOutput(*pooled, _targets(sound, sight, plans, *predictions), started)

    def unused_parameters(self, mae: bool, contrastive: bool) -> set[str]:
        """Names of the parameters that no loss reaches when only some losses are on: freeze them (see is_reached)."""
        passes: list[Modality | None] = [None] if mae else []
        passes += ["a", "v"] if contrastive else []

        def used(name: str) -> bool:
            return is_reached(name, ("a", "v"), passes) and (mae or not in_decoder(name))

        return {name for name, _ in self.named_parameters() if not used(name)}

    def external_parameters(self) -> Iterator[tuple[nn.Module, nn.Parameter]]:
        """The decoder's, if it runs in chunks: whole for as long as chunks run, and when their gradients arrive."""
        if self.decoder_chunks.clips:
            yield from ((self.decoder_chunks, parameter) for parameter in self.decoder_parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Those that are trained of the decoder's, which runs in chunks."""
        return [p for name, p in self.named_parameters() if in_decoder(name) and p.requires_grad]

    def _tokens(self) -> list[nn.Parameter]:
        return [*super()._tokens(), self.decoder_modality_a, self.decoder_modality_v, self.mask_token]

    def _decode_in_chunks(
        self, latents: Tensor, output: PretrainOutput, decoder_loss: Callable[[PretrainOutput], Reconstruction]
    ) -> PretrainOutput:
        first_chunk: list[Tensor] = []

        def loss_of(part: Tensor, rows: slice) -> Reconstruction:
            clips = output.of_clips(rows)
            plans = Plans(*(target.plan for target in clips.targets))
            predictions = self._decode(part, plans, all_patches=False)
            if not first_chunk:
                first_chunk.extend(prediction.detach() for prediction in predictions)
            return decoder_loss(clips.predicting(*predictions))

        reconstruction = self.decoder_chunks(latents, self.decoder_parameters, loss_of)
        return output.predicting(*first_chunk)._replace(reconstruction=reconstruction)

    def _decode(self, latents: Tensor, plans: Plans, all_patches: bool) -> tuple[Tensor, Tensor]:
        """Latents [B, Ka + Kv, D] to predictions [B, Ha, Pa], [B, Hv, Pv], hidden patches only."""
        x = unshuffle(
            self.decoder_embed(latents),  # [B, Ka + Kv, E]
            self.mask_token[0, 0],
            self.decoder_pos_embed_a[0],
            self.decoder_pos_embed_v[0],
            self.decoder_modality_a[0, 0],
            self.decoder_modality_v[0, 0],
            plans.audio.restore,
            plans.image.restore,
            kept_a=plans.audio.keep.shape[1],
        )
        x = run_blocks(self.decoder_blocks, x)  # [B, La + Lv, E]
        audio, image = x.split([self.audio_grid.patches, self.image_grid.patches], dim=1)
        if not all_patches:  # norm and heads see one token at a time: those without a loss are spared
            audio, image = select(audio, plans.audio.hidden), select(image, plans.image.hidden)
        return self.decoder_pred_a(self.decoder_norm(audio)), self.decoder_pred_v(self.decoder_norm(image))


def _targets(
    sound: Picture, sight: Picture, plans: Plans, audio: Tensor | None, image: Tensor | None
) -> tuple[Target, Target]:
    """audio, image: the predictions."""
    return Target("audio", sound, plans.audio, audio), Target("image", sight, plans.image, image)


def in_decoder(name: str) -> bool:
    """True for the parameters that only pretraining has."""
    return name.startswith(("decoder_", "mask_token"))
