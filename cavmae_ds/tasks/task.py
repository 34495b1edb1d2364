"""What a task is to the training loop, the monitor, the checkpoints and the planner: the contract of all tasks.

B clips of a micro-batch; M metrics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.data.format.clips import BadClip
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.transforms.front_end import FrontEnd, Ready
from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.running_mean import RunningMean
from cavmae_ds.fault_tolerance.heartbeat_monitor import Watch
from cavmae_ds.models import family_of
from cavmae_ds.models.family import ModelFamily
from cavmae_ds.tasks.finite_check import Evidence
from cavmae_ds.tasks.run_plan import RunPlan

LrScale = Callable[[str], float]
"""Parameter name -> its learning rate over the run's."""


class Metric(NamedTuple):
    """A number of every training step, a mean over clips."""

    curve: str
    """Its tag in TensorBoard."""
    progress: str = ""
    """How the progress line shows it, as in "accuracy {:.0%}"; empty where it does not."""


class StepOutput(NamedTuple):
    """What an optimizer step leaves behind."""

    loss: Tensor
    """Mean over this rank's clips of the step, float64, no gradient; its mean over ranks is the whole batch's."""
    metrics: Tensor
    """[M] float64, means as the loss is, in the order of Task.metrics."""
    grad_norm: Tensor | float
    """Of the whole gradient, before clipping."""
    bad: list[BadClip]
    """Clips that could not be decoded."""
    skipped: bool
    """Loss or gradient was not finite on some rank, so no rank changed its weights."""
    evidence: list[Evidence]
    """Of each micro-batch of this rank."""
    output: Any = None
    """What Task.figures draws; of the last micro-batch."""


class Variant(NamedTuple):
    """Settings that train the same in other time and memory."""

    name: str
    model: tuple[tuple[str, Any], ...]
    """Full keys and values that change what a micro-batch computes and holds."""
    step: tuple[tuple[str, Any], ...] = ()
    """Those that change what a step does around its micro-batches."""

    @property
    def values(self) -> tuple[tuple[str, Any], ...]:
        """All of them."""
        return self.model + self.step


class AcrossClips(NamedTuple):
    """What a loss that compares clips adds to an optimizer step of one rank, beside the model."""

    candidates: int = 0
    """Clips that each clip is compared with, itself among them."""
    whole: bool = True
    """Each clip meets all clips of the step that the run wants it to meet."""
    held: int = 0
    """Bytes at its fullest moment."""
    received: int = 0
    """Bytes from other ranks."""
    flops: int = 0
    first_pass: bool = False
    """Task.first_pass is run on every micro-batch, and its clips stay in host memory."""


class Task(ABC):
    """One run: first what it amounts to and which model it trains, then, once `start` was called, its steps."""

    metrics: tuple[Metric, ...]
    mixup: float = 0.0
    """Share of clips that come with a partner."""
    front_end: FrontEnd
    """Of training clips; set by start."""

    def __init__(self, cfg: Any, plan: Any):
        """cfg, plan: of this task's classes."""
        self.cfg, self.plan = cfg, plan

    @property
    def family(self) -> ModelFamily:
        """Of the run's model."""
        return family_of(self.cfg.model.family)

    @property
    def inputs(self) -> InputSpec:
        """What the run's model reads of a clip."""
        return self.family.inputs(self.cfg.model, self.cfg.model_kind)

    @classmethod
    @abstractmethod
    def resolve(cls, cfg: Any, ranks: int, clips: int | None = None) -> RunPlan:
        """Check the run against its ranks, its DeepSpeed config and its shards, and count.

        clips: size of the data set, where there are no shards to ask; class names are then assumed where there are none
        either. Raises ConfigError (batch not divisible, nothing to train on, DeepSpeed config) and DataError (no
        shards, wrong frame size).
        """

    @classmethod
    @abstractmethod
    def build_model(cls, cfg: Any, classes: int = 0) -> nn.Module:
        """The model without its initial weights' origin; on the current device, also meta. classes: of a classifier."""

    @classmethod
    @abstractmethod
    def unused_parameters(cls, cfg: Any, model: Any) -> set[str]:
        """Names of parameters that this run does not train."""

    @classmethod
    def lr_scale(cls, cfg: Any) -> LrScale:
        """By default all parameters are trained alike."""
        return lambda name: 1.0

    @classmethod
    @abstractmethod
    def measured_loss(cls, cfg: Any, model: Any, ready: Ready) -> tuple[Tensor, Any]:
        """Forward and loss of a micro-batch of one rank as training runs them, for plans: also of meta tensors.

        With the loss comes what training keeps until backward is done.
        """

    @classmethod
    def first_pass(cls, cfg: Any, model: Any, ready: Ready) -> Any:
        """What a step runs on a micro-batch before that, without gradients, where AcrossClips.first_pass."""
        return None

    @classmethod
    def variants(cls, cfg: Any, clips: int) -> list[Variant]:
        """Ways to run a step of `clips` clips a rank, all with the same keys, from the least change to the most.

        The first one runs nothing twice.
        """
        savers = cfg.model.memory_savers(cfg.task, 0)
        return [Variant(name, tuple(values.items())) for name, values in savers]

    @classmethod
    def across_clips(cls, cfg: Any, ranks: int) -> AcrossClips:
        """By default no clip meets another."""
        return AcrossClips()

    @classmethod  # noqa: B027  most losses have no objection
    def check_accumulation(cls, cfg: Any, accumulation: int) -> None:
        """Raises ConfigError for a number of micro-batches a step that this run's loss cannot have."""

    def weight_means(self, engine: Any, world: World) -> Sequence[RunningMean]:
        """Means of the weights that this task keeps beside train.ema_clips."""
        return ()

    @abstractmethod
    def start(self, world: World, engine: Any) -> None:
        """On every rank, once the engine has gone on from the newest checkpoint."""

    @abstractmethod
    def training_step(self, micro_batches: Iterable[Ready]) -> StepOutput:
        """The micro-batches of this rank for one optimizer step become gradients, and the step is taken."""

    def validate(self, step: int) -> Mapping[str, float]:
        """Curves of what is due after optimizer step `step`; on the first rank. All ranks call it."""
        return {}

    def figures(self, done: StepOutput) -> Mapping[str, Any]:
        """Name -> picture (uint8 [H, W, 3]) of a training step, on the first rank."""
        return {}

    def next_commands(self) -> Sequence[str]:
        """What to type when the run is over, with {run_dir} and {data} for what these are."""
        return ()

    def at_end(self, start: int, watch: Watch) -> None:  # noqa: B027  nothing is left to do, unless a task says so
        """All ranks together, when all steps are done and saved. start: steps done when this process began."""


def freeze_unused(task: type[Task], cfg: RunConfig, model: Any) -> None:
    """Parameters that a run does not train stay as they are: no decay, no stale gradient (spec traps 3)."""
    unused = task.unused_parameters(cfg, model)
    for name, parameter in model.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
