"""Sine-cosine position tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cavmae_ds.config.sections.init import Positions


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


def refit_columns(table: Tensor, rows: int, columns: int, how: Positions) -> Tensor:
    """A table [1, rows * C, width] of a grid with C columns, for one with another number: [1, rows * columns, width].

    trim keeps the first columns, as for shorter sounds; interpolate stretches them linearly. Raises ValueError where
    there is nothing to trim.
    """
    width = table.shape[-1]
    grid = table.reshape(rows, -1, width)  # [rows, C, width]
    had = grid.shape[1]
    if had == columns:
        return table
    if how == "trim":
        if had < columns:
            raise ValueError(
                f"a position table of {had} columns cannot be trimmed to {columns}; give at most {had} patches of "
                "sound, or train a run on with init.positions: interpolate"
            )
        return grid[:, :columns].reshape(1, rows * columns, width).contiguous()
    stretched = F.interpolate(grid.transpose(1, 2), size=columns, mode="linear")  # [rows, width, columns]
    return stretched.transpose(1, 2).reshape(1, rows * columns, width)
