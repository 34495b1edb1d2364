"""Masks of a clip with their times, as the column `targets` keeps them: what segmentation learns from.

C masks: uint32 C, float32 times [C], uint32 offsets [C + 1], then C PNG files one after another, all little-endian.
File k is files[offsets[k]:offsets[k + 1]]. Letters: H, W = height and width of a mask in pixels.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cavmae_ds.data.format.schema import Damage, damaged

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_MASK_PIXELS = 4096 * 4096
_COUNT = struct.Struct("<I")
_PNG_HEAD = struct.Struct(">8sI4sIIBB")  # signature, length and name of the first chunk, W, H, bits, colour type
_GREY = 0


class Target(NamedTuple):
    """A mask of one moment of a clip."""

    time_s: float  # from clip start
    mask: NDArray[np.uint8]  # [H, W], what each pixel shows


def pack_targets(targets: Sequence[Target]) -> bytes:
    """The column `targets` of a clip, maybe of none. Raises ValueError for a mask that is not uint8 [H, W]."""
    files = []
    for _, mask in targets:
        if mask.dtype != np.uint8 or mask.ndim != 2 or not 0 < mask.size <= MAX_MASK_PIXELS:
            raise ValueError(
                f"a mask must be uint8 [H, W] of 1 to {MAX_MASK_PIXELS} pixels, got {mask.dtype} {mask.shape}"
            )
        content = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(mask)).save(content, "PNG")
        files.append(content.getvalue())
    times = np.array([target.time_s for target in targets], "<f4")  # [C]
    offsets = np.cumsum([0, *map(len, files)]).astype("<u4")  # [C + 1]
    return b"".join([_COUNT.pack(len(files)), times.tobytes(), offsets.tobytes(), *files])


def targets_of(sample: Mapping[str, Any]) -> list[Target]:
    """The masks of an MDS sample with the column `targets`. Raises DataError, naming the clip, when damaged."""
    content = sample["targets"]
    count = _COUNT.unpack_from(content)[0] if len(content) >= _COUNT.size else -1
    begin = _COUNT.size + 4 * count + 4 * (count + 1)  # of the files
    if count < 0 or begin > len(content):
        raise damaged(Damage.LABELS, sample, f"has {len(content)} bytes of targets, too few for {max(count, 0)}")
    times = np.frombuffer(content, "<f4", count, _COUNT.size)
    offsets = np.frombuffer(content, "<u4", count + 1, _COUNT.size + 4 * count).astype(np.int64)
    size = len(content) - begin
    if offsets[0] != 0 or offsets[-1] != size or (np.diff(offsets) <= 0).any() or not np.isfinite(times).all():
        raise damaged(Damage.LABELS, sample, f"keeps {count} targets whose times or places in {size} bytes cannot be")
    files = [content[begin + start : begin + stop] for start, stop in pairwise(offsets)]
    return [
        Target(float(time), _decoded(sample, k, file)) for k, (time, file) in enumerate(zip(times, files, strict=True))
    ]


def _decoded(sample: Mapping[str, Any], k: int, file: bytes) -> NDArray[np.uint8]:
    """uint8 [H, W]. The size is looked at before anything of it is decoded: a small file may claim a huge picture."""
    if len(file) < _PNG_HEAD.size or not file.startswith(PNG_MAGIC):
        raise damaged(Damage.LABELS, sample, f"keeps a target {k} that is no PNG file")
    _, _, chunk, width, height, bits, colour = _PNG_HEAD.unpack_from(file)
    if chunk != b"IHDR" or (bits, colour) != (8, _GREY) or not 0 < width * height <= MAX_MASK_PIXELS:
        what = f"{width}x{height} pixels of {bits} bits, colour type {colour}"
        raise damaged(
            Damage.LABELS,
            sample,
            f"keeps a target {k} of {what}, expected 8 bits of grey, {MAX_MASK_PIXELS} pixels at most",
        )
    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
            return np.asarray(image.convert("L") if image.mode != "L" else image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and struct.error for damaged files
        raise damaged(Damage.LABELS, sample, f"keeps a target {k} that does not decode: {str(error)[:200]}") from error
