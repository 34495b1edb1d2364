"""Clips to measure with: ten seconds, ten frames of 224 pixels, as large as real ones (spec/data-path.md 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image
from streaming import MDSWriter

from cavmae_ds.data.format.schema import (
    AUDIO_RATE_HZ,
    CLIP_SECONDS,
    FRAMES_PER_CLIP,
    MDS_COLUMNS,
    AudioCodec,
    ClipFlag,
    ClipRecord,
)

SIZE = 224  # pixels
PICTURES = 64
DETAIL = 1.72  # of pictures whose ten JPEGs take 124 kB at quality 90; 128 kB is the mean of real ones
LOUDNESS = 133  # RMS of noise of which FLAC keeps 57 %, as of real sound
STOCK_COLUMNS = {"audio": "bytes"} | {f"frame_{k}": "jpeg" for k in range(FRAMES_PER_CLIP)}


def write_shards(folder: Path, clips: int, codec: AudioCodec) -> Path:
    """A data set of so many clips that training can stream."""
    with MDSWriter(out=str(folder), columns=MDS_COLUMNS, hashes=["xxh3_64"], size_limit=128 << 20) as writer:
        for record in records(clips):
            writer.write(record.to_mds(codec))
    return folder


def write_stock_shards(folder: Path, clips: int) -> Path:
    """The same clips as one would write them without our schema: a column of type jpeg for each frame."""
    files: dict[bytes, Path] = {}
    with MDSWriter(out=str(folder / "shards"), columns=STOCK_COLUMNS, size_limit=128 << 20) as writer:
        for record in records(clips):
            for jpeg in record.frames:
                if jpeg not in files:
                    files[jpeg] = folder / f"{len(files)}.jpg"
                    files[jpeg].write_bytes(jpeg)
            # A picture opened from a file keeps its bytes, any other would be encoded again.
            frames = {f"frame_{k}": Image.open(files[jpeg]) for k, jpeg in enumerate(record.frames)}
            writer.write({"audio": record.audio.tobytes(), **frames})
    return folder / "shards"


def records(clips: int) -> Iterator[ClipRecord]:
    """The same clips every time: noise with the spectrum of natural pictures, and noise to hear."""
    rng = np.random.default_rng(0)
    pictures = [_picture(rng) for _ in range(PICTURES)]
    times = tuple(k * CLIP_SECONDS / FRAMES_PER_CLIP for k in range(FRAMES_PER_CLIP))
    for number in range(clips):
        sound = rng.standard_normal(int(CLIP_SECONDS * AUDIO_RATE_HZ)) * LOUDNESS
        frames = tuple(pictures[k] for k in rng.choice(PICTURES, FRAMES_PER_CLIP, replace=False))
        yield ClipRecord(
            clip_id=f"clip-{number:06d}",
            source=f"clip-{number:06d}.mp4",
            start_s=0.0,
            audio=sound.astype(np.int16),
            frames=frames,
            frame_times=times,
            labels=np.array([number % 8], np.int32),
            flags=ClipFlag(0),
        )


def _picture(rng: np.random.Generator) -> bytes:
    """A JPEG file of quality 90: random phases, amplitudes that fall with frequency, colours near each other."""
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE))
    frequency[0, 0] = np.inf
    noise = [np.fft.irfft2(frequency**-DETAIL * np.exp(2j * np.pi * rng.random(frequency.shape))) for _ in range(4)]
    pixels = np.stack([noise[3] + 0.4 * channel for channel in noise[:3]], axis=-1)  # [H, W, 3]
    pixels = (128 + 50 * pixels / pixels.std()).clip(0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90, colorsubsampling="420")
