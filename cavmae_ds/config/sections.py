"""Every section of a run as a frozen, typed, validated model. Defaults are the official base recipe's.

Sources of the defaults: spec/cav-mae.md 1.1 (model), 1.7 (masks), 1.8 (losses), 3.4 (statistics), 4 (training).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cavmae_ds.config.presets import OPTIMIZER_CONSTANTS, PRESETS, filled_in

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Folder = Annotated[Path, Field(strict=False)]  # YAML has text only


class Section(BaseModel):
    """Frozen, strict about types, and closed: an unknown key is a mistake, not an extension."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _multiple(name: str, value: int, of: str, divisor: int) -> None:
    if value % divisor:
        below = value - value % divisor
        near = f"{below} or {below + divisor}" if below else f"{divisor}"
        raise ValueError(f"{name} must be a multiple of {of} = {divisor}, got {value}; {near} would fit")


class ModelConfig(Section):
    """Sizes of CAV-MAE; names and defaults of the official constructor (spec/cav-mae.md 1.1)."""

    preset: Literal["tiny", "base", "large", "huge", "giant"] | None = None
    """Published sizes by name (config/presets.py); keys given beside it override it."""
    embed_dim: Positive = 768
    """Width of the encoder."""
    num_heads: Positive = 12
    """Attention heads of the encoder."""
    modality_specific_depth: Annotated[int, Field(ge=0)] = 11
    """Blocks in each of the two towers (audio, image)."""
    shared_depth: Positive = 1
    """Blocks after the towers, shared by both modalities."""
    decoder_embed_dim: Positive = 512
    """Width of the decoder."""
    decoder_depth: Positive = 8
    """Blocks of the decoder."""
    decoder_num_heads: Positive = 16
    """Attention heads of the decoder."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of each MLP over the block's width."""
    patch_size: Positive = 16
    """Side of a square patch: pixels, or mel bins and frames."""
    image_size: Positive = 224
    """Side of the square image, pixels."""
    audio_frames: Positive = 1024
    """Length of the log-mel, frames of 10 ms."""
    mel_bins: Positive = 128
    """Height of the log-mel, mel bins."""
    trainable_positions: bool = False
    """Train the position tables instead of keeping them at sine-cosine."""
    decoder_chunk: Annotated[int, Field(ge=0)] = 0
    """Clips that the decoder takes at a time, forward and backward at once, the same mathematics in less memory; 0 is
    the whole micro-batch."""
    checkpoint_towers: bool = False
    """Keep only the inputs of the encoder's blocks and compute the rest again in backward: less memory, more time."""

    @model_validator(mode="before")
    @classmethod
    def _preset_sizes(cls, values: Any) -> Any:
        return filled_in(values, PRESETS, "preset")

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        for name in ("audio_frames", "mel_bins", "image_size"):
            _multiple(name, getattr(self, name), "patch_size", self.patch_size)
        # A position table spends a quarter of the width on each of sin and cos of column and row.
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            _multiple(width, getattr(self, width), heads, getattr(self, heads))
            if getattr(self, width) % 4:
                raise ValueError(f"{width} must be a multiple of 4, got {getattr(self, width)}")
        return self

    @property
    def audio_patches(self) -> int:
        """Patches of one clip's log-mel."""
        return (self.mel_bins // self.patch_size) * (self.audio_frames // self.patch_size)

    @property
    def image_patches(self) -> int:
        """Patches of one frame."""
        return (self.image_size // self.patch_size) ** 2


class MaskConfig(Section):
    """Which share of the patches the encoder never sees (spec/cav-mae.md 1.7)."""

    audio_ratio: Share = 0.75
    """Share of audio patches hidden."""
    image_ratio: Share = 0.75
    """Share of image patches hidden."""
    audio_mode: Literal["unstructured", "time", "freq", "tf"] = "unstructured"
    """Hide patches at random, whole time columns, whole frequency rows, or some of both."""


class LossConfig(Section):
    """total = mae_weight * (mae_audio + mae_image) + contrastive_weight * contrastive (spec/cav-mae.md 1.8)."""

    mae_weight: Weight = 1.0
    """Weight of the reconstruction; 0 skips the decoder."""
    contrastive_weight: Weight = 0.01
    """Weight of the contrastive loss; 0 skips its two passes."""
    normalise_pixels: bool = True
    """Reconstruct patches normalised by their own mean and variance (norm_pix_loss)."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossConfig:
        if self.mae_weight == 0 and self.contrastive_weight == 0:
            raise ValueError("mae_weight and contrastive_weight are both 0: nothing to learn; raise one of them")
        return self


class ContrastiveConfig(Section):
    """Who is compared with whom."""

    negatives: str = "global"
    """Clips of every rank (global), of this rank alone (rank), or chunk=n: of the same one of n equal parts of the
    global batch, as on n GPUs of the official program."""
    direction: Literal["v2a", "both"] = "v2a"
    """Each image against all sounds (official), or the mean of both directions."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Divides the cosine; fixed, not learned."""
    two_pass: bool = False
    """Compare all clips of a step, not of a micro-batch: features first, then forward again (+13 % FLOPs)."""
    exchange: Literal["gather", "ring"] = "gather"
    """How ranks see each other's sounds: all at once, or one rank's at a time in the memory of one."""
    gather_dtype: Literal["fp32", "bf16"] = "fp32"
    """What sounds are compared in, and sent in: bf16 halves the bytes and speeds up the products; sums are fp32."""

    @model_validator(mode="after")
    def _known_negatives(self) -> ContrastiveConfig:
        if self.negatives not in ("global", "rank") and self.chunks is None:
            raise ValueError(
                "negatives must be global, rank or chunk=n (n equal parts of the global batch, for example chunk=4), "
                f"got {self.negatives!r}"
            )
        if self.exchange == "ring" and self.negatives != "global":
            raise ValueError(
                f"exchange ring is for negatives global, got negatives {self.negatives!r}; choose exchange gather"
            )
        return self

    @property
    def chunks(self) -> int | None:
        """The n of chunk=n, else None."""
        found = re.fullmatch(r"chunk=([1-9]\d*)", self.negatives)
        return int(found[1]) if found else None


class SourceConfig(Section):
    """One of several sources of training clips. Give at most one of the three amounts, the same one for all sources."""

    remote: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address of the shards (written by `cavmae prepare`)."""
    proportion: Annotated[float, Field(gt=0)] | None = None
    """Its share of an epoch's clips, relative to the other sources' shares."""
    repeat: Annotated[float, Field(gt=0)] | None = None
    """Passes over it in an epoch; 0.5 is every other clip, the rest follows in the next epoch."""
    choose: Positive | None = None
    """Its clips in an epoch."""

    @property
    def amounts(self) -> list[str]:
        """Which of proportion, repeat and choose are given."""
        return [name for name in ("proportion", "repeat", "choose") if getattr(self, name) is not None]


class DataConfig(Section):
    """Where clips come from, how they are fetched, and how many processes decode them."""

    train: str = ""
    """Folder or s3:// address of the training shards (written by `cavmae prepare`); or give sources."""
    sources: Annotated[tuple[SourceConfig, ...], Field(strict=False)] = ()
    """Several training sets, mixed: [{remote: ADDRESS, proportion | repeat | choose: NUMBER}, ...]."""
    epoch_clips: Positive | None = None
    """Clips of an epoch, with one source or with proportions; when unset, as many as the sources hold."""
    sampling: Literal["natural", "balanced"] = "natural"
    """Every clip in turn, or draws with replacement by the weight of the clips' classes (spec/cav-mae.md 3.3)."""
    validation: str = ""
    """Folder or s3:// address of shards to validate on."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training clips kept for validation and never trained on; the same clips in every run."""
    cache: Folder | None = None
    """Folder on local disk for shards fetched from a bucket; when unset, the temporary folder."""
    cache_limit_gib: Annotated[float, Field(gt=0)] | None = None
    """GiB that fetched shards may take on each host; the least recently used go first. When unset, no limit."""
    predownload: Positive | None = None
    """Clips that each worker fetches ahead; when unset, 8 micro-batches."""
    download_retries: Annotated[int, Field(ge=0)] = 10
    """Attempts after the first to fetch a shard, at growing intervals."""
    download_timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """After this long no further attempt to fetch a shard is made; an attempt waits a quarter of it for an answer."""
    on_bad_clip: Literal["skip", "fail"] = "skip"
    """A clip or shard that stays damaged: replace it, counted and named, up to max_bad_share; or stop the run."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Decoding processes of each rank; 0 decodes in the training process."""
    shuffle: bool = True
    """Another order every epoch."""
    shuffle_block: Positive = 16384
    """Clips shuffled among each other; times 448 kB is what the cache must hold."""
    canonical_nodes: Positive = 1
    """Parts the data set is striped into: a multiple of the hosts, so that each host reads its own part."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of clips that may turn out undecodable before the run stops."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Longest wait for a batch before the run stops; longer than download_timeout_seconds."""
    audio_mean: float = -5.081
    """Mean of the raw log-mel."""
    audio_std: Annotated[float, Field(gt=0)] = 4.4849
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
        """The training sets: sources, or train as the only one."""
        return self.sources or (SourceConfig(remote=self.train),)

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


class OptimConfig(Section):
    """The optimizer and the course of its learning rate."""

    name: Literal["adamw", "adam", "lamb", "lars", "lion"] = "adamw"
    """adamw: the usual choice, to some thousand clips a step. adam: the official recipe, decay inside the gradient and
    of every parameter. lamb, lars: a step in proportion to each layer's weights, Adam's or momentum's, for batches at
    which adamw diverges. lion: sign of the momentum, half of Adam's states; a rate 3 to 10 times lower, as much more
    decay. beta1, beta2 and eps default to what the optimizer's paper says (config/presets.py)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate, of reference_batch if lr_rule scales it, else of the global batch as it is."""
    lr_rule: Literal["none", "linear", "sqrt"] = "none"
    """How the peak follows the batch: not at all, times global_batch / reference_batch, or times the root of that."""
    reference_batch: Positive | None = None
    """Clips of one step that learning_rate was found for; only with lr_rule linear or sqrt."""
    beta1: Share = 0.95
    """Decay of the first moment; momentum of lars."""
    beta2: Share = 0.999
    """Decay of the second moment; of lion's only one; lars has none."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment; to the norm of the gradient in lars; lion has none."""
    weight_decay: Weight = 5e-7
    """Decoupled decay (adam: coupled, as official); biases, norms, tokens and position tables are exempt (adam: no)."""
    clip_grad_norm: Weight = 0.0
    """Largest norm of the whole gradient; 0 never clips."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """After the warm-up: cosine to the final share, the official step decay by epochs, or flat."""
    warmup_clips: Annotated[int, Field(ge=0)] = 0
    """Clips of linear warm-up: it lasts as long whatever the batch."""
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the peak rate that the cosine ends at."""
    decay_start_epoch: Positive = 10
    """Step decay: finished epochs before the first drop."""
    decay_every_epochs: Positive = 5
    """Step decay: epochs between drops."""
    decay_factor: Share = 0.5
    """Step decay: what each drop multiplies the rate by."""

    @model_validator(mode="before")
    @classmethod
    def _usual_constants(cls, values: Any) -> Any:
        return filled_in(values, OPTIMIZER_CONSTANTS, "name")

    @model_validator(mode="after")
    def _a_rule_has_a_reference(self) -> OptimConfig:
        if (self.lr_rule == "none") != (self.reference_batch is None):
            raise ValueError(
                f"lr_rule linear or sqrt goes with reference_batch and none without it, got lr_rule={self.lr_rule} and "
                f"reference_batch={self.reference_batch}; say for how many clips a step learning_rate is meant"
            )
        return self

    def peak_learning_rate(self, global_batch: int) -> float:
        """Learning rate after the warm-up for steps of so many clips."""
        if self.reference_batch is None:
            return self.learning_rate
        grown = global_batch / self.reference_batch
        return self.learning_rate * (grown if self.lr_rule == "linear" else math.sqrt(grown))

    def warmup_steps(self, global_batch: int) -> int:
        """Optimizer steps that the warm-up takes, the last one perhaps in part."""
        return math.ceil(self.warmup_clips / global_batch)


class TrainConfig(Section):
    """How much, in which portions, with which numbers."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides initial weights, order, masks and frames."""
    global_batch: Positive = 256
    """Clips of one optimizer step, over all ranks and micro-batches."""
    micro_batch: Positive = 64
    """Clips of one forward pass on one rank."""
    epochs: Positive | None = None
    """Length of the run in passes over the data; give this or steps."""
    steps: Positive | None = None
    """Length of the run in optimizer steps; give this or epochs."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Numbers of weights and activations; the optimizer keeps fp32 either way."""
    ema_clips: Annotated[int, Field(ge=0)] = 0
    """Horizon of a running mean of the weights, clips: each step keeps exp(-global_batch / ema_clips) of it. 0: none.
    Saved as ema.safetensors with each checkpoint."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give exactly one of epochs and steps, got epochs={self.epochs} and steps={self.steps}")
        return self


class CheckpointConfig(Section):
    """When to save and how much to keep."""

    every_steps: Positive = 1000
    """Optimizer steps between checkpoints; the last step is always saved."""
    keep_last: Positive = 2
    """Checkpoints kept; older ones are removed after a new one is whole."""


class MonitorConfig(Section):
    """What TensorBoard and the progress line show, and how often."""

    log_every: Positive = 20
    """Optimizer steps between points of the curves; reading the losses waits for the device."""
    pictures_every: Annotated[int, Field(ge=0)] = 500
    """Optimizer steps between pictures of reconstructions; 0 draws none."""
    pictures: Positive = 4
    """Clips in a picture."""
    validate_every: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps between validations; 0 never validates."""
    validate_batch: Positive = 64
    """Clips of one forward pass of validation on one rank, and the candidates of its contrastive loss."""


class RunConfig(Section):
    """One run: a YAML file holds the differences from these defaults."""

    run_dir: Folder = Path("runs/default")
    """Folder of the run: resolved config, checkpoints, TensorBoard logs, final weights."""
    ds_config: Folder = Path("ds_configs/zero2.json")
    """Engine mechanics for DeepSpeed (ZeRO stage, buckets); relative to here or to the checkout."""
    model: ModelConfig = ModelConfig()
    mask: MaskConfig = MaskConfig()
    loss: LossConfig = LossConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()

    @model_validator(mode="before")
    @classmethod
    def _warm_up_in_clips(cls, values: Any) -> Any:
        """Run files used to give the warm-up in steps: that many times the global batch."""
        optim, train = (values.get(name) if isinstance(values, dict) else None for name in ("optim", "train"))
        if not isinstance(optim, dict) or not isinstance(train, dict) or not isinstance(optim.get("warmup_steps"), int):
            return values
        if "warmup_clips" in optim:
            raise ValueError(
                "optim.warmup_steps and optim.warmup_clips are both given; keep warmup_clips, the warm-up in clips"
            )
        global_batch = train.get("global_batch", TrainConfig.model_fields["global_batch"].default)
        if not isinstance(global_batch, int):
            return values
        others = {key: value for key, value in optim.items() if key != "warmup_steps"}
        return {**values, "optim": others | {"warmup_clips": optim["warmup_steps"] * global_batch}}

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        if self.contrastive.chunks is not None:
            _multiple("train.global_batch", self.train.global_batch, "contrastive.negatives", self.contrastive.chunks)
        if self.contrastive.two_pass and not self.loss.contrastive_weight:
            raise ValueError(
                "contrastive.two_pass needs a contrastive loss, got loss.contrastive_weight 0; "
                "raise it or set two_pass: false"
            )
        if self.monitor.validate_every and not (self.data.validation or self.data.validation_share):
            raise ValueError(
                f"monitor.validate_every is {self.monitor.validate_every}, but there is nothing to validate on; "
                "set data.validation or data.validation_share"
            )
        return self
