"""What features are made of: the clips of data sets, or of plain videos, in order, each unusable one named."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from torch.utils.data import DataLoader, Dataset

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.format.schema import Damage
from cavmae_ds.data.format.shards import check_shards
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.prepare.decode_pool import decode_in_order
from cavmae_ds.data.prepare.inputs import VideoInput, find_inputs, video_input, without_duplicates
from cavmae_ds.data.prepare.media import read_clip
from cavmae_ds.data.prepare.rejects import ClipRejected
from cavmae_ds.data.prepare.settings import PrepareSettings
from cavmae_ds.errors import DataError
from cavmae_ds.evaluation.embedding import Excerpt, decode_excerpt, excerpt_of, select_excerpt

CACHE_LIMIT_GIB = 8.0
"""Of the shards of a bucket: each clip is read once, so there is no use in keeping them."""


class Unusable(NamedTuple):
    """A clip that cannot be had, as rejected.csv names it."""

    source: str
    code: str
    detail: str


Clips: TypeAlias = Generator[Excerpt | Unusable, None, None]
"""To be closed: processes may be at work for it."""


def videos_of(inputs: Sequence[str]) -> list[VideoInput]:
    """Videos, folders and lists of them (see find_inputs), sorted by clip id. Raises DataError for what is not there.

    The id of a clip is its path below its folder, or a video's own path as given, without the suffix.
    """
    found: list[VideoInput] = []
    for one in inputs:
        path = Path(one)
        if path.is_dir() or path.suffix.lower() in (".txt", ".csv"):
            found += find_inputs(path, None)[0]
        elif path.is_file():
            found.append(video_input(Path(), one))
        else:
            raise DataError(f"{one} is neither a video, a folder, a list of videos nor a data set; correct the path")
    found.sort(key=lambda item: (item.clip_id, item.source))
    return list(without_duplicates(found))


def is_data_set(address: str) -> bool:
    """True for a bucket, and for a folder that `cavmae prepare` has finished, or begun."""
    return "://" in address or any((Path(address) / name).is_file() for name in ("index.json", "prepare.json"))


def from_videos(
    videos: Sequence[VideoInput], inputs: InputSpec, positions: Sequence[int], settings: PrepareSettings, workers: int
) -> Clips:
    """Each video's clip as `cavmae prepare` makes it, or why there is none."""
    with closing(decode_in_order(read_clip, videos, settings, workers)) as results:
        for item, result, _ in results:
            if isinstance(result, ClipRejected):
                yield Unusable(item.shown, result.code.value, result.detail)
            else:
                yield excerpt_of(result, inputs, positions)


def from_shards(clips: DataSets, workers: int) -> Clips:
    """Each clip, or what is damaged of it. Raises DataError for a shard that cannot be had."""
    from cavmae_ds.data.loading.handover import check_temporary_folder, micro_batches, worker_context
    from cavmae_ds.fault_tolerance.process_tree import stay_with_rank

    check_temporary_folder(workers)
    loader = DataLoader(
        clips,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=stay_with_rank,
        multiprocessing_context=worker_context(workers),
    )
    return cast(Clips, micro_batches(loader))


class DataSets(Dataset):
    """The clips of data sets, seen at some positions."""

    def __init__(self, addresses: Sequence[str], inputs: InputSpec, positions: Sequence[int]):
        """Raises DataError: not there, unreachable, damaged, or of another frame size where frames are wanted."""
        from cavmae_ds.data.loading.shard_cache import ShardCache

        data = DataConfig(cache_limit_gib=CACHE_LIMIT_GIB)
        for address in addresses:
            check_shards(address, inputs.frame_size if positions else None, data)
        self._shards = ShardCache(addresses, data)
        self._inputs, self._positions = inputs, tuple(positions)

    def __len__(self) -> int:
        return self._shards.num_samples

    def __getitem__(self, place: int) -> Excerpt | Unusable:
        from cavmae_ds.data.loading.download import ShardError

        try:
            sample = self._shards.selected(place, select_excerpt(self._inputs, self._positions))
            return decode_excerpt(sample, self._inputs, self._positions)
        except ShardError:
            raise
        except DataError as error:
            damage = getattr(error, "damage", Damage.RECORD)
            return Unusable(f"clip {place}", f"damaged_{damage.value}", str(error))


def _as_it_is(clip: Any) -> Any:
    return clip
