"""The checkpoints of one run: what a training loop saves to and resumes from."""

from __future__ import annotations

import logging
from typing import Any

from safetensors.torch import save_file

from cavmae_ds.checkpoint.engine_state import EngineState
from cavmae_ds.checkpoint.folder import (
    MANIFEST,
    PARTIAL,
    FileRecord,
    Manifest,
    checkpoint_root,
    file_hash,
    read_manifest,
    remove,
    remove_partials,
    step_name,
    verify,
    whole_checkpoints,
)
from cavmae_ds.checkpoint.identity import check_same_run, identity
from cavmae_ds.checkpoint.layout import PieceReader, rank_file
from cavmae_ds.config import RunConfig
from cavmae_ds.config.derived import RunNumbers
from cavmae_ds.distributed import World, barrier, from_first_rank
from cavmae_ds.durable import flush
from cavmae_ds.ema import WeightAverage

log = logging.getLogger(__name__)


class Checkpoints:
    """Saves and resumes one engine. All ranks call the same methods in the same order."""

    def __init__(self, cfg: RunConfig, numbers: RunNumbers, world: World, engine: Any, ema: WeightAverage | None):
        """engine: freshly built; ema: the running mean of its weights, if one is kept."""
        self._cfg, self._numbers, self._world, self._engine = cfg, numbers, world, engine
        self._state = EngineState(engine, ema, world)

    def resume(self) -> int:
        """Load the newest whole checkpoint, if there is one; returns the optimizer steps done (0 for a fresh run).

        Any number of ranks at any ZeRO stage goes on with what any other saved. Raises CheckpointError if it was made
        for another model, seed or batch.
        """
        latest = from_first_rank(whole_checkpoints(self._cfg.run_dir)[-1:])
        if not latest:
            return 0
        folder = latest[0]
        manifest = read_manifest(folder)
        check_same_run(manifest, self._cfg, self._numbers, folder)
        verify(folder, manifest)
        reader = PieceReader(sorted(manifest.files), folder.joinpath, self._world.rank, self._world.size)
        self._state.load(reader, manifest)
        log.info("resumed from %s", folder)
        return manifest.step

    def due(self, step: int) -> bool:
        """Whether to save after so many optimizer steps."""
        return step % self._cfg.checkpoint.every_steps == 0 or step == self._numbers.total_steps

    def save(self, step: int) -> None:
        """Save the run after so many optimizer steps; then drop all but keep_last."""
        root = checkpoint_root(self._cfg.run_dir)
        final = root / step_name(step)
        partial = final.with_name(final.name + PARTIAL)
        if self._world.is_first:
            root.mkdir(parents=True, exist_ok=True)
            remove_partials(root)
            partial.mkdir()
        barrier()
        pieces = self._state.pieces()
        save_file(
            {piece.key: piece.values for piece in pieces}, partial / rank_file(self._world.rank, self._world.size)
        )
        manifest = self._manifest(step)
        barrier()
        if self._world.is_first:
            files = {
                path.name: FileRecord(bytes=path.stat().st_size, sha256=file_hash(path)) for path in partial.iterdir()
            }
            (partial / MANIFEST).write_text(manifest.model_copy(update={"files": files}).model_dump_json())
            partial.rename(final)
            flush(root)
            for old in whole_checkpoints(self._cfg.run_dir)[: -self._cfg.checkpoint.keep_last]:
                remove(old)
        barrier()

    def save_and_wait(self, step: int) -> None:
        """save, and return when it is on the disk."""
        self.save(step)

    def close(self) -> None:
        """End of the run."""
        pass

    def _manifest(self, step: int) -> Manifest:
        """All but the files."""
        return Manifest(
            step=step,
            clips_seen=step * self._cfg.train.global_batch,
            ranks=self._world.size,
            zero_stage=self._engine.zero_optimization_stage(),
            states=self._state.states(),
            scalars=self._state.scalars(),
            identity=identity(self._cfg, self._numbers),
            parameters=self._state.parameters(),
            config=self._cfg.model_dump(mode="json"),
        )
