"""One optimizer step: the micro-batches of a rank become gradients, and the engine takes the step.

Plain: each micro-batch forward and backward; its clips are compared with those of all ranks' micro-batches. In two
passes (contrastive.two_pass) all clips of the step are compared: features of every micro-batch without a graph, the
loss and its gradient on the features once, then forward and backward with that gradient. Masks hang on the clip, so
the second forward is the first one again. G micro-batches of b clips, D wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cavmae_ds.data.format.clips import BadClip
from cavmae_ds.data.transforms.front_end import FrontEnd, Ready, ahead
from cavmae_ds.distributed.process_group import World
from cavmae_ds.kernels.contrastive import Contrast
from cavmae_ds.models import family_of
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.tasks.finite_check import Evidence, evidence
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.pretrain.contrastive import Negatives
from cavmae_ds.tasks.pretrain.losses import measured_fields, pretrain_losses, reconstruction_loss
from cavmae_ds.tasks.task import StepOutput
from cavmae_ds.training.engine import back_propagate, take_step


class _Trained(NamedTuple):
    """What a micro-batch leaves behind."""

    losses: Tensor  # [M] float64, the fields that are measured
    output: PretrainOutput
    grad_norm: Tensor | float
    bad: list[BadClip]
    evidence: Evidence
    skipped: bool  # counts after the last micro-batch only


class TrainingStep:
    """Built once, then called with the micro-batches of one step after another."""

    def __init__(self, cfg: PretrainConfig, accumulation: int, world: World, engine: Any, front_end: FrontEnd):
        """accumulation: micro-batches that the engine takes for one step."""
        self._cfg, self._accumulation, self._engine, self._front_end = cfg, accumulation, engine, front_end
        self._fields = measured_fields(cfg.contrastive)
        self._draw_masks = family_of(cfg.model.family).draw_masks
        self._negatives = Negatives(cfg.contrastive, world, accumulation)
        self._decoder_loss = partial(reconstruction_loss, cfg=cfg.loss)

    def __call__(self, micro_batches: Iterable[Ready]) -> StepOutput:
        """One optimizer step of this rank's G micro-batches."""
        # Of a single micro-batch all clips are compared in one pass.
        two_pass = self._cfg.contrastive.two_pass and self._accumulation > 1
        return self._two_pass(micro_batches) if two_pass else self._plain(micro_batches)

    def _plain(self, micro_batches: Iterable[Ready]) -> StepOutput:
        return _done(self._train(ready) for ready in micro_batches)

    def _two_pass(self, micro_batches: Iterable[Ready]) -> StepOutput:
        kept, pooled = [], []  # clips stay as the loader gave them, in host memory: 0.5 MB each
        with torch.no_grad():
            for ready in micro_batches:
                output = self._forward(ready, mae=False)
                pooled.append((output.audio_pooled, output.image_pooled))
                kept.append(ready.batch)
        contrast, pulls = self._compare(*(torch.cat(side) for side in zip(*pooled, strict=True)))
        again = zip(ahead(kept, self._front_end), pulls, strict=True)
        return _done(self._train(ready, contrast, pull) for ready, pull in again)

    def _train(
        self, ready: Ready, contrast: Contrast | None = None, pull: Callable[[PretrainOutput], Tensor] | None = None
    ) -> _Trained:
        """Forward and backward of a micro-batch, compared by itself unless a pass before has done that.

        Returns nothing that backward needed: the graph and all ranks' rows would stay through the next forward.
        """
        output = self._forward(ready, on_pooled=None if pull else self._negatives.start)
        if output.started:
            contrast = self._negatives.finish(output.started)
        losses = pretrain_losses(output, contrast, self._cfg.loss)
        grad_norm = self._backward(losses.total + pull(output) if pull else losses.total)
        found = evidence(ready.batch, _ways(ready, output), losses._asdict())
        return _Trained(
            torch.stack([getattr(losses, field) for field in self._fields]).detach().double(),
            output._replace(started=None), grad_norm, ready.batch.bad, found,
            not self._engine.was_step_applied(),
        )  # fmt: skip

    def _compare(self, audio: Tensor, image: Tensor) -> tuple[Contrast, list[partial[Tensor]]]:
        """Pooled features [G*b, D] of this rank to the loss, a number, and to G functions that give it its gradient."""
        features = audio.requires_grad_(), image.requires_grad_()
        contrast = self._negatives.finish(self._negatives.start(*features))
        # times G, for the engine divides by it what each of G micro-batches back-propagates
        loss = self._cfg.loss.contrastive_weight * self._accumulation * contrast.loss
        gradients = (side.chunk(self._accumulation) for side in torch.autograd.grad(loss, features))
        pulls = [partial(_pull, audio, image) for audio, image in zip(*gradients, strict=True)]
        return contrast._replace(loss=contrast.loss.detach()), pulls

    def _forward(self, ready: Ready, mae: bool = True, on_pooled: Callable | None = None) -> PretrainOutput:
        weights = self._cfg.loss
        return self._engine(
            ready.audio,
            ready.frames,
            self._draw_masks(self._cfg.model, self._cfg.mask, self._cfg.train.seed, *ready.keys),
            mae=mae and weights.mae_weight > 0,
            contrastive=weights.contrastive_weight > 0,
            on_pooled=on_pooled,
            decoder_loss=self._decoder_loss,
        )

    def _backward(self, loss: Tensor) -> Tensor | float:
        """One micro-batch's gradients, and after the last one the step; the norm counts only then."""
        back_propagate(self._engine, loss)
        return take_step(self._engine)


def _pull(to_audio: Tensor, to_image: Tensor, output: PretrainOutput) -> Tensor:
    """A scalar whose gradients on the pooled features [b, D] are the given ones, in float32 or wider."""
    assert output.audio_pooled is not None and output.image_pooled is not None
    wide = torch.promote_types(to_audio.dtype, torch.float32)
    return (output.audio_pooled.to(wide) * to_audio).sum() + (output.image_pooled.to(wide) * to_image).sum()


def _done(trained: Iterable[_Trained]) -> StepOutput:
    """All micro-batches of a step, of each of which only numbers are kept."""
    losses, bad, found = [], [], []
    for last in trained:
        losses.append(last.losses)
        bad += last.bad
        found.append(last.evidence)
    means = torch.stack(losses).mean(0)
    return StepOutput(means[0], means, last.grad_norm, bad, last.skipped, found, last.output)


def _ways(ready: Ready, output: PretrainOutput) -> dict[str, Tensor | None]:
    """Where a clip's own numbers can be looked at, in the order in which they arise.

    With decoder chunks the predictions are those of some clips only, and are not looked at.
    """
    return {
        "sound": ready.audio,
        "frame": ready.frames,
        "audio features": output.audio_pooled,
        "image features": output.image_pooled,
        "audio prediction": output.audio_prediction,
        "image prediction": output.image_prediction,
    }
