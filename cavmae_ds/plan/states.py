"""Bytes that do not depend on the batch: weights, gradients, optimizer states, their average, DeepSpeed's buffers.

The bookkeeping is the ZeRO paper's (Rajbhandari et al., arXiv 1910.02054, sections 3 and 5), corrected for what
DeepSpeed 0.19.8 holds in fact (docs/scaling.md compares the two with measured bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from cavmae_ds.config.ds_config import zero_stage
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.plan.measure import flops_per_clip, on_meta

FP32 = 4
MOMENTS = {"adamw": 2, "adam": 2, "lamb": 2, "lars": 1, "lion": 1}
"""fp32 numbers that each optimizer keeps for a parameter, beside the parameter itself."""

REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default zero_optimization.reduce_bucket_size, elements."""
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default zero_optimization.stage3_max_live_parameters, elements."""
PERSISTENT_BELOW = 100_000
"""DeepSpeed's default zero_optimization.stage3_param_persistence_threshold: smaller parameters stay whole, elements."""


class Parameters(NamedTuple):
    """How many numbers a model has."""

    total: int
    trainable: int
    """Those that some loss of the run reaches; position tables may be fixed."""
    sizes: tuple[int, ...]
    """Of each tensor."""


@dataclass(frozen=True)
class States:
    """Bytes on one GPU, whatever the micro-batch."""

    weights: int
    """In the run's precision; under ZeRO-3 this rank's share."""
    gathered: int
    """ZeRO-3: weights of other ranks that are here while they are used, at most."""
    gradients: int
    """Held between backward and step."""
    optimizer: int
    """fp32 master weights and moments."""
    average: int
    """fp32 moving average of the weights (train.ema_clips)."""
    buckets: int
    """DeepSpeed's buffers for reducing gradients, allocated whole however small the model."""

    @property
    def total(self) -> int:
        return self.weights + self.gathered + self.gradients + self.optimizer + self.average + self.buckets


def bytes_per_value(precision: str) -> int:
    """Of weights and activations in train.precision."""
    return 2 if precision == "bf16" else FP32


def count(cfg: RunConfig, classes: int = 0) -> Parameters:
    """The parameters of the run's model; allocates nothing. classes: of a classifier's head."""
    parameters = list(on_meta(cfg, classes).parameters())
    sizes = tuple(p.numel() for p in parameters)
    return Parameters(sum(sizes), sum(p.numel() for p in parameters if p.requires_grad), sizes)


def model_numbers(cfg: RunConfig, classes: int = 0) -> dict[str, Any]:
    """Fields of RunPlan that say what the model is. classes: of a classifier's head."""
    parameters = count(cfg, classes)
    return {
        "parameters": parameters.total,
        "trainable_parameters": parameters.trainable,
        "gflop_per_clip": round(flops_per_clip(cfg, classes) / 1e9, 2),
    }


def states(cfg: RunConfig, fragment: dict[str, Any], parameters: Parameters, ranks: int) -> States:
    """What each of `ranks` GPUs holds under the engine fragment of the run."""
    stage, zero = zero_stage(fragment), zero_section(fragment)
    value = bytes_per_value(cfg.train.precision)
    total, trainable = parameters.total, parameters.trainable
    shards = ranks if stage else 1
    weights, gathered = value * total, 0
    if stage == 3:
        weights = 0 if _offloaded(zero, "offload_param") else _share(value * total, ranks)
        threshold = zero.get("stage3_param_persistence_threshold", PERSISTENT_BELOW)
        small = sum(size for size in parameters.sizes if size < threshold)
        live = max(small, min(total, int(zero.get("stage3_max_live_parameters", LIVE_PARAMETERS))))
        gathered = max(0, value * live - weights)
    masters = 1 if stage else 0  # without ZeRO the weights, fp32, are their own masters
    optimizer = _share(FP32 * (masters + MOMENTS[cfg.optim.name]) * trainable, shards)
    average = _share(FP32 * trainable, shards) if cfg.train.ema_clips else 0
    gradients = _gradients(stage, cfg.train.precision, trainable, ranks)
    if _offloaded(zero, "offload_optimizer"):
        optimizer = average = gradients = 0
    return States(weights, gathered, gradients, optimizer, average, _buckets(stage, value, zero, cfg))


def offloads(fragment: dict[str, Any]) -> bool:
    """Whether the optimizer's states lie in the host's memory."""
    return _offloaded(zero_section(fragment), "offload_optimizer")


def _gradients(stage: int, precision: str, trainable: int, ranks: int) -> int:
    """Sums over micro-batches are kept in fp32; stages 2 and 3 keep this rank's share of them alone."""
    if stage == 0:
        return FP32 * trainable
    if stage == 1 and precision == "bf16":  # BF16_Optimizer: bf16 gradients and their fp32 sums, both whole
        return (2 + FP32) * trainable
    return _share(
        FP32 * trainable, ranks
    )  # ZeRO-1 in fp32 runs the code of stage 2: reduced as soon as a bucket is full


def _buckets(stage: int, value: int, zero: dict[str, Any], cfg: RunConfig) -> int:
    if stage == 0 or (stage == 1 and cfg.train.precision == "bf16") or not zero.get("contiguous_gradients", True):
        return 0
    copies = 2 if stage != 3 and zero.get("overlap_comm", False) else 1
    return copies * value * int(zero.get("reduce_bucket_size", REDUCE_BUCKET))


def zero_section(fragment: dict[str, Any]) -> dict[str, Any]:
    """The fragment's zero_optimization, which may be a bare stage."""
    section = fragment.get("zero_optimization", {})
    return section if isinstance(section, dict) else {}


def _offloaded(zero: dict[str, Any], what: str) -> bool:
    return isinstance(zero.get(what), dict) and zero[what].get("device", "none") != "none"


def _share(amount: int, ranks: int) -> int:
    return -(-amount // ranks)
