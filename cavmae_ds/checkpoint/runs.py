"""The checkpoints of one run: what a training loop saves to and resumes from."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from cavmae_ds.checkpoint.bucket import open_bucket
from cavmae_ds.checkpoint.engine_state import EngineState
from cavmae_ds.checkpoint.folder import checkpoint_root
from cavmae_ds.checkpoint.identity import Resumption, check_same_run, identity
from cavmae_ds.checkpoint.lease import Lease
from cavmae_ds.checkpoint.manifest import DamagedCheckpoint, Manifest
from cavmae_ds.checkpoint.restoring import newest_first, restore
from cavmae_ds.checkpoint.retention import Retention
from cavmae_ds.checkpoint.rewinds import Rewinds
from cavmae_ds.checkpoint.shared_dir import Outcome, find_disk, told_by_first_rank
from cavmae_ds.checkpoint.uploads import Uploads
from cavmae_ds.checkpoint.writer import Writer
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.distributed.collectives import from_first_rank
from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.running_mean import RunningMean
from cavmae_ds.errors import CheckpointError
from cavmae_ds.tasks.run_plan import RunPlan

log = logging.getLogger(__name__)

UPLOAD_LIMIT_S = 600.0
"""So long a run that ends waits for its last checkpoint to be in the bucket."""


class Checkpoints:
    """Saves and resumes one engine: resume() first. All ranks call the same methods in the same order."""

    def __init__(
        self,
        cfg: RunConfig,
        numbers: RunPlan,
        world: World,
        engine: Any,
        means: Sequence[RunningMean],
        lease: Lease | None = None,
    ):
        """engine: freshly built; means: running means of its weights; lease: what changes of the bucket wait for.

        Raises CheckpointError if hosts do not share the run folder, and there is no bucket either, or if the run's
        rewinds cannot be read.
        """
        self._cfg, self._numbers, self._world, self._engine = cfg, numbers, world, engine
        self._state = EngineState(engine, means, world)
        self.rewinds = Rewinds(cfg.run_dir, world)
        """What this run has gone back from."""
        self._disk = find_disk(checkpoint_root(cfg.run_dir), world)
        address = cfg.checkpoint.address
        self._bucket = open_bucket(address) if address else None
        if self._bucket and lease:
            self._bucket.before_change = lease.confirm
        if not (self._disk.shared or self._bucket):
            raise CheckpointError(
                f"the {world.hosts} hosts do not see the same run_dir {str(cfg.run_dir)!r}, and a checkpoint needs the "
                "files of all; put it on a file system that they share, or set checkpoint.address to s3://bucket/prefix"
            )
        keep = Retention(cfg.checkpoint.keep_last, cfg.checkpoint.keep_every)
        self._uploads = Uploads(self._bucket, self._disk, world, keep) if self._bucket else None
        self._writer = Writer(self._disk, world, keep, self._uploads)
        self._saved_step, self._saved_at = 0, time.monotonic()
        self._newest = 0
        """The newest step of which there is a checkpoint."""
        self._outcomes: list[Outcome] = []
        self.resumption = Resumption([], [])
        """What differs from the checkpoint that was resumed."""

    def resume(self) -> int:
        """Load the newest whole checkpoint, if there is one; returns the optimizer steps done (0 for a fresh run).

        Any number of ranks at any ZeRO stage goes on with what any other saved. Raises CheckpointError if it was made
        for another model, seed or batch, or if no checkpoint is whole.
        """
        self._writer.wait()
        if self._uploads and not self._disk.shared:
            # The newest may lie here in parts, one on each host: only the bucket can put them together.
            self._uploads.wait(UPLOAD_LIMIT_S, rounds=1)
        found = restore(self._disk, self._bucket, self._world, self._fits, self._state.find)
        if found:
            manifest, reader = found
            self._state.load(manifest, reader)
            self.rewinds.adopt(manifest.rewinds)
            self._newest = self._saved_step = manifest.step
            before = f"ranks: {manifest.ranks}, ZeRO stage: {manifest.zero_stage}"
            log.info("resumed from step %d (%s)", manifest.step, before)
            for change in (one for one in self.resumption.changes if one.refusable):
                log.warning("%s from step %d on, as resume.allow says", change, manifest.step)
        return self._newest

    def overdue(self) -> bool:
        """Whether this rank's clock asks for a save (checkpoint.every_minutes)."""
        minutes = self._cfg.checkpoint.every_minutes
        return minutes > 0 and time.monotonic() - self._saved_at > 60 * minutes

    def due(self, step: int, overdue: bool) -> bool:
        """Whether to save after `step` optimizer steps. overdue: what was true on any rank one step before."""
        return step % self._cfg.checkpoint.every_steps == 0 or (overdue and step > self._saved_step + 1)

    def save(self, step: int) -> None:
        """Save the state after `step` optimizer steps in the background; returns when it has been copied.

        A save that fails is reported by finished(), and training goes on.
        """
        self._saved_step, self._saved_at = step, time.monotonic()
        self._writer.wait()  # the copies of the save before are written from the same memory
        self._writer.begin(step, self._state.pieces(), self._manifest(step))

    def save_and_wait(self, step: int, last: bool = True) -> None:
        """See to it that there is a checkpoint of this step on the disk. Raises CheckpointError if there is none.

        It should also get to the bucket: the last of a run must, one of a run that will go on has watch.grace_seconds.
        """
        if self._settled() != step:
            self.save(step)
            if self._settled() != step:
                failure = self._outcomes[-1].failure
                raise CheckpointError(f"the checkpoint of step {step} could not be saved: {failure}")
        limit_s = UPLOAD_LIMIT_S if last else self._cfg.watch.grace_seconds / 2
        missing = self._uploads.wait(limit_s) if self._uploads else ""
        if missing:
            said = (
                f"the checkpoint of step {step} is in {str(self._disk.root)!r}, but not in "
                f"{self._cfg.checkpoint.address}: {missing}; the same command sends it"
            )
            if last:
                raise CheckpointError(said)
            log.warning("%s", said)

    def finished(self) -> list[Outcome]:
        """Saves that have ended since this was last asked, and those that have come to the bucket."""
        self._note()
        outcomes = self._outcomes + (self._uploads.finished() if self._uploads else [])
        self._outcomes = []
        return outcomes

    def _settled(self) -> int:
        """The newest step of which there is a checkpoint when no save is going on, the same on every rank."""
        self._writer.wait()
        self._note()
        return from_first_rank(self._newest)

    def _note(self) -> None:
        for outcome in self._writer.finished():
            self._outcomes.append(outcome)
            if not outcome.failure:
                self._newest = outcome.step

    def close(self) -> None:
        """End of the run: a save that is going on gets a moment."""
        self._writer.close()

    def before(self, step: int) -> bool:
        """Whether there is a checkpoint of fewer optimizer steps. All ranks together."""
        found = told_by_first_rank(self._world, lambda: newest_first(self._disk, self._bucket))
        return any(saved < step for saved, _ in found)

    def _fits(self, manifest: Manifest, address: str) -> None:
        self.resumption = check_same_run(manifest, self._cfg, self._numbers, address)
        if self.rewinds.left_behind(manifest):
            raise DamagedCheckpoint(f"checkpoint {address!r} is of steps that the run has gone back from")

    def _manifest(self, step: int) -> Manifest:
        """All but the files."""
        return Manifest(
            step=step,
            clips_seen=step * self._cfg.train.global_batch,
            ranks=self._world.size,
            zero_stage=self._engine.zero_optimization_stage(),
            states=self._state.states(),
            scalars=self._state.scalars(),
            identity=identity(self._cfg, self._numbers, self.resumption.used),
            rewinds=self.rewinds.all,
            parameters=self._state.parameters(),
            config=self._cfg.model_dump(mode="json"),
        )
