"""ds_configs/*.json: engine mechanics only. Whatever the run file owns is refused here by name."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from cavmae_ds.atomic_io import read_text
from cavmae_ds.errors import ConfigError, DataError, shortened

RUN_OWNS = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch and train.micro_batch",
    "gradient_clipping": "optim.clip_grad_norm",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "data_types": "train.precision",
    "tensorboard": "monitor",
    "steps_per_print": "monitor.log_every",
}
"""DeepSpeed's key -> the key of the run file that decides it."""

MECHANICS = {
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "activation_checkpointing",
    "aio",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
}
"""Top-level keys a fragment may hold. DeepSpeed itself takes a misspelled one in silence (spec/engine-notes.md 0)."""

LAYOUTS: dict[str, tuple[str | int, ...]] = {
    "offload_optimizer.device": ("none", "cpu"),
    "offload_optimizer.ratio": (1,),
    "offload_param.device": ("none", "cpu"),
    "mics_shard_size": (-1,),
}
"""Keys of zero_optimization -> values with which zero_layout.py knows where ZeRO keeps what."""

_CHECKOUT = Path(__file__).resolve().parents[2]


def read_fragment(ds_config: Path, precision: str) -> dict[str, Any]:
    """The engine fragment of a run. Raises ConfigError: missing, not JSON, owned or unknown key, ZeRO stage."""
    path = find_fragment(ds_config)
    try:
        fragment = from_json(read_text(path))
    except DataError as error:
        raise ConfigError(f"ds_config {error}") from error
    except ValueError as error:
        raise ConfigError(f"ds_config {str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(fragment, dict):
        raise ConfigError(f"ds_config {str(path)!r} must hold a JSON object, got {type(fragment).__name__}")
    for key in fragment:
        if key in RUN_OWNS:
            raise ConfigError(
                f"{key!r} in ds_config {str(path)!r} belongs to the run file: remove it there and set {RUN_OWNS[key]}"
            )
        if key not in MECHANICS:
            near = difflib.get_close_matches(key, MECHANICS | RUN_OWNS.keys(), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(sorted(MECHANICS))}"
            raise ConfigError(f"unknown key {shortened(key)!r} in ds_config {str(path)!r}, {hint}")
    if zero_stage(fragment, path) == 0 and precision == "bf16":
        # DeepSpeed would sum micro-batches and ranks in bf16 there, and refuses to do it in fp32.
        raise ConfigError(
            f"train.precision bf16 needs ZeRO stage 1, 2 or 3, got stage 0 in ds_config {str(path)!r}; "
            "choose ds_configs/zero1.json or train.precision fp32"
        )
    _check_layout(fragment.get("zero_optimization"), path)
    return fragment


def _check_layout(section: Any, path: Path) -> None:
    for keys, allowed in LAYOUTS.items():
        value = section
        for key in keys.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and value not in allowed:
            raise ConfigError(
                f"zero_optimization.{keys} in ds_config {str(path)!r} must be {' or '.join(map(str, allowed))}, "
                f"got {value!r:.120}: checkpoints could not be made of what lies elsewhere"
            )


def zero_stage(fragment: dict[str, Any], path: Path | str = "") -> int:
    """How many of optimizer states, gradients and parameters are sharded: ZeRO stage 0 (none), 1, 2 or 3."""
    section = fragment.get("zero_optimization", {})
    stage = section.get("stage") if isinstance(section, dict) else section
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise ConfigError(
            f"zero_optimization.stage in ds_config {str(path)!r} must be 0, 1, 2 or 3, got {stage!r:.120}"
        )
    return stage


def find_fragment(path: Path) -> Path:
    """A relative path counts from the current folder, then from the checkout, so recipes work from anywhere."""
    for candidate in (path, _CHECKOUT / path):
        with suppress(OSError):  # a name too long for any file
            if candidate.is_file():
                return candidate
    raise ConfigError(
        f"ds_config {shortened(str(path))!r} does not exist here or in {str(_CHECKOUT)!r}; try ds_configs/zero2.json"
    )
