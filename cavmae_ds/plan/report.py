"""A plan as one document of plain values: what --json prints and what the tables are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from cavmae_ds.plan.advice import alternatives
from cavmae_ds.plan.predict import HEADROOM, Planner, Prediction
from cavmae_ds.plan.speed import ADAM_BYTES, LOSS_SHARE, SLOW_LINKS, efficiency

VERSION = 2
"""Of the document: raised when a key changes its meaning or goes."""
SCALES = (8, 16, 32, 64, 128, 256, 512)
SECONDS_A_DAY = 86_400


def document(planner: Planner, recommended: Prediction | None, steps: int, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that is predicted of a run of `steps` optimizer steps; sizes in bytes, times in seconds.

    notes: what must be changed in the run file, a sentence each.
    """
    cfg, machine = planner.cfg, planner.machine
    configured = planner.predict(planner.configured())
    best = recommended or configured
    return {
        "version": VERSION,
        "prediction": True,
        "notes": list(notes),
        "gpu": asdict(machine.gpu),
        "gpus": machine.gpus,
        "gpus_per_node": machine.per_node,
        "mfu": machine.mfu,
        "usable_bytes": machine.usable_bytes,
        "parameters": planner.parameters.total,
        "trainable_parameters": planner.parameters.trainable,
        "flops_per_clip": planner.flops_per_clip,
        "global_batch": cfg.train.global_batch,
        "precision": cfg.train.precision,
        "steps": steps,
        "configured": _row(planner, configured, steps),
        "alternatives": [_row(planner, prediction, steps) for prediction in alternatives(planner)],
        "recommended": _row(planner, recommended, steps) if recommended else None,
        "weak_scaling": [_scaled(planner, best, gpus) for gpus in SCALES],
        "assumptions": assumptions(planner),
    }


def assumptions(planner: Planner) -> list[str]:
    """What every number rests on, one line each."""
    machine, gpu = planner.machine, planner.machine.gpu
    ceiling = gpu.matrix_tflops(planner.cfg.train.precision)
    return [
        "Everything here is predicted, nothing measured on these GPUs; [E] marks estimates.",
        f"{gpu.name}: {gpu.source}.",
        f"Memory: {gpu.memory_gib:g} GiB less {HEADROOM:.0%} for CUDA, NCCL and fragmentation [E]; kernels and flash "
        "attention as on CUDA.",
        f"Speed: MFU {machine.mfu:.0%} of {ceiling:g} TFLOP/s, whatever the micro-batch; no wait for data; "
        f"products across clips at {LOSS_SHARE:.0%} of that rate [E]; AdamW moves {ADAM_BYTES} bytes a parameter.",
        f"Links: a GPU receives {gpu.link_gbs:g} GB/s inside a host of {machine.per_node}, {gpu.network_gbs:g} GB/s "
        "between hosts; compute hides half of ZeRO's bytes and none of what a loss across clips exchanges [E].",
        f"Weak scaling: clips of a GPU stay as they are, the batch grows; pessimistic is nothing hidden and "
        f"{SLOW_LINKS:.0%} of the rate between hosts; no jitter, no stragglers.",
    ]


def _row(planner: Planner, prediction: Prediction, steps: int) -> dict[str, Any]:
    choice, memory = prediction.choice, prediction.memory
    return {
        "name": choice.variant.name,
        "ds_config": str(choice.ds_config),
        "zero_stage": prediction.stage,
        "micro_batch": choice.micro_batch,
        "switches": dict(choice.variant.values),
        "overrides": choice.overrides(),
        "fits": prediction.fits,
        "largest_micro_batch": prediction.largest_micro_batch,
        "compared_with": prediction.across_clips.candidates,
        "extra_flops": prediction.extra_flops,
        "bytes": {
            **{f"states_{name}": value for name, value in asdict(memory.states).items()},
            "states": memory.states.total,
            "inputs": memory.inputs,
            "activations": memory.activations,
            "across_clips": memory.across_clips,
            "total": memory.total,
            "host": prediction.host_bytes,
        },
        "received_bytes_per_step": asdict(prediction.received),
        "seconds_per_step": {**asdict(prediction.time), "step": prediction.time.step},
        "clips_per_second": prediction.clips_per_second,
        "days": steps * prediction.time.step / SECONDS_A_DAY,
    }


def _scaled(planner: Planner, prediction: Prediction, gpus: int) -> dict[str, Any]:
    """The same clips on each of more GPUs: which share of the step is forward and backward."""
    batch = planner.clips_per_gpu * gpus
    train = planner.cfg.train.model_copy(update={"global_batch": batch})
    wider = Planner(
        planner.cfg.model_copy(update={"train": train}), replace(planner.machine, gpus=gpus), planner.classes
    )
    shares = {}
    for case, hidden, slow in (("usual", 0.5, False), ("pessimistic", 0.0, True)):
        time = wider.time(prediction.choice, hidden, slow)
        shares[case] = efficiency(time.compute, time.loss, time.exposed)
    return {"gpus": gpus, "global_batch": batch, **shares}
