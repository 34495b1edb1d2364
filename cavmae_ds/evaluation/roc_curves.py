"""The curves of a run, read back from its TensorBoard logs."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cavmae_ds.errors import DataError


def read_curves(run_dir: Path) -> dict[str, dict[int, float]]:
    """Tag -> optimizer step -> value; what a killed process wrote after its checkpoint gives way to the resumed run's.

    Raises DataError when the folder holds no logs.
    """
    folder = run_dir / "tensorboard"
    if not any(folder.glob("events.*")):
        raise DataError(f"no TensorBoard logs in {str(folder)!r}; is {str(run_dir)!r} a run folder?")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {point.step: point.value for point in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
