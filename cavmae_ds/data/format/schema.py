"""What one clip looks like in a shard, and what the manifest beside the shards says.

Letters: n = sound samples of a clip; H, W = height and width of a frame in pixels.
Source of the columns: spec data-path.md section 5.
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
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from cavmae_ds.errors import DataError, shortened

SCHEMA_VERSION: Literal[1] = 1
AUDIO_RATE_HZ = 16_000
MIN_COMMON_SECONDS = 1.0  # sound and picture must be there together for so long
CLIP_SECONDS = 10.0
FRAMES_PER_CLIP = 10
FLAC_MAGIC = b"fLaC"

AudioCodec = Literal["pcm16", "flac"]
FrameRule = Literal["time", "official", "given"]

MDS_COLUMNS = {
    "clip_id": "str",
    "source": "str",
    "start_s": "float64",
    "audio": "bytes",  # little-endian int16, or a FLAC file of the same samples
    "n_samples": "uint32",
    "frames": "bytes",
    "frame_offsets": f"ndarray:uint32:{FRAMES_PER_CLIP + 1}",
    "frame_times": f"ndarray:float32:{FRAMES_PER_CLIP}",
    "labels": "bytes",  # MDS cannot hold an empty ndarray, and a clip may have no label
    "flags": "uint16",
}


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
    REPEATED_FRAMES = 16  # one source frame was on screen at more than one of the ten times
    SOME_CORRUPT_FRAMES = 32  # some packets did not decode; none of those frames was chosen
    VARIABLE_RATE = 64  # frames are not equally spaced in time

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

    audio: int16 [n], mono at AUDIO_RATE_HZ, never padded.
    frames: FRAMES_PER_CLIP JPEG files; frame_times: presentation time of each, seconds from clip start.
    labels: int32 [any], class ids. start_s: where the clip begins in its source, seconds.
    """

    clip_id: str
    source: str
    start_s: float
    audio: np.ndarray
    frames: tuple[bytes, ...]
    frame_times: tuple[float, ...]
    labels: np.ndarray
    flags: ClipFlag

    def to_mds(self, audio_codec: AudioCodec = "pcm16") -> dict[str, Any]:
        """The sample for `MDSWriter(columns=MDS_COLUMNS)`."""
        offsets = np.cumsum([0, *map(len, self.frames)], dtype=np.uint32)  # [FRAMES_PER_CLIP + 1]
        return {
            "clip_id": self.clip_id,
            "source": self.source,
            "start_s": self.start_s,
            "audio": _flac(self.audio) if audio_codec == "flac" else self.audio.astype("<i2").tobytes(),
            "n_samples": len(self.audio),
            "frames": b"".join(self.frames),
            "frame_offsets": offsets,
            "frame_times": np.array(self.frame_times, np.float32),
            "labels": self.labels.astype("<i4").tobytes(),
            "flags": int(self.flags),
        }


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
    """F, the frames that the sample holds."""
    return len(sample["frame_offsets"]) - 1


def frame_times_of(sample: Mapping[str, Any]) -> np.ndarray:
    """When each frame was on screen, s from clip start: float32 [F]."""
    return sample["frame_times"]


def frame_jpeg(sample: Mapping[str, Any], k: int) -> bytes:
    """JPEG file of frame k of those that the sample holds. Raises DataError when the offsets do not fit."""
    frames = frame_count(sample)
    if not 0 <= k < frames:
        raise IndexError(f"frame {k} of a clip of {frames}")
    start, stop = (int(offset) for offset in sample["frame_offsets"][k : k + 2])
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
    error = DamagedClip(f"clip {sample['clip_id']!r} {what}; the shard is damaged, prepare this data set again")
    error.damage = damage
    return error


class DataSetFacts(BaseModel):
    """What holds for every clip of a data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    audio_codec: AudioCodec = "pcm16"
    audio_rate_hz: int = AUDIO_RATE_HZ
    channel: Literal["first", "mean"]
    audio_track: PositiveInt = 1  # of the sound tracks of an input; 1 is the first
    clip_seconds: PositiveFloat
    windows: bool = False  # longer inputs were cut into clips of this length; else only their beginning is here
    frame_size: PositiveInt  # pixels, height = width
    frames_per_clip: int = FRAMES_PER_CLIP
    frame_rule: FrameRule = "time"  # how the frames were chosen; "given": not by us
    jpeg_quality: int | None  # None: images are stored as they came
    classes: tuple[str, ...]  # label k of a clip means classes[k]
    class_ids: tuple[str, ...] = ()  # official id (mid) of each class; empty: none known


class Manifest(DataSetFacts):
    """manifest.json: how every clip of a data set was made, and how many there are."""

    schema_version: Literal[1] = SCHEMA_VERSION
    clips: NonNegativeInt
    rejected: dict[str, NonNegativeInt]  # inputs turned away, by RejectCode
    tool_versions: dict[str, str]

    @classmethod
    def read(cls, content: bytes) -> "Manifest":
        """Parses manifest.json. Raises DataError naming the field that does not fit."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(
                f"manifest.json does not describe a data set of this version: {shortened(where)}: {first['msg']}, "
                f"got {str(first.get('input'))[:80]!r}; prepare the data set again"
            ) from error
