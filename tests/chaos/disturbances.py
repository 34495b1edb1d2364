"""What can happen to a run: each disturbs it once, and returns when the run has noticed, or has been started again."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cavmae_ds.checkpoint import checkpoint_root
from tests.chaos.supervised import SupervisedRun
from tests.s3_server import RestartableServer

RESUMED = "resumed from step"


@dataclass(frozen=True)
class Scene:
    """Who can be disturbed."""

    run: SupervisedRun
    server: RestartableServer
    chance: random.Random


def kill_a_rank(scene: Scene) -> None:
    with scene.run.says(RESUMED):
        scene.chance.choice(scene.run.ranks()).kill()


def kill_a_rank_in_a_save(scene: Scene) -> None:
    rank = scene.chance.choice(scene.run.ranks())
    with scene.run.says(RESUMED):
        until_a_save_begins(scene)
        rank.kill()


def kill_deepspeeds_launcher(scene: Scene) -> None:
    with scene.run.says(RESUMED):
        scene.run.launcher().kill()


def kill_the_supervisor(scene: Scene) -> None:
    with scene.run.says(RESUMED):
        scene.run.supervisor.kill()


def kill_a_loader_worker(scene: Scene) -> None:
    with scene.run.says(RESUMED):
        scene.chance.choice(scene.run.workers()).kill()


def sigterm(scene: Scene) -> None:
    with scene.run.says(RESUMED):
        scene.run.supervisor.terminate()


def sigusr1_to_one_rank(scene: Scene) -> None:
    with scene.run.says(RESUMED):
        scene.chance.choice(scene.run.ranks()).send_signal(signal.SIGUSR1)


def freeze_a_rank_for_good(scene: Scene) -> None:
    with scene.run.says(RESUMED), scene.run.says("gave no sign of life"):
        scene.chance.choice(scene.run.ranks()).suspend()


def freeze_a_rank_for_a_moment(scene: Scene) -> None:
    rank = scene.chance.choice(scene.run.ranks())
    rank.suspend()
    time.sleep(3)
    rank.resume()


def full_disk(scene: Scene) -> None:
    until_a_save_begins(scene)  # then there is no telling how far it comes
    filler = checkpoint_root(scene.run.run_dir) / "filler"
    try:
        with scene.run.says("could not be saved"), filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
    finally:
        filler.unlink()


def bucket_away_while_saving(scene: Scene) -> None:
    until_a_save_begins(scene)
    bucket_away(scene, "sending a checkpoint failed")


def bucket_away_while_reading(scene: Scene) -> None:
    bucket_away(scene, "fetching shard")


def bucket_away_at_a_start(scene: Scene) -> None:
    with scene.run.says(RESUMED):
        scene.run.ranks()[1].kill()
        bucket_away(scene, "opening s3://")


def bucket_away(scene: Scene, sentence: str) -> None:
    """The server is gone until the run says that it misses it."""
    try:
        with scene.run.says(sentence):
            scene.server.kill()
    finally:
        scene.server.start()


def until_a_save_begins(scene: Scene) -> None:
    root = checkpoint_root(scene.run.run_dir)
    scene.run.until(lambda: any(root.glob("*.partial")), "a save begins", look_s=0.001)


Disturbance = Callable[[Scene], None]
ALL: tuple[Disturbance, ...] = (
    kill_a_rank,
    kill_a_rank_in_a_save,
    kill_deepspeeds_launcher,
    kill_the_supervisor,
    kill_a_loader_worker,
    sigterm,
    sigusr1_to_one_rank,
    freeze_a_rank_for_good,
    freeze_a_rank_for_a_moment,
    full_disk,
    bucket_away_while_saving,
    bucket_away_while_reading,
    bucket_away_at_a_start,
)


def small_disk(folder: Path, size: str) -> bool:
    """Mount a file system of its own there; False where that is not allowed."""
    folder.mkdir(parents=True)
    options = ["-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True).returncode == 0
