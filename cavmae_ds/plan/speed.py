"""How long a step takes and what more GPUs are worth: arithmetic on the FLOPs, a stated MFU and stated links.

The weak-scaling model is that of spec/scale.md 3d: efficiency = compute / (compute + exposed communication + loss).
"""

from __future__ import annotations

from dataclasses import dataclass

from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.plan.communication import Traffic
from cavmae_ds.plan.hardware import Gpu
from cavmae_ds.plan.states import Parameters

LOSS_SHARE = 500 / 790
"""Share of the matrix rate that the tiled contrastive loss reaches [E] (spec/scale.md 3b)."""
ADAM_BYTES = 28
"""Device memory moved per parameter by AdamW on bf16 weights with fp32 masters (spec/scale.md 2a)."""
HOST_BYTES_PER_SECOND = 25e9
"""The same for optimizer states in the host's memory, over PCIe 4.0 or from one share of its memory [E]."""
SLOW_LINKS = 200 / 340
"""Rate between hosts in the pessimistic case, share of the usual one (nccl #1218: 200 of 340 GB/s)."""


@dataclass(frozen=True)
class Time:
    """Seconds of one optimizer step on one GPU."""

    compute: float
    """Forward and backward at the stated MFU, with what runs twice."""
    loss: float
    optimizer: float
    exposed: float
    """Communication that nothing hides."""

    @property
    def step(self) -> float:
        return self.compute + self.loss + self.optimizer + self.exposed


def step_time(
    cfg: RunConfig,
    parameters: Parameters,
    received: Traffic,
    flops_per_clip: float,
    loss_flops: int,
    offloaded: bool,
    gpu: Gpu,
    ranks: int,
    gpus_per_node: int,
    mfu: float,
    hidden: float = 0.5,
    slow: bool = False,
) -> Time:
    """One step of cfg.train.global_batch clips.

    flops_per_clip: of the model, with what runs twice. hidden: share of ZeRO's communication that compute covers; what
    a loss across clips exchanges counts as exposed. slow: links between hosts at SLOW_LINKS of their rate.
    """
    rate = gpu.matrix_tflops(cfg.train.precision) * 1e12
    clips = cfg.train.global_batch / ranks
    link = link_rate(gpu, ranks, gpus_per_node) * (SLOW_LINKS if slow and ranks > gpus_per_node else 1)
    memory_rate = HOST_BYTES_PER_SECOND if offloaded else gpu.bandwidth_tbs * 1e12
    return Time(
        compute=clips * flops_per_clip / (mfu * rate),
        loss=loss_flops / (LOSS_SHARE * rate),
        optimizer=ADAM_BYTES * parameters.trainable / ranks / memory_rate,
        exposed=((1 - hidden) * received.zero + received.across_clips) / link,
    )


def link_rate(gpu: Gpu, ranks: int, gpus_per_node: int) -> float:
    """Bytes/s that a GPU receives in a collective over so many: the network sets it beyond one host."""
    return (gpu.link_gbs if ranks <= gpus_per_node else gpu.network_gbs) * 1e9


def efficiency(compute_s: float, loss_s: float, exposed_s: float) -> float:
    """Share of a step that is forward and backward."""
    return compute_s / (compute_s + loss_s + exposed_s)
