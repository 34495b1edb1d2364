"""Sine-cosine position tables."""

from __future__ import annotations

import torch
from torch import Tensor


def position_table(width: int, rows: int, columns: int) -> Tensor:
    """Table [1, rows * columns, width], float32, of a grid of patches numbered row by row.

    For patch (h, w) the four quarters of the width are sin(w f), cos(w f), sin(h f), cos(h f) with the
    frequencies f_i = 10000^(-i / Q), Q = width / 4: the column comes first (spec/cav-mae.md 1.5). Computed in
    float64. The width must be a multiple of 4.
    """
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)  # [Q]
    column = torch.arange(columns, dtype=torch.float64)[None, :, None] * frequency  # [1, columns, Q]
    row = torch.arange(rows, dtype=torch.float64)[:, None, None] * frequency  # [rows, 1, Q]
    column, row = torch.broadcast_tensors(column, row)
    table = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=-1)  # [rows, columns, width]
    return table.reshape(1, rows * columns, width).float()
