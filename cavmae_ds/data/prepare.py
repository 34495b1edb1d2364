"""Videos to a data set: which inputs, which reader, and what holds for every clip."""

from pathlib import Path

from cavmae_ds.data.building import DEFAULT_MAX_BAD_SHARE, PrepareReport, Progress, build_data_set, silent
from cavmae_ds.data.inputs import find_inputs
from cavmae_ds.data.media import read_clip
from cavmae_ds.data.schema import DataSetFacts
from cavmae_ds.data.settings import PrepareSettings


def prepare(
    source: Path,
    out: str | Path,
    settings: PrepareSettings,
    *,
    workers: int,
    max_bad_share: float = DEFAULT_MAX_BAD_SHARE,
    progress: Progress = silent,
) -> PrepareReport:
    """Prepares all videos of `source` (see find_inputs) into a data set at `out` (see build_data_set)."""
    inputs, classes = find_inputs(source, settings.classes)
    facts = DataSetFacts(
        audio_codec=settings.audio_codec,
        channel=settings.channel,
        clip_seconds=settings.clip_seconds,
        frame_size=settings.frame_size,
        jpeg_quality=settings.jpeg_quality,
        classes=classes,
    )
    return build_data_set(
        out, inputs, read_clip, settings, facts, workers=workers, max_bad_share=max_bad_share, progress=progress
    )
