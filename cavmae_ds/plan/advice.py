"""What to switch on: the fastest choice that fits, and what would make an impossible run possible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cavmae_ds.config.ds_config import find_fragment
from cavmae_ds.config.sections.base import divisors
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.errors import ConfigError, distinct
from cavmae_ds.plan.predict import Choice, Planner, Prediction
from cavmae_ds.tasks import task_of
from cavmae_ds.tasks.task import Variant

ENGINES = tuple(Path("ds_configs") / name for name in ("zero2.json", "zero3.json", "zero3_offload.json"))
"""Tried after the run's own, from least to most communication."""
ENOUGH = 32
"""A micro-batch of this many clips keeps a GPU busy [E]; fewer are chosen only when nothing else fits."""
ALIKE = 0.02
"""Speeds that differ by less than this share are one speed."""


def alternatives(planner: Planner) -> list[Prediction]:
    """The run's own engine with each set of switches and the largest micro-batch that fits and divides the batch.

    What changes nothing in a step is left out: two passes where one already sees the whole step.
    """
    own = planner.configured()
    choices = [_largest_choice(planner, own.ds_config, variant) for variant in planner.variants()]
    found: dict[tuple, Choice] = {}
    for choice in filter(None, choices):
        found.setdefault((choice.variant.model, planner.across_clips(choice).first_pass), choice)
    return [planner.predict(choice) for choice in found.values()]


def recommend(planner: Planner) -> Prediction | None:
    """The fastest choice that fits and lets every clip meet all clips of the step that the run wants it to meet.

    None when nothing fits. Among choices about as fast, the one with the fewest switches and the least communication.
    """
    fitting = _fitting(planner, planner.variants())
    busy = _busy(planner, fitting)
    if not busy:  # a model that takes clips one by one: slow, and the smallest that there is
        fitting += _fitting(planner, planner.variants(clips=1))
        busy = _busy(planner, fitting)
    predictions = [planner.predict(choice) for choice in busy or fitting]
    fastest = max((prediction.clips_per_second for prediction in predictions), default=0.0)
    return next((p for p in predictions if p.clips_per_second >= fastest * (1 - ALIKE)), None)


def with_possible_micro_batch(cfg: RunConfig, gpus: int) -> tuple[RunConfig, list[str]]:
    """The run with the largest micro-batch, up to its own, that divides the clips of a GPU; what was changed, and why.

    Only if none up to its own does, a larger one. As it is when its own does, or when no micro-batch can: derive
    refuses that.
    """
    own, (per_gpu, rest) = cfg.train.micro_batch, divmod(cfg.train.global_batch, gpus)
    problems = {n: _problem(cfg, per_gpu // n) for n in divisors(per_gpu)} if per_gpu else {}
    possible = [n for n, problem in problems.items() if not problem]
    if rest or not possible or own in possible:
        return cfg, []
    size = max((n for n in possible if n < own), default=possible[0])
    why = problems.get(own) or (
        f"train.micro_batch: {own} does not go into the {per_gpu} clips of a step that each of {gpus} GPUs takes"
    )
    train = cfg.train.model_copy(update={"micro_batch": size})
    note = f"{why}: planned with {size}; write train.micro_batch: {size} into the run file"
    return cfg.model_copy(update={"train": train}), [note]


def check_fit(planner: Planner, recommended: Prediction | None) -> list[str]:
    """What to know when the run's own switches hold not even one clip. Raises ConfigError when no switches do."""
    own, machine = planner.configured(), planner.machine
    if planner.largest_micro_batch(own.ds_config, own.variant):
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


def _problem(cfg: RunConfig, accumulation: int) -> str:
    """Why a step cannot have so many micro-batches; empty if it can."""
    try:
        task_of(cfg).check_accumulation(cfg, accumulation)
    except ConfigError as error:
        return str(error)
    return ""


def _fitting(planner: Planner, variants: list[Variant]) -> list[Choice]:
    """Of all variants and engines, with their largest micro-batches, those that fit and compare all of a step."""
    choices = [_largest_choice(planner, engine, variant) for variant in variants for engine in _engines(planner)]
    return [choice for choice in choices if choice and planner.across_clips(choice).whole]


def _busy(planner: Planner, choices: list[Choice]) -> list[Choice]:
    """Those that keep a GPU busy."""
    return [choice for choice in choices if choice.micro_batch >= min(ENOUGH, planner.clips_per_gpu)]


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


def _largest_choice(planner: Planner, engine: Path, variant: Variant) -> Choice | None:
    """The largest micro-batch that fits and divides a GPU's clips of the step."""
    most = planner.largest_micro_batch(engine, variant)
    clips = planner.clips_per_gpu
    fitting = [n for n in divisors(clips) if n <= most]
    return Choice(engine, fitting[-1], variant) if fitting else None
