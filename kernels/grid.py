"""How a picture is cut into patches. Stands alone: a bare GPU machine lacks the model's packages."""

from __future__ import annotations

from typing import NamedTuple


class Grid(NamedTuple):
    """How one input is cut: rows x columns of square patches. Rows of a log-mel are bands of frequencies."""

    rows: int
    columns: int
    patch: int
    """Side of a patch, in pixels (or mel bins and frames)."""
    channels: int

    @property
    def patches(self) -> int:
        """Number of patches, L."""
        return self.rows * self.columns

    @property
    def values(self) -> int:
        """Values per patch, P."""
        return self.patch * self.patch * self.channels

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the picture that is cut."""
        return self.channels, self.rows * self.patch, self.columns * self.patch
