"""What the engine, the tasks and the evaluation ask of every family's module, beside nn.Module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from cavmae_ds.distributed.zero_layout import is_sharded
from cavmae_ds.models.common.blocks import Modality
from cavmae_ds.models.common.output import Features


class AudioVisualModule(nn.Module, ABC):
    """Base of the modules of all families.

    Pretraining calls forward(audio, frames, plans, mae, contrastive, on_pooled, decoder_loss) and gets a
    PretrainOutput; finetuning calls forward(audio, frames, mode) and gets logits [B, C]. With None as its third
    argument forward gives Features. What the arguments mean says models.cavmae.model.CAVMAE.forward.
    """

    modalities: tuple[Modality, ...] = ("a", "v")
    """Those that it has parameters for."""

    def features(self, audio: Tensor | None, frames: Tensor | None) -> Features:
        """Tokens of whole clips, unpooled, nothing hidden; either side may be None (spec/cav-mae.md 1.9, forward_feat).

        Log-mels [B, log-mel frames, mel bins], frames [B, T, 3, H, W] (uint8 or float). Leads through forward, whose
        third argument is then None: that is where ZeRO-3 gathers the parameters.
        """
        return cast(Features, self(audio, frames, None))

    @abstractmethod
    def initial_values(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What parameters start as, whole, float32, on the CPU, one at a time; those left out are as they were built.

        A pure function of torch's seed: not of what was drawn before, nor of the device.
        """

    def unused_parameters(self, *args: Any, **losses: Any) -> set[str]:
        """Names of parameters that no gradient reaches in a mode (finetuning) or with these losses (pretraining)."""
        return set()

    def external_parameters(self) -> Iterator[tuple[nn.Module, nn.Parameter]]:
        """Parameters that ZeRO-3 gathers for a module that does not own them."""
        yield from ()

    def draw_initial_weights(self) -> None:
        """Set the initial weights, unless the parameters hold nothing or are in shards: then whoever builds it does.

        Called at the end of __init__.
        """
        if not any(parameter.is_meta or is_sharded(parameter) for parameter in self.parameters()):
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, write: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
        """Set the initial weights; write puts a whole value into a parameter that may be sharded."""
        for parameter, value in self.initial_values():
            write(parameter, value)
