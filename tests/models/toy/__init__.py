"""A family of models in one folder: two towers, each a masked autoencoder, on frames [B, T, 3, H, W] and sound.

B clips; T frames; L patches, K of them visible, P values each; D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cavmae_ds.config.sections.base import OnResume, Section
from cavmae_ds.config.sections.model import ModelSection
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.transforms.normalise import Normalisation
from cavmae_ds.distributed.per_sample_rng import Stream
from cavmae_ds.kernels.grid import Grid
from cavmae_ds.kernels.random_mask import random_mask
from cavmae_ds.models.common.blocks import Block, run_blocks
from cavmae_ds.models.common.masking import MaskPlan, Plans, kept_patches
from cavmae_ds.models.common.module import AudioVisualModule
from cavmae_ds.models.common.output import Features, PretrainOutput, Target
from cavmae_ds.models.common.own_names import OwnNames
from cavmae_ds.models.common.patches import PatchProjection, Picture
from cavmae_ds.models.common.positions import position_table
from cavmae_ds.models.family import ModelFamily

PATCH, MEL_BINS = 16, 128


class ToyConfig(ModelSection):
    family: Literal["toy"] = "toy"
    embed_dim: int = 32
    depth: int = 1
    frames: int = 2
    image_size: int = 32
    audio_frames: int = 64


class ToyMask(Section):
    on_resume: ClassVar[OnResume] = OnResume.LEARNT

    audio_ratio: float = 0.75
    image_ratio: float = 0.75


def grids(cfg: ToyConfig) -> tuple[Grid, Grid]:
    """Of the log-mel, and of the T frames above one another."""
    side = cfg.image_size // PATCH
    return Grid(MEL_BINS // PATCH, cfg.audio_frames // PATCH, PATCH, 1), Grid(cfg.frames * side, side, PATCH, 3)


class Tower(nn.Module):
    """A masked autoencoder of one modality."""

    def __init__(self, cfg: ToyConfig, grid: Grid):
        super().__init__()
        self.grid, width = grid, cfg.embed_dim
        self.projection = PatchProjection(grid, width)
        self.positions = nn.Parameter(torch.zeros(grid.patches, width), requires_grad=False)
        self.modality, self.mask_token = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.encoder, self.decoder = (nn.ModuleList(Block(width, 2, 2.0) for _ in range(cfg.depth)) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, grid.values)

    def encode(self, picture: Picture, keep: Tensor) -> Tensor:
        """The patches with ids keep [B, K] as tokens [B, K, D]."""
        tokens = self.projection(picture, keep, self.positions, self.modality)
        return self.norm(run_blocks(self.encoder, tokens))

    def decode(self, tokens: Tensor, plan: MaskPlan) -> Tensor:
        """Visible tokens [B, K, D] to predictions of the hidden patches [B, L - K, P]."""
        filled = torch.cat([tokens, self.mask_token.expand(len(tokens), plan.hidden.shape[1], -1)], 1)
        order = torch.cat([plan.keep, plan.hidden], 1)
        return self.head(run_blocks(self.decoder, filled + self.positions[order])[:, tokens.shape[1] :])


class TwoTowers(AudioVisualModule):
    def __init__(self, cfg: ToyConfig, normalisation: Normalisation):
        super().__init__()
        self.normalisation = normalisation
        self.audio, self.video = (Tower(cfg, grid) for grid in grids(cfg))
        self.draw_initial_weights()

    def forward(
        self, audio: Tensor | None, frames: Tensor | None, plans: Plans | None, mae: bool = True,
        contrastive: bool = True, on_pooled: Callable[[Tensor, Tensor], Any] | None = None, **_: Any,
    ) -> PretrainOutput | Features:  # fmt: skip
        normal = self.normalisation
        sound = None if audio is None else Picture(audio, self.audio.grid, normal.audio_mean, normal.audio_std)
        sight = None
        if frames is not None:
            stacked = frames.transpose(1, 2).flatten(2, 3).contiguous()  # [B, 3, T * H, W]
            sight = Picture(stacked, self.video.grid, normal.image_mean, normal.image_std)
        if plans is None:
            pairs = (self.audio, sound), (self.video, sight)
            return Features(*(one and tower.encode(one, one.every_patch()) for tower, one in pairs))
        assert sound is not None and sight is not None
        a, v = self.audio.encode(sound, plans.audio.keep), self.video.encode(sight, plans.image.keep)
        pooled = (a.mean(1), v.mean(1)) if contrastive else (None, None)
        rebuilt = (self.audio.decode(a, plans.audio), self.video.decode(v, plans.image)) if mae else (None, None)
        targets = Target("audio", sound, plans.audio, rebuilt[0]), Target("video", sight, plans.image, rebuilt[1])
        return PretrainOutput(*pooled, targets, on_pooled(*pooled) if on_pooled else None)

    def initial_values(self) -> Iterator[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(torch.initial_seed())
        for tower in (self.audio, self.video):
            for module in tower.modules():
                if isinstance(module, nn.Linear):
                    shape = module.out_features, module.in_features
                    yield module.weight, nn.init.xavier_uniform_(torch.empty(shape), generator=draw)
            yield from tower.projection.initial_values(draw)
            yield tower.positions, position_table(tower.modality.numel(), *tower.grid[:2])[0]


def draw_masks(model: ToyConfig, mask: ToyMask, seed: int, repeat: int | Tensor, clips: Tensor) -> Plans:
    audio, video = grids(model)
    draw = partial(random_mask, seed, repeat, clips)
    return Plans(
        MaskPlan(*draw(audio, kept_patches(audio.patches, mask.audio_ratio), stream=Stream.AUDIO_MASK)),
        MaskPlan(*draw(video, kept_patches(video.patches, mask.image_ratio), stream=Stream.IMAGE_MASK)),
    )


FAMILY = ModelFamily(
    name="toy",
    config=ToyConfig,
    sections={"pretrain": {"mask": (ToyMask, ToyMask())}},
    inputs=lambda model, task: InputSpec(
        log_mel_frames=model.audio_frames,
        frame_size=model.image_size,
        frames=model.frames,
        frame_spacing_seconds=0.2,
        augmentations=("flip",),
    ),
    build={"pretrain": TwoTowers},
    targets=lambda model: ("audio", "video"),
    draw_masks=draw_masks,
    state_dict=partial(OwnNames, "toy", "video.mask_token", TwoTowers),
    head="",
    depth=lambda model, name: 0,
    last_depth=lambda model: 1,
)
