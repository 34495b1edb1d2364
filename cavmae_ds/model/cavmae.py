"""CAV-MAE for pretraining: two towers, shared blocks run three times, one decoder (spec/cav-mae.md 1).

B clips; La, Lv patches of audio and image; Ka, Kv visible ones; D width of the encoder, E of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from cavmae_ds.config import ModelConfig
from cavmae_ds.data.normalise import Normalisation
from cavmae_ds.kernels.unshuffle import unshuffle
from cavmae_ds.model.blocks import Block, Modality, run_blocks
from cavmae_ds.model.decoder_chunks import DecoderChunks, Reconstruction
from cavmae_ds.model.masking import MaskPlan, Plans
from cavmae_ds.model.patches import PatchProjection, Picture, audio_grid, image_grid, select
from cavmae_ds.model.positions import position_table
from cavmae_ds.partitions import is_sharded, whole_shape

ALREADY_NORMALISED = Normalisation()


class PretrainOutput(NamedTuple):
    """What a model hands to the losses. Parts that were not asked for are None."""

    audio_pooled: Tensor | None
    """[B, D] mean audio token, not normalised: one side of the contrastive pairs."""
    image_pooled: Tensor | None
    """[B, D] mean image token, the other side."""
    audio_prediction: Tensor | None
    """[B, Ha, Pa] the hidden audio patches rebuilt, in the order of plans.audio.hidden (or all, if asked for)."""
    image_prediction: Tensor | None
    """[B, Hv, Pv] likewise."""
    audio: Picture
    """The log-mels as given: the losses read their targets from them."""
    image: Picture
    """The images as given."""
    plans: Plans
    """Which patches were hidden."""
    started: Any = None
    """What on_pooled made of the pooled features."""
    reconstruction: Reconstruction | None = None
    """The decoder's loss, where it ran in chunks; the predictions are then those of the first chunk, for the eye."""

    def of_clips(self, rows: slice) -> PretrainOutput:
        """Inputs and plans of some of the clips."""
        audio, image = (picture._replace(pixels=picture.pixels[rows]) for picture in (self.audio, self.image))
        plans = Plans(*(MaskPlan(*(ids[rows] for ids in plan)) for plan in self.plans))
        return PretrainOutput(None, None, None, None, audio, image, plans)


class Features(NamedTuple):
    """Tokens of everything that was seen, after the final norms."""

    audio: Tensor
    """[B, La, D]"""
    image: Tensor
    """[B, Lv, D]"""


class CAVMAE(nn.Module):
    """The official model: its parameter names, order and shapes, at any size the config allows."""

    def __init__(self, cfg: ModelConfig, normalisation: Normalisation = ALREADY_NORMALISED):
        """normalisation: what to do to the inputs' values; by default they come normalised."""
        super().__init__()
        self.normalisation = normalisation
        self.audio_grid, self.image_grid = audio, image = audio_grid(cfg), image_grid(cfg)
        width, decoder_width, ratio = cfg.embed_dim, cfg.decoder_embed_dim, cfg.mlp_ratio

        def token(width: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(1, 1, width))

        def positions(width: int, rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(1, rows * columns, width), requires_grad=cfg.trainable_positions)

        def blocks(depth: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, cfg.num_heads, ratio) for _ in range(depth))

        self.modality_a, self.modality_v = token(width), token(width)
        self.pos_embed_a = positions(width, audio.rows, audio.columns)
        self.pos_embed_v = positions(width, image.rows, image.columns)
        self.mask_token = token(decoder_width)
        self.decoder_modality_a, self.decoder_modality_v = token(decoder_width), token(decoder_width)
        self.decoder_pos_embed_a = positions(decoder_width, audio.rows, audio.columns)
        self.decoder_pos_embed_v = positions(decoder_width, image.rows, image.columns)

        self.patch_embed_a = nn.ModuleDict({"proj": PatchProjection(audio, width)})
        self.patch_embed_v = nn.ModuleDict({"proj": PatchProjection(image, width)})
        self.blocks_a = blocks(cfg.modality_specific_depth)
        self.blocks_v = blocks(cfg.modality_specific_depth)
        self.blocks_u = blocks(cfg.shared_depth)
        self.norm_a, self.norm_v, self.norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, cfg.decoder_num_heads, ratio) for _ in range(cfg.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.decoder_pred_a = nn.Linear(decoder_width, audio.values)
        self.decoder_pred_v = nn.Linear(decoder_width, image.values)
        self.decoder_chunks = DecoderChunks(cfg.decoder_chunk)
        self.checkpoint_towers = cfg.checkpoint_towers
        if not (self.mask_token.is_meta or is_sharded(self.decoder_embed.weight)):  # else whoever builds it draws them
            self.reset_parameters()

    def forward(
        self,
        audio: Tensor,
        images: Tensor,
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
        Without plans nothing is hidden and the outcome is Features: every way of running the model leads through here,
        because that is where ZeRO-3 gathers the parameters. Raises ValueError for inputs of another size than the
        config's.
        """
        normal = self.normalisation
        sound = Picture(audio, self.audio_grid, normal.audio_mean, normal.audio_std)
        sight = Picture(images, self.image_grid, normal.image_mean, normal.image_std)
        keep_a, keep_v = (plans.audio.keep, plans.image.keep) if plans else (sound.every_patch(), sight.every_patch())
        a = self.patch_embed_a["proj"](sound, keep_a, self.pos_embed_a[0], self.modality_a[0, 0])  # [B, Ka, D]
        v = self.patch_embed_v["proj"](sight, keep_v, self.pos_embed_v[0], self.modality_v[0, 0])  # [B, Kv, D]
        a, v = self._run(self.blocks_a, a), self._run(self.blocks_v, v)
        if plans is None:
            return Features(self._audio_stream(a), self._image_stream(v))
        output = PretrainOutput(None, None, None, None, sound, sight, plans)
        if contrastive:
            audio_pooled, image_pooled = self._audio_stream(a).mean(1), self._image_stream(v).mean(1)  # [B, D] each
            started = on_pooled(audio_pooled, image_pooled) if on_pooled else None
            output = output._replace(audio_pooled=audio_pooled, image_pooled=image_pooled, started=started)
        if not mae:
            return output
        latents = self.norm(self._run(self.blocks_u, torch.cat([a, v], dim=1)))  # [B, Ka + Kv, D]
        if decoder_loss and self.decoder_chunks.clips:
            return self._decode_in_chunks(latents, output, decoder_loss)
        audio_prediction, image_prediction = self._decode(latents, plans, all_patches)
        return output._replace(audio_prediction=audio_prediction, image_prediction=image_prediction)

    def features(self, audio: Tensor, images: Tensor) -> Features:
        """Tokens of whole clips, unpooled, nothing hidden (spec/cav-mae.md 1.9, forward_feat)."""
        return cast(Features, self(audio, images, None))

    def unused_parameters(self, mae: bool, contrastive: bool) -> set[str]:
        """Names of the parameters that no loss reaches when only some losses are on.

        Freeze them: a gradient of zero instead of none makes Adam with weight decay erase them
        (spec/cav-mae.md 6, trap 3).
        """

        def used(name: str) -> bool:
            first, *rest = name.split(".")
            norm = rest[1] if len(rest) > 1 else ""  # blocks_u.0.norm1_a.weight -> norm1_a
            if norm.startswith("norm") and norm.endswith(("_a", "_v")):
                return contrastive and first == "blocks_u"
            if first in ("norm_a", "norm_v"):
                return contrastive
            if _in_decoder(name) or first == "norm":
                return mae
            return mae or not (first == "blocks_u" and norm.startswith("norm"))

        return {name for name, _ in self.named_parameters() if not used(name)}

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Those that are trained of the decoder's, which runs in chunks."""
        return [p for name, p in self.named_parameters() if _in_decoder(name) and p.requires_grad]

    @torch.no_grad()
    def reset_parameters(self, write: Callable[[Tensor, Tensor], Any] = Tensor.copy_) -> None:
        """Set the initial weights; write puts a whole value into a parameter that may be sharded."""
        for parameter, value in self.initial_values():
            write(parameter, value)

    def initial_values(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What parameters start as (spec/cav-mae.md 1.6), whole, float32, on the CPU, one at a time; norms as they are.

        A pure function of torch's seed: not of what was drawn before, nor of the device.
        """
        draw = torch.Generator().manual_seed(torch.initial_seed())
        for module in self.modules():
            if isinstance(module, nn.Linear):
                weight = torch.empty(module.out_features, module.in_features)
                yield module.weight, nn.init.xavier_uniform_(weight, generator=draw)
                yield module.bias, torch.zeros(module.out_features)
            elif isinstance(module, PatchProjection):
                yield from module.initial_values(draw)
        tokens = self.modality_a, self.modality_v, self.decoder_modality_a, self.decoder_modality_v, self.mask_token
        for token in tokens:
            yield token, nn.init.normal_(torch.empty(whole_shape(token)), std=0.02, generator=draw)
        for grid, tables in (
            (self.audio_grid, (self.pos_embed_a, self.decoder_pos_embed_a)),
            (self.image_grid, (self.pos_embed_v, self.decoder_pos_embed_v)),
        ):
            for table in tables:
                yield table, position_table(whole_shape(table)[-1], grid.rows, grid.columns)

    def _run(self, blocks: nn.ModuleList, x: Tensor, modality: Modality | None = None) -> Tensor:
        return run_blocks(blocks, x, modality, recompute=self.checkpoint_towers)

    def _audio_stream(self, a: Tensor) -> Tensor:
        return self.norm_a(self._run(self.blocks_u, a, "a"))

    def _image_stream(self, v: Tensor) -> Tensor:
        return self.norm_v(self._run(self.blocks_u, v, "v"))

    def _decode_in_chunks(
        self, latents: Tensor, output: PretrainOutput, decoder_loss: Callable[[PretrainOutput], Reconstruction]
    ) -> PretrainOutput:
        first_chunk: list[Tensor] = []

        def loss_of(part: Tensor, rows: slice) -> Reconstruction:
            clips = output.of_clips(rows)
            predictions = self._decode(part, clips.plans, all_patches=False)
            if not first_chunk:
                first_chunk.extend(prediction.detach() for prediction in predictions)
            return decoder_loss(clips._replace(audio_prediction=predictions[0], image_prediction=predictions[1]))

        reconstruction = self.decoder_chunks(latents, self.decoder_parameters, loss_of)
        audio_prediction, image_prediction = first_chunk
        return output._replace(
            audio_prediction=audio_prediction, image_prediction=image_prediction, reconstruction=reconstruction
        )

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


def _in_decoder(name: str) -> bool:
    return name.startswith(("decoder_", "mask_token"))


def count_parameters(cfg: ModelConfig) -> int:
    """Parameters of the model of this size, fixed position tables included; allocates nothing."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CAVMAE(cfg).parameters())
