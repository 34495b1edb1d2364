"""A run without a running mean says so; the rest is in test_optim_under_zero.py (exactness) and test_survival.py."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from cavmae_ds.checkpoint import checkpoint_root, read_weights
from cavmae_ds.errors import CheckpointError


def test_asking_for_a_mean_that_was_not_kept_names_the_key(tmp_path):
    folder = checkpoint_root(tmp_path) / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    save_file({"weight": torch.ones(2)}, folder / "weights.safetensors")

    assert read_weights(tmp_path)["weight"].equal(torch.ones(2))
    with pytest.raises(CheckpointError, match=r"no running mean .* train\.ema_clips"):
        read_weights(tmp_path, ema=True)
