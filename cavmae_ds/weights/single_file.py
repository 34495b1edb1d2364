"""One safetensors file with everything needed to use it: weights, sizes, statistics of the log-mel."""

from __future__ import annotations

import json
from math import inf, isfinite
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.errors import CheckpointError, ConfigError, shortened
from cavmae_ds.models import adapter_for, family_of, model_section
from cavmae_ds.models.common.pth import unreadable
from cavmae_ds.models.common.weights import Weights, bare_names


def header_of(weights: Weights) -> dict[str, str]:
    """What names and shapes do not tell, as a file's metadata: section `model` as JSON, `audio_mean`, `audio_std`.

    Also the run's `step`, where it is known.
    """
    step = {} if weights.step is None else {"step": str(weights.step)}
    return step | {
        "model": weights.model.model_dump_json(),
        "audio_mean": str(weights.audio_mean),
        "audio_std": str(weights.audio_std),
    }


def save_single_file(weights: Weights, path: Path) -> None:
    """Write a .safetensors file that load_single_file, or any reader of safetensors, understands."""
    tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, header_of(weights))


def load_single_file(path: Path, heads: int | None = None, decoder_heads: int | None = None) -> Weights:
    """Read a file of save_single_file or `cavmae checkpoint convert`, or any .safetensors file of official names.

    Raises CheckpointError: no such file, damaged, or not exactly one model's names and shapes. For the heads of files
    that do not tell see StateDictAdapter.recognise.
    """
    source = str(path)
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = bare_names({name: file.get_tensor(name) for name in file.keys()}, source)  # noqa: SIM118
    except OSError as error:
        raise unreadable(path, error) from error
    except SafetensorError as error:
        raise CheckpointError(f"{source!r} is no whole safetensors file: {shortened(str(error), 200)}") from error
    if "model" not in header:
        return adapter_for(tensors).recognise(tensors, source, heads, decoder_heads)
    try:
        model = model_section(json.loads(header["model"]))
        mean, std = float(header["audio_mean"]), float(header["audio_std"])
        step = int(header["step"]) if "step" in header else None
        if not (isfinite(mean) and 0 < std < inf):
            raise ValueError(f"audio_mean {mean} and audio_std {std} normalise nothing")
    except (ValueError, KeyError, AttributeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{source!r} has a header that this version does not know; export it again") from error
    adapter = family_of(model.family).state_dict()
    kind, classes = adapter.kind_of(tensors, source)
    return adapter.in_order(Weights(kind, model, classes, tensors, source, mean, std, heads_known=True, step=step))
