"""RUN/config.yaml: the settings a run goes on with; those it had before stay beside it."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.config.load import to_yaml
from cavmae_ds.config.sections.run import RunConfig

CONFIG = "config.yaml"


def write_config(cfg: RunConfig, step: int) -> None:
    """Write RUN/config.yaml for the steps after `step`.

    If it held other settings, they stay as config-until-step-N.yaml. No earlier file is overwritten.
    """
    path, content = cfg.run_dir / CONFIG, to_yaml(cfg)
    if path.is_file() and path.read_bytes() != content.encode():
        _unused(cfg.run_dir, f"config-until-step-{step:08d}").write_bytes(path.read_bytes())
    with written_whole(path) as unfinished:
        unfinished.write_text(content, encoding="utf-8")


def _unused(folder: Path, stem: str) -> Path:
    paths = (folder / (f"{stem}-{number}.yaml" if number > 1 else f"{stem}.yaml") for number in count(1))
    return next(path for path in paths if not path.exists())
