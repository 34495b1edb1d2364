"""Embeddings in Python: `cavmae_ds.load("runs/base").embed("clip.mp4")`.

N clips, B of them at a time, seen at F positions, T frames each (1 for CAV-MAE), La and Lv tokens of audio and
frames, D width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from cavmae_ds.data.format.clips import decode_clip, padded, padded_frames
from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, CLIP_SECONDS, Require, decode_frame
from cavmae_ds.data.format.shard_file import Contents, Select, Selection, select_from
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.loading.selection import MIDDLE_POSITION, evaluation_selection
from cavmae_ds.data.prepare.audio import RESAMPLER_TAIL_S, resampled
from cavmae_ds.data.prepare.frames import encode_picture
from cavmae_ds.data.prepare.inputs import VideoInput
from cavmae_ds.data.prepare.media import read_clip
from cavmae_ds.data.prepare.rejects import ClipRejected
from cavmae_ds.data.prepare.settings import PrepareSettings
from cavmae_ds.data.transforms.front_end import log_mel_of
from cavmae_ds.data.transforms.log_mel import INT16_SCALE, WINDOW_SAMPLES
from cavmae_ds.errors import ConfigError, DataError
from cavmae_ds.weights.load import LoadedModel, load_model

BATCH = 32
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000
LOUDEST = 8.0  # of full scale, 1; what is louder is in other units

PathLike: TypeAlias = str | os.PathLike[str]


class Embedding(NamedTuple):
    """What a model makes of clips, float32 on the CPU; None for a modality that was not given or is not known to it."""

    audio: Tensor | None
    """[D], or [N, D] for several clips: the mean token after the modality's norm (spec/cav-mae.md 5.2)."""
    image: Tensor | None
    """Likewise."""


class Excerpt(NamedTuple):
    """What is looked at of a clip."""

    audio: NDArray[np.int16] | None
    """[n] 16 kHz mono"""
    frames: NDArray[np.uint8] | None
    """[F, T, H, W, 3] RGB"""
    clip_id: str = ""


def load(
    path: PathLike, *, ema: bool = False, device: torch.device | str | None = None, clip_seconds: float = CLIP_SECONDS
) -> Embedder:
    """A model that embeds clips, from a run folder, an official .pth file, or a .safetensors file.

    ema takes the running mean of a run folder's weights. device: by default a GPU where there is one. clip_seconds: so
    much of a video, or a waveform, is used, as with `cavmae prepare`. Raises CheckpointError or ConfigError.

    >>> import cavmae_ds
    >>> model = cavmae_ds.load("runs/base")
    >>> e = model.embed("clip.mp4")
    >>> e.audio.shape == e.image.shape == (model.config.embed_dim,)
    True
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Embedder(load_model(Path(path), ema, device=chosen), chosen, clip_seconds)


class Embedder:
    """A model with all that turns videos, sounds and pictures into what it takes."""

    def __init__(self, loaded: LoadedModel, device: torch.device, clip_seconds: float = CLIP_SECONDS):
        """The model is on the device. Raises ConfigError for a length that no clip has."""
        self.loaded = loaded
        self.config = loaded.config
        self.frame_size = loaded.inputs.frame_size
        self.sees = loaded.inputs.frames > 0
        self.settings = clip_settings(loaded.inputs, clip_seconds)
        self._device, self._log_mel = device, log_mel_of(loaded.inputs, device)

    def embed(
        self,
        clips: PathLike | Sequence[PathLike] | None = None,
        *,
        waveform: NDArray[Any] | Tensor | None = None,
        sample_rate: int | None = None,
        image: NDArray[np.uint8] | Tensor | None = None,
    ) -> Embedding:
        """Embed a video or several: sound and middle frame as `cavmae prepare` takes them. Or arrays of one clip.

        waveform: float in [-1, 1] or int16, [samples] or [channels, samples] at sample_rate Hz; the first channel
        counts. image: uint8 [H, W, 3] RGB; one of the model's size is taken as it is, another is scaled, cut and
        stored as JPEG as `cavmae prepare` does it. Either may be left out. Raises DataError, naming the video, for what
        cannot be embedded.
        """
        arrays = waveform is not None or image is not None
        if (clips is None) != arrays or (waveform is None) != (sample_rate is None):
            raise DataError("embed takes either videos, or waveform with sample_rate, image, or both of these")
        if arrays:
            return _first(self.features([self._of_arrays(waveform, sample_rate, image)]))
        if isinstance(clips, (str, os.PathLike)):
            return _first(self.features([self._of_video(clips)]))
        if not clips:
            raise DataError("embed needs at least one video, got none")
        parts = [
            self.features([self._of_video(path) for path in clips[start : start + BATCH]])
            for start in range(0, len(clips), BATCH)
        ]
        sounds = [part.audio for part in parts if part.audio is not None]
        views = [part.image[:, 0] for part in parts if part.image is not None]
        return Embedding(torch.cat(sounds) if sounds else None, torch.cat(views) if views else None)

    @torch.no_grad()
    def features(self, excerpts: Sequence[Excerpt], tokens: bool = False) -> Embedding:
        """Audio [B, D] and image [B, F, D] of clips that have the same parts; with tokens [B, La, D], [B, F, Lv, D].

        A model that only hears does not look.
        """
        sounds = [excerpt.audio for excerpt in excerpts if excerpt.audio is not None]
        views = [excerpt.frames for excerpt in excerpts if excerpt.frames is not None] if self.sees else []
        return Embedding(
            self._heard(sounds, tokens) if sounds else None,
            self._seen(views, tokens) if views else None,
        )

    def _heard(self, sounds: Sequence[NDArray[np.int16]], tokens: bool) -> Tensor:
        waveform, n_samples = (part.to(self._device) for part in padded(sounds))
        log_mel = self._log_mel(waveform, n_samples, self.loaded.inputs.log_mel_frames)
        found = self.loaded.model.features(log_mel, None).audio  # [B, La, D]
        assert found is not None
        return (found if tokens else found.mean(1)).cpu()

    def _seen(self, clips: Sequence[NDArray[np.uint8]], tokens: bool) -> Tensor:
        """Frames [F, T, H, W, 3] of each clip, one position at a time."""
        views = []
        for at_position in zip(*clips, strict=True):
            frames = padded_frames(at_position)[0].to(self._device).contiguous()  # [B, T, 3, H, W]
            found = self.loaded.model.features(None, frames).image  # [B, Lv, D]
            assert found is not None
            views.append((found if tokens else found.mean(1)).cpu())
        return torch.stack(views, 1)

    def _of_video(self, path: PathLike) -> Excerpt:
        name = os.fspath(path)
        try:
            item = VideoInput(clip_id=name, source=name, path=str(Path(name).absolute()))
            sample = read_clip(item, self.settings).to_mds()
        except ClipRejected as rejected:
            why = f"{rejected.code.explanation} ({rejected.detail})"
            raise DataError(f"{name!r} cannot be embedded: {why}") from rejected
        return excerpt_of(sample, self.loaded.inputs, (MIDDLE_POSITION,))

    def _of_arrays(self, waveform: Any, sample_rate: int | None, image: Any) -> Excerpt:
        if image is not None and not self.sees:
            raise DataError(f"the model in {self.loaded.source!r} only hears: leave out the image")
        if image is not None and self.loaded.inputs.frames > 1:
            raise DataError(
                f"the model in {self.loaded.source!r} reads {self.loaded.inputs.frames} frames: embed a video instead"
            )
        audio = None
        if sample_rate is not None:  # then there is a waveform
            audio = _sound(_array(waveform), sample_rate, self.settings.clip_seconds)
            _, first, samples = evaluation_selection(self.loaded.inputs, Contents(len(audio), np.empty(0, np.float32)))
            audio = audio[first : first + samples]
        return Excerpt(audio, None if image is None else _frame(_array(image), self.settings)[None, None])


def clip_settings(inputs: InputSpec, clip_seconds: float = CLIP_SECONDS) -> PrepareSettings:
    """How `cavmae prepare` makes clips for a model by default. Raises ConfigError for a length that no clip has."""
    try:
        require: Require = "both" if inputs.frames else "audio"
        return PrepareSettings(frame_size=inputs.frame_size, clip_seconds=clip_seconds, require=require)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from error


def select_excerpt(inputs: InputSpec, positions: Sequence[int]) -> Select:
    """The frames at these positions of evaluation_selection, position after position; the audio of the middle one.

    Without positions the audio alone.
    """
    middle = positions[len(positions) // 2] if positions else MIDDLE_POSITION

    def select(contents: Contents) -> Selection:
        frames = [evaluation_selection(inputs, contents, position).frames for position in positions]
        audio = evaluation_selection(inputs, contents, middle)
        return audio._replace(frames=tuple(frame for window in frames for frame in window))

    return select


def decode_excerpt(sample: Mapping[str, Any], inputs: InputSpec, positions: Sequence[int]) -> Excerpt:
    """What select_excerpt has chosen. Raises DataError, naming the clip, if it is damaged or lacks what is read."""
    looks, hears = bool(positions and inputs.frames), bool(inputs.log_mel_frames)
    clip = decode_clip(sample, inputs if looks else replace(inputs, frames=0), clip_index=0, epoch=0)
    frames = clip.frames.reshape(len(positions), -1, *clip.frames.shape[1:]) if looks else None
    return Excerpt(clip.audio if hears else None, frames, clip.clip_id)


def excerpt_of(sample: Mapping[str, Any], inputs: InputSpec, positions: Sequence[int]) -> Excerpt:
    """Of a whole record: see select_excerpt and decode_excerpt."""
    return decode_excerpt(select_from(sample, select_excerpt(inputs, positions)), inputs, positions)


def _first(embedding: Embedding) -> Embedding:
    """Of [1, D] and [1, 1, D]: [D] each."""
    audio, image = embedding
    return Embedding(None if audio is None else audio[0], None if image is None else image[0, 0])


def _array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _sound(waveform: NDArray[Any], sample_rate: int, clip_seconds: float) -> NDArray[np.int16]:
    """The first channel of the first clip_seconds, int16 [n] at 16 kHz: what read_sound makes of a video's sound."""
    if sample_rate % 1 or not LOWEST_RATE_HZ <= sample_rate <= HIGHEST_RATE_HZ:
        raise DataError(f"sample_rate must be whole Hz, {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ}, got {sample_rate}")
    if waveform.ndim not in (1, 2) or (waveform.ndim == 2 and not 0 < len(waveform) <= waveform.shape[1]):
        raise DataError(f"waveform must be [samples] or [channels, samples], got {list(waveform.shape)}")
    if waveform.dtype != np.int16 and waveform.dtype.kind != "f":
        raise DataError(f"waveform must be float in [-1, 1] or int16, got {waveform.dtype}")
    line = np.atleast_2d(waveform)[0, : round((clip_seconds + RESAMPLER_TAIL_S) * sample_rate)]
    line = line.astype(np.float32) / (INT16_SCALE if line.dtype == np.int16 else 1)
    if not (np.abs(line) <= LOUDEST).all():
        raise DataError(f"waveform must be within -1 and 1, got {np.abs(line).max():.3g}: is it scaled otherwise?")
    samples = resampled(line, int(sample_rate))[: round(clip_seconds * AUDIO_RATE_HZ)]
    if len(samples) < WINDOW_SAMPLES:
        raise DataError(f"waveform must last at least 25 ms, got {len(line)} samples at {sample_rate} Hz")
    return samples


def _frame(image: NDArray[Any], settings: PrepareSettings) -> NDArray[np.uint8]:
    """uint8 [size, size, 3] of an image of any size: see Embedder.embed."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"image must be uint8 [height, width, 3], RGB, got {image.dtype} {list(image.shape)}")
    size = settings.frame_size
    if image.shape[:2] == (size, size):
        return image
    return decode_frame(encode_picture(image, size, settings.jpeg_quality))
