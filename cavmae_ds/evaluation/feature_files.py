"""Features of any number of clips on their way to a file of one of three formats, in bounded memory.

Rows are kept in files without a name beside the output, one for each array, because every format wants to know their
number first. From there they are mapped and written to the output, a piece at a time. So the disk holds them twice
for a while, memory never holds more than a batch of them, and a process that is killed leaves nothing behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from cavmae_ds.atomic_io import refusing_to_write, written_whole
from cavmae_ds.errors import CheckpointError, ConfigError, pip_install

ROW_GROUP_BYTES = 64 * 2**20  # of a parquet file

Arrays = Mapping[str, NDArray[Any]]


class FeatureFile:
    """Takes rows of one or more arrays and then writes them, whole or not at all, with the clip ids beside them."""

    def __init__(self, out: Path, dtype: str):
        """Raises ConfigError for another suffix than those of WRITERS, a missing pyarrow, a place not to be written."""
        if out.suffix not in WRITERS:
            raise ConfigError(f"--out must end in {', '.join(WRITERS)}, got {str(out)!r}")
        if out.is_dir():
            raise ConfigError(f"--out {out} is a folder; give the name of a file")
        if out.suffix == ".parquet":
            _check_pyarrow()
        self.clip_ids: list[str] = []
        """Of the rows so far."""
        self._out, self._dtype = out, np.dtype(dtype)
        self._spools: dict[str, IO[bytes]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of one row of each array."""
        self._open = ExitStack()
        with refusing_to_write(self._out):
            out.parent.mkdir(parents=True, exist_ok=True)
            self._spool("audio")

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # of a full disk, which add() has told about
            self._open.close()

    def add(self, clip_ids: Sequence[str], arrays: Arrays) -> None:
        """So many more rows of each array. Raises CheckpointError for what is no number, ConfigError for a full disk.

        Arrays have the same names and the same shape of a row each time.
        """
        for name, rows in arrays.items():
            with np.errstate(over="ignore"):  # it is refused below
                stored = rows.astype(self._dtype, copy=False)
            if not np.isfinite(stored).all():
                raise CheckpointError(
                    f"the features of {clip_ids[0]!r}, or of a clip soon after it, are not finite in {self._dtype}: "
                    "the training of the model went wrong, or they need --dtype float32"
                )
            self.shapes[name] = stored.shape[1:]
            with refusing_to_write(self._out):
                self._spool(name).write(stored.data)
        self.clip_ids += clip_ids

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All rows, mapped."""
        clips = len(self.clip_ids)
        for spool in self._spools.values():
            spool.flush()
        return {
            name: np.memmap(self._spools[name], self._dtype, "r", shape=(clips, *shape))
            for name, shape in self.shapes.items()
        }

    def write(self) -> None:
        """There is at least one row. Raises ConfigError where it cannot be written."""
        with written_whole(self._out) as unfinished:
            WRITERS[self._out.suffix](unfinished, self.arrays(), self.clip_ids)

    def _spool(self, name: str) -> IO[bytes]:
        if name not in self._spools:
            file = tempfile.TemporaryFile(dir=self._out.parent)  # noqa: SIM115  closed by self._open
            self._spools[name] = self._open.enter_context(file)
        return self._spools[name]


def _write_safetensors(path: Path, arrays: Arrays, clip_ids: Sequence[str]) -> None:
    """Ids as UTF-8 bytes [N, longest], zeros after each: tensors hold no text."""
    ids = np.array([name.encode() for name in clip_ids])
    save_file({**arrays, "clip_id": ids.view(np.uint8).reshape(len(ids), -1)}, path)


def _write_npz(path: Path, arrays: Arrays, clip_ids: Sequence[str]) -> None:
    with ZipFile(path, "w") as archive:  # numpy.savez leaves it open when the disk is full
        for name, rows in {**arrays, "clip_id": np.array(clip_ids)}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, rows, allow_pickle=False)


def _write_parquet(path: Path, arrays: Arrays, clip_ids: Sequence[str]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    group = max(1, ROW_GROUP_BYTES // max(rows[0].nbytes for rows in arrays.values()))
    types = {
        name: pa.fixed_shape_tensor(pa.from_numpy_dtype(rows.dtype), rows.shape[1:]) for name, rows in arrays.items()
    }
    schema = pa.schema({"clip_id": pa.string(), **types})
    with ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:  # numbers all differ
        for start in range(0, len(clip_ids), group):
            part = slice(start, start + group)
            columns = [pa.FixedShapeTensorArray.from_numpy_ndarray(rows[part]) for rows in arrays.values()]
            writer.write_table(pa.table([pa.array(clip_ids[part]), *columns], schema))


def _check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401  an extra
    except ImportError as error:
        raise ConfigError(
            f"parquet needs pyarrow; {pip_install('cavmae-ds[features]')}, or let --out end in .safetensors or .npz"
        ) from error


WRITERS: dict[str, Callable[[Path, Arrays, Sequence[str]], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
