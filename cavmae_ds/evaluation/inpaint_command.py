"""`cavmae inpaint`: pictures, sounds and losses of clips that a model completes. Heavy imports when it runs."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cavmae_ds.errors import ConfigError
from cavmae_ds.terminal import DisplayConsole, folding_table

if TYPE_CHECKING:
    from cavmae_ds.data.format.clips import Batch
    from cavmae_ds.evaluation.inpainting import ClipLosses, Settings
    from cavmae_ds.models.common.output import PretrainOutput

NOUNS = {"audio": "sound", "image": "frame"}
console = DisplayConsole(soft_wrap=True)


class Side(str, Enum):
    """What of a clip is hidden as a whole."""

    audio = "audio"
    image = "image"


class Pattern(str, Enum):
    """How a part of the sound is hidden."""

    unstructured = "unstructured"
    time = "time"
    freq = "freq"
    tf = "tf"


def inpaint(
    weights: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_FILE", help="Run folder of pretraining, official .pth, or .safetensors file."),
    ],
    data: Annotated[str, typer.Option(help="Folder or s3:// address of the clips, as `cavmae prepare` wrote them.")],
    out: Annotated[Path, typer.Option(help="The picture to write, .png.")] = Path("reconstructions.png"),
    clips: Annotated[int, typer.Option(min=1, max=32, help="Rows of the picture.")] = 6,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the running mean of the weights (train.ema_clips), not the weights.")
    ] = False,
    hide: Annotated[
        Side | None, typer.Option(help="Hide all of one and nothing of the other: one is made of the other alone.")
    ] = None,
    audio_ratio: Annotated[
        float | None, typer.Option(help="Share of the sound that is hidden, 0 to 1.", show_default="the run's, or 0.75")
    ] = None,
    image_ratio: Annotated[
        float | None, typer.Option(help="Share of the frame that is hidden, 0 to 1.", show_default="the run's, or 0.75")
    ] = None,
    mode: Annotated[
        Pattern | None,
        typer.Option(
            help="Hide patches of sound at random, or whole stretches of time, bands of pitch, or some of both.",
            show_default="the run's, or unstructured",
        ),
    ] = None,
    normalised: Annotated[
        bool | None,
        typer.Option(
            "--normalised-pixels/--raw-pixels",
            help="Whether the model was trained with loss.normalise_pixels.",
            show_default="as the run, or raw",
        ),
    ] = None,
    sound: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write each clip's sound here as well: given, heard and rebuilt, .wav."),
    ] = None,
) -> None:
    """Draw what the model makes of clips it sees and hears only in part.

    Frame and log-mel: as given, what was left of them, and rebuilt. The clips are spread over the data set; the masks
    are the same each time. Losses are written beside the picture: those of X.png into X.json.

    \b
    Examples:
      cavmae inpaint runs/quickstart --data quickstart/shards/eval --out reconstructions.png
      cavmae inpaint runs/quickstart --data quickstart/shards/eval --hide audio --out heard.png --sound heard/
      cavmae inpaint cav-mae-nonorm.pth --data shards/test --audio-ratio 0.5 --mode time
    """
    from cavmae_ds.atomic_io import written_whole
    from cavmae_ds.evaluation.inference import open_judged
    from cavmae_ds.evaluation.inpainting import check_ratios, clip_losses, settings_of_run, spread_clips
    from cavmae_ds.evaluation.inpainting import inpaint as complete
    from cavmae_ds.evaluation.reconstruction_figure import draw_reconstructions
    from cavmae_ds.evaluation.resynthesis import check_torchaudio

    if out.suffix != ".png":
        raise ConfigError(f"--out must be the name of a .png file, got {str(out)!r}")
    asked = _asked(hide, audio_ratio, image_ratio, mode)
    if normalised is not None:
        asked["normalised_pixels"] = normalised
    if sound:
        check_torchaudio()
    judged = open_judged(weights, data, ema)
    settings = settings_of_run(judged)._replace(**asked)
    check_ratios(settings.audio_ratio, settings.image_ratio)
    batch = spread_clips(judged, clips)
    output = complete(judged, batch, settings)
    losses = clip_losses(judged, output, settings.normalised_pixels)

    with written_whole(out) as unfinished:
        figure = draw_reconstructions(output, settings.normalised_pixels, len(losses), batch.clip_ids)
        figure.savefig(unfinished, dpi=110)
    sounds = _write_sounds(sound, output, batch, settings) if sound else [[]] * len(losses)
    rows = [
        {"clip": name, "index": int(index), "sounds": files}
        | {f"loss_{target}": value for target, value in loss.items()}
        for name, index, loss, files in zip(batch.clip_ids, batch.clip_index, losses, sounds, strict=True)
    ]
    values = {"weights": str(weights), "data": data, "ema": ema} | settings._asdict() | {"clips": rows}
    with written_whole(out.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps(values, indent=1))
    console.print(_table(losses, output, settings.audio_mode))
    if settings.normalised_pixels:
        console.print(
            "The model predicts patches up to their mean and contrast. Both are taken from what was hidden, so what is "
            "rebuilt shows more than the model knows."
        )
    console.print(f"{len(losses)} clips drawn in {out}" + (f", their sounds are in {sound}" if sound else ""))


def _asked(
    hide: Side | None, audio_ratio: float | None, image_ratio: float | None, mode: Pattern | None
) -> dict[str, Any]:
    """The settings that the user chose."""
    parts = {"audio_ratio": audio_ratio, "image_ratio": image_ratio, "audio_mode": mode and mode.value}
    chosen = {name: value for name, value in parts.items() if value is not None}
    if hide is None:
        return chosen
    if chosen:
        raise ConfigError(
            "--hide hides all of one side and nothing of the other: leave it out, or --audio-ratio, --image-ratio and "
            "--mode"
        )
    return {"audio_ratio": float(hide == Side.audio), "image_ratio": float(hide == Side.image)}


def _write_sounds(folder: Path, output: PretrainOutput, batch: Batch, settings: Settings) -> list[list[str]]:
    """The sounds of each clip, as long as it is; their names. Clips without a single window have none."""
    from cavmae_ds.atomic_io import written_whole
    from cavmae_ds.data.transforms.log_mel import frames_of
    from cavmae_ds.evaluation.composite import log_mel_stages
    from cavmae_ds.evaluation.resynthesis import silent_where_hidden, sound_of, write_wav

    mels = log_mel_stages(output.target("audio"), settings.normalised_pixels, len(batch.clip_ids))
    versions = {  # [n, T, 128] raw
        name: silent_where_hidden(part) for name, part in zip(("given", "heard", "rebuilt"), mels, strict=True)
    }
    names = []
    for row, frames in enumerate(frames_of(batch.n_samples).tolist()):
        files = {f"{row + 1:02d}-{name}.wav": of[row, :frames] for name, of in versions.items() if frames}
        for name, log_mel in files.items():
            with written_whole(folder / name) as unfinished:
                write_wav(unfinished, sound_of(log_mel))
        names.append(list(files))
    return names


def _table(losses: list[ClipLosses], output: PretrainOutput, mode: str) -> Table:
    table = folding_table("", "hidden", "loss, mean", title="reconstruction of what was hidden")
    for target in output.targets:
        is_sound = target.name == "audio"
        share = float(target.plan.mask[0].mean())  # of whole patches, so not quite the ratio
        pattern = f", {mode}" if is_sound and mode != "unstructured" and 0 < share < 1 else ""
        column = [loss[target.name] for loss in losses]
        known = [loss for loss in column if loss is not None]
        mean = f"{fmean(known):.4f}" if known else "-"
        table.add_row(NOUNS.get(target.name, target.name), f"{share:.0%}{pattern}", mean)
    return table
