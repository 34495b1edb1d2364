"""Every kernel with its shapes, inputs, reference, door and costs: read by tests, AOT compiler and benchmark.

B clips, K kept and H hidden of L patches, P values per patch, D width, N candidates; e bytes per element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import torch

from cavmae_ds.distributed.per_sample_rng import Stream
from cavmae_ds.kernels.contrastive import (
    Contrast,
    contrastive,
    contrastive_both,
    contrastive_both_reference,
    contrastive_reference,
)
from cavmae_ds.kernels.embed_epilogue import embed_epilogue, embed_epilogue_reference
from cavmae_ds.kernels.masked_mse import masked_mse, masked_mse_reference
from cavmae_ds.kernels.patch_gather import patch_gather, patch_gather_reference
from cavmae_ds.kernels.random_mask import random_mask, random_mask_reference
from cavmae_ds.kernels.shapes import LARGE, SHAPES, Draw, Grid, Part, Shape
from cavmae_ds.kernels.unshuffle import unshuffle, unshuffle_reference

DTYPES = torch.float32, torch.bfloat16, torch.float16


class Cost(NamedTuple):
    """The least that must be moved and computed, forward and backward."""

    forward_bytes: int
    backward_bytes: int = 0
    forward_flops: int = 0
    backward_flops: int = 0


@dataclass(frozen=True)
class Kernel:
    """A door beside its reference, and what is needed to call, check and judge them."""

    name: str
    fused: Callable[..., Any]
    reference: Callable[..., Any]
    make_inputs: Callable[[Shape, torch.dtype, Draw], dict[str, Any]]
    cost: Callable[[Shape, int], Cost]
    """Of a shape and the element size."""
    outputs: tuple[str, ...]
    differentiable: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = DTYPES
    shapes: tuple[Shape, ...] = SHAPES
    large: tuple[Shape, ...] = ()
    """More shapes to time."""
    narrow: Mapping[str, str] = field(default_factory=dict)
    """Triton kernels whose layout does not allow 16-byte loads, and why."""


@dataclass(frozen=True)
class Case:
    """A kernel at one shape in one dtype."""

    kernel: Kernel
    shape: Shape
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Kernel, shape and dtype."""
        return f"{self.kernel.name}-{self.shape.name}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def cost(self) -> Cost:
        """Bytes and FLOPs of this case."""
        return self.kernel.cost(self.shape, self.dtype.itemsize)

    def make_inputs(self, device: str | torch.device, seed: int = 0) -> dict[str, Any]:
        """Arguments by name, for door and reference alike."""
        return self.kernel.make_inputs(self.shape, self.dtype, Draw(device, seed))


IMAGE_MEAN, IMAGE_STD = (0.4850, 0.4560, 0.4060), (0.2290, 0.2240, 0.2250)
AUDIO_MEAN, AUDIO_STD = (-5.081,), (4.4849,)


def _mask_inputs(part: str, columns: float = 0.0, rows: float = 0.0) -> Callable[..., dict[str, Any]]:
    def make(shape: Shape, dtype: torch.dtype, draw: Draw) -> dict[str, Any]:
        grid, kept = getattr(shape, part)
        return {
            "seed": 7,
            "epoch": 3,
            "clip_index": torch.arange(shape.clips, device=draw.device) * 977,
            "grid": grid,
            "kept": kept,
            "stream": Stream.AUDIO_MASK if part == "audio" else Stream.IMAGE_MASK,
            "columns": int(grid.columns * columns),
            "rows": int(grid.rows * rows),
        }

    return make


def _pictures(shape: Shape, part: str, raw: bool, draw: Draw) -> dict[str, Any]:
    """The raw input of a modality, and how to normalise it."""
    grid: Grid = getattr(shape, part).grid
    height, width = grid.rows * grid.patch, grid.columns * grid.patch
    if part == "audio":
        pictures = draw.normal(shape.clips, width, height, dtype=torch.float32)  # [B, frames, mel bins]
        return {"pictures": pictures, "grid": grid, "mean": AUDIO_MEAN, "std": AUDIO_STD}
    size = shape.clips, grid.channels, height, width
    pictures = draw.pixels(*size) if raw else draw.normal(*size, dtype=torch.float32)
    return {"pictures": pictures, "grid": grid, "mean": IMAGE_MEAN, "std": IMAGE_STD}


def _gather_inputs(part: str, raw: bool = False) -> Callable[..., dict[str, Any]]:
    def make(shape: Shape, dtype: torch.dtype, draw: Draw) -> dict[str, Any]:
        grid, kept = getattr(shape, part)
        keep = draw.shuffle(shape.clips, grid.patches)[:, :kept].contiguous()
        return {**_pictures(shape, part, raw, draw), "keep": keep, "out_dtype": dtype}

    return make


def _epilogue_inputs(shape: Shape, dtype: torch.dtype, draw: Draw) -> dict[str, Any]:
    grid, kept = shape.audio
    return {
        "tokens": draw.normal(shape.clips, kept, shape.width, dtype=dtype),
        "bias": draw.normal(shape.width, dtype=dtype),
        "positions": draw.normal(grid.patches, shape.width, dtype=dtype),
        "modality": draw.normal(shape.width, dtype=dtype),
        "keep": draw.shuffle(shape.clips, grid.patches)[:, :kept].contiguous(),
    }


def _unshuffle_inputs(shape: Shape, dtype: torch.dtype, draw: Draw) -> dict[str, Any]:
    width, (audio, image) = shape.decoder_width, (shape.audio, shape.image)
    return {
        "visible": draw.normal(shape.clips, audio.kept + image.kept, width, dtype=dtype),
        "mask_token": draw.normal(width, dtype=dtype),
        "positions_a": draw.normal(audio.grid.patches, width, dtype=dtype),
        "positions_v": draw.normal(image.grid.patches, width, dtype=dtype),
        "modality_a": draw.normal(width, dtype=dtype),
        "modality_v": draw.normal(width, dtype=dtype),
        "restore_a": draw.shuffle(shape.clips, audio.grid.patches),
        "restore_v": draw.shuffle(shape.clips, image.grid.patches),
        "kept_a": audio.kept,
    }


def _mse_inputs(part: str, raw: bool = False, normalise: bool = True) -> Callable[..., dict[str, Any]]:
    def make(shape: Shape, dtype: torch.dtype, draw: Draw) -> dict[str, Any]:
        cut: Part = getattr(shape, part)
        return {
            "prediction": draw.normal(shape.clips, cut.hidden, cut.grid.values, dtype=dtype),
            **_pictures(shape, part, raw, draw),
            "hidden": draw.shuffle(shape.clips, cut.grid.patches)[:, cut.kept :].contiguous(),
            "normalise": normalise,
        }

    return make


def _contrastive_inputs(shape: Shape, dtype: torch.dtype, draw: Draw) -> dict[str, Any]:
    return {
        "queries": draw.unit_rows(shape.clips, shape.width, dtype),
        "candidates": draw.unit_rows(shape.candidates, shape.width, dtype),
        "first_row": shape.candidates - shape.clips,
        "temperature": 0.05,
    }


def _both_inputs(shape: Shape, dtype: torch.dtype, draw: Draw) -> dict[str, Any]:
    audio, image = (draw.unit_rows(shape.clips, shape.width, dtype) for _ in range(2))
    return {"audio": audio, "image": image, "temperature": 0.05}


def _patch_cost(part: str, patches: str, pixel: int, writes: int, backward: int) -> Callable[[Shape, int], Cost]:
    """Kept or hidden patches: pixels read once, `writes` elements moved per value, `backward` in backward."""

    def cost(shape: Shape, e: int) -> Cost:
        cut: Part = getattr(shape, part)
        count = shape.clips * getattr(cut, patches)
        return Cost(count * (cut.grid.values * (pixel + writes * e) + 8), count * cut.grid.values * backward * e)

    return cost


def _mask_cost(part: str) -> Callable[[Shape, int], Cost]:
    return lambda shape, e: Cost(shape.clips * (16 * getattr(shape, part).grid.patches + 8))


def _epilogue_cost(shape: Shape, e: int) -> Cost:
    """Tokens in and out; backward reads the gradient once, for it is also that of the tokens."""
    tokens, table = shape.clips * shape.audio.kept * shape.width * e, shape.audio.grid.patches * shape.width * e
    return Cost(2 * tokens + table + 8 * shape.clips * shape.audio.kept, tokens + table)


def _unshuffle_cost(shape: Shape, e: int) -> Cost:
    patches = shape.audio.grid.patches + shape.image.grid.patches
    row, kept = shape.decoder_width * e, shape.audio.kept + shape.image.kept
    moved = shape.clips * ((kept + patches) * row + 8 * patches) + patches * row
    return Cost(moved, moved)


def _contrastive_cost(shape: Shape, e: int) -> Cost:
    """Logits once forward, again in backward, and one matmul for each side's gradient."""
    features, products = (shape.clips + shape.candidates) * shape.width, shape.clips * shape.candidates * shape.width
    return Cost(features * e, 2 * features * e, 2 * products, 6 * products)


def _both_cost(shape: Shape, e: int) -> Cost:
    features, products = 2 * shape.clips * shape.width, shape.clips**2 * shape.width
    return Cost(features * e, 2 * features * e, 2 * products, 6 * products)


def _mask(name: str, part: str, **structure: float) -> Kernel:
    return Kernel(
        f"random_mask-{name}",
        random_mask,
        random_mask_reference,
        _mask_inputs(part, **structure),
        _mask_cost(part),
        outputs=("keep", "hidden", "restore"),
        dtypes=(torch.int64,),
        narrow={"*": "draws its numbers, reads one clip index per program"},
    )


def _gather(name: str, part: str, pixel: int, raw: bool = False) -> Kernel:
    cost = _patch_cost(part, "kept", pixel, writes=1, backward=0)
    return Kernel(
        f"patch_gather-{name}", patch_gather, patch_gather_reference, _gather_inputs(part, raw), cost, ("patches",)
    )


def _mse(name: str, part: str, pixel: int, raw: bool = False, normalise: bool = True) -> Kernel:
    return Kernel(
        f"masked_mse-{name}",
        masked_mse,
        masked_mse_reference,
        _mse_inputs(part, raw, normalise),
        _patch_cost(part, "hidden", pixel, writes=2, backward=2),
        outputs=("loss",),
        differentiable=("prediction",),
    )


KERNELS = (
    _mask("audio", "audio"),
    _mask("audio-tf", "audio", columns=0.525, rows=0.525),
    _mask("image", "image"),
    _gather("audio", "audio", pixel=4),
    _gather("image", "image", pixel=4),
    _gather("image-uint8", "image", pixel=1, raw=True),
    Kernel(
        "embed_epilogue",
        embed_epilogue,
        embed_epilogue_reference,
        _epilogue_inputs,
        _epilogue_cost,
        outputs=("tokens",),
        differentiable=("tokens", "bias", "positions", "modality"),
    ),
    Kernel(
        "unshuffle",
        unshuffle,
        unshuffle_reference,
        _unshuffle_inputs,
        _unshuffle_cost,
        outputs=("tokens",),
        differentiable=("visible", "mask_token", "positions_a", "positions_v", "modality_a", "modality_v"),
    ),
    _mse("audio", "audio", pixel=4),
    _mse("image", "image", pixel=4),
    _mse("image-uint8", "image", pixel=1, raw=True),
    _mse("image-plain", "image", pixel=4, normalise=False),
    Kernel(
        "contrastive",
        contrastive,
        contrastive_reference,
        _contrastive_inputs,
        _contrastive_cost,
        outputs=Contrast._fields,
        differentiable=("queries", "candidates"),
    ),
    Kernel(
        "contrastive_both",
        contrastive_both,
        contrastive_both_reference,
        _both_inputs,
        _both_cost,
        outputs=Contrast._fields,
        differentiable=("audio", "image"),
        large=LARGE,
    ),
)
CASES = tuple(
    Case(kernel, shape, dtype) for kernel in KERNELS for shape, dtype in product(kernel.shapes, kernel.dtypes)
)
