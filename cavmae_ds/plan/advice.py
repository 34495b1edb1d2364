"""What to switch on: the fastest choice that fits, and what would make an impossible run possible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cavmae_ds.config.ds_config import find_fragment
from cavmae_ds.errors import ConfigError, distinct
from cavmae_ds.plan.modes import Modes
from cavmae_ds.plan.predict import Choice, Planner, Prediction
from cavmae_ds.tasks.pretrain.config import PretrainConfig

ENGINES = tuple(Path("ds_configs") / name for name in ("zero2.json", "zero3.json", "zero3_offload.json"))
"""Tried after the run's own, from least to most communication."""
CHUNK = 128
"""Clips of a decoder chunk: enough work for a GPU [E]."""
ENOUGH = 32
"""A micro-batch of this many clips keeps a GPU busy [E]; fewer are chosen only when nothing else fits."""
ALIKE = 0.02
"""Speeds that differ by less than this share are one speed."""


def alternatives(planner: Planner) -> list[Prediction]:
    """The run's own engine with each set of switches and the largest micro-batch that fits and divides the batch.

    Two passes are left out where one already sees the whole step.
    """
    own = planner.configured()
    choices = (_largest_choice(planner, own.ds_config, modes) for modes in _ladder(planner))
    return [planner.predict(choice) for choice in choices if choice and planner.at_work(choice) == choice.modes]


def recommend(planner: Planner) -> Prediction | None:
    """The fastest choice that fits and lets every clip meet all clips of the step that the run wants it to meet.

    None when nothing fits. Among choices about as fast, the one with the fewest switches and the least communication.
    """
    ladder = [*_ladder(planner), *_last_resorts(planner)]
    choices = [_largest_choice(planner, engine, modes) for modes in ladder for engine in _engines(planner)]
    fitting = [choice for choice in choices if choice and _meets_the_whole_step(planner, choice)]
    busy = [choice for choice in fitting if choice.micro_batch >= min(ENOUGH, planner.clips_per_gpu)]
    predictions = [planner.predict(choice) for choice in busy or fitting]
    fastest = max((prediction.clips_per_second for prediction in predictions), default=0.0)
    return next((p for p in predictions if p.clips_per_second >= fastest * (1 - ALIKE)), None)


def with_possible_micro_batch(cfg: PretrainConfig, gpus: int) -> tuple[PretrainConfig, list[str]]:
    """The run with the largest micro-batch, up to its own, that divides the clips of a GPU; what was changed, and why.

    Only if none up to its own does, a larger one. As it is when its own does, or when no micro-batch can: derive
    refuses that.
    """
    own, (per_gpu, rest) = cfg.train.micro_batch, divmod(cfg.train.global_batch, gpus)
    possible = [n for n in range(1, per_gpu + 1) if per_gpu % n == 0 and _chunks_are_whole(cfg, per_gpu // n)]
    if rest or not possible or own in possible:
        return cfg, []
    size = max((n for n in possible if n < own), default=possible[0])
    why = f"train.micro_batch: {own} does not go into the {per_gpu} clips of a step that each of {gpus} GPUs takes"
    if per_gpu % own == 0:
        why = f"contrastive.negatives chunk={cfg.contrastive.chunks} needs whole chunks in a micro-batch"
    train = cfg.train.model_copy(update={"micro_batch": size})
    note = f"{why}: planned with {size}; write train.micro_batch: {size} into the run file"
    return cfg.model_copy(update={"train": train}), [note]


def check_fit(planner: Planner, recommended: Prediction | None) -> list[str]:
    """What to know when the run's own switches hold not even one clip. Raises ConfigError when no switches do."""
    own, machine = planner.configured(), planner.machine
    if planner.largest_micro_batch(own.ds_config, own.modes):
        return []
    total = planner.memory(replace(own, micro_batch=1)).total
    needed, usable = distinct(total / 2**30, machine.usable_bytes / 2**30, ".1f")
    over = (
        f"the run does not fit on {machine.gpus} x {machine.gpu.name} even at train.micro_batch: 1, it needs "
        f"{needed} GiB of the {usable} GiB usable on each"
    )
    if recommended is None:
        raise ConfigError(f"{over}, and no switch changes that; take GPUs with more memory or a smaller model")
    return [f"{over}; it fits with {' '.join(recommended.choice.overrides())}"]


def _chunks_are_whole(cfg: PretrainConfig, accumulation: int) -> bool:
    """Whether no chunk of contrastive.negatives reaches over several of a step's micro-batches."""
    return not cfg.contrastive.chunks or cfg.contrastive.two_pass or cfg.contrastive.chunks % accumulation == 0


def _ladder(planner: Planner) -> Iterator[Modes]:
    """Sets of switches, from none to all."""
    decodes = planner.cfg.loss.mae_weight > 0
    chunk = min(CHUNK, planner.clips_per_gpu) if decodes else 0
    yield Modes(0, False, False)
    if decodes:
        yield Modes(chunk, False, False)
    yield Modes(chunk, True, False)
    if planner.cfg.loss.contrastive_weight > 0:
        yield Modes(chunk, False, True)
        yield Modes(chunk, True, True)


def _last_resorts(planner: Planner) -> Iterator[Modes]:
    """Everything on and the decoder clip by clip: slow, and the smallest that there is."""
    yield Modes(1, True, False)
    if planner.cfg.loss.contrastive_weight > 0:
        yield Modes(1, True, True)


def _engines(planner: Planner) -> list[Path]:
    """The run's own fragment, then the shipped ones that exist."""
    paths = [planner.cfg.ds_config]
    for path in ENGINES:
        try:
            if find_fragment(path) != find_fragment(planner.cfg.ds_config):
                paths.append(path)
        except ConfigError:
            continue
    return paths


def _largest_choice(planner: Planner, engine: Path, modes: Modes) -> Choice | None:
    """The largest micro-batch that fits and divides a GPU's clips of the step."""
    most = planner.largest_micro_batch(engine, modes)
    clips = planner.clips_per_gpu
    fitting = [n for n in range(min(most, clips), 0, -1) if clips % n == 0]
    return Choice(engine, fitting[0], modes) if fitting else None


def _meets_the_whole_step(planner: Planner, choice: Choice) -> bool:
    """A comparison across ranks spans one micro-batch of each, unless two passes make it span the step."""
    cfg, micro_batches = planner.cfg, planner.clips_per_gpu // choice.micro_batch
    if choice.modes.two_pass or not cfg.loss.contrastive_weight or cfg.contrastive.negatives == "rank":
        return True
    if cfg.contrastive.chunks:
        return cfg.contrastive.chunks % micro_batches == 0
    return micro_batches == 1
