"""`cavmae export`: trained weights for other people's code."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cavmae_ds.terminal import echo


class FormatName(str, Enum):
    """What the file is."""

    safetensors = "safetensors"
    official = "official"
    torch_export = "torch-export"
    onnx = "onnx"


class PositionsName(str, Enum):
    """What becomes of a position table."""

    trim = "trim"
    interpolate = "interpolate"


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="Run folder, official .pth, or .safetensors file.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write; its ending tells the format.")],
    to: Annotated[
        FormatName | None, typer.Option("--format", help="Needed only where the ending of --out does not tell.")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the running mean of a run's weights.")] = False,
    audio_frames: Annotated[
        int | None, typer.Option(min=1, help="Fit the model to log-mels of this length, frames of 10 ms.")
    ] = None,
    positions: Annotated[
        PositionsName, typer.Option(help="How its position table follows --audio-frames.")
    ] = PositionsName.trim,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, where a file tells none.")] = None,
    decoder_heads: Annotated[int | None, typer.Option(min=1, help="The same for the decoder.")] = None,
) -> None:
    """Write trained weights for other code: one file, official names, or the encoder as a graph.

    \b
    .safetensors  every weight, sizes and statistics in the header: all that `load_model` needs
    .pth          as the official scripts read it: names behind `module.`
    .pt2, .onnx   the encoder by torch.export or ONNX: raw log-mel and frame in, pooled embeddings out;
                  compared with the model before it is written

    \b
    Examples:
      cavmae export runs/base --out base.safetensors
      cavmae export runs/base --ema --out cav-mae-base.pth
      cavmae export cav-mae-base.pth --audio-frames 512 --out encoder.onnx
    """
    from cavmae_ds.models import family_of
    from cavmae_ds.weights.export import export as write
    from cavmae_ds.weights.export import format_of
    from cavmae_ds.weights.load import open_weights

    chosen = to.value if to else format_of(out)
    weights = open_weights(source, ema, heads, decoder_heads)
    if audio_frames:
        adapter = family_of(weights.model.family).state_dict()
        weights = adapter.with_audio_frames(weights, audio_frames, positions.value)
    difference = write(weights, out, chosen)
    parity = "" if difference is None else f"; its embeddings differ from the model's by at most {difference:.1e}"
    echo(f"{len(weights.tensors)} entries of {source} ({weights.kind}) written to {out} as {chosen}{parity}")
