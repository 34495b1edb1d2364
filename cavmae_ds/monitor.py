"""What a person watches: TensorBoard curves and pictures under stable names, and one progress line. First rank only."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cavmae_ds.config import RunConfig
from cavmae_ds.config.derived import RunNumbers
from cavmae_ds.distributed import World, mean_over_ranks, sum_over_ranks
from cavmae_ds.errors import DataError
from cavmae_ds.evaluate.pictures import draw_reconstructions, figure_pixels
from cavmae_ds.losses import PretrainLosses
from cavmae_ds.optim import learning_rate_share
from cavmae_ds.step import StepDone

Item = TypeVar("Item")

TAGS = {
    "total": "loss/total",
    "mae_audio": "loss/mae_audio",
    "mae_image": "loss/mae_image",
    "contrastive": "loss/contrastive",
    "in_batch_accuracy": "retrieval/in_batch_accuracy",
}
"""The curve that each field of PretrainLosses is drawn as."""


class Monitor:
    """Collects on the device, reads and writes every monitor.log_every optimizer steps.

    Curves are means over the clips, ranks and steps since the last point, so nothing a spike does is skipped.
    """

    def __init__(self, cfg: RunConfig, numbers: RunNumbers, world: World, step: int):
        self._cfg, self._numbers, self._world = cfg, numbers, world
        self._terms = torch.zeros(len(TAGS), device=world.device, dtype=torch.float64)
        self._bad_clips = 0
        self._named: set[str] = set()
        self._bad_clips_ever = 0
        self._seen_ever = 0
        self._waited = 0.0
        self._last_step = step
        self._writer = None
        self._progress = None
        if world.is_first:
            # Points after the checkpoint belong to a process that was killed: the resumed run draws them again.
            self._writer = SummaryWriter(str(cfg.run_dir / "tensorboard"), purge_step=step + 1 if step else None)
            self._progress = tqdm(
                total=numbers.total_steps,
                initial=step,
                unit="step",
                desc="pretrain",
                mininterval=2,
                dynamic_ncols=True,
            )
        ceiling = matmul_ceiling_flops(world.device, torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32)
        self._mfu_per_rate = numbers.gflop_per_clip * 1e9 / (ceiling * world.size)
        self._since = time.perf_counter()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Pass batches through, adding up how long each was waited for."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield batch

    def step_done(self, step: int, done: StepDone) -> None:
        """Note one optimizer step (1-based); write what is due. All ranks call it.

        Raises DataError above data.max_bad_share, FloatingPointError when the loss is no longer a number.
        """
        self._terms += torch.stack([term.double() for term in done.losses])
        self._bad_clips += len(done.bad)
        for line in done.bad:
            if line not in self._named:  # a shard once, not for each of its clips
                self._named.add(line)
                tqdm.write(f"bad clip: {line}")
        if self._progress is not None:
            self._progress.update()
        if step % self._cfg.monitor.log_every == 0 or step == self._numbers.total_steps:
            self._write_point(step, float(done.grad_norm))
        every = self._cfg.monitor.pictures_every
        if self._writer is not None and every and step % every == 0 and done.output.image_prediction is not None:
            figure = draw_reconstructions(done.output, self._cfg, self._cfg.monitor.pictures)
            self._writer.add_image("reconstructions", figure_pixels(figure), step, dataformats="HWC")

    def validate(self, step: int, validation: Callable[[], PretrainLosses] | None) -> None:
        """Validate if it is due after this step and draw the curves; its time does not count. All ranks call it."""
        every = self._cfg.monitor.validate_every
        if validation is None or (step % every and step != self._numbers.total_steps):
            return
        began = time.perf_counter()
        losses = validation()
        if self._writer is not None:
            for field, value in losses._asdict().items():
                self._writer.add_scalar(f"validation/{field}", value.item(), step)
            self._writer.flush()
        self._since += time.perf_counter() - began

    def close(self) -> None:
        """Flush and end the progress line."""
        if self._writer is not None and self._progress is not None:
            self._writer.close()
            self._progress.close()

    def _write_point(self, step: int, grad_norm: float) -> None:
        steps = step - self._last_step
        elapsed = time.perf_counter() - self._since
        means = mean_over_ranks(self._terms / steps)
        sums = torch.tensor([self._bad_clips, self._waited / self._world.size], dtype=torch.float64)
        bad_clips, waited = sum_over_ranks(sums.to(self._world.device)).tolist()
        self._bad_clips_ever += int(bad_clips)
        self._seen_ever += steps * self._numbers.global_batch
        rate = steps * self._numbers.global_batch / elapsed
        losses = dict(zip(PretrainLosses._fields, means.tolist(), strict=True))
        if self._writer is not None and self._progress is not None:
            points = {TAGS[field]: value for field, value in losses.items()} | {
                "optim/lr": self._learning_rate(step),
                "optim/grad_norm": grad_norm,
                "perf/clips_per_second": rate,
                "perf/clips_per_second_per_gpu": rate / self._world.size,
                "perf/data_wait_share": waited / elapsed,
                "perf/mfu": rate * self._mfu_per_rate,
                "perf/memory_gib": peak_memory_gib(self._world.device),
                "data/bad_clips": float(self._bad_clips_ever),
            }
            for tag, value in points.items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()
            self._progress.set_postfix_str(
                f"loss {losses['total']:.4f}, in-batch {losses['in_batch_accuracy']:.0%}, {rate:.0f} clips/s, "
                f"data wait {waited / elapsed:.0%}"
            )
        self._check(losses["total"], step)
        self._terms.zero_()
        self._bad_clips = 0
        self._waited, self._last_step, self._since = 0.0, step, time.perf_counter()

    def _learning_rate(self, step: int) -> float:
        numbers = self._numbers
        share = learning_rate_share(
            step - 1, self._cfg.optim, numbers.total_steps, numbers.steps_per_epoch, numbers.global_batch
        )
        return numbers.peak_learning_rate * share

    def _check(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step}")
        # One bad clip among the first few says little: judge shares only once a share can be told.
        allowed = max(1.0, self._cfg.data.max_bad_share * self._seen_ever)
        if self._bad_clips_ever > allowed:
            raise DataError(
                f"{self._bad_clips_ever} of {self._seen_ever} clips could not be decoded, "
                f"data.max_bad_share allows {self._cfg.data.max_bad_share:.1%}; the log names them"
            )


def matmul_ceiling_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product on this device, measured now (best of 5): the 100 % of perf/mfu."""
    side = 8192 if device.type == "cuda" else 768
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):  # the first one warms up
        _wait(device)
        started = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this rank ever held: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
