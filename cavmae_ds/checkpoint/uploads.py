"""Finished checkpoints go to a bucket in the background: each rank sends its file, then the first rank the manifest.

This is done in rounds; what the ranks say to each other (r: a rank), each round under its number:

    step      rank 0 has chosen the newest checkpoint that is not there yet   -> all
    sent/r    r has sent its share of the files, or why not                   -> rank 0
    ended     the checkpoint is in the bucket, or why not                     -> all
    heard/r   r knows; the store is rank 0's, and goes with it                -> rank 0

After a round that failed comes a pause and another one, about the newest checkpoint of that time.
"""

from __future__ import annotations

import logging
import math
import time
from itertools import count
from pathlib import Path
from threading import Condition, Event, Thread

from cavmae_ds.checkpoint.bucket import Bucket
from cavmae_ds.checkpoint.folder import is_whole, read_manifest, step_name, whole_checkpoints_in
from cavmae_ds.checkpoint.manifest import Manifest
from cavmae_ds.checkpoint.retention import Retention
from cavmae_ds.checkpoint.shared_dir import Disk, Outcome, told_by_first_rank
from cavmae_ds.distributed.mailbox import Talk, Unheard
from cavmae_ds.distributed.process_group import World, is_lost_connection
from cavmae_ds.errors import CheckpointError, UserError
from cavmae_ds.retry import Backoff

log = logging.getLogger(__name__)

ROUND_LIMIT_S = 3600.0
"""A round has failed when another rank has said nothing for so long."""
_BACKOFF = Backoff(1.0, 60.0, jitter=0.25)
_HEARD_LIMIT_S = 5.0


class Uploads:
    """What is still to be sent, and the thread that sends it."""

    def __init__(self, bucket: Bucket, disk: Disk, world: World, keep: Retention):
        """All ranks call it. A checkpoint that the start before could not send is sent now."""
        self._bucket, self._disk, self._world, self._keep = bucket, disk, world, keep
        self._stop, self._changed = Event(), Condition()
        self._talk = Talk("uploads", self._stop)
        self._wanted, self._arrived = told_by_first_rank(world, self._left_over)
        self._written_before = self._wanted  # by a process that is no more
        self._failure, self._failures = "", 0  # why the last round failed, and how many did, one after the other
        self._outcomes: list[Outcome] = []
        self._sent: set[tuple[str, str]] = set()  # (stamp, file) of what need not be sent again
        self.in_use: set[int] = set()
        """Steps whose folders are being read; they must stay."""
        self._thread = Thread(target=self._run, daemon=True, name="upload")
        self._thread.start()

    def announce(self, manifest: Manifest) -> None:
        """A checkpoint has been finished; every rank says so."""
        with self._changed:
            self._wanted = manifest.stamp
            self._changed.notify_all()

    def wait(self, limit_s: float, rounds: float = math.inf) -> str:
        """Wait until the newest checkpoint is in the bucket; why it is not there in the end, or nothing.

        The end comes after limit_s, or when so many rounds have failed, one after the other.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._wanted == self._arrived or self._failures >= rounds, limit_s)
            return "" if self._wanted == self._arrived else self._failure or f"it takes longer than {limit_s:.0f} s"

    def finished(self) -> list[Outcome]:
        """Rounds that have ended since this was last asked, oldest first."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        """Stop sending; the next start goes on with it."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(5.0)

    def _left_over(self) -> tuple[str, str]:
        """The stamp of the newest checkpoint here, and once more if the bucket has one that is as new."""
        here, there = whole_checkpoints_in(self._disk.root), self._bucket.steps()
        try:
            newest = read_manifest(here[-1])
        except (CheckpointError, IndexError):  # none, or one that no run will go on from
            return "", ""
        return newest.stamp, newest.stamp if there and there[-1] >= newest.step else ""

    def _run(self) -> None:
        try:
            for number in count(1):
                with self._changed:
                    self._changed.wait_for(lambda: self._stop.is_set() or self._wanted != self._arrived)
                self._round(number)
        except Unheard:  # the run is ending
            return
        except Exception as error:
            if is_lost_connection(error):  # the first rank is gone: who that is the watch says
                return
            log.exception("checkpoints are no longer sent to %s", self._bucket.url)

    def _round(self, number: int) -> None:
        talk, started, aim = self._talk, time.monotonic(), self._wanted
        if self._world.is_first:
            talk.say(f"{number}/step", str(self._choose()))
        step = int(talk.hear(f"{number}/step"))
        self.in_use = {step}
        manifest, failure = self._send_share(self._disk.root / step_name(step))
        talk.say(f"{number}/sent/{self._world.rank}", failure)
        if self._world.is_first:
            talk.say(f"{number}/ended", self._publish(number, manifest))
        failure = talk.hear(f"{number}/ended", ROUND_LIMIT_S)
        talk.say(f"{number}/heard/{self._world.rank}", "")
        if self._world.is_first:
            talk.hear_all([f"{number}/heard/{rank}" for rank in range(self._world.size)], _HEARD_LIMIT_S)
            talk.forget(self._keys(number))
        self.in_use = set()
        size = manifest.bytes if manifest and not failure else 0
        self._outcomes.append(Outcome(step, failure, time.monotonic() - started, size, sent=True))
        with self._changed:
            self._failure, self._failures = failure, self._failures + 1 if failure else 0
            if manifest and not failure:
                self._arrived = manifest.stamp
                if self._wanted == aim:  # or that was set aside, and an older one sent
                    self._wanted = manifest.stamp
            self._changed.notify_all()

    def _choose(self) -> int:
        """The newest checkpoint here; after failures not at once."""
        while not self._stop.is_set():
            if self._failures:
                self._pause()
            try:
                newest = read_manifest(whole_checkpoints_in(self._disk.root)[-1])
                self._bucket.withdraw(newest.step)  # one of this step that was saved before a rewind
                return newest.step
            except (UserError, IndexError) as error:
                self._failure, self._failures = str(error), self._failures + 1
        raise Unheard("this rank is ending")

    def _pause(self) -> None:
        pause_s = _BACKOFF.pause_s(self._failures)
        log.warning("sending a checkpoint failed (%s), next attempt in %.0f s", self._failure, pause_s)
        self._stop.wait(pause_s)

    def _send_share(self, folder: Path) -> tuple[Manifest | None, str]:
        """This rank's part of the files that lie here, and why it was not sent."""
        sharers, rank = self._disk.sharers, self._world.rank
        try:
            manifest = read_manifest(folder)
            self._sent = {(stamp, name) for stamp, name in self._sent if stamp == manifest.stamp}
            here = [name for name in sorted(manifest.files) if (folder / name).is_file()]
            for name in here[sharers.index(rank) :: len(sharers)]:
                if (manifest.stamp, name) not in self._sent:
                    if manifest.stamp == self._written_before and not is_whole(folder / name, manifest.files[name]):
                        return None, f"rank {rank}: {folder / name} is not what was written"
                    self._bucket.put(manifest.step, folder / name)
                    self._sent.add((manifest.stamp, name))
        except (UserError, OSError) as error:
            return None, f"rank {rank}: {error}"
        return manifest, ""

    def _publish(self, number: int, manifest: Manifest | None) -> str:
        """Make a checkpoint of what all have sent; or why it is none."""
        try:
            for rank in range(self._world.size):
                if failure := self._talk.hear(f"{number}/sent/{rank}", ROUND_LIMIT_S):
                    return failure
            if manifest:
                self._bucket.publish(manifest)
                self._bucket.prune(self._keep, manifest.step)
        except (UserError, Unheard) as error:
            return str(error)
        return ""

    def _keys(self, number: int) -> list[str]:
        said_by_ranks = [f"{number}/{key}/{rank}" for key in ("sent", "heard") for rank in range(self._world.size)]
        return [f"{number}/step", f"{number}/ended", *said_by_ranks]
