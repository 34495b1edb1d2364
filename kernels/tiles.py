"""Tile shapes that several kernels share."""

from __future__ import annotations

import triton


def width_block(width: int) -> int:
    """Columns per program for rows of this width: a power of two, at most 1024, that wastes few lanes.

    768 = 3 x 256 and 1280 = 5 x 256 divide evenly; a width that no large power of two divides is padded.
    """
    divisor = width & -width  # the largest power of two in it
    if divisor >= 128:
        return min(divisor, 1024)
    return min(triton.next_power_of_2(width), 256)
