"""GPUs and cores: what a rank will compute on."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.utils.collect_env import get_nvidia_driver_version, run

from cavmae_ds.distributed.environment import ranks_of_this_host
from cavmae_ds.doctor.finding import Finding, fix, note, ok
from cavmae_ds.terminal import available_cores

GIB = 2**30
MOST_IN_USE = 0.05
"""Share of a GPU's memory that may be in use before a run starts: a context and a desktop take less."""
GPU_FILES = Path("/dev/nvidiactl"), Path("/dev/kfd")


def check_devices(precision: str, local_rank: int) -> list[Finding]:
    """The rank's device, and that DeepSpeed will take the same. precision: train.precision."""
    if torch.cuda.is_available():
        return [*_gpu(precision, local_rank), accelerator(os.environ.get("DS_ACCELERATOR", ""), True)]
    there = [str(path) for path in GPU_FILES if path.exists()]
    if there:
        return [
            fix(
                "device",
                f"{there[0]} is there but torch {torch.__version__} finds no GPU; nvidia-smi: driver {_driver()}",
                "install a driver for this torch's CUDA, give the container the GPUs (--gpus all), or unset "
                "CUDA_VISIBLE_DEVICES",
            )
        ]
    return [
        note("device", "no GPU: everything runs on the CPU, which is for trying things out"),
        accelerator(os.environ.get("DS_ACCELERATOR", ""), False),
    ]


def accelerator(told: str, gpu: bool) -> Finding:
    """DS_ACCELERATOR against what is there."""
    if gpu and told == "cpu":
        return fix("DS_ACCELERATOR", "cpu, though there is a GPU", "unset DS_ACCELERATOR")
    if not gpu and told not in ("", "cpu"):
        return fix("DS_ACCELERATOR", f"{told}, though there is no GPU", "export DS_ACCELERATOR=cpu")
    return ok("DS_ACCELERATOR", told or "not set: DeepSpeed finds the device by itself")


def _gpu(precision: str, local_rank: int) -> list[Finding]:
    count = torch.cuda.device_count()
    if local_rank >= count:
        return [
            fix(
                "device",
                f"this is rank {local_rank} of its host (counted from 0), which has {count} GPUs",
                f"start {count} ranks a host: slots={count} in the hostfile, or --num_gpus {count}",
            )
        ]
    properties = torch.cuda.get_device_properties(local_rank)
    free, total = torch.cuda.mem_get_info(local_rank)
    said = (
        f"{properties.name}, {total / GIB:.0f} GiB, compute capability {properties.major}.{properties.minor}, "
        f"driver {_driver()}, CUDA {torch.version.cuda}"
    )
    found = [ok("device", said)]
    if free < (1 - MOST_IN_USE) * total:
        taken = f"{(total - free) / GIB:.1f} GiB of {total / GIB:.0f} are in use before the run"
        found.append(note("GPU memory", taken, "nvidia-smi shows by whom; end what is left over"))
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        found.append(fix("bf16", f"{properties.name} does not compute in bf16", "set train.precision=fp32"))
    return found


def _driver() -> str:
    """The driver's version as nvidia-smi says it."""
    return get_nvidia_driver_version(run) or "unknown"


def check_threads(workers: int) -> list[Finding]:
    """Cores of this host against its ranks, their threads and their loader workers."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return threads(available_cores(), ranks_of_this_host(), workers, told, torch.cuda.is_available())


def threads(cores: int, ranks: int, workers: int, told: str, gpu: bool) -> list[Finding]:
    """OMP_NUM_THREADS as it is set, and workers for each rank, against the cores that each has."""
    share = max(1, cores // ranks)
    found = []
    if told and not (told.isdecimal() and int(told)):
        found.append(fix("threads", f"OMP_NUM_THREADS is {told!r}", f"export OMP_NUM_THREADS={share}, or unset it"))
    elif told and int(told) > share:
        said = f"OMP_NUM_THREADS={told} x {ranks} ranks on {cores} cores"
        found.append((note if gpu else fix)("threads", said, f"export OMP_NUM_THREADS={share}, or unset it"))
    else:
        found.append(ok("threads", f"cores: {cores}, ranks: {ranks}, OMP_NUM_THREADS={told or f'{share} (not set)'}"))
    if ranks * (1 + workers) > cores:
        said = f"{cores} cores for ranks: {ranks}, loader workers of each: {workers}"
        found.append(note("workers", said, "fewer data.workers, if clips are waited for all the same"))
    return found
