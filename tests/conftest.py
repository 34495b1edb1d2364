"""Shared fixtures: real shards made from real videos."""

from __future__ import annotations

import os
import signal

import pytest

from tests.s3_server import s3_bucket, s3_server  # noqa: F401  one server for the whole session

os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory):
    """24 one-second clips of 4 classes as shards with frames of 64 pixels."""
    from cavmae_ds.data.prepare.videos import PrepareSettings, prepare
    from cavmae_ds.data.synthetic import synthesize

    folder = tmp_path_factory.mktemp("tiny")
    synthesize(folder / "videos", clips=24, classes=4, seconds=1.2, size=64, eval_share=0)
    prepare(folder / "videos" / "train.csv", str(folder / "shards"), PrepareSettings(frame_size=64), workers=2)
    return folder / "shards"


@pytest.fixture(scope="session")
def usual_videos(tmp_path_factory):
    """A folder of six videos, each of another encoder; treat them as read-only."""
    from tests.data.usual_videos import write_usual_videos

    return write_usual_videos(tmp_path_factory.mktemp("usual"))


def pytest_configure() -> None:
    """Children hear all signals, also where the suite runs behind nohup or a shell's &, which ignore some.

    A signal that is ignored stays so in children, one with a handler is back at its default.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs a GPU, or half an hour, says so and steps aside where there is none, or nobody asked."""
    import torch

    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))
        for long in ("matrix", "chaos"):
            if item.get_closest_marker(long) and config.option.markexpr != long:
                item.add_marker(pytest.mark.skip(reason=f"takes long; ask for it with -m {long}"))
    # The longest files first, so that two processes finish at about the same time.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
