"""One way to run a config on given GPUs, and all that is predicted of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from cavmae_ds.config.ds_config import read_fragment, zero_stage
from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
from cavmae_ds.plan.activations import Activations, activations, stored_clip_bytes
from cavmae_ds.plan.communication import Traffic, traffic
from cavmae_ds.plan.contrast import comparison, contrast_bytes, contrast_flops
from cavmae_ds.plan.hardware import Gpu
from cavmae_ds.plan.modes import Modes, modes_of
from cavmae_ds.plan.speed import Time, step_time
from cavmae_ds.plan.states import Parameters, States, count, offloads, states
from cavmae_ds.tasks.pretrain.config import PretrainConfig

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
    modes: Modes

    def overrides(self) -> list[str]:
        """As words for the command line."""
        switches = [f"ds_config={self.ds_config}", f"train.micro_batch={self.micro_batch}"]
        switches.append(f"model.decoder_chunk={self.modes.decoder_chunk}")
        switches.append(f"model.checkpoint_towers={str(self.modes.checkpoint_towers).lower()}")
        switches.append(f"contrastive.two_pass={str(self.modes.two_pass).lower()}")
        return switches


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU when backward begins, its fullest moment."""

    states: States
    activations: Activations
    contrastive: int

    @property
    def total(self) -> int:
        return self.states.total + self.activations.total + self.contrastive


@dataclass(frozen=True)
class Prediction:
    """A choice and what it comes to."""

    choice: Choice
    stage: int
    fits: bool
    largest_micro_batch: int
    """The largest that fits with these switches, whether or not it divides the batch; 0 if none does."""
    compared_with: int
    """Clips that each clip is compared with, itself among them; 0 without a contrastive loss."""
    memory: Memory
    received: Traffic
    time: Time
    clips_per_second: float
    host_bytes: int
    """Of one rank's host memory: the clips of a step that two passes keep."""


@dataclass(frozen=True)
class Planner:
    """Predicts for one run on one machine."""

    cfg: PretrainConfig
    machine: Machine
    _fragments: dict[Path, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)
    _states: dict[Path, States] = field(default_factory=dict, compare=False, repr=False)
    _largest: dict[tuple[Path, Modes], int] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def parameters(self) -> Parameters:
        return count(self.cfg)

    @property
    def clips_per_gpu(self) -> int:
        """Of one optimizer step."""
        return self.cfg.train.global_batch // self.machine.gpus

    def configured(self) -> Choice:
        """The run as its file has it."""
        return Choice(self.cfg.ds_config, self.cfg.train.micro_batch, modes_of(self.cfg))

    def fragment(self, path: Path) -> dict[str, Any]:
        """An engine fragment, read once."""
        if path not in self._fragments:
            self._fragments[path] = read_fragment(self.cfg.model_copy(update={"ds_config": path}))
        return self._fragments[path]

    def states(self, path: Path) -> States:
        """What a GPU holds under an engine fragment, whatever the micro-batch."""
        if path not in self._states:
            self._states[path] = states(self.cfg, self.fragment(path), self.parameters, self.machine.gpus)
        return self._states[path]

    def memory(self, choice: Choice) -> Memory:
        """Bytes on one GPU."""
        cfg, gpus, micro_batch, modes = self.cfg, self.machine.gpus, choice.micro_batch, choice.modes
        compared = comparison(cfg, modes, gpus, micro_batch)
        return Memory(
            states=self.states(choice.ds_config),
            activations=activations(
                cast(ModelConfig, cfg.model),
                cast(MaskConfig, cfg.mask),
                cfg.loss,
                cfg.train.precision,
                micro_batch,
                modes,
                self.parameters.decoder,
            ),
            contrastive=contrast_bytes(cfg, compared),
        )

    def fits(self, choice: Choice) -> bool:
        """Whether the fullest moment leaves the head-room free."""
        return self.memory(choice).total <= self.machine.usable_bytes

    def largest_micro_batch(self, ds_config: Path, modes: Modes) -> int:
        """The largest that fits, 0 if not even one clip does: memory only grows with the micro-batch."""
        if (ds_config, modes) not in self._largest:
            self._largest[ds_config, modes] = self._search(ds_config, modes)
        return self._largest[ds_config, modes]

    def _search(self, ds_config: Path, modes: Modes) -> int:
        low, high = 0, 1
        while high <= LARGEST and self.fits(Choice(ds_config, high, modes)):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(Choice(ds_config, middle, modes)) else (low, middle)
        return low

    def at_work(self, choice: Choice) -> Modes:
        """The switches that cost something: with one micro-batch a step, one pass compares all there is."""
        return replace(choice.modes, two_pass=choice.modes.two_pass and choice.micro_batch < self.clips_per_gpu)

    def received(self, choice: Choice) -> Traffic:
        """Bytes that a GPU receives in a step."""
        gpus, micro_batch = self.machine.gpus, choice.micro_batch
        fragment = self.fragment(choice.ds_config)
        return traffic(self.cfg, fragment, self.parameters, self.at_work(choice), gpus, micro_batch)

    def time(self, choice: Choice, hidden: float = 0.5, slow: bool = False) -> Time:
        """Seconds of a step; see step_time."""
        cfg, machine = self.cfg, self.machine
        compared = comparison(cfg, choice.modes, machine.gpus, choice.micro_batch)
        return step_time(
            cfg, self.parameters, self.received(choice), contrast_flops(cfg, compared), self.at_work(choice),
            offloads(self.fragment(choice.ds_config)), machine.gpu, machine.gpus, machine.per_node, machine.mfu,
            hidden, slow,
        )  # fmt: skip

    def predict(self, choice: Choice) -> Prediction:
        """All numbers of one choice, whose micro-batch must divide the clips of a GPU."""
        cfg, machine, time = self.cfg, self.machine, self.time(choice)
        compared = comparison(cfg, choice.modes, machine.gpus, choice.micro_batch)
        memory = self.memory(choice)
        kept = self.clips_per_gpu * stored_clip_bytes(cast(ModelConfig, cfg.model))
        return Prediction(
            choice=choice,
            stage=zero_stage(self.fragment(choice.ds_config)),
            fits=memory.total <= machine.usable_bytes,
            largest_micro_batch=self.largest_micro_batch(choice.ds_config, choice.modes),
            compared_with=compared.candidates if compared else 0,
            memory=memory,
            received=self.received(choice),
            time=time,
            clips_per_second=cfg.train.global_batch / time.step,
            host_bytes=kept if self.at_work(choice).two_pass else 0,
        )
