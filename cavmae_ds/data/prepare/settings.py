"""What decides the content of a data set, beside its inputs.

Kept apart from the code that acts on it: decoding processes load this and not the shard writer.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cavmae_ds.data.format.schema import CLIP_SECONDS, FRAMES_PER_CLIP, MIN_COMMON_SECONDS, AudioCodec, Require

MIN_SHARE_OF_DECLARED = 0.9  # of the length that a file claims; with less it was cut short
MAX_FRAMES = 1800  # of one clip: thirty seconds at sixty a second
MAX_FRAMES_PER_SECOND = 60.0
MIN_FRAMES_PER_SECOND = 0.1
SHORT_BELOW_SHARE = 0.95  # of the clip length: see ClipFlag.SHORT


class ClipSettings(BaseModel):
    """How a clip is cut, scaled and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame_size: int = Field(default=224, ge=16, le=1024)  # pixels, height = width
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    clip_seconds: float = Field(default=CLIP_SECONDS, ge=MIN_COMMON_SECONDS, le=30.0)
    channel: Literal["first", "mean"] = "first"
    keep_silent: bool = False
    max_frame_pixels: int = Field(default=7680 * 4320, ge=1)


class BuildSettings(ClipSettings):
    """The same for a whole data set, whatever its clips are made of."""

    audio_codec: AudioCodec = "pcm16"
    time_limit_s: float = Field(default=60.0, gt=0)  # for one clip, and for finding the windows of a file
    inputs_per_part: int = Field(default=256, ge=1)  # also the most work a kill can lose


class PrepareSettings(BuildSettings):
    """The same for videos."""

    frame_rule: Literal["time", "official"] = "time"
    frames: int = Field(default=FRAMES_PER_CLIP, ge=1, le=MAX_FRAMES)  # of a clip, at equal steps of its picture
    frames_per_second: float | None = Field(default=None, ge=MIN_FRAMES_PER_SECOND, le=MAX_FRAMES_PER_SECOND)
    short_side: int | None = Field(default=None, ge=16, le=1024)  # pixels, of whole frames; None: cut to frame_size
    require: Require = "both"  # what a clip must have; the other is left out where it cannot be had
    audio_track: int = Field(default=1, ge=1)  # of the sound tracks of a file; 1 is the first
    windows: bool = False  # cut longer videos into clips; else only their beginning is used
    classes: tuple[str, ...] | None = None  # fixes the numbers of the labels; None: sorted names

    @model_validator(mode="after")
    def _official_rule_fixes_the_frames(self) -> "PrepareSettings":
        if self.frame_rule == "official" and (self.frames != FRAMES_PER_CLIP or self.frames_per_second is not None):
            raise ValueError(f"the official frame rule picks {FRAMES_PER_CLIP} frames, neither more nor at a rate")
        return self
