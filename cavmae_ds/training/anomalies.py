"""Steps that went wrong: skipped ones are counted and their clips named, large gradients told, too many end the run.

That a step is skipped is decided on the device of every rank by the norm of the whole gradient (engine.take_step), so
all agree. Here nothing waits for the device on a good step: its norm is read when the next step has been taken.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.checkpoint.manifest import Rewind
from cavmae_ds.checkpoint.runs import Checkpoints
from cavmae_ds.config.sections.guard import GuardConfig
from cavmae_ds.distributed.collectives import from_all_ranks, mean_over_ranks
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import ConfigError, GuardError, for_display
from cavmae_ds.fault_tolerance.exit import GoneBack
from cavmae_ds.monitor.monitor import Monitor
from cavmae_ds.tasks.finite_check import Evidence
from cavmae_ds.tasks.task import StepOutput

NAMED_CLIPS = 8
"""So many clips are named in a line of the log; the folder has all."""


class RunningMedian:
    """Median of the last `window` numbers."""

    def __init__(self, window: int):
        self._last: deque[float] = deque(maxlen=window)
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._last)

    def add(self, value: float) -> None:
        """One number more, which is not NaN; the oldest one goes when the window is full."""
        if len(self._last) == self._last.maxlen:
            del self._sorted[bisect_left(self._sorted, self._last[0])]
        self._last.append(value)
        insort(self._sorted, value)

    @property
    def value(self) -> float:
        """The middle number, or the mean of the two middle ones. There must be one."""
        middle, odd = divmod(len(self._sorted), 2)
        return self._sorted[middle] if odd else (self._sorted[middle - 1] + self._sorted[middle]) / 2


class _Taken(NamedTuple):
    """The last step that was taken."""

    step: int
    grad_norm: Tensor | float  # on its way to the host
    loss: Tensor | float  # likewise, the mean over ranks; 0 without guard.rewind
    evidence: list[Evidence]


class Guard:
    """Told of every step, by all ranks alike; the first one speaks."""

    def __init__(
        self,
        cfg: GuardConfig,
        world: World,
        monitor: Monitor,
        checkpoints: Checkpoints,
        *,
        run_dir: Path,
        log_every: int,
        skipped: int,
    ):
        """skipped: steps of this run that were skipped before."""
        self._cfg, self._world, self._monitor, self._checkpoints = cfg, world, monitor, checkpoints
        self._run_dir, self._log_every = run_dir, log_every
        self._skipped, self._in_a_row, self._spikes = skipped, 0, 0
        self._norms = RunningMedian(cfg.spike_window)
        self._before: _Taken | None = None
        self._high = False
        self._losses = RunningMedian(cfg.spike_window)
        self._high_losses: list[int] = []

    def step_done(self, step: int, done: StepOutput) -> None:
        """Note one optimizer step (1-based).

        Raises, on all ranks, GuardError when the last guard.max_nonfinite_in_a_row steps were skipped, GoneBack when
        the loss has stayed high and guard.rewind is set.
        """
        counted = self._skipped, self._spikes
        if self._before and self._cfg.spike_factor:
            self._look_back(self._before)
        if self._before and self._cfg.rewind:
            self._judge_loss(self._before)
        self._before = None
        if done.skipped:
            self._name_clips(step, done.evidence)
        else:
            # Not waited for: the step after this one waits for its own norm, which comes later.
            loss = mean_over_ranks(done.loss) if self._cfg.rewind else 0.0
            self._before, self._in_a_row = _Taken(step, _fetched(done.grad_norm), _fetched(loss), done.evidence), 0
        if counted != (self._skipped, self._spikes) or step % self._log_every == 0:
            counts = {"guard/skipped_steps": float(self._skipped), "guard/gradient_spikes": float(self._spikes)}
            self._monitor.draw(step, counts)
        if self._in_a_row >= self._cfg.max_nonfinite_in_a_row:
            raise GuardError(
                f"the last {self._in_a_row} steps, to step {step}, had no finite loss or gradient and changed nothing "
                f"(guard.max_nonfinite_in_a_row); {str(self._folder('nonfinite'))!r} says what of which clips was not "
                "finite: look at those, or start again with a lower optim.learning_rate or with optim.clip_grad_norm"
            )

    def left_out(self, step: int) -> None:
        """Note a step whose update was left out after a rewind."""
        self._before, self._skipped = None, self._skipped + 1
        self._monitor.event(step, "left out")
        self._monitor.draw(step, {"guard/skipped_steps": float(self._skipped)})

    def _judge_loss(self, taken: _Taken) -> None:
        """Whether the loss has been far higher than usual for too long. All ranks judge the same number."""
        loss, cfg = float(taken.loss), self._cfg
        usual = self._losses.value if len(self._losses) >= cfg.spike_window // 4 else math.inf
        if loss <= cfg.rewind_factor * usual:
            self._losses.add(loss)
            self._high_losses.clear()
            return
        self._high_losses.append(taken.step)
        if len(self._high_losses) == cfg.rewind_after:
            self._go_back(Rewind(self._high_losses[0], taken.step), loss / usual)

    def _go_back(self, rewind: Rewind, factor: float) -> None:
        steps = f"the loss of steps {rewind.first} to {rewind.last} rose to {factor:.3g} times the median before"
        known = self._checkpoints.rewinds
        if len(known.all) >= self._cfg.max_rewinds:
            raise GuardError(
                f"{steps}, after {len(known.all)} rewinds (guard.max_rewinds); look at the clips of those steps, or "
                "start again with a lower optim.learning_rate or with optim.clip_grad_norm"
            )
        if not self._checkpoints.before(rewind.first):
            self._say(rewind.last, "no rewind", f"{steps}, and there is no checkpoint from before to go back to")
            return
        known.note(rewind)
        self._monitor.event(rewind.last, "rewind", first=rewind.first, last=rewind.last)
        raise GoneBack(
            f"{steps}; the same command goes on from the checkpoint before them and leaves their updates out"
        )

    def _name_clips(self, step: int, evidence: Sequence[Evidence]) -> None:
        """Of a skipped step those clips whose own numbers are not finite; without any all of the batch."""
        self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
        clips = list(_clips(evidence))
        guilty = [clip for clip in clips if not all(clip["finite"].values())]
        told = [_called(clip, self._world.rank) for clip in guilty]
        everywhere = [line for of_rank in from_all_ranks(told) for line in of_rank]
        if guilty or not everywhere:
            self._write("nonfinite", step, clips)
        whose = "of no clip by itself, all of the batch are listed"
        if everywhere:
            more = f" and {len(everywhere) - NAMED_CLIPS} more" if len(everywhere) > NAMED_CLIPS else ""
            whose = ", ".join(everywhere[:NAMED_CLIPS]) + more
        self._say(
            step, "skipped step",
            f"step {step} was skipped, its loss or gradient is not finite: {whose}; see {self._folder('nonfinite')}",
        )  # fmt: skip

    def _look_back(self, taken: _Taken) -> None:
        """Whether the gradient of a step was far larger than usual."""
        norm, cfg = float(taken.grad_norm), self._cfg
        usual = self._norms.value if len(self._norms) >= cfg.spike_window // 4 else 0.0
        self._norms.add(norm)
        high_before, self._high = self._high, 0 < usual < norm / cfg.spike_factor
        self._spikes += self._high
        if self._high and not high_before:  # one line for steps that follow one another
            self._write("spikes", taken.step, list(_clips(taken.evidence)), norm)
            self._say(
                taken.step, "gradient spike",
                f"step {taken.step}: the norm of the gradient, {norm:.3g}, is {norm / usual:.3g} times the median of "
                f"the steps before; see {self._folder('spikes')}",
            )  # fmt: skip

    def _write(self, kind: str, step: int, clips: Sequence[dict[str, Any]], norm: float | None = None) -> None:
        """What this rank knows of its clips, one JSON object a line. A full disk costs the file, never the run."""
        path = self._folder(kind) / f"step-{step:08d}-rank-{self._world.rank}.jsonl"
        try:
            with written_whole(path) as unfinished:
                unfinished.write_text("".join(json.dumps(clip | {"grad_norm": norm}) + "\n" for clip in clips))
        except ConfigError as error:
            tqdm.write(for_display(f"rank {self._world.rank}: {error}"))

    def _say(self, step: int, event: str, line: str) -> None:
        self._monitor.event(step, event, line=line)
        if self._world.is_first:
            tqdm.write(for_display(line))

    def _folder(self, kind: str) -> Path:
        return self._run_dir / kind


def _fetched(value: Tensor | float) -> Tensor | float:
    """On its way to the host."""
    return value.detach().to("cpu", non_blocking=True) if isinstance(value, Tensor) else value


def _clips(evidence: Sequence[Evidence]) -> Iterator[dict[str, Any]]:
    """What is known of each clip of a step, as plain values; None for a number that is not finite. Waits."""
    for number, found in enumerate(evidence):
        finite = {way: flags.tolist() for way, flags in found.finite.items()}
        losses = {name: value if math.isfinite(value := loss.item()) else None for name, loss in found.losses.items()}
        turns = found.turn.tolist()
        for row, clip in enumerate(found.clip_index.tolist()):
            yield {
                "clip": clip,
                "clip_id": found.clip_ids[row] if found.clip_ids else "",
                "turn": turns[row],
                "micro_batch": number,
                "finite": {way: flags[row] for way, flags in finite.items()},
                "losses": losses,
            }


def _called(clip: dict[str, Any], rank: int) -> str:
    """A clip and the first thing about it that is not finite, for the log."""
    first = next(way for way, finite in clip["finite"].items() if not finite)
    return f"clip {clip['clip']} {clip['clip_id']!r} ({first}, rank {rank})"
