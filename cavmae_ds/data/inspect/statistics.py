"""Mean and standard deviation of the raw log-mel over data sets: what the sound is normalised with.

Source: spec/cav-mae.md 3.4 (the official way and its numbers), 3.5 (padding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cavmae_ds.data.format.clips import padded
from cavmae_ds.data.format.records import Records
from cavmae_ds.data.format.schema import audio_of
from cavmae_ds.data.loading.handover import check_temporary_folder, micro_batches, worker_context
from cavmae_ds.data.transforms.log_mel import MEL_BINS, LogMel, frames_of
from cavmae_ds.errors import DataError

STATISTICS = "stats.json"
OFFICIAL_FRAMES = 1024  # target length of the official recipes
OFFICIAL_BATCH = 1000  # clips of which the official script takes one mean and one deviation
CLIPS_AT_ONCE = 64


class MeanStd(BaseModel):
    """Of raw log-mel values (natural logarithm)."""

    model_config = ConfigDict(frozen=True)

    mean: float
    std: float


class LogMelStatistics(BaseModel):
    """stats.json. The first is exact; the two others are averages of the numbers of batches, the official way."""

    model_config = ConfigDict(frozen=True)

    clips: int
    log_mel_frames: int  # real ones, 10 ms each
    every_frame: MeanStd  # of all values of all real frames
    batches_padded: MeanStd  # clips cut or padded with 0.0 to OFFICIAL_FRAMES
    batches_without_padding: MeanStd  # the same clips, real frames only


@dataclass(frozen=True)
class Sums:
    """Of one clip's values in each row: [N, 5] float64."""

    values: NDArray[np.float64]  # columns: frames, sum, sum of squares; sum and squares of the first OFFICIAL_FRAMES

    def statistics(self) -> LogMelStatistics:
        """Of these clips, in batches of OFFICIAL_BATCH in their order."""
        frames, total, squares, first_total, first_squares = self.values.T
        first_frames = np.minimum(frames, OFFICIAL_FRAMES)
        padded = np.full_like(frames, OFFICIAL_FRAMES)
        return LogMelStatistics(
            clips=len(frames),
            log_mel_frames=int(frames.sum()),
            every_frame=_mean_std(frames, total, squares, batch=len(frames)),
            batches_padded=_mean_std(padded, first_total, first_squares, batch=OFFICIAL_BATCH),
            batches_without_padding=_mean_std(first_frames, first_total, first_squares, batch=OFFICIAL_BATCH),
        )


def merged(parts: Sequence[Sums]) -> Sums:
    """Of all the clips, one data set after another."""
    return Sums(np.concatenate([part.values for part in parts]))


@torch.inference_mode()
def clip_sums(
    records: Records,
    places: Sequence[int],
    device: torch.device,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sums:
    """Sums over the log-mels of the clips with sound at these places, which ascend; independent of `workers`.

    Sounds are read by `workers` other processes (0: by this one); log-mels are computed in batches on `device`.
    Raises DataError naming a damaged clip or shard: statistics of a part would be mistaken for those of the whole.
    """
    check_temporary_folder(workers)
    log_mel = LogMel(device)
    loader: DataLoader = DataLoader(
        _Sounds(records, places), batch_size=None, num_workers=workers, multiprocessing_context=worker_context(workers)
    )
    parts = []
    for number, batch in enumerate(cast(Iterator[tuple[Tensor, Tensor] | DataError], micro_batches(loader)), 1):
        if isinstance(batch, DataError):
            raise batch
        progress(min(number * CLIPS_AT_ONCE, len(places)), len(places))
        waveform, n_samples = batch
        if not len(n_samples):
            continue
        frames = frames_of(n_samples).to(device)  # [B]
        mel = log_mel(waveform.to(device), n_samples.to(device), int(frames.max())).double()  # [B, T, M]
        first = mel[:, :OFFICIAL_FRAMES]  # rows after a clip's end are 0.0: they add nothing
        sums = [part.sum((1, 2)) for part in (mel, mel.square(), first, first.square())]
        parts.append(torch.stack([frames.double(), *sums], 1).cpu())
    if not parts:
        raise DataError(f"none of {len(places)} clips in {records.address!r} has sound: there is nothing to measure")
    return Sums(torch.cat(parts).numpy())


class _Sounds(Dataset):
    """Batches of sounds: int16 [B, N], zeros after each clip's end, and n_samples [B]. Clips without are left out."""

    def __init__(self, records: Records, places: Sequence[int]):
        self._records = copy(records)  # without the connection to a bucket that this process may have
        self._places = places

    def __len__(self) -> int:
        return -(-len(self._places) // CLIPS_AT_ONCE)

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor] | DataError:
        places = self._places[batch * CLIPS_AT_ONCE : (batch + 1) * CLIPS_AT_ONCE]
        try:
            sounds = [audio_of(sample) for sample in self._records.read(places)]
        except DataError as error:
            return error  # raised here, torch would wrap it in the worker's traceback
        sounds = [sound for sound in sounds if len(sound)]
        return padded(sounds) if sounds else (torch.zeros(0, 0, dtype=torch.int16), torch.zeros(0, dtype=torch.int64))


def _mean_std(
    frames: NDArray[np.float64], total: NDArray[np.float64], squares: NDArray[np.float64], batch: int
) -> MeanStd:
    """Averages over batches of clips of a batch's mean and unbiased standard deviation, as torch computes them."""
    starts = np.arange(0, len(frames), batch)
    count, total, squares = (np.add.reduceat(column, starts) for column in (frames * MEL_BINS, total, squares))
    mean = total / count
    variance = (squares - count * mean**2) / (count - 1)
    return MeanStd(mean=float(mean.mean()), std=float(np.sqrt(variance).mean()))
