"""What training has changed in an engine, as pieces of named parameters, and back into an engine of any ranks.

The fp32 weights, whatever the optimizer keeps for each of their elements, their running means, parameters that no
optimizer holds, buffers, and a few numbers. Everything else follows from the run's config and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from cavmae_ds.checkpoint.layout import FROZEN, MASTER, MEANS, Piece, PieceReader
from cavmae_ds.checkpoint.manifest import MANIFEST, DamagedCheckpoint, Manifest, ParameterRecord
from cavmae_ds.distributed.process_group import World
from cavmae_ds.distributed.running_mean import RunningMean
from cavmae_ds.distributed.zero_layout import (
    Fragment,
    find_partitions,
    frozen_stretches,
    rewriting,
    saved_buffers,
    whole_shape,
)
from cavmae_ds.errors import shortened


class Scalars(BaseModel):
    """What the engine and the optimizer hold besides tensors."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    optimizer: dict[str, float]
    skipped_steps: NonNegativeInt
    scheduled_steps: NonNegativeInt


class EngineState:
    """The state of one engine on one rank. Any optimizer whose state is tensors like the weights, and numbers."""

    def __init__(self, engine: Any, means: Sequence[RunningMean], world: World):
        self._engine, self._means, self._world = engine, means, world
        self._partitions = find_partitions(engine, world)
        self._copies: dict[tuple[str, int], Tensor] = {}

    def pieces(self) -> list[Piece]:
        """Copies in host memory of what this rank answers for, each element by one rank; no padding.

        Good until the next call, which copies into the same memory.
        """
        found = []
        if self._world.is_first or not self._partitions.replicated:
            for state, number, flat, fragments in self._flats():
                copy = self._host_copy(state, number, flat)
                names = self._partitions.names
                found += [Piece(state, names[part.parameter], part.offset, part.of(copy)) for part in fragments]
        frozen = list(self._buffers()) if self._world.is_first else []
        if self._world.is_first or self._engine.zero_optimization_stage() == 3:
            frozen += frozen_stretches(self._engine, self._world)
        for number, (name, offset, values) in enumerate(frozen):
            found.append(Piece(FROZEN, name, offset, self._host_copy(FROZEN, number, values)))
        if self._world.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return found

    def parameters(self) -> dict[str, ParameterRecord]:
        """What the model's parameters are, by name, in the model's order; then its buffers."""
        module = self._engine.module
        records = {
            name: ParameterRecord(
                shape=list(whole_shape(parameter)), dtype=_name(parameter.dtype), trained=parameter.requires_grad
            )
            for name, parameter in module.named_parameters()
        }
        for name, buffer in saved_buffers(module):
            records[name] = ParameterRecord(shape=list(buffer.shape), dtype=_name(buffer.dtype), trained=False)
        return records

    def states(self) -> list[str]:
        """The states of a trained parameter that pieces() gives."""
        return list(dict.fromkeys(state for state, *_ in self._flats()))

    def scalars(self) -> dict[str, Any]:
        """The numbers, the same on every rank."""
        flat = self._partitions.flats[0]
        held = self._optimizer.state.get(flat, {})
        return {
            "optimizer": {name: float(value) for name, value in held.items() if not _like(value, flat)},
            "skipped_steps": self._engine.skipped_steps,
            "scheduled_steps": self._engine.lr_scheduler.last_epoch,
        }

    def find(self, manifest: Manifest, path: Callable[[str], Path]) -> PieceReader:
        """Open the files of a checkpoint that hold what this rank needs; `path` says where a file lies.

        Changes nothing and talks to no other rank. Raises DamagedCheckpoint if pieces are missing.
        """
        checked_scalars(manifest)
        if MASTER not in manifest.states:
            raise DamagedCheckpoint(f"a checkpoint must hold the state {MASTER}, got {shortened(str(manifest.states))}")
        reader = PieceReader(sorted(manifest.files), path, self._world.rank, self._world.size)
        kept = [mean.state for mean in self._means]
        wanted = [state for state in manifest.states if state not in MEANS or state in kept]
        for fragments in self._partitions.fragments:
            for part, state in product(fragments, wanted):
                reader.locate(state, self._partitions.names[part.parameter], part.offset, part.numel)
        for name, offset, values in self._frozen():
            reader.locate(FROZEN, name, offset, values.numel())
        if unnamed := reader.states - {FROZEN, *manifest.states}:
            named = ", ".join(sorted(unnamed))
            raise DamagedCheckpoint(f"{MANIFEST} of a checkpoint names no {named}, though its files hold it")
        return reader

    @torch.no_grad()
    def load(self, manifest: Manifest, reader: PieceReader) -> None:
        """Go on from a checkpoint: the next step is the one after its last. All ranks together.

        reader: what find() gave.
        """
        self._make_optimizer_states(manifest)
        with rewriting(self._engine):
            for state, _, flat, fragments in self._flats():
                for part in fragments:
                    reader.read(state, self._partitions.names[part.parameter], part.offset, part.of(flat))
            for name, offset, values in self._frozen():
                reader.read(FROZEN, name, offset, values)
        self._set_counters(manifest)

    def _frozen(self) -> Iterator[tuple[str, int, Tensor]]:
        """Name, first element and values of what this rank holds and no optimizer does."""
        yield from self._buffers()
        yield from frozen_stretches(self._engine, self._world)

    def _buffers(self) -> Iterator[tuple[str, int, Tensor]]:
        for name, buffer in saved_buffers(self._engine.module):
            yield name, 0, buffer.detach().view(-1)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self._engine.basic_optimizer

    def _flats(self) -> Iterator[tuple[str, int, Tensor, list[Fragment]]]:
        """Every tensor of this rank laid out like the fp32 weights: state, its number in it, what it is made of."""
        partitions = self._partitions
        for number, (flat, fragments) in enumerate(zip(partitions.flats, partitions.fragments, strict=True)):
            yield MASTER, number, flat.detach(), fragments
            for name, value in self._optimizer.state.get(flat, {}).items():
                if _like(value, flat):
                    yield name, number, value, fragments
            for mean in self._means:
                yield mean.state, number, mean.means[number], fragments

    def _host_copy(self, state: str, number: int, values: Tensor) -> Tensor:
        copy = self._copies.get((state, number))
        if copy is None:
            copy = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda)
            self._copies[state, number] = copy
        return copy.copy_(values, non_blocking=True)

    def _make_optimizer_states(self, manifest: Manifest) -> None:
        """Room for what the checkpoint holds; an optimizer makes its own at its first step only."""
        moments = [state for state in manifest.states if state not in (MASTER, *MEANS)]
        numbers = checked_scalars(manifest).optimizer.items()
        fused = self._optimizer.defaults.get("fused")  # counts its steps on the device
        for flat in self._partitions.flats:
            held = self._optimizer.state.pop(flat, {})
            if moments:
                device = flat.device if fused else torch.device("cpu")
                state: dict[str, Tensor] = {name: torch.tensor(value, device=device) for name, value in numbers}
                for name in moments:
                    state[name] = held[name] if name in held else torch.zeros_like(flat, requires_grad=False)
                self._optimizer.state[flat] = state

    def _set_counters(self, manifest: Manifest) -> None:
        engine, scalars = self._engine, checked_scalars(manifest)
        engine.global_steps = manifest.step
        engine.global_samples = manifest.step * engine.train_batch_size()
        engine.micro_steps = manifest.step * engine.gradient_accumulation_steps()
        engine.skipped_steps = scalars.skipped_steps
        schedule = engine.lr_scheduler
        schedule.last_epoch = scalars.scheduled_steps
        groups = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
        for group, peak, share in groups:
            group["lr"] = peak * share(schedule.last_epoch)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _like(value: Any, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape


def checked_scalars(manifest: Manifest) -> Scalars:
    """Raises DamagedCheckpoint if some are missing, or cannot be."""
    try:
        scalars = Scalars.model_validate(manifest.scalars)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("scalars", *first["loc"]))
        raise DamagedCheckpoint(f"{MANIFEST} of a checkpoint is damaged: {shortened(where)}: {first['msg']}") from None
    if max(scalars.skipped_steps, scalars.scheduled_steps) > manifest.step:
        raise DamagedCheckpoint(f"{MANIFEST} of a checkpoint is damaged: scalars count more than {manifest.step} steps")
    return scalars
