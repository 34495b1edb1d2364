"""What must be the same for a resume to continue the same run. The number of ranks and the ZeRO stage are not.

config/on_resume.py knows the kind of each key; resume.allow lets some of them change. A resume does not open what
section init names, and that may have been moved or removed since; a change there has no effect, and a warning says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml
from pydantic_core import PydanticUndefined, to_jsonable_python

from cavmae_ds.checkpoint.manifest import Manifest
from cavmae_ds.config.on_resume import ALLOWABLE, OnResume, settings, values_by_key
from cavmae_ds.config.sections.run import RunConfig
from cavmae_ds.errors import CheckpointError
from cavmae_ds.tasks.run_plan import RunPlan

log = logging.getLogger(__name__)

_COMPARED = (OnResume.FIXED, OnResume.LEARNT, OnResume.ORDER)

# What follows from settings, as keys of an identity.
_INDEX = "fingerprints of the indexes"
_CLIPS = "clips in each source"
_EPOCH = "clips in an epoch"
_POOL = "clips compared with each other"
_USED = "used entries of resume.allow"


class Change(NamedTuple):
    """A setting, or what follows from some, that is not what a checkpoint was made with."""

    key: str
    was: Any
    now: Any
    refusable: bool
    consents: tuple[str, ...] = ()
    """If refusable: keys of which resume.allow may name one, the first is proposed; none: nothing can allow it."""

    def __str__(self) -> str:
        return f"{self.key} was {_text(self.was)}, now {_text(self.now)}"

    def entry(self, key: str) -> str:
        """What allows a change to this value alone."""
        return f"{key}={_text(self.now)}"

    def allowed(self, entries: Sequence[str], used: Sequence[str]) -> bool:
        """Whether resume.allow has an entry for it; those without a value count once."""
        for entry in entries:
            key, with_value, text = entry.partition("=")
            if key in self.consents and (_is(text, self.now) if with_value else entry not in used):
                return True
        return False


class Resumption(NamedTuple):
    """How a run that goes on differs from the one that saved the checkpoint."""

    changes: list[Change]
    used: list[str]
    """Entries of resume.allow that have allowed a change by now, and allow no other one."""


def identity(cfg: RunConfig, numbers: RunPlan, used: Sequence[str] = ()) -> dict[str, Any]:
    """What the manifest keeps to be compared: setting -> value, as JSON has them; and the used entries."""
    values = values_by_key(cfg.model_dump(mode="json"))
    omitted = cfg.not_compared() | {"data.epoch_clips"}  # the number that it comes to counts
    compared = {one.key: values[one.key] for one in settings(type(cfg)) if one.kind in _COMPARED}
    compared = {key: value for key, value in compared.items() if key not in omitted}
    compared |= {_CLIPS: list(numbers.clips_by_source), _EPOCH: numbers.epoch_clips}
    if numbers.fingerprints:
        compared[_INDEX] = "+".join(numbers.fingerprints)
    compared |= numbers.identity()
    if (candidates := cfg.candidates(numbers.ranks)) is not None:
        compared[_POOL] = candidates
    return compared | ({_USED: list(used)} if used else {})


def check_same_run(manifest: Manifest, cfg: RunConfig, numbers: RunPlan, address: str) -> Resumption:
    """What differs from a checkpoint. Raises CheckpointError, naming it, for what must not, or not without consent."""
    changes, used = _changes(manifest, cfg, numbers), manifest.identity.get(_USED, [])
    refused = [one for one in changes if one.refusable and not one.allowed(cfg.resume.allow, used)]
    if settings_refused := [one for one in refused if one.key != _POOL]:
        differences = f"checkpoint {address!r} belongs to another run ({', '.join(map(str, settings_refused))}"
        if not all(one.consents for one in settings_refused):
            raise CheckpointError(f"{differences}); restore it or choose another run_dir")
        raise CheckpointError(
            f"{differences}); restore it, choose another run_dir, or allow it with resume.allow: "
            f"{_entries(refused, cfg.resume.allow, used)}"
        )
    if refused:
        (pool,) = refused
        raise CheckpointError(
            f"checkpoint {address!r} has every clip compared among {pool.was}, this run (ranks: {numbers.ranks}, "
            f"train.micro_batch: {cfg.train.micro_batch}) among {pool.now}; "
            f"{_advice(cfg.same_candidates(numbers.ranks, pool.was), manifest.ranks)} or choose another run_dir, or "
            f"allow it with resume.allow: {_entries(refused, cfg.resume.allow, used)}"
        )
    if cfg.init.given:
        _warn_of_other_origin(changes, address)
    needed = {key for one in changes for key in one.consents}
    return Resumption(changes, [*used, *(entry for entry in cfg.resume.allow if entry in needed.difference(used))])


def _changes(manifest: Manifest, cfg: RunConfig, numbers: RunPlan) -> list[Change]:
    """First what is refusable, then all other settings that differ."""
    kinds = {one.key: one.kind for one in settings(type(cfg))}
    # An older version kept fewer keys in the identity, but its whole config; a key that is newer than that version did
    # what its default does now.
    defaults = {one.key: one.default for one in settings(type(cfg)) if one.default is not PydanticUndefined}
    configured = to_jsonable_python(defaults) | values_by_key(manifest.config)
    saved, now = configured | manifest.identity, identity(cfg, numbers)
    differing = {key for key, value in now.items() if saved.get(key, value) != value}
    # The numbers of clips follow from what is named more plainly.
    if _INDEX in differing:
        differing.discard(_CLIPS)
    if any(key in (_INDEX, _CLIPS) or kinds.get(key) is OnResume.ORDER for key in differing):
        differing.discard(_EPOCH)
    source = "data.sources" if cfg.data.sources else "data.train"
    consents = {
        _INDEX: (source,),
        _CLIPS: (source,),
        _EPOCH: ("data.epoch_clips",),
        _POOL: tuple(sorted(key for key, kind in kinds.items() if kind is OnResume.CANDIDATES)),
    } | {key: (key,) for key, kind in kinds.items() if kind in ALLOWABLE}
    names = {_INDEX: f"{source} (its index)"}
    refusable = [
        Change(names.get(key, key), saved[key], now[key], True, consents.get(key, ()))
        for key in now
        if key in differing
    ]
    return refusable + [
        Change(key, configured[key], value, False)
        for key, value in values_by_key(cfg.model_dump(mode="json")).items()
        if key not in now and configured.get(key, value) != value and not key.startswith("resume.")
    ]


def _entries(refused: Sequence[Change], allow: Sequence[str], used: Sequence[str]) -> str:
    """What to write, with the value where an entry of the key alone is used up."""
    entries = [one.entry(one.consents[0]) if one.consents[0] in used else one.consents[0] for one in refused]
    spent = [one.consents[0] for one in refused if one.consents[0] in {*used} & {*allow}]
    why = f" ({', '.join(spent)} there has allowed a change before)" if spent else ""
    listed = yaml.safe_dump(list(dict.fromkeys(entries)), default_flow_style=True, width=1000).strip()
    return f"{listed}{why}"


def _text(value: Any) -> str:
    """As a run file has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _is(text: str, value: Any) -> bool:
    """Whether the text is this value, written in any way."""
    try:
        return text == _text(value) or json.loads(text) == value
    except ValueError:
        return False


def _warn_of_other_origin(changes: Sequence[Change], address: str) -> None:
    origin = [str(change) for change in changes if change.key.startswith("init.")]
    if origin:
        log.warning(
            "%s: this run goes on from checkpoint %r; to begin with other weights choose another run_dir",
            ", ".join(origin), address,
        )  # fmt: skip


def _advice(settings: Sequence[str], ranks_before: int) -> str:
    """What gives the candidates of before again: "set train.micro_batch: 4 or contrastive.two_pass: true"."""
    return f"set {' or '.join(settings)}" if settings else f"start it on as many ranks as before ({ranks_before})"
