"""A task in one folder: sound and frames of a clip are drawn together, nothing is hidden, nothing is compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cavmae_ds.config.sections.base import OnResume, Section, Weight
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.data.transforms.front_end import FrontEnd, Ready
from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.distributed.process_group import World
from cavmae_ds.models import family_of
from cavmae_ds.plan.states import model_numbers
from cavmae_ds.tasks import inputs_of
from cavmae_ds.tasks.finite_check import evidence
from cavmae_ds.tasks.run_plan import RunPlan
from cavmae_ds.tasks.task import Metric, StepOutput, Task
from cavmae_ds.training.batch_plan import batch_plan
from cavmae_ds.training.engine import back_propagate, take_step


class PullConfig(Section):
    on_resume: ClassVar[OnResume] = OnResume.LEARNT

    weight: Weight = 1.0


class AlignConfig(RunConfig):
    script: ClassVar[str] = "launch/train.py"
    title: ClassVar[str] = "alignment"

    task: Annotated[Literal["align"], OnResume.FIXED] = "align"
    pull: PullConfig = PullConfig()


class Alignment(Task):
    metrics = (Metric("loss/total", "loss {:.4f}"), Metric("align/cosine"))

    @classmethod
    def resolve(cls, cfg: AlignConfig, ranks: int, clips: int | None = None) -> RunPlan:
        inputs, sections = (
            inputs_of(cfg),
            {"train", "optim", "data", "ds_config"},
        )
        numbers = batch_plan(inputs, ranks, clips, **{name: getattr(cfg, name) for name in sections})
        return RunPlan(**numbers, **model_numbers(cfg))

    @classmethod
    def build_model(cls, cfg: AlignConfig, classes: int = 0) -> nn.Module:
        normalisation = training_normalisation(cfg.data.audio_mean, cfg.data.audio_std)
        return family_of(cfg.model.family).build["pretrain"](cfg.model, normalisation)

    @classmethod
    def unused_parameters(cls, cfg: AlignConfig, model: Any) -> set[str]:
        return model.unused_parameters(mae=False, contrastive=True)

    def start(self, world: World, engine: Any) -> None:
        self._engine, self.front_end = engine, FrontEnd(self.inputs, world.device)

    @classmethod
    def measured_loss(cls, cfg: AlignConfig, model: Any, ready: Ready) -> tuple[Tensor, Any]:
        audio, image = (tokens.mean(1) for tokens in model(ready.audio, ready.frames, None))  # [B, D]
        cosine = F.cosine_similarity(audio, image).mean()
        return cfg.pull.weight * (1 - cosine), cosine

    def training_step(self, micro_batches: Iterable[Ready]) -> StepOutput:
        measured, bad, found = [], [], []
        for ready in micro_batches:
            loss, cosine = self.measured_loss(self.cfg, self._engine, ready)
            back_propagate(self._engine, loss)
            grad_norm = take_step(self._engine)
            measured.append(torch.stack([loss, cosine]).detach().double())
            bad += ready.batch.bad
            found.append(evidence(ready.batch, {"sound": ready.audio}, {"total": loss}))
        means = torch.stack(measured).mean(0)
        return StepOutput(means[0], means, grad_norm, bad, not self._engine.was_step_applied(), found)
