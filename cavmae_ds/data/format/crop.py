"""Frames of any shape as the squares that a model reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def centre_crop(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], shorter side scaled to `size` pixels, centre cut out: [size, size, 3].

    PIL's antialiased bilinear filter, as the official preparation uses (spec cav-mae.md 3.2).
    """
    image = Image.fromarray(np.ascontiguousarray(rgb))
    short = min(image.size)
    width, height = (size * side // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))
