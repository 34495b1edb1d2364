"""From stored sizes to what the model reads: batched on the device, so that decoding is all a CPU does per clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from cavmae_ds.data.format.clips import Batch
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.transforms.augment import SoundAugmentation, mix
from cavmae_ds.data.transforms.frames import FrameAugmentation
from cavmae_ds.data.transforms.log_mel import LogMel
from cavmae_ds.errors import ConfigError

Item = TypeVar("Item")

LOG_MELS: dict[str, Callable[[torch.device], LogMel]] = {"kaldi": LogMel}
"""InputSpec.front_end -> what makes log-mels on a device; called as LogMel is."""


def log_mel_of(inputs: InputSpec, device: torch.device) -> LogMel:
    """What makes a model's log-mels. Raises ConfigError for an unknown name."""
    if inputs.front_end not in LOG_MELS:
        raise ConfigError(f"a model's front_end must be one of {', '.join(LOG_MELS)}, got {inputs.front_end!r}")
    return LOG_MELS[inputs.front_end](device)


class FrontEnd:
    """Batch -> raw log-mel [B, rows, mel] float32 and frames [B, T, 3, H, W] on the device; the model normalises.

    Frames are uint8, or float in [0, 1] where some clip of the batch is mixed with another.
    """

    def __init__(
        self,
        inputs: InputSpec,
        device: torch.device,
        augment: SoundAugmentation | None = None,
        training_seed: int | None = None,
    ):
        """augment: what is done to log-mels. training_seed: of inputs.augmentations, which are left out without one.

        Raises ConfigError for names that inputs should not have.
        """
        self.device = device
        self._augment = augment
        self.inputs = inputs
        self._log_mel = log_mel_of(inputs, device)
        augmentations = () if training_seed is None else inputs.augmentations
        self._augment_frames = FrameAugmentation(augmentations, training_seed or 0)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        waveform, n_samples, frames, epoch, clip_index = (
            part.to(self.device, non_blocking=True)
            for part in (batch.audio, batch.n_samples, batch.frames, batch.epoch, batch.clip_index)
        )
        if batch.partners:
            waveform, frames = mix(waveform, n_samples, frames, batch.partners.to(self.device))
        log_mel = self._log_mel(waveform, n_samples, self.inputs.log_mel_frames)
        if self._augment:
            log_mel = self._augment(log_mel, epoch, clip_index)
        # Workers leave the colours of a pixel side by side: to sort them out costs a CPU more than a GPU.
        return log_mel, self._augment_frames(frames.contiguous(), epoch, clip_index)


class Ready(NamedTuple):
    """A micro-batch of B clips on the device, beside what the loader gave."""

    audio: Tensor  # [B, rows, mel] float32, raw log-mel
    frames: Tensor  # [B, T, 3, H, W] uint8, or float in [0, 1]
    keys: tuple[Tensor, Tensor]  # epoch and clip index, [B] int64 each: what a clip's randomness hangs on
    batch: Batch


def ahead(batches: Iterable[Batch], front_end: FrontEnd) -> Iterator[Ready]:
    """The batches, in order, ready for the model.

    On a GPU batch k + 1 is copied and its log-mel computed on a stream of its own while the model works on batch k;
    it takes the memory of one more batch. Elsewhere nothing runs at the same time, so nothing is done before it is
    asked for. What `batches` raises comes out after the batches before it.
    """
    if front_end.device.type != "cuda":
        yield from (_ready(batch, front_end) for batch in batches)
        return
    side = torch.cuda.Stream(front_end.device)
    side.wait_stream(torch.cuda.current_stream(front_end.device))  # the front end's constants are written there

    def begin(batch: Batch) -> tuple[Ready, torch.cuda.Event]:
        with torch.cuda.stream(side):
            return _ready(batch, front_end), side.record_event()

    for ready, done in one_ahead(map(begin, batches)):
        model = torch.cuda.current_stream(front_end.device)
        model.wait_event(done)
        # The memory belongs to the side stream, which must not write there again before the model has read.
        for tensor in (ready.audio, ready.frames, *ready.keys):
            tensor.record_stream(model)
        yield ready


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each given when the one after it is there too; an error is raised where it occurred."""
    held: deque[Item] = deque()
    failure = None
    try:
        for item in items:
            held.append(item)
            if len(held) > 1:
                yield held.popleft()
    except Exception as error:
        failure = error
    yield from held
    if failure is not None:
        raise failure


def _ready(batch: Batch, front_end: FrontEnd) -> Ready:
    # Pinned memory is safe to let go of: PyTorch's host allocator waits for the copies that read from it.
    audio, frames = front_end(batch)
    epoch, clip_index = (key.to(front_end.device, non_blocking=True) for key in (batch.epoch, batch.clip_index))
    return Ready(audio, frames, (epoch, clip_index), batch)
