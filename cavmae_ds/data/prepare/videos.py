"""Videos to a data set: which inputs, which reader, and what holds for every clip."""

from pathlib import Path

from cavmae_ds.data.format.manifest import DataSetFacts
from cavmae_ds.data.prepare.building import (
    ALONE,
    DEFAULT_MAX_BAD_SHARE,
    PartsMissing,
    Progress,
    Share,
    build_data_set,
    silent,
)
from cavmae_ds.data.prepare.inputs import find_inputs
from cavmae_ds.data.prepare.media import read_clip, split_video
from cavmae_ds.data.prepare.publishing import PrepareReport
from cavmae_ds.data.prepare.settings import PrepareSettings


def prepare(
    source: Path,
    out: str | Path,
    settings: PrepareSettings,
    *,
    workers: int,
    share: Share = ALONE,
    max_bad_share: float = DEFAULT_MAX_BAD_SHARE,
    progress: Progress = silent,
) -> PrepareReport | PartsMissing:
    """Prepares all videos of `source` (see find_inputs) into a data set at `out` (see build_data_set)."""
    inputs, classes = find_inputs(source, settings.classes)
    facts = DataSetFacts(
        audio_codec=settings.audio_codec,
        channel=settings.channel,
        audio_track=settings.audio_track,
        clip_seconds=settings.clip_seconds,
        windows=settings.windows,
        frame_size=None if settings.short_side else settings.frame_size,
        short_side=settings.short_side,
        frames_per_clip=None if settings.frames_per_second else settings.frames,
        frames_per_second=settings.frames_per_second,
        require=settings.require,
        frame_rule=settings.frame_rule,
        jpeg_quality=settings.jpeg_quality,
        classes=classes,
    )
    return build_data_set(
        out,
        inputs,
        read_clip,
        settings,
        facts,
        workers=workers,
        split=split_video if settings.windows else None,
        share=share,
        max_bad_share=max_bad_share,
        progress=progress,
    )
