"""What one clip looks like in a shard, and what the manifest beside the shards says.

Letters: n = audio samples of a clip; F = frames of a clip; H, W = height and width of a frame in pixels.
Data sets are written with schema 2; those of schema 1 are read (docs/decisions/0016-records-of-any-length.md).
"""

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Any, Literal

import numpy as np
import simplejpeg
import soundfile
from PIL import Image

from cavmae_ds.errors import DataError

SCHEMA_VERSION: Literal[2] = 2
AUDIO_RATE_HZ = 16_000
MIN_COMMON_SECONDS = 1.0  # sound and picture must be there together for so long
CLIP_SECONDS = 10.0
FRAMES_PER_CLIP = 10
"""Frames of a clip unless `cavmae prepare` is asked for others; of every clip of schema 1."""
FLAC_MAGIC = b"fLaC"

AudioCodec = Literal["pcm16", "flac"]
FrameRule = Literal["time", "official", "given"]
Require = Literal["both", "audio", "video"]

MDS_COLUMNS = {
    "clip_id": "str",
    "source": "str",
    "start_s": "float64",
    "audio": "bytes",  # little-endian int16, or a FLAC file of the same samples
    "n_samples": "uint32",
    "frames": "bytes",  # F JPEG files, one after another
    "frame_offsets": "bytes",  # little-endian uint32 [F + 1]; frame k is frames[offsets[k] : offsets[k + 1]]
    "frame_times": "bytes",  # little-endian float32 [F]
    "labels": "bytes",  # little-endian int32 [any]; MDS cannot hold an empty ndarray, so none of these is one
    "flags": "uint16",
}
COLUMNS_WITH_TARGETS = MDS_COLUMNS | {"targets": "bytes"}  # see targets.py
COLUMNS_OF_SCHEMA_1 = MDS_COLUMNS | {
    "frame_offsets": f"ndarray:uint32:{FRAMES_PER_CLIP + 1}",
    "frame_times": f"ndarray:float32:{FRAMES_PER_CLIP}",
}
KNOWN_COLUMNS = (MDS_COLUMNS, COLUMNS_WITH_TARGETS, COLUMNS_OF_SCHEMA_1)


class Damage(str, Enum):
    """What of a data set was found damaged while training; the value is the name of its curve."""

    SHARD = "shard"  # its bytes are not those that were written
    RECORD = "record"  # its columns do not fit the shard
    SOUND = "sound"
    FRAME = "frame"
    LABELS = "labels"


class DamagedClip(DataError):
    """A record was read and part of it does not decode."""

    damage = Damage.RECORD


class ClipFlag(IntFlag):
    """What is unusual about a clip that was kept all the same."""

    SHORT = 1  # sound or picture covers less than 95 % of the clip length
    SILENT = 2  # every sample is zero
    ROTATED = 4  # the container asked for a rotation or a mirror image, which was applied
    AV_OFFSET_FILLED = 8  # silence stands where the sound track had a gap or began late
    REPEATED_FRAMES = 16  # one source frame was on screen at more than one of the times
    SOME_CORRUPT_FRAMES = 32  # some packets did not decode; none of those frames was chosen
    VARIABLE_RATE = 64  # frames are not equally spaced in time
    NO_SOUND = 128  # no audio samples are stored
    NO_PICTURE = 256  # no frames are stored

    @classmethod
    def those(cls, applies: Mapping["ClipFlag", bool]) -> "ClipFlag":
        """The flags that apply, as one value."""
        return cls(sum(flag for flag, does in applies.items() if does))


def flag_names(flags: ClipFlag) -> list[str]:
    """Lower-case words for people: "short", "repeated frames", ..."""
    return [str(flag.name).lower().replace("_", " ") for flag in ClipFlag if flags & flag]


@dataclass(frozen=True)
class ClipRecord:
    """One clip as it is stored.

    audio: int16 [n], mono at AUDIO_RATE_HZ, never padded; n = 0: no sound.
    frames: F JPEG files, none of a clip without video; frame_times: presentation time of each, seconds from clip start.
    labels: int32 [any], class ids. start_s: where the clip begins in its source, seconds.
    targets: what pack_targets gives; None where the data set has no such column.
    """

    clip_id: str
    source: str
    start_s: float
    audio: np.ndarray
    frames: tuple[bytes, ...]
    frame_times: tuple[float, ...]
    labels: np.ndarray
    flags: ClipFlag
    targets: bytes | None = None

    def to_mds(self, audio_codec: AudioCodec = "pcm16") -> dict[str, Any]:
        """The sample for `MDSWriter(columns=MDS_COLUMNS)`, or COLUMNS_WITH_TARGETS."""
        offsets = np.cumsum([0, *map(len, self.frames)]).astype("<u4")  # [F + 1]
        as_flac = audio_codec == "flac" and len(self.audio) > 0
        sample = {
            "clip_id": self.clip_id,
            "source": self.source,
            "start_s": self.start_s,
            "audio": _flac(self.audio) if as_flac else self.audio.astype("<i2").tobytes(),
            "n_samples": len(self.audio),
            "frames": b"".join(self.frames),
            "frame_offsets": offsets.tobytes(),
            "frame_times": np.array(self.frame_times, "<f4").tobytes(),
            "labels": self.labels.astype("<i4").tobytes(),
            "flags": int(self.flags),
        }
        return sample if self.targets is None else sample | {"targets": self.targets}


def audio_of(sample: Mapping[str, Any], first_sample: int = 0, samples: int | None = None) -> np.ndarray:
    """Sound of an MDS sample: int16 [n], or `samples` of it from first_sample on, which lie within the clip.

    Raises DataError when it is not n_samples of sound. Of FLAC no more is decoded than is asked for.
    The bytes tell which codec it is; plain samples that happen to begin like a FLAC file are still read as such.
    """
    audio, expected = sample["audio"], int(sample["n_samples"])
    samples = expected if samples is None else samples
    if audio.startswith(FLAC_MAGIC):
        with suppress(soundfile.SoundFileError), soundfile.SoundFile(io.BytesIO(audio)) as file:
            if (file.frames, file.channels, file.samplerate) == (expected, 1, AUDIO_RATE_HZ):
                if first_sample:
                    file.seek(first_sample)
                decoded = file.read(samples, dtype="int16")
                if len(decoded) == samples:
                    return decoded
    if len(audio) != 2 * expected:
        raise damaged(Damage.SOUND, sample, f"has {len(audio)} bytes of sound that are not {expected} samples")
    return np.frombuffer(audio, "<i2")[first_sample : first_sample + samples]


def _flac(samples: np.ndarray) -> bytes:
    """A FLAC file of int16 [n] samples, lossless."""
    file = io.BytesIO()
    soundfile.write(file, samples, AUDIO_RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def frame_count(sample: Mapping[str, Any]) -> int:
    """F, the frames that the sample holds. Raises DataError when its offsets are no whole numbers."""
    return max(len(_numbers(sample, "frame_offsets", "<u4")) - 1, 0)


def frame_times_of(sample: Mapping[str, Any]) -> np.ndarray:
    """When each frame was on screen, s from clip start: float32 [F]. Raises DataError unless each frame has one."""
    times, frames = _numbers(sample, "frame_times", "<f4"), frame_count(sample)
    if len(times) != frames:
        raise damaged(Damage.FRAME, sample, f"has {len(times)} times of {frames} frames")
    return times


def _numbers(sample: Mapping[str, Any], column: str, kind: str) -> Any:
    """A column of four-byte numbers: bytes in schema 2, an array in schema 1."""
    values = sample[column]
    if not isinstance(values, bytes):
        return values
    if len(values) % 4:
        raise damaged(Damage.FRAME, sample, f"has {len(values)} bytes of {column}, expected a multiple of 4")
    return np.frombuffer(values, kind)


def frame_jpeg(sample: Mapping[str, Any], k: int) -> bytes:
    """JPEG file of frame k of those that the sample holds. Raises DataError when there is none or it cannot be."""
    offsets = _numbers(sample, "frame_offsets", "<u4")
    if not 0 <= k < len(offsets) - 1:
        raise no_such_frame(sample["clip_id"], k, max(len(offsets) - 1, 0))
    start, stop = (int(offset) for offset in offsets[k : k + 2])
    if not start < stop <= len(sample["frames"]):
        where = f"at bytes {start} to {stop} of {len(sample['frames'])}"
        raise damaged(Damage.FRAME, sample, f"keeps frame {_number(sample, k)} {where}, which cannot be")
    return sample["frames"][start:stop]


def decode_frame(jpeg: bytes) -> np.ndarray:
    """uint8 [H, W, 3] RGB; grey and CMYK files are converted.

    Raises DataError for anything but a whole JPEG file: a truncated one is never completed with grey.
    """
    try:
        if simplejpeg.decode_jpeg_header(jpeg, strict=True)[2] in ("CMYK", "YCCK"):
            with Image.open(io.BytesIO(jpeg)) as image:  # libjpeg-turbo has no CMYK to RGB
                return np.asarray(image.convert("RGB"))
        return simplejpeg.decode_jpeg(jpeg, "RGB", strict=True)
    except (ValueError, OSError) as error:
        raise DataError(
            f"a frame of {len(jpeg)} bytes is not a whole JPEG file ({error}); prepare this data set again"
        ) from error


def frame_of(sample: Mapping[str, Any], k: int) -> np.ndarray:
    """Frame k of an MDS sample: uint8 [H, W, 3]. Raises DataError naming the clip when damaged."""
    jpeg = frame_jpeg(sample, k)
    try:
        return decode_frame(jpeg)
    except DataError as error:
        what = f"keeps a frame {_number(sample, k)} that does not decode: {error.__cause__}"
        raise damaged(Damage.FRAME, sample, what) from error


def _number(sample: Mapping[str, Any], k: int) -> int:
    """Of the sample's frame k in the record: they differ where only some of its frames were read."""
    return sample["frame_numbers"][k] if "frame_numbers" in sample else k


def labels_of(sample: Mapping[str, Any]) -> np.ndarray:
    """Class ids: int32 [any], maybe none. Raises DataError when the bytes are no whole numbers."""
    if len(sample["labels"]) % 4:
        raise damaged(Damage.LABELS, sample, f"has {len(sample['labels'])} bytes of labels, expected a multiple of 4")
    return np.frombuffer(sample["labels"], "<i4")


def damaged(damage: Damage, sample: Mapping[str, Any], what: str) -> DamagedClip:
    """The error that names a clip and what is wrong with it."""
    error = DamagedClip(f"clip {sample['clip_id']!r} {what}; the shard is damaged, prepare this data set again")
    error.damage = damage
    return error


def no_such_frame(clip_id: str, k: int, frames: int) -> DamagedClip:
    """The error for a frame that a whole clip does not have."""
    error = DamagedClip(
        f"clip {clip_id!r} has {frames} frames, so no frame {k}; prepare this data set with more frames"
    )
    error.damage = Damage.FRAME
    return error
