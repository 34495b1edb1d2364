"""What the doors ask of their tensors."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = torch.float32, torch.bfloat16, torch.float16
"""What the kernels compute from; they add up in float32."""
REFERENCE_FLOATS = (*FLOATS, torch.float64)
"""What doors take: float64 goes to the reference."""


def require(name: str, tensor: Tensor, shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError unless the tensor is contiguous, of one of the dtypes and this shape; letters fit any size."""
    fits = tensor.dim() == len(shape) and all(
        isinstance(asked, str) or asked == size for asked, size in zip(shape, tensor.shape, strict=True)
    )
    if not (fits and tensor.dtype in dtypes and tensor.is_contiguous()):
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        contiguous = "" if tensor.is_contiguous() else " not contiguous"
        raise ValueError(
            f"{name} must be contiguous {names} [{', '.join(map(str, shape))}], "
            f"got {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}{contiguous}"
        )
