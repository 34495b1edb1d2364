"""One way to run a config on given GPUs, and all that is predicted of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cavmae_ds.config.ds_config import read_fragment, zero_stage
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.plan.communication import Traffic, traffic
from cavmae_ds.plan.hardware import Gpu
from cavmae_ds.plan.measure import executed_flops, first_pass, flops_per_clip, measured_peak, on_meta_ready, with_values
from cavmae_ds.plan.speed import Time, step_time
from cavmae_ds.plan.states import Parameters, States, count, offloads, states
from cavmae_ds.tasks import inputs_of, task_of
from cavmae_ds.tasks.task import AcrossClips, Variant

HEADROOM = 0.1
"""Share of a card left for the CUDA context, NCCL and what the allocator cannot use [E]."""
LARGEST = 1 << 24
"""No micro-batch beyond this is looked for."""


@dataclass(frozen=True)
class Machine:
    """The GPUs of a plan."""

    gpu: Gpu
    gpus: int
    per_node: int
    mfu: float
    """Share of the GPU's matrix rate that forward and backward turn into the model's FLOPs."""

    @property
    def usable_bytes(self) -> int:
        return int(self.gpu.memory_gib * (1 - HEADROOM) * 2**30)


@dataclass(frozen=True)
class Choice:
    """What a plan may vary: nothing in here changes the model, the batch or the order of clips."""

    ds_config: Path
    micro_batch: int
    variant: Variant

    def overrides(self) -> list[str]:
        """As words for the command line."""
        values = ("ds_config", self.ds_config), ("train.micro_batch", self.micro_batch), *self.variant.values
        return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values]


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at its fullest moment."""

    states: States
    inputs: int
    """Of a micro-batch."""
    activations: int
    """Whatever forward and backward hold beside the inputs, measured."""
    across_clips: int
    """Of a loss that compares clips."""

    @property
    def total(self) -> int:
        return self.states.total + self.inputs + self.activations + self.across_clips


@dataclass(frozen=True)
class Prediction:
    """A choice and what it comes to."""

    choice: Choice
    stage: int
    fits: bool
    largest_micro_batch: int
    """The largest that fits with these switches, whether or not it divides the batch; 0 if none does."""
    across_clips: AcrossClips
    extra_flops: float
    """What runs a second time, as a share of the FLOPs that MFU is reported against."""
    memory: Memory
    received: Traffic
    time: Time
    clips_per_second: float
    host_bytes: int
    """Of one rank's host memory: the clips of a step that two passes keep."""


@dataclass(frozen=True)
class Planner:
    """Predicts for one run on one machine."""

    cfg: RunConfig
    machine: Machine
    classes: int = 0
    """Of a classifier's head."""
    _fragments: dict[Path, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)
    _states: dict[Path, States] = field(default_factory=dict, compare=False, repr=False)
    _largest: dict[tuple[Path, Variant], int] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def parameters(self) -> Parameters:
        return count(self.cfg, self.classes)

    @cached_property
    def flops_per_clip(self) -> float:
        """What MFU is reported against."""
        return flops_per_clip(self.cfg, self.classes)

    @cached_property
    def _clip_bytes(self) -> tuple[int, int]:
        """Of one clip's inputs on the device, and as the loader gives it."""
        ready = on_meta_ready(inputs_of(self.cfg), 1)
        stored = sum(part.nbytes for part in ready.batch if isinstance(part, torch.Tensor))
        return ready.audio.nbytes + ready.frames.nbytes, stored

    @property
    def clips_per_gpu(self) -> int:
        """Of one optimizer step."""
        return self.cfg.train.global_batch // self.machine.gpus

    def variants(self, clips: int = 0) -> list[Variant]:
        """What the task offers for so many clips of a GPU and step; by default for all."""
        return task_of(self.cfg).variants(self.cfg, clips or self.clips_per_gpu)

    def configured(self) -> Choice:
        """The run as its file has it."""
        known = self.variants()
        model, step = (
            tuple((key, _value(self.cfg, key)) for key, _ in pairs) for pairs in (known[0].model, known[0].step)
        )
        name = next((one.name for one in known if (one.model, one.step) == (model, step)), "run file")
        return Choice(self.cfg.ds_config, self.cfg.train.micro_batch, Variant(name, model, step))

    def run(self, choice: Choice) -> RunConfig:
        """The run as it would be chosen."""
        values = ("ds_config", choice.ds_config), ("train.micro_batch", choice.micro_batch), *choice.variant.values
        return with_values(self.cfg, values)

    def fragment(self, path: Path) -> dict[str, Any]:
        """An engine fragment, read once."""
        if path not in self._fragments:
            self._fragments[path] = read_fragment(path, self.cfg.train.precision)
        return self._fragments[path]

    def states(self, path: Path) -> States:
        """What a GPU holds under an engine fragment, whatever the micro-batch."""
        if path not in self._states:
            self._states[path] = states(self.cfg, self.fragment(path), self.parameters, self.machine.gpus)
        return self._states[path]

    def across_clips(self, choice: Choice) -> AcrossClips:
        """What a loss that compares clips adds."""
        return task_of(self.cfg).across_clips(self.run(choice), self.machine.gpus)

    def memory(self, choice: Choice) -> Memory:
        """Bytes on one GPU."""
        measured = with_values(self.cfg, choice.variant.model)
        return Memory(
            states=self.states(choice.ds_config),
            inputs=choice.micro_batch * self._clip_bytes[0],
            activations=math.ceil(measured_peak(measured, choice.micro_batch, self.classes)),
            across_clips=self.across_clips(choice).held,
        )

    def fits(self, choice: Choice) -> bool:
        """Whether the fullest moment leaves the head-room free."""
        return self.memory(choice).total <= self.machine.usable_bytes

    def largest_micro_batch(self, ds_config: Path, variant: Variant) -> int:
        """The largest that fits, 0 if not even one clip does: memory only grows with the micro-batch."""
        if (ds_config, variant) not in self._largest:
            self._largest[ds_config, variant] = self._search(ds_config, variant)
        return self._largest[ds_config, variant]

    def _search(self, ds_config: Path, variant: Variant) -> int:
        low, high = 0, 1 + with_values(self.cfg, variant.model).model.clips_at_once  # fewer cost measurements
        while high <= LARGEST and self.fits(Choice(ds_config, high, variant)):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(Choice(ds_config, middle, variant)) else (low, middle)
        return low

    def extra_flops(self, choice: Choice) -> float:
        """Share of the model's FLOPs that a choice runs a second time."""
        chosen = with_values(self.cfg, choice.variant.model)
        executed = executed_flops(chosen, self.classes)
        if self.across_clips(choice).first_pass:
            executed += first_pass(chosen, self.classes).flops
        # Not below 0: of the few clips that are measured, each meets a few others.
        return max(executed / self.flops_per_clip - 1, 0.0)

    def received(self, choice: Choice) -> Traffic:
        """Bytes that a GPU receives in a step."""
        fragment = self.fragment(choice.ds_config)
        return traffic(self.run(choice), fragment, self.parameters, self.across_clips(choice), self.machine.gpus)

    def time(self, choice: Choice, hidden: float = 0.5, slow: bool = False) -> Time:
        """Seconds of a step; see step_time."""
        machine, flops = self.machine, self.flops_per_clip * (1 + self.extra_flops(choice))
        return step_time(
            self.cfg, self.parameters, self.received(choice), flops, self.across_clips(choice).flops,
            offloads(self.fragment(choice.ds_config)), machine.gpu, machine.gpus, machine.per_node, machine.mfu,
            hidden, slow,
        )  # fmt: skip

    def predict(self, choice: Choice) -> Prediction:
        """All numbers of one choice, whose micro-batch must divide the clips of a GPU."""
        machine, time, memory, across = self.machine, self.time(choice), self.memory(choice), self.across_clips(choice)
        return Prediction(
            choice=choice,
            stage=zero_stage(self.fragment(choice.ds_config)),
            fits=memory.total <= machine.usable_bytes,
            largest_micro_batch=self.largest_micro_batch(choice.ds_config, choice.variant),
            across_clips=across,
            extra_flops=self.extra_flops(choice),
            memory=memory,
            received=self.received(choice),
            time=time,
            clips_per_second=self.cfg.train.global_batch / time.step,
            host_bytes=self.clips_per_gpu * self._clip_bytes[1] if across.first_pass else 0,
        )


def _value(cfg: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(cfg, section), name)
