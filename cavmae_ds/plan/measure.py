"""What a micro-batch computes and holds: its forward and backward pass on meta tensors, op by op, as on CUDA.

Nothing is computed and nothing allocated, so any family's module and any task's loss can be measured anywhere.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.data.format.clips import Batch
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.transforms.front_end import Ready
from cavmae_ds.kernels.launching import recording, references
from cavmae_ds.tasks import inputs_of, task_of
from cavmae_ds.tasks.task import freeze_unused

SAMPLES_PER_FRAME = 160
"""10 ms of sound at 16 kHz."""
FEW, MORE = 8, 16
"""Micro-batches that are measured where the model takes all clips at once."""


class Measured(NamedTuple):
    """Of a micro-batch on one rank. Inputs, parameters and gradients of parameters that have arrived do not count."""

    flops: int
    """Of matrix products, forward and backward, a multiply-add as 2; what is recomputed counts again."""
    saved: int
    """Bytes that forward leaves behind for backward."""
    forward: NDArray[np.int64]
    """Bytes held after each op of forward."""
    backward: NDArray[np.int64]

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment of forward and backward."""
        return int(max(self.forward.max(), self.backward.max()))


class FirstPass(NamedTuple):
    """What a step runs on every micro-batch before any gradient."""

    flops: float
    """A clip."""
    output: Any
    """Without values."""


def flops_per_clip(cfg: RunConfig, classes: int = 0) -> float:
    """FLOPs of forward and backward of one clip that MFU is reported against: nothing runs twice."""
    return executed_flops(with_values(cfg, task_of(cfg).variants(cfg, 1)[0].model), classes)


def executed_flops(cfg: RunConfig, classes: int = 0) -> float:
    """FLOPs of forward and backward of one clip, with what is recomputed."""
    clips = 2 * cfg.model.clips_at_once or FEW  # as measured_peak takes them
    return measure(cfg, clips, classes).flops / clips


def measured_peak(cfg: RunConfig, clips: int, classes: int = 0) -> float:
    """Bytes at the fullest moment of a micro-batch. At each op they are affine in its clips: two sizes are measured.

    A part of the model that takes some clips at a time (ModelSection.clips_at_once) makes them affine below that number
    and affine above, where forward has more ops the more clips there are: its fullest moment is then taken as one op,
    and a last part of fewer clips as a whole one.
    """
    part = cfg.model.clips_at_once
    first, second = (FEW, MORE) if not part else (2 * part, 3 * part) if clips > part else ((part + 1) // 2, part)
    if clips in (first, second):
        return measure(cfg, clips, classes).peak
    low, high = (measure(cfg, size, classes) for size in (first, second))
    share = (clips - first) / (second - first)
    return max(_fullest(low.forward, high.forward, share), _fullest(low.backward, high.backward, share))


def measure(cfg: RunConfig, clips: int, classes: int = 0, kernels: bool = True) -> Measured:
    """One micro-batch of so many clips. classes: of a classifier's head.

    kernels=False measures the references of the kernels, which run on a CPU.
    """
    return _measure(_Run(cfg, classes), clips, kernels)


def first_pass(cfg: RunConfig, classes: int = 0) -> FirstPass:
    """Task.first_pass of a few clips."""
    return _first_pass(_Run(cfg, classes))


def on_meta(cfg: RunConfig, classes: int = 0) -> nn.Module:
    """The run's model without memory, in its precision; what it does not train is frozen."""
    task = task_of(cfg)
    with torch.device("meta"):
        model = task.build_model(cfg, classes)
    freeze_unused(task, cfg, model)
    return model.to(torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32)


def on_meta_ready(inputs: InputSpec, clips: int) -> Ready:
    """A micro-batch without values, as the loader and the front end give it."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(clips, *shape, dtype=dtype, device="meta")

    index, epoch, lengths = (empty(dtype=torch.int64) for _ in range(3))
    sound = empty(inputs.log_mel_frames * SAMPLES_PER_FRAME, dtype=torch.int16)
    frames = empty(inputs.frames, 3, inputs.frame_size, inputs.frame_size, dtype=torch.uint8)
    log_mel = empty(inputs.log_mel_frames, inputs.mel_bins, dtype=torch.float32)
    return Ready(log_mel, frames, (epoch, index), Batch(index, epoch, sound, lengths, frames, [[]] * clips, []))


def with_values(cfg: RunConfig, values: Iterable[tuple[str, Any]]) -> RunConfig:
    """The run with other values of keys like `train.micro_batch`."""
    for key, value in values:
        name, _, field = key.partition(".")
        cfg = cfg.model_copy(update={name: getattr(cfg, name).model_copy(update={field: value}) if field else value})
    return cfg


class _Run:
    """A run as a key of caches: what does not change a micro-batch of given size does not count."""

    def __init__(self, cfg: RunConfig, classes: int):
        self.cfg, self.classes = cfg, classes
        self._key = classes, cfg.train.precision, cfg.model_dump_json(exclude={"train", "ds_config", "data", "run_dir"})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Run) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def ready(self, clips: int) -> Ready:
        """Its inputs."""
        inputs = inputs_of(self.cfg)
        return on_meta_ready(inputs, clips)


@cache
def _measure(run: _Run, clips: int, kernels: bool) -> Measured:
    model, ready = on_meta(run.cfg, run.classes), run.ready(clips)
    for parameter in model.parameters():
        if parameter.requires_grad:  # gradients belong to the engine, in buffers of its own
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    given = [ready.audio, ready.frames, *ready.keys]
    with _as_on_cuda(kernels), _Meter([*given, *model.parameters(), *model.buffers()]) as meter:
        loss, kept = task_of(run.cfg).measured_loss(run.cfg, model, ready)
        saved, ops = meter.held, len(meter.timeline)
        loss.backward()
        del kept
    timeline = np.array(meter.timeline)
    return Measured(meter.flops, saved, timeline[:ops], timeline[ops:])


@cache
def _first_pass(run: _Run) -> FirstPass:
    model = on_meta(run.cfg, run.classes)
    with torch.no_grad(), _as_on_cuda(kernels=True), _Meter([]) as meter:
        output = task_of(run.cfg).first_pass(run.cfg, model, run.ready(FEW))
    return FirstPass(meter.flops / FEW, output)


def _fullest(low: NDArray[np.int64], high: NDArray[np.int64], share: float) -> float:
    """At `share` of the way from one size to another, which may lie beyond either."""
    if len(low) != len(high):
        low, high = low.max(keepdims=True), high.max(keepdims=True)
    return float((low + (high - low) * share).max())


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _Meter(TorchDispatchMode):
    """Inside, counts FLOPs of all ops, and the bytes of all meta tensors' storages from first sight to their end."""

    def __init__(self, not_counted: Iterable[Tensor]):
        super().__init__()
        self.flops = self.held = 0
        self.timeline: list[int] = []
        self._known: dict[int, Any] = {t.untyped_storage()._cdata: t for t in not_counted}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if count := FLOPS.get(func.overloadpacket):
            self.flops += count(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._see(tensor.untyped_storage())
        self.timeline.append(self.held)
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name not in self._known:
            self._known[name] = weakref.ref(storage, partial(self._forget, name, size))
            self.held += size

    def _forget(self, name: int, size: int, _: Any) -> None:
        del self._known[name]
        self.held -= size


@contextmanager
def _as_on_cuda(kernels: bool) -> Iterator[None]:
    """Inside, meta tensors go the way of CUDA's: through the kernels (or their references) and fused attention.

    torch itself takes the unfused formula for attention on meta tensors, which would save all scores.
    """
    library = torch.library.Library("aten", "IMPL")
    with ExitStack() as after:
        after.callback(library._destroy)
        library.impl("scaled_dot_product_attention", _fused_attention, "AutogradMeta")
        after.enter_context(recording() if kernels else references())
        yield


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0, causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    aten = torch.ops.aten
    if mask is None:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, scale=scale)[0]
    bias = (mask.to(query.dtype) if mask.dtype == torch.bool else mask).expand(*query.shape[:-1], key.shape[-2])
    args = query, key, value, bias, True, dropout, causal
    return aten._scaled_dot_product_efficient_attention(*args, scale=scale)[0]


def _attention_backward_flops(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    """Twice the forward's: that the kernels compute the scores again is no work of the model."""
    return 2 * sdpa_flop_count(query.shape, key.shape, value.shape)


FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_backward: _attention_backward_flops,
    torch.ops.aten._scaled_dot_product_efficient_attention_backward: _attention_backward_flops,
}
"""Op -> its FLOPs, of its arguments and out_val."""
