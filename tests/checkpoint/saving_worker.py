"""Started on every rank: saves and restores as its arguments say, one after the other, and prints what came of it.

First a JSON object (the fields of Setting); then save=STEP, begin=STEP (without waiting), wait, restore,
sent=SECONDS (wait so long for the bucket), seen=FILE (go on when there is such a file)
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.checkpoint import writer
from cavmae_ds.checkpoint.bucket import open_bucket
from cavmae_ds.checkpoint.folder import checkpoint_root
from cavmae_ds.checkpoint.layout import MASTER, Piece, PieceReader
from cavmae_ds.checkpoint.manifest import Manifest
from cavmae_ds.checkpoint.restoring import FilePath, restore
from cavmae_ds.checkpoint.retention import Retention
from cavmae_ds.checkpoint.shared_dir import find_disk
from cavmae_ds.checkpoint.uploads import Uploads
from cavmae_ds.checkpoint.writer import Writer
from cavmae_ds.distributed.process_group import World, close_world, open_world
from cavmae_ds.errors import CheckpointError


class Setting(NamedTuple):
    run_dir: str
    address: str = ""
    elements: int = 1000  # of each rank
    keep_last: int = 9
    own_disks: bool = False  # every rank is a host of its own and sees no other's folder
    limit_s: float = writer.SAVE_LIMIT_S
    silent_rank: int = -1  # does not take part in saving


class Saver:
    """Everything a run has for its checkpoints, with a vector of the rank's own in place of an engine."""

    def __init__(self, setting: Setting, world: World):
        self.setting, self.world = setting, world
        run_dir = Path(setting.run_dir, f"host-{world.rank}") if setting.own_disks else Path(setting.run_dir)
        keep = Retention(setting.keep_last)
        self.disk = find_disk(checkpoint_root(run_dir), world)
        self.bucket = open_bucket(setting.address) if setting.address else None
        self.uploads = Uploads(self.bucket, self.disk, world, keep) if self.bucket else None
        self.writer = Writer(self.disk, world, keep, self.uploads)

    def begin(self, step: int) -> None:
        if self.world.rank == self.setting.silent_rank:
            return
        values = torch.full((self.setting.elements,), self.value(step))
        pieces = [Piece(MASTER, "weight", self.offset, values)]
        manifest = Manifest(step=step, clips_seen=8 * step, ranks=self.world.size, zero_stage=2, states=[MASTER])
        self.writer.begin(step, pieces, manifest)

    def restore(self) -> None:
        found = restore(self.disk, self.bucket, self.world, lambda manifest, address: None, self._find)
        if found is None:
            self.say("nothing to restore")
            return
        manifest, reader = found
        values = torch.empty(self.setting.elements)
        reader.read(MASTER, "weight", self.offset, values)
        assert (values == self.value(manifest.step)).all()
        self.say(f"restored {manifest.step}")

    def _find(self, manifest: Manifest, path: FilePath) -> PieceReader:
        reader = PieceReader(sorted(manifest.files), path, self.world.rank, self.world.size)
        reader.locate(MASTER, "weight", self.offset, self.setting.elements)
        return reader

    @property
    def offset(self) -> int:
        return self.world.rank * self.setting.elements

    def value(self, step: int) -> float:
        return 10.0 * step + self.world.rank

    def tell_outcomes(self) -> None:
        for outcome in self.writer.finished():
            assert (outcome.bytes == 0) == bool(outcome.failure)
            self.say(f"saved {outcome.step}" if not outcome.failure else f"failed {outcome.step}: {outcome.failure}")

    def say(self, text: str) -> None:
        print(f"rank {self.world.rank}: {text}", flush=True)  # noqa: T201

    def act(self, action: str) -> None:
        what, _, value = action.partition("=")
        if what in ("save", "begin"):
            self.begin(int(value))
        if what in ("save", "wait"):
            self.writer.wait()
            self.tell_outcomes()
        if what == "restore":
            self.restore()
        if what == "sent":
            assert self.uploads
            self.say(self.uploads.wait(float(value)) or "sent")
        if what == "seen":
            while not Path(value).exists():
                time.sleep(0.01)


def main() -> None:
    given, *actions = [word for word in sys.argv[1:] if "--local_rank" not in word]
    setting = Setting(**json.loads(given))
    writer.SAVE_LIMIT_S = setting.limit_s
    if setting.own_disks:
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    world = open_world()
    logging.basicConfig(level=logging.INFO if world.is_first else logging.ERROR, format="%(message)s")
    saver = Saver(setting, world)
    try:
        for action in actions:
            saver.act(action)
    except CheckpointError as error:
        saver.say(f"refused: {error}")
    finally:
        saver.writer.close()
        close_world()


if __name__ == "__main__":
    main()
