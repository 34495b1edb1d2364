"""What a run of every task has: where it lives, its model, data, optimizer, length, checkpoints, monitoring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import model_validator

from cavmae_ds.config.on_resume import check_allowed
from cavmae_ds.config.sections.base import Folder, OnResume, Section
from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.config.sections.guard import GuardConfig
from cavmae_ds.config.sections.init import InitConfig
from cavmae_ds.config.sections.model import ModelSection
from cavmae_ds.config.sections.resume import ResumeConfig
from cavmae_ds.config.sections.training import CheckpointConfig, MonitorConfig, OptimConfig, TrainConfig
from cavmae_ds.config.sections.watch import WatchConfig

NextSteps = Iterator[tuple[str, str]]
"""What to do with a run, and the command for it."""


class RunConfig(Section):
    """Base of each task's run file. The class of a run is made by tasks.run_class, with the sections of its family."""

    script: ClassVar[str]
    """What starts such a run."""
    title: ClassVar[str]
    """What such a run is, in a report: pretraining."""

    task: Annotated[str, OnResume.FIXED]
    """What is trained, of those that tasks/__init__.py registers; by default the task of the script."""
    run_dir: Annotated[Folder, OnResume.LOCATION] = Path("runs/default")
    """Folder of the run: resolved config, checkpoints, TensorBoard logs, final weights."""
    ds_config: Annotated[Folder, OnResume.FREE] = Path("ds_configs/zero2.json")
    """Engine mechanics for DeepSpeed (ZeRO stage, buckets); relative to here or to the checkout."""
    init: InitConfig = InitConfig()
    model: ModelSection = ModelSection()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    watch: WatchConfig = WatchConfig()
    guard: GuardConfig = GuardConfig()
    resume: ResumeConfig = ResumeConfig()

    @model_validator(mode="before")
    @classmethod
    def _warm_up_in_clips(cls, values: Any) -> Any:
        """Run files used to give the warm-up in steps: that many times the global batch."""
        optim, train = (values.get(name) if isinstance(values, dict) else None for name in ("optim", "train"))
        if not isinstance(optim, dict) or not isinstance(train, dict) or not isinstance(optim.get("warmup_steps"), int):
            return values
        if "warmup_clips" in optim:
            raise ValueError(
                "optim.warmup_steps and optim.warmup_clips are both given; keep warmup_clips, the warm-up in clips"
            )
        global_batch = train.get("global_batch", TrainConfig.model_fields["global_batch"].default)
        if not isinstance(global_batch, int):
            return values
        others = {key: value for key, value in optim.items() if key != "warmup_steps"}
        return {**values, "optim": others | {"warmup_clips": optim["warmup_steps"] * global_batch}}

    @model_validator(mode="after")
    def _patience_fits(self) -> RunConfig:
        if self.watch.stuck_seconds <= self.data.timeout_seconds:
            raise ValueError(
                f"watch.stuck_seconds must be larger than data.timeout_seconds = {self.data.timeout_seconds:g}, got "
                f"{self.watch.stuck_seconds:g}; a rank may wait so long for a batch"
            )
        return self

    @model_validator(mode="after")
    def _model_fits_the_task(self) -> RunConfig:
        self.model.check_task(self.task)
        return self

    @model_validator(mode="after")
    def _allowed_keys_may_change(self) -> RunConfig:
        check_allowed(self.resume.allow, type(self))
        return self

    @classmethod
    def next_steps(cls, settings: Mapping[str, Any], folder: str, data: str, averaged: bool) -> NextSteps:
        """Purposes and commands for a run folder with a checkpoint.

        settings: full key -> value. data: shards to evaluate with. averaged: the folder has averaged weights.
        """
        yield from ()

    @property
    def model_kind(self) -> str:
        """Which of its family's models the run trains: Weights.kind of its weights."""
        return self.task

    def not_compared(self) -> set[str]:
        """Keys that a resume does not compare with the checkpoint's, as they decide nothing in this run."""
        return set() if self.train.ema_clips else {"train.ema_clips"}  # may be given up, not taken up

    def candidates(self, ranks: int) -> int | None:
        """Clips that each clip is compared with in the loss, itself among them; None for a loss of each clip alone."""
        return None

    def same_candidates(self, ranks: int, candidates: int) -> list[str]:
        """Settings, each of which alone gives this number of candidates on this number of ranks."""
        return []

    def check_fewer_ranks(self) -> None:
        """Raises ConfigError if the loss of this run would be another one on fewer ranks."""
