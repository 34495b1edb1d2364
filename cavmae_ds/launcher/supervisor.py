"""Attempt after attempt, each from the last checkpoint, until the run is done or there is no point in going on."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cavmae_ds.checkpoint import whole_checkpoints
from cavmae_ds.checkpoint.bucket import PATIENCE_S, open_bucket
from cavmae_ds.checkpoint.folder import step_of
from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.config.sections.training import TrainConfig
from cavmae_ds.config.sections.watch import WatchConfig
from cavmae_ds.data.storage import open_store
from cavmae_ds.errors import DataError
from cavmae_ds.fault_tolerance.exit import ExitCode, say
from cavmae_ds.launcher.attempt import Asked, Attempt
from cavmae_ds.launcher.hosts import CONNECTION_LOST, Host, unreachable
from cavmae_ds.launcher.world_size import largest_shape
from cavmae_ds.retry import Backoff

_BACKOFF = Backoff(5.0, 300.0)
_GRACES = 2.0  # a rank hears of a stop when its step is over, and saves then
# Below the range that outgoing connections are given theirs from. One fixed port would be another run's, too.
_PORTS = range(20_000, 30_000)


@dataclass(frozen=True)
class Supervisor:
    """Sees a run through.

    program: what to start as each rank, arguments included. restarts: failures in a row, without a new checkpoint in
    between, that are forgiven. port: where ranks meet, 0 for another one in each attempt. address: checkpoint.address.
    """

    program: Sequence[str]
    hosts: Sequence[Host]
    restarts: int
    min_hosts: int
    port: int = 0
    _: KW_ONLY
    run_dir: Path
    address: str
    train: TrainConfig
    data: DataConfig
    watch: WatchConfig

    def run(self) -> int:
        """The exit code: 0 done; 2 refused, 75 stopped early, 130 quit; else that of the last of too many failures."""
        failures, before = 0, self._saved_step()
        with Asked().listening() as asked:
            while True:
                code = self._attempt(asked)
                if asked.ever or code in (ExitCode.DONE, ExitCode.REFUSED, ExitCode.STOPPED, ExitCode.QUIT):
                    return self._stopped(code) if asked.ever else code
                saved = self._saved_step()
                failures, before = 1 if saved > before else failures + 1, saved
                if failures > self.restarts:
                    _tell(f"giving up after {failures} failures without a checkpoint in between (--restarts)")
                    return code
                pause_s = _BACKOFF.pause_s(failures)
                _tell(f"restart {failures} of {self.restarts} from step {saved} in {pause_s:g} s")
                asked.pause(pause_s)
                self._await_shards(asked)
                if asked.ever:
                    return ExitCode.STOPPED

    def _attempt(self, asked: Asked) -> int:
        absent = unreachable(self.hosts)
        for name, said in absent.items():
            _tell(f"{name} does not answer: {said}")
        present = [host for host in self.hosts if host.name not in absent]
        if len(present) < self.min_hosts:
            _tell(f"{len(present)} of {len(self.hosts)} hosts are there, --min-hosts is {self.min_hosts}")
            return ExitCode.LOST
        train = self.train
        shape = largest_shape(
            [host.slots for host in present], self.min_hosts,
            global_batch=train.global_batch, micro_batch=train.micro_batch,
        )  # fmt: skip
        chosen = [host for host in present if host.slots >= shape.ranks_per_host][: shape.hosts]
        places = sum(host.slots for host in present)
        spare = f", not {places}: that would not divide train.global_batch = {train.global_batch} evenly"
        _tell(f"{shape}: {', '.join(host.name for host in chosen)}{spare if shape.ranks < places else ''}")
        codes = Attempt(
            self.program, chosen, shape, self.port or random.choice(_PORTS),
            self.watch.silence_seconds, _GRACES * self.watch.grace_seconds,
        ).wait(asked)  # fmt: skip
        if any(codes.values()):
            _tell(f"ended with exit code {', '.join(f'{code} on {name}' for name, code in codes.items())}")
        return summary(codes)

    def _stopped(self, code: int) -> int:
        if code not in (ExitCode.DONE, ExitCode.STOPPED):
            _tell(f"the ranks ended without a last checkpoint; the same command goes on from step {self._saved_step()}")
        return code if code in (ExitCode.DONE, ExitCode.REFUSED, ExitCode.QUIT) else ExitCode.STOPPED

    def _await_shards(self, asked: Asked) -> None:
        """Wait for buckets of shards that do not answer: ranks would take it for a mistake, and end for good."""
        data, until = self.data, time.monotonic() + PATIENCE_S
        for address in (data.train, data.validation, *(source.remote for source in data.sources)):
            while "://" in address and not asked.ever and time.monotonic() < until:
                try:
                    open_store(address, data.answer_timeout_s)
                    break
                except DataError as error:
                    _tell(f"waiting for the shards: {error}")
                    asked.pause(_BACKOFF.first_s)

    def _saved_step(self) -> int:
        """Of the newest checkpoint, in the run folder or the bucket."""
        steps = [step_of(folder.name) or 0 for folder in whole_checkpoints(self.run_dir)]
        with suppress(DataError):  # the bucket is away; the ranks will say so if they need it
            bucket = open_bucket(self.address)
            steps += bucket.steps() if bucket else []
        return max(steps, default=0)


def summary(codes: Mapping[str, int]) -> int:
    """What the exit codes of all hosts come to: a refusal, then a stop, then a defect outweigh the peers' losses."""
    said = set(codes.values())
    for code in (ExitCode.REFUSED, ExitCode.QUIT, ExitCode.STOPPED):
        if code in said:
            return code
    defects = said - {ExitCode.DONE, ExitCode.LOST, CONNECTION_LOST}
    return max(defects, default=ExitCode.LOST if any(said) else ExitCode.DONE)


def _tell(sentence: str) -> None:
    say(f"launch: {sentence}")
