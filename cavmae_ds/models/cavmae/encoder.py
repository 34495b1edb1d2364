"""What every CAV-MAE has: patches of two modalities, a tower for each, blocks that both share (spec/cav-mae.md 1).

B clips; La, Lv patches of audio and image; K visible ones; D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from cavmae_ds.data.transforms.normalise import Normalisation
from cavmae_ds.distributed.zero_layout import is_sharded, whole_shape
from cavmae_ds.kernels.grid import Grid
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.masking import audio_grid, image_grid
from cavmae_ds.models.common.blocks import Block, Modality, run_blocks
from cavmae_ds.models.common.patches import PatchProjection, Picture
from cavmae_ds.models.common.positions import position_table

ALREADY_NORMALISED = Normalisation()


class Features(NamedTuple):
    """Tokens of everything that was seen, after the final norms; None for a modality that was not given."""

    audio: Tensor | None
    """[B, La, D]"""
    image: Tensor | None
    """[B, Lv, D]"""


class Encoder(nn.Module):
    """The common part of the family, under official names: `_a` is audio's, `_v` the image's, `_u` both's.

    A subclass adds its own parameters and then calls `draw_initial_weights`: official order is own tokens first,
    then layers, so what is added comes last among each.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        normalisation: Normalisation,
        trainable_positions: bool,
        modalities: tuple[Modality, ...] = ("a", "v"),
    ):
        super().__init__()
        self.normalisation = normalisation
        self.modalities = modalities
        self.audio_grid, self.image_grid = audio_grid(cfg), image_grid(cfg)
        self.checkpoint_towers = cfg.checkpoint_towers
        width = cfg.embed_dim

        def blocks(depth: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, cfg.num_heads, cfg.mlp_ratio) for _ in range(depth))

        for letter in modalities:
            self.register_parameter(f"modality_{letter}", nn.Parameter(torch.zeros(1, 1, width)))
        for letter in modalities:
            self.register_parameter(f"pos_embed_{letter}", self._positions(letter, width, trainable_positions))
        for letter in modalities:
            projection = PatchProjection(self._grid_of(letter), width)
            self.add_module(f"patch_embed_{letter}", nn.ModuleDict({"proj": projection}))
        for letter in modalities:
            self.add_module(f"blocks_{letter}", blocks(cfg.modality_specific_depth))
        self.blocks_u = blocks(cfg.shared_depth)
        for letter in modalities:
            self.add_module(f"norm_{letter}", nn.LayerNorm(width))
        self.norm = nn.LayerNorm(width)

    def features(self, audio: Tensor | None, images: Tensor | None) -> Features:
        """Tokens of whole clips, unpooled, nothing hidden; either side may be None (spec/cav-mae.md 1.9, forward_feat).

        Log-mels [B, frames, mel bins], images [B, 3, H, W] or [B, 1, 3, H, W] (uint8 or float). Leads through forward,
        whose third argument is then None: that is where ZeRO-3 gathers the parameters.
        """
        return cast(Features, self(audio, images, None))

    def external_parameters(self) -> Iterator[tuple[nn.Module, nn.Parameter]]:
        """Parameters that ZeRO-3 gathers for a module that does not own them."""
        yield from ()

    def draw_initial_weights(self) -> None:
        """Set the initial weights, unless the parameters hold nothing or are in shards: then whoever builds it does."""
        if not (self.norm.weight.is_meta or is_sharded(self.norm.weight)):
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, write: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
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
        for token in self._tokens():
            yield token, nn.init.normal_(torch.empty(whole_shape(token)), std=0.02, generator=draw)
        for name, table in self.named_parameters(recurse=False):
            if "pos_embed" in name:
                grid = self._grid_of(name[-1])
                yield table, position_table(whole_shape(table)[-1], grid.rows, grid.columns)

    def _tokens(self) -> list[nn.Parameter]:
        """Parameters that are added to or stand for tokens, in the order in which they are drawn."""
        return [getattr(self, f"modality_{letter}") for letter in self.modalities]

    def _positions(self, letter: str, width: int, trainable: bool) -> nn.Parameter:
        return nn.Parameter(torch.zeros(1, self._grid_of(letter).patches, width), requires_grad=trainable)

    def _grid_of(self, letter: str) -> Grid:
        return self.audio_grid if letter == "a" else self.image_grid

    def _sound(self, audio: Tensor) -> Picture:
        return Picture(audio, self.audio_grid, self.normalisation.audio_mean, self.normalisation.audio_std)

    def _sight(self, images: Tensor) -> Picture:
        """Images [B, 3, H, W], or frames [B, 1, 3, H, W] as loaders give them."""
        return Picture(images.squeeze(1), self.image_grid, self.normalisation.image_mean, self.normalisation.image_std)

    def _tower(self, letter: Modality, picture: Picture, keep: Tensor | None = None) -> Tensor:
        """The patches with ids keep [B, K], or all, after the blocks of their modality: [B, K, D]."""
        keep = picture.every_patch() if keep is None else keep
        positions, modality = getattr(self, f"pos_embed_{letter}")[0], getattr(self, f"modality_{letter}")[0, 0]
        tokens = getattr(self, f"patch_embed_{letter}")["proj"](picture, keep, positions, modality)
        return run_blocks(getattr(self, f"blocks_{letter}"), tokens, recompute=self.checkpoint_towers)

    def _shared(self, x: Tensor, letter: Modality | None = None) -> Tensor:
        """Tokens [B, K, D] after the shared blocks and the final norm, with the plain norms or one modality's."""
        x = run_blocks(self.blocks_u, x, letter, recompute=self.checkpoint_towers)
        return getattr(self, f"norm_{letter}" if letter else "norm")(x)

    def _features(self, audio: Tensor | None, images: Tensor | None) -> Features:
        return Features(
            None if audio is None else self._shared(self._tower("a", self._sound(audio)), "a"),
            None if images is None else self._shared(self._tower("v", self._sight(images)), "v"),
        )


def is_reached(name: str, towers: Collection[Modality], passes: Collection[Modality | None]) -> bool:
    """True if an encoder's parameter takes part in these towers and these passes through the shared blocks.

    Freeze the others: a gradient of zero instead of none makes Adam with weight decay erase them (spec/cav-mae.md 6,
    trap 3).
    """
    first, *rest = name.split(".")
    if first in ("norm", "norm_a", "norm_v"):
        return _letter(first) in passes
    norm = rest[1] if len(rest) > 1 and rest[1].startswith("norm") else ""  # blocks_u.0.norm1_a.weight -> norm1_a
    used_norms = passes if first == "blocks_u" else (None,)  # towers and decoder use their plain norms alone
    return _letter(first) in (*towers, None) and not (norm and _letter(norm) not in used_norms)


def _letter(name: str) -> str | None:
    return name[-1] if name.endswith(("_a", "_v")) else None
