"""One clip of the official layout as a record: a sound file and ten JPEG files.

Source of the layout: spec/cav-mae.md 3.1, 3.2, 3.6; what the official loader does with bad files: 3.7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import soundfile

from cavmae_ds.data.format.schema import AUDIO_RATE_HZ, FRAMES_PER_CLIP, ClipFlag, ClipRecord, decode_frame
from cavmae_ds.data.prepare.audio import RESAMPLER_TAIL_S, resampled
from cavmae_ds.data.prepare.frames import encode_picture
from cavmae_ds.data.prepare.inputs import Input
from cavmae_ds.data.prepare.rejects import ClipRejected, RejectCode
from cavmae_ds.data.prepare.settings import MIN_SHARE_OF_DECLARED, SHORT_BELOW_SHARE, BuildSettings
from cavmae_ds.errors import DataError

MIN_SAMPLES = 400  # one window of the log-mel
MAX_BAD_FRAMES = 1  # of FRAMES_PER_CLIP
STREAMED_BYTES = 2**31 - 2**16  # a WAV header that claims as much was written before the length was known

# What libsndfile notes when a WAV file ends before its header says, and then reads on as if it were whole.
_CUT_SHORT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class OfficialInput(Input):
    """One clip to import. Its clip id is the name of its frames."""

    wav: str  # the sound file
    video_path: str  # the folder of frame_0 ... frame_9


def read_official(item: OfficialInput, settings: BuildSettings) -> ClipRecord:
    """One clip of the official layout as a record. Raises ClipRejected.

    The first channel, at most clip_seconds of it. Frames that are colour JPEG files of the wanted size stay as
    they are, byte for byte; others are scaled, cut and stored anew. A missing frame, or one that does not decode,
    is replaced by the nearest before it (by the nearest after it where there is none). Their times are taken as
    evenly spread over the sound.
    """
    audio = _read_audio(Path(item.wav), settings)
    frames, bad_frames = _read_frames(item, settings)
    seconds = len(audio) / AUDIO_RATE_HZ
    unusual = {
        ClipFlag.SHORT: seconds < SHORT_BELOW_SHARE * settings.clip_seconds,
        ClipFlag.SILENT: not audio.any(),
        ClipFlag.REPEATED_FRAMES: len(set(frames)) < len(frames),
        ClipFlag.SOME_CORRUPT_FRAMES: bad_frames > 0,
    }
    return ClipRecord(
        clip_id=item.clip_id,
        source=item.source,
        start_s=0.0,
        audio=audio,
        frames=frames,
        frame_times=tuple(round(k * seconds / FRAMES_PER_CLIP, 6) for k in range(FRAMES_PER_CLIP)),
        labels=np.array(item.labels, np.int32),
        flags=ClipFlag.those(unusual),
    )


def _read_audio(path: Path, settings: BuildSettings) -> np.ndarray:
    """int16 [n] at AUDIO_RATE_HZ. The official loader takes any file's rate for 16 kHz; here it is converted."""
    try:
        if not path.stat().st_size:
            raise ClipRejected(RejectCode.EMPTY_FILE, f"{path.name} has 0 bytes")
    except (OSError, ValueError) as error:
        raise ClipRejected(RejectCode.UNREADABLE, f"{path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: .raw, which says nothing about itself
        raise ClipRejected(RejectCode.NOT_MEDIA, f"{path.name}: {error}") from error
    with file:
        wanted = round((settings.clip_seconds + RESAMPLER_TAIL_S) * file.samplerate)
        try:
            line = file.read(wanted, dtype="float32", always_2d=True)[:, 0]  # [samples] of the first channel
        except soundfile.LibsndfileError as error:
            raise ClipRejected(RejectCode.CORRUPT_AUDIO, f"{path.name}: {error.error_string}") from error
        _refuse_cut_short(file, len(line), wanted)
        audio = resampled(np.ascontiguousarray(line), file.samplerate)[: round(settings.clip_seconds * AUDIO_RATE_HZ)]
    if not np.isfinite(line).all():
        raise ClipRejected(RejectCode.CORRUPT_AUDIO, f"{path.name} holds samples that are no numbers")
    if len(audio) < MIN_SAMPLES:
        raise ClipRejected(RejectCode.TOO_SHORT, f"{len(audio)} samples at 16 kHz, {MIN_SAMPLES} are needed")
    if not audio.any() and not settings.keep_silent:
        raise ClipRejected(RejectCode.SILENT_AUDIO, f"all {len(audio)} samples are zero")
    return audio


def _refuse_cut_short(file: soundfile.SoundFile, read: int, wanted: int) -> None:
    declared = file.frames
    if (note := _CUT_SHORT.search(file.extra_info)) and int(note[1]) < STREAMED_BYTES:
        declared = round(file.frames * int(note[1]) / max(int(note[2]), 1))
    if read < MIN_SHARE_OF_DECLARED * min(declared, wanted):
        raise ClipRejected(RejectCode.TRUNCATED, f"{Path(file.name).name}: {read} samples of {declared} are there")


def _read_frames(item: OfficialInput, settings: BuildSettings) -> tuple[tuple[bytes, ...], int]:
    """FRAMES_PER_CLIP JPEG files as they will be stored, and how many of those given do not decode."""
    given: list[bytes | None] = []
    bad: list[str] = []
    missing = 0
    for k in range(FRAMES_PER_CLIP):
        try:
            given.append(
                _fitting((Path(item.video_path) / f"frame_{k}" / f"{item.clip_id}.jpg").read_bytes(), settings)
            )
        except FileNotFoundError:
            missing += 1
            given.append(None)
        except (OSError, ValueError, DataError) as error:
            bad.append(f"frame_{k}: {getattr(error, 'strerror', None) or error.__cause__ or error}")
            given.append(None)
    if missing == FRAMES_PER_CLIP:
        raise ClipRejected(RejectCode.NO_VIDEO, f"no frame_0 to frame_{missing - 1} in {item.video_path}")
    if len(bad) > MAX_BAD_FRAMES or not any(given):
        raise ClipRejected(RejectCode.CORRUPT_VIDEO, f"{len(bad)} frames do not decode, {bad[0]}")
    before = next(frame for frame in given if frame)
    frames = []
    for frame in given:
        before = frame or before
        frames.append(before)
    return tuple(frames), len(bad)


def _fitting(jpeg: bytes, settings: BuildSettings) -> bytes:
    """The file itself if it is a whole colour JPEG of the wanted size, or such a file made of it."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg, strict=True)
    except ValueError as error:
        raise DataError(f"not a JPEG file: {error}") from error
    if height * width > settings.max_frame_pixels:
        raise ClipRejected(RejectCode.TOO_LARGE, f"{width}x{height} pixels, allowed {settings.max_frame_pixels} in all")
    pixels = decode_frame(jpeg)  # also when the file is kept: a damaged one must not be
    if (height, width) == (settings.frame_size, settings.frame_size) and colours in ("YCbCr", "RGB"):
        return jpeg
    return encode_picture(pixels, settings.frame_size, settings.jpeg_quality)
