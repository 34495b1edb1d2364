"""Where clips come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cavmae_ds.config.sections.base import Folder, OnResume, Positive, Section


class SourceConfig(Section):
    """One of several sources of training clips. Give at most one of the three amounts, the same one for all sources."""

    remote: Annotated[str, Field(min_length=1), OnResume.LOCATION]
    """Folder or s3:// address of the shards (written by `cavmae prepare`)."""
    proportion: Annotated[float | None, Field(gt=0), OnResume.ORDER] = None
    """Its share of an epoch's clips, relative to the other sources' shares."""
    repeat: Annotated[float | None, Field(gt=0), OnResume.ORDER] = None
    """Passes over it in an epoch; 0.5 is every other clip, the rest follows in the next epoch."""
    choose: Annotated[Positive | None, OnResume.ORDER] = None
    """Its clips in an epoch."""

    @property
    def amounts(self) -> list[str]:
        """Which of proportion, repeat and choose are given."""
        return [name for name in ("proportion", "repeat", "choose") if getattr(self, name) is not None]


class DataConfig(Section):
    """Where clips come from, how they are fetched, and how many processes decode them."""

    train: Annotated[str, OnResume.LOCATION] = ""
    """Folder or s3:// address of the training shards (written by `cavmae prepare`); or give sources."""
    sources: Annotated[tuple[SourceConfig, ...], Field(strict=False)] = ()
    """Several training sets, mixed: [{remote: ADDRESS, proportion | repeat | choose: NUMBER}, ...]."""
    epoch_clips: Annotated[Positive | None, OnResume.ORDER] = None
    """Clips of an epoch, with one source or with proportions; when unset, as many as the sources hold."""
    sampling: Annotated[Literal["natural", "balanced"], OnResume.ORDER] = "natural"
    """Every clip in turn, or draws with replacement by the weight of the clips' classes (spec/cav-mae.md 3.3)."""
    validation: Annotated[str, OnResume.FREE] = ""
    """Folder or s3:// address of shards to validate on."""
    validation_share: Annotated[float, Field(ge=0, lt=1), OnResume.ORDER] = 0.0
    """Share of the training clips kept for validation and never trained on; the same clips in every run."""
    cache: Annotated[Folder | None, OnResume.LOCATION] = None
    """Folder on local disk for shards fetched from a bucket; when unset, the temporary folder."""
    cache_limit_gib: Annotated[float | None, Field(gt=0), OnResume.FREE] = None
    """GiB that fetched shards may take on each host; the least recently used go first. When unset, no limit."""
    predownload: Annotated[Positive | None, OnResume.FREE] = None
    """Clips that each worker fetches ahead; when unset, 8 micro-batches."""
    download_retries: Annotated[int, Field(ge=0), OnResume.FREE] = 10
    """Attempts after the first to fetch a shard, at growing intervals."""
    download_timeout_seconds: Annotated[float, Field(gt=0), OnResume.FREE] = 120.0
    """After this long no further attempt to fetch a shard is made; an attempt waits a quarter of it for an answer."""
    on_bad_clip: Annotated[Literal["skip", "fail"], OnResume.FREE] = "skip"
    """A clip or shard that stays damaged: replace it, counted and named, up to max_bad_share; or stop the run."""
    workers: Annotated[int, Field(ge=0), OnResume.FREE] = 2
    """Decoding processes of each rank; 0 decodes in the training process."""
    shuffle: Annotated[bool, OnResume.ORDER] = True
    """Another order every epoch."""
    shuffle_block: Annotated[Positive, OnResume.ORDER] = 16384
    """Clips shuffled among each other; times 448 kB is what the cache must hold."""
    canonical_nodes: Annotated[Positive, OnResume.ORDER] = 1
    """Parts the data set is striped into: a multiple of the hosts, so that each host reads its own part."""
    max_bad_share: Annotated[float, Field(ge=0, le=1), OnResume.FREE] = 0.01
    """Share of clips that may turn out undecodable before the run stops."""
    timeout_seconds: Annotated[float, Field(gt=0), OnResume.FREE] = 300.0
    """Longest wait for a batch before the run stops; longer than download_timeout_seconds."""
    audio_mean: Annotated[float, OnResume.LEARNT] = -5.081
    """Mean of the raw log-mel."""
    audio_std: Annotated[float, Field(gt=0), OnResume.LEARNT] = 4.4849
    """Standard deviation of the raw log-mel."""

    @model_validator(mode="after")
    def _sources_fit(self) -> DataConfig:
        if self.train and self.sources:
            raise ValueError(f"give exactly one of train and sources, got train={self.train!r} and sources")
        addresses = [source.remote for source in self.sources]
        for address in addresses:
            if addresses.count(address) > 1:
                raise ValueError(f"sources names {address!r} twice; give it once, with a larger amount")
        kinds = {tuple(source.amounts) for source in self.sources}
        if len(kinds) > 1 or any(len(kind) > 1 for kind in kinds):
            given = ", ".join(f"{source.remote!r}: {' and '.join(source.amounts) or 'none'}" for source in self.sources)
            raise ValueError(f"sources must all have the same one of proportion, repeat and choose, got {given}")
        if self.epoch_clips and len(self.sources) > 1 and self.mixing != "proportion":
            raise ValueError(f"epoch_clips goes with proportion, got {self.mixing}; give each source a proportion")
        return self

    @model_validator(mode="after")
    def _patience_fits(self) -> DataConfig:
        if self.timeout_seconds <= self.download_timeout_seconds:
            raise ValueError(
                f"timeout_seconds must be larger than download_timeout_seconds = {self.download_timeout_seconds:g}, "
                f"got {self.timeout_seconds:g}; a batch may have to wait for a shard"
            )
        return self

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        """The training sets: sources, or train as the only one; none where neither is given."""
        return self.sources or ((SourceConfig(remote=self.train),) if self.train else ())

    @property
    def mixing(self) -> Literal["proportion", "repeat", "choose"]:
        """How the sources' amounts are given; without any, each source is repeated once."""
        if self.sources and self.sources[0].proportion is not None:
            return "proportion"
        return "choose" if self.sources and self.sources[0].choose is not None else "repeat"

    @property
    def answer_timeout_s(self) -> float:
        """Longest silence of a server in one attempt, seconds."""
        return self.download_timeout_seconds / 4
