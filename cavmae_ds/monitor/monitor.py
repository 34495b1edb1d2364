"""Everything that is watched while a run trains, behind the few calls that the loop makes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from cavmae_ds.checkpoint.identity import Change
from cavmae_ds.checkpoint.shared_dir import Outcome
from cavmae_ds.data.format.schema import Damage
from cavmae_ds.distributed.collectives import from_all_ranks, mean_over_ranks, start_gather
from cavmae_ds.distributed.process_group import World
from cavmae_ds.errors import for_display
from cavmae_ds.monitor.bad_clips import BadClips
from cavmae_ds.monitor.curves import Curves
from cavmae_ds.monitor.norms import BlockNorms
from cavmae_ds.monitor.speed import GIB, OwnWork, Stragglers, matmul_ceiling_flops, memory_gib, spread
from cavmae_ds.monitor.texts import as_code, environment, hyperparameters, texts, this_machine
from cavmae_ds.tasks.task import StepOutput, Task

Item = TypeVar("Item")


class Monitor:
    """Collects on the device, reads and writes every monitor.log_every optimizer steps.

    Curves are means over the clips, ranks and steps since the last point, so nothing a spike does is skipped. All ranks
    make the same calls; the first one writes.
    """

    def __init__(
        self,
        task: Task,
        world: World,
        step: int,
        engine: Any,
        learning_rate: Callable[[int], float],
        saves: Callable[[], Iterable[Outcome]],
    ):
        """step: optimizer steps already done. learning_rate: of an optimizer step (1-based). saves: gives the outcomes
        of checkpoints that ended since its last call.
        """
        cfg, numbers = task.cfg, task.plan
        self._task, self._cfg, self._numbers, self._world = task, cfg.monitor, numbers, world
        self._learning_rate = learning_rate
        self._terms = torch.zeros(len(task.metrics), device=world.device, dtype=torch.float64)
        self._taken = 0
        self._bad = BadClips(cfg.data.max_bad_share)
        self._work = OwnWork(engine, world.device)
        self._norms = BlockNorms(engine, world, cfg.optim.clip_grad_norm) if cfg.monitor.norms_every else None
        machines = from_all_ranks(this_machine(world))
        self._stragglers = Stragglers([machine.host for machine in machines])
        self._last_point = self._last_step = step
        self._saves = saves
        self._failed: Counter[str] = Counter()
        self._curves: Curves | None = None
        if world.is_first:
            self._curves = Curves(cfg.run_dir, step)
            self._curves.texts(texts(cfg, numbers, machines), hyperparameters(cfg))
            facts = {"environment": environment(machines), "numbers": asdict(numbers)}
            self.event(step, "resume" if step else "start", **facts)
        self._progress = tqdm(
            total=numbers.total_steps,
            initial=step,
            unit="step",
            desc=Path(cfg.script).stem,
            mininterval=2,
            dynamic_ncols=True,
            disable=not world.is_first,
        )
        ceiling = matmul_ceiling_flops(world.device, torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32)
        self._mfu_per_rate = numbers.gflop_per_clip * 1e9 / (ceiling * world.size)
        self._arm(step + 1)
        self._since = time.perf_counter()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Pass batches through, adding up how long each was waited for."""
        return self._work.timed(batches)

    def step_done(self, step: int, done: StepOutput) -> None:
        """Note one optimizer step (1-based); write what is due.

        A step that was skipped counts in no mean of losses. Raises DataError above data.max_bad_share.
        """
        self._last_step = step
        if not done.skipped:
            self._terms += done.metrics
            self._taken += 1
        for line in self._bad.note(done.bad):
            tqdm.write(for_display(f"bad clip: {line}"))
        self._progress.update()
        if step % self._cfg.log_every == 0 or step == self._numbers.total_steps:
            self._write_point(step, float(done.grad_norm))
        if self._norms and self._norms_due(step):
            self.draw(step, self._norms.read(float(done.grad_norm)))
        self._arm(step + 1)
        self._draw_saves()
        every = self._cfg.pictures_every
        due = every > 0 and step % every == 0 and not done.skipped
        if self._curves and due:
            for name, pixels in self._task.figures(done).items():
                self._curves.picture(name, pixels, step)

    def validate(self, step: int) -> None:
        """Validate what is due after this step and draw the curves; its time does not count."""
        began = time.perf_counter()
        self.draw(step, self._task.validate(step))
        self._since += time.perf_counter() - began

    def draw(self, step: int, values: Mapping[str, float]) -> None:
        """A point of some curves, by whoever has something to tell (checkpoints, guards)."""
        if self._curves and values:
            self._curves.draw(step, values)

    def event(self, step: int, name: str, **facts: Any) -> None:
        """One line in log.jsonl: what happened, and what is worth knowing about it (plain values)."""
        if self._curves:
            self._curves.event(step, name, facts)

    def settings_changed(self, step: int, changes: Sequence[Change]) -> None:
        """An event for each setting that is another one from here on, and all of them as a text in TensorBoard."""
        for change in changes:
            allowed = {"allowed_by": "resume.allow"} if change.refusable else {}
            self.event(step, "setting changed", key=change.key, was=change.was, now=change.now, **allowed)
        if self._curves and changes:
            self._curves.text("run/changed_settings", as_code("\n".join(map(str, changes))))

    def close(self) -> None:
        """Flush and end the progress line."""
        self._draw_saves()
        self.event(self._last_step, "end" if self._last_step == self._numbers.total_steps else "stop")
        if self._curves:
            self._curves.close()
        self._progress.close()

    def _write_point(self, step: int, grad_norm: float) -> None:
        steps = step - self._last_point
        # No numbers if all steps were skipped.
        means = mean_over_ranks(self._terms / self._taken).tolist()
        memory = memory_gib(self._world.device)
        bad, lines = self._bad.take()
        mine = [*self._work.take(), *memory.values(), *bad]
        elapsed = time.perf_counter() - self._since
        ranks = start_gather(torch.tensor([mine], dtype=torch.float64, device=self._world.device))().cpu()
        waited, own = (ranks[:, :2] / steps).unbind(1)  # [W] each
        held, bad_by_damage = ranks[:, 2:].split([len(memory), len(Damage)], 1)
        step_s = elapsed / steps
        found = spread(own.tolist(), step_s)
        rate = self._numbers.global_batch / step_s
        points = {metric.curve: value for metric, value in zip(self._task.metrics, means, strict=True)} | {
            "optim/lr": self._learning_rate(step),
            "optim/grad_norm": grad_norm,
            "perf/clips_per_second": rate,
            "perf/clips_per_second_per_gpu": rate / self._world.size,
            "perf/data_wait_share": waited.mean().item() / step_s,
            "perf/mfu": rate * self._mfu_per_rate,
            "perf/step_seconds": step_s,
            "ranks/own_seconds_median": found.median_s,
            "ranks/own_seconds_max": found.max_s,
            "ranks/straggler_share": found.share,
            "ranks/slowest": float(found.slowest),
        }
        points |= {f"memory/{kind}_gib": most for kind, most in zip(memory, held.amax(0).tolist(), strict=True)}
        points |= self._bad.add(bad_by_damage.sum(0).tolist(), steps * self._numbers.global_batch)
        self.draw(step, points)
        shown = [m.progress.format(value) for m, value in zip(self._task.metrics, means, strict=True) if m.progress]
        self._progress.set_postfix_str(
            f"{', '.join(shown)}, {rate:.0f} clips/s, data wait {points['perf/data_wait_share']:.0%}"
        )
        self._tell(step, self._stragglers.judge(found), bad_by_damage.any().item(), lines)
        self._bad.check()
        self._terms.zero_()
        self._taken = 0
        self._last_point, self._since = step, time.perf_counter()

    def _tell(self, step: int, slow: str | None, any_bad: bool, lines: list[str]) -> None:
        """What happened since the last point, as events; lines: this rank's new bad clips."""
        if slow:
            self.event(step, "slow rank", line=slow)
            if self._curves:
                tqdm.write(for_display(slow))
        if any_bad:
            for line in dict.fromkeys(line for of_rank in from_all_ranks(lines) for line in of_rank):
                self.event(step, "bad clip", line=line)

    def _draw_saves(self) -> None:
        """How saves ended, at the step they are of; failures are counted from the start of this process."""
        for outcome in self._saves():
            kind = "checkpoint/upload_" if outcome.sent else "checkpoint/"
            self._failed[kind] += bool(outcome.failure)
            done = {f"{kind}seconds": outcome.seconds, f"{kind}gib": outcome.bytes / GIB}
            self.draw(outcome.step, {f"{kind}failed": float(self._failed[kind])} | ({} if outcome.failure else done))
            facts = {"failure": outcome.failure} if outcome.failure else {"seconds": round(outcome.seconds, 3)}
            self.event(outcome.step, "upload" if outcome.sent else "checkpoint", **facts)

    def _arm(self, step: int) -> None:
        if self._norms:
            self._norms.arm(self._norms_due(step))

    def _norms_due(self, step: int) -> bool:
        return self._due(step, self._cfg.norms_every)

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self._numbers.total_steps)
