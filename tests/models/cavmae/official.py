"""The official model's recorded outcomes and the synthetic weights they were recorded with."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[2] / "golden" / "cavmae.json"


def golden_cases(kind: str) -> list[dict]:
    """Cases of tests/golden/cavmae.json of one kind, "pretrain" or "finetune"."""
    return [case for case in json.loads(GOLDEN.read_text()) if case["kind"] == kind]


def normals(seed: int, *shape: int) -> torch.Tensor:
    """Standard normals of NumPy's legacy generator, float32."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


@torch.no_grad()
def give_golden_weights(model: torch.nn.Module) -> None:
    """The rule of tests/golden/README.md: 0.05 r, for norm weights 1 + 0.05 r; position tables stay."""
    for name, tensor in model.state_dict().items():
        if "pos_embed" not in name:
            draw = 0.05 * _draw(zlib.crc32(name.encode()) % 2**31, tensor)
            is_norm_weight = name.endswith("weight") and ("norm" in name or name == "mlp_head.0.weight")
            tensor.copy_(draw + 1 if is_norm_weight else draw)


@torch.no_grad()
def give_spec_weights(model: torch.nn.Module) -> None:
    """The rule of spec/cav-mae.md 1.13: 0.02 r, for one-dimensional weights 1 + 0.1 r; not for positions."""
    for name, tensor in model.state_dict().items():
        if "pos_embed" not in name:
            draw = _draw(zlib.crc32(name.encode()), tensor)
            is_norm_weight = name.endswith(".weight") and tensor.ndim == 1
            tensor.copy_(1 + 0.1 * draw if is_norm_weight else 0.02 * draw)


def _draw(seed: int, tensor: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(tensor.shape)))


def assert_summary(tensor: torch.Tensor, summary: dict, relative: float) -> None:
    """n, mean, unbiased std, abssum and 24 samples, each off by at most `relative` of the spread."""
    flat = tensor.detach().double().flatten().numpy()
    assert flat.size == summary["n"]
    picked = flat[np.linspace(0, flat.size - 1, 24).astype(int)]
    allowed = relative * summary["std"]
    np.testing.assert_allclose(picked, summary["samples"], rtol=relative, atol=allowed)
    np.testing.assert_allclose([flat.mean(), flat.std(ddof=1)], [summary["mean"], summary["std"]], atol=allowed)
    np.testing.assert_allclose(np.abs(flat).sum(), summary["abssum"], rtol=relative)
