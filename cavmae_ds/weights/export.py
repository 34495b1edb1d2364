"""Weights leave: one file with its config, an official file, or the encoder as a graph that needs none of our code."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.errors import CheckpointError, ConfigError, distinct, pip_install
from cavmae_ds.kernels.launching import references
from cavmae_ds.models import family_of
from cavmae_ds.models.common.weights import Weights
from cavmae_ds.models.family import StateDictAdapter
from cavmae_ds.weights.official import save_official
from cavmae_ds.weights.single_file import header_of, save_single_file

Format = Literal["safetensors", "official", "torch-export", "onnx"]
SUFFIXES: dict[str, Format] = {
    ".safetensors": "safetensors", ".pth": "official", ".pt2": "torch-export", ".onnx": "onnx",
}  # fmt: skip

LARGEST_ONNX_BYTES = 1_500_000_000  # one protobuf file holds 2 GB
LARGEST_DIFFERENCE = 1e-3
"""Of an embedding: its values are of the order of one after the final norm."""
TRACED_CLIPS, COMPARED_CLIPS = 2, 3  # the graph must take any number


class PooledFeatures(nn.Module):
    """Raw log-mels [B, frames, mel bins] and frames [B, 3, H, W] uint8 to mean tokens after the modality norms."""

    def __init__(self, model: Any, adapter: StateDictAdapter):
        super().__init__()
        self.model = model
        for name, parameter in model.named_parameters():
            if not adapter.reads_features(name):
                parameter.data = parameter.new_zeros(1)  # what the graph has no use for need not be stored

    def forward(self, audio: Tensor, images: Tensor | None = None) -> tuple[Tensor, ...]:
        """[B, D] for each modality that the model has."""
        return tuple(x.mean(1) for x in self.model.features(audio, images) if x is not None)


def export(weights: Weights, out: Path, to: Format) -> float | None:
    """Write weights to a file, whole or not at all.

    For a graph, returns by how much its embeddings differ from the model's at most. Raises ConfigError if packages
    are missing or the format cannot hold the model, CheckpointError if the graph is not the model.
    """
    if to == "safetensors":
        save_single_file(weights, out)
    elif to == "official":
        save_official(weights.tensors, out)
    else:
        return _export_graph(weights, out, to)
    return None


def format_of(out: Path) -> Format:
    """The format that a file's name asks for. Raises ConfigError."""
    if out.suffix not in SUFFIXES:
        known = ", ".join(f"{suffix} ({name})" for suffix, name in SUFFIXES.items())
        raise ConfigError(f"--out {out} tells no format by its ending; known are {known}; or give --format")
    return SUFFIXES[out.suffix]


def _export_graph(weights: Weights, out: Path, to: Format) -> float:
    adapter = family_of(weights.model.family).state_dict()
    module = PooledFeatures(adapter.build(weights, None), adapter)
    inputs = _random_inputs(weights, COMPARED_CLIPS)
    traced = tuple(x[:TRACED_CLIPS] for x in inputs)
    if to == "onnx":
        _check_onnx(module)
    with written_whole(out) as unfinished, torch.no_grad(), references(), _quietly():
        expected = module(*inputs)
        if to == "onnx":
            _write_onnx(module, traced, unfinished, header_of(weights))
            got = _run_onnx(unfinished, inputs)
        else:
            program = torch.export.export(module, traced, dynamic_shapes=_any_batch(len(traced)))
            with unfinished.open("wb") as file:  # see save_official
                torch.export.save(program, file, extra_files=header_of(weights))
            got = torch.export.load(unfinished).module()(*inputs)
        difference = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
        if not difference < LARGEST_DIFFERENCE:
            raise CheckpointError(
                f"the exported graph's embeddings differ from the model's by {difference:.1e}, allowed is "
                f"{LARGEST_DIFFERENCE:.0e}; {out} was not written"
            )
    return difference


def _random_inputs(weights: Weights, clips: int) -> tuple[Tensor, ...]:
    sizes, draw = family_of(weights.model.family).inputs(weights.model, weights.kind), torch.Generator().manual_seed(0)
    noise = torch.randn(clips, sizes.log_mel_frames, sizes.mel_bins, generator=draw)
    audio = noise * weights.audio_std + weights.audio_mean
    if not sizes.frames:
        return (audio,)
    shape = (clips, *([sizes.frames] if sizes.frames > 1 else []), 3, sizes.frame_size, sizes.frame_size)
    return audio, torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)


def _any_batch(inputs: int) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    return {name: {0: batch} for name in ("audio", "images")[:inputs]}


def _check_onnx(module: nn.Module) -> None:
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"the format onnx needs {', '.join(lacking)}; {pip_install('cavmae-ds[export]')}, or take --format "
            "torch-export"
        )
    size = sum(parameter.numel() * 4 for parameter in module.parameters())
    if size > LARGEST_ONNX_BYTES:
        model, limit = distinct(size / 1e9, LARGEST_ONNX_BYTES / 1e9, ".1f")
        raise ConfigError(f"the model is {model} GB, one ONNX file holds {limit}; take --format torch-export")


def _write_onnx(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, header: dict[str, str]) -> None:
    names = ["audio", "images"][: len(inputs)]
    program = torch.onnx.export(
        module, inputs, dynamo=True, dynamic_shapes=_any_batch(len(inputs)), input_names=names,
        output_names=[f"{name}_embedding" for name in names], verbose=False,
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(header)
    program.save(str(path), external_data=False)


def _run_onnx(path: Path, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    given = {slot.name: tensor.numpy() for slot, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return tuple(torch.from_numpy(value) for value in session.run(None, given))


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporters warn about their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
