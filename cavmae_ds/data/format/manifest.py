"""manifest.json: how every clip of a data set was made, and how many there are."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from cavmae_ds.data.format.schema import (
    AUDIO_RATE_HZ,
    FRAMES_PER_CLIP,
    SCHEMA_VERSION,
    AudioCodec,
    FrameRule,
    Require,
)
from cavmae_ds.errors import DataError, shortened


class DataSetFacts(BaseModel):
    """What holds for every clip of a data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    audio_codec: AudioCodec = "pcm16"
    audio_rate_hz: int = AUDIO_RATE_HZ
    channel: Literal["first", "mean"]
    audio_track: PositiveInt = 1  # of the sound tracks of an input; 1 is the first
    clip_seconds: PositiveFloat
    windows: bool = False  # longer inputs were cut into clips of this length; else only their beginning is here
    frame_size: PositiveInt | None  # pixels, height = width of a square cut; None: whole frames
    short_side: PositiveInt | None = None  # pixels, of whole frames; None: square cuts
    frames_per_clip: PositiveInt | None = FRAMES_PER_CLIP  # of each clip that has a picture; None: it varies
    frames_per_second: PositiveFloat | None = None  # None: frames_per_clip, spread over the clip
    frame_rule: FrameRule = "time"  # how the frames were chosen; "given": not by us
    require: Require = "both"  # what every clip has
    jpeg_quality: int | None  # None: images are stored as they came
    classes: tuple[str, ...]  # label k of a clip means classes[k]
    class_ids: tuple[str, ...] = ()  # official id (mid) of each class; empty: none known

    @model_validator(mode="after")
    def _has_one_size(self) -> DataSetFacts:
        if (self.frame_size is None) == (self.short_side is None):
            raise ValueError("one of frame_size and short_side must be a number, the other null")
        if (self.frames_per_clip is None) == (self.frames_per_second is None):
            raise ValueError("one of frames_per_clip and frames_per_second must be a number, the other null")
        return self


class Manifest(DataSetFacts):
    """The whole file, of schema 1 or 2. Schema 1 knows ten frames a clip, square cuts, and clips with both parts."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    clips: NonNegativeInt
    clips_without_audio: NonNegativeInt = 0
    clips_without_frames: NonNegativeInt = 0
    rejected: dict[str, NonNegativeInt]  # inputs turned away, by RejectCode
    tool_versions: dict[str, str]

    @model_validator(mode="after")
    def _fits_its_schema(self) -> Manifest:
        added = (self.short_side, self.frames_per_second, self.clips_without_audio, self.clips_without_frames)
        if self.schema_version == 1 and (any(added) or self.frames_per_clip != FRAMES_PER_CLIP):
            raise ValueError(f"schema 1 has {FRAMES_PER_CLIP} square frames and sound in every clip")
        if max(self.clips_without_audio, self.clips_without_frames) > self.clips:
            raise ValueError("more clips lack a part than there are")
        return self

    @classmethod
    def read(cls, content: bytes) -> Manifest:
        """Parses manifest.json. Raises DataError naming the field that does not fit."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where, what = ".".join(map(str, first["loc"])) or "the file", first["msg"].removeprefix("Value error, ")
            raise DataError(
                f"manifest.json does not describe a data set of this version: {shortened(where)}: {what}, "
                f"got {str(first.get('input'))[:80]!r}; prepare the data set again"
            ) from error
