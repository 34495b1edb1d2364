"""One small training problem: a global batch of 16 clips, and what one plain torch process makes of it."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae_ds.data.format.clips import Batch
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.data.transforms.normalise import training_normalisation
from cavmae_ds.kernels.contrastive import Contrast
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.models.cavmae.masking import draw_plans
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.pretrain.losses import PretrainLosses, contrast_within, pretrain_losses
from cavmae_ds.tasks.pretrain.plan import PretrainPlan
from cavmae_ds.tasks.pretrain.task import Pretraining
from cavmae_ds.tasks.task import freeze_unused
from cavmae_ds.training.optim.build import build_optimizer
from cavmae_ds.training.optim.schedule import learning_rate_share

CLIPS, STEPS = 16, 2


class Cell(NamedTuple):
    """One way to train on the same 16 clips a step."""

    ranks: int = 1
    stage: int = 2
    accumulation: int = 1
    two_pass: bool = False
    direction: str = "v2a"
    decoder_chunk: int = 0
    checkpoint_towers: bool = False
    negatives: str = "global"
    exchange: str = "gather"
    mae: float = 1.0
    contrastive: float = 0.1
    precision: str = "fp32"

    @property
    def name(self) -> str:
        """The cell in one word."""
        changed = [f"{key}={value}" for key, value in self._asdict().items() if value != self._field_defaults[key]]
        return ",".join(changed) or "default"

    @property
    def parts(self) -> int:
        """So many equal parts of the global batch have clips that are compared with one another and nobody else."""
        if self.negatives == "rank":
            return self.ranks * self.accumulation
        if self.negatives != "global":
            return int(self.negatives.removeprefix("chunk="))
        return 1 if self.two_pass else self.accumulation

    def config(self) -> PretrainConfig:
        """CAV-MAE small enough to train 16 clips in milliseconds; clipping and decay on, so they are compared too."""
        return validate_run(
            {
                "ds_config": f"ds_configs/zero{self.stage}.json",
                "model": {
                    "embed_dim": 32, "num_heads": 4, "modality_specific_depth": 1, "shared_depth": 2,
                    "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
                    "image_size": 64, "audio_frames": 64,
                    "decoder_chunk": self.decoder_chunk, "checkpoint_towers": self.checkpoint_towers,
                },
                "loss": {"mae_weight": self.mae, "contrastive_weight": self.contrastive},
                "contrastive": {
                    "negatives": self.negatives, "direction": self.direction, "two_pass": self.two_pass,
                    "exchange": self.exchange,
                },
                # eps above rounding: Adam would blow up the gradient of key biases, which is zero but for rounding
                "optim": {"learning_rate": 1e-3, "eps": 1e-5, "weight_decay": 0.05, "clip_grad_norm": 0.5},
                "train": {
                    "global_batch": CLIPS, "micro_batch": CLIPS // self.ranks // self.accumulation, "steps": STEPS,
                    "precision": self.precision, "seed": 7,
                },
            }
        )  # fmt: skip

    def numbers(self) -> PretrainPlan:
        """The derived numbers that an engine needs, without shards to count; the others are 0."""
        zeros = {field.name: 0 for field in dataclasses.fields(PretrainPlan)}
        needed = {"accumulation": self.accumulation, "total_steps": STEPS, "steps_per_epoch": 1}
        return PretrainPlan(**(zeros | needed))  # type: ignore[arg-type]  # 0 for numbers of both kinds

    @property
    def mathematics(self) -> Cell:
        """The cell that one plain process is given: all that only says how things are computed is left out."""
        return Cell(
            accumulation=self.parts, direction=self.direction, mae=self.mae, contrastive=self.contrastive,
            precision=self.precision,
        )  # fmt: skip


def clips(step: int, rows: slice = slice(None)) -> Batch:
    """Some of the 16 clips of one optimizer step, as a loader hands them over."""
    draw = torch.Generator().manual_seed(100 + step)
    shared = torch.randint(0, 120, (CLIPS, 1), generator=draw)  # something that sound and picture have in common
    audio = torch.randn(CLIPS, 10_500, generator=draw) * (shared + 1) * 100
    images = torch.randint(0, 120, (CLIPS, 3, 64, 64), generator=draw) + shared[..., None, None]
    index = torch.arange(CLIPS) * 1000 + step
    return Batch(
        clip_index=index[rows],
        epoch=torch.zeros_like(index)[rows],
        audio=audio.clamp(-32_000, 32_000).to(torch.int16)[rows],
        n_samples=torch.full_like(index, 10_500)[rows],
        frames=images.to(torch.uint8)[rows, None],
        labels=[[] for _ in index[rows]],
        bad=[],
    )


def fresh_model(cfg: PretrainConfig) -> CAVMAE:
    """The model with the initial weights that every variant starts from."""
    torch.manual_seed(cfg.train.seed)
    model = CAVMAE(cfg.model, training_normalisation(cfg.data.audio_mean, cfg.data.audio_std))
    freeze_unused(Pretraining, cfg, model)
    return model


@cache
def train_on_one_process(cell: Cell) -> tuple[list[PretrainLosses], dict[str, Tensor]]:
    """Plain torch, no engine, no ranks, the whole batch at once: the truth. Losses of each step, final parameters.

    bf16: weights, activations and gradients in it, the optimizer on float32 masters of what was rounded, as with ZeRO.
    """
    cfg = cell.config()
    model = fresh_model(cfg)
    if cell.precision == "bf16":
        model = model.bfloat16()
    masters = {name: torch.nn.Parameter(p.detach().float(), p.requires_grad) for name, p in model.named_parameters()}
    peak = cfg.optim.peak_learning_rate(CLIPS)
    optimizer = build_optimizer(masters.items(), cfg.optim, peak, torch.device("cpu"))
    trained = [(masters[name], parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = peak * learning_rate_share(step, cfg.optim, STEPS, 1, CLIPS)
        model.zero_grad()
        losses.append(_losses(model, cfg, step, cell.parts))
        losses[-1].total.backward()
        for master, parameter in trained:
            assert parameter.grad is not None
            master.grad = parameter.grad.to(master.dtype)
        torch.nn.utils.clip_grad_norm_([master for master, _ in trained], cfg.optim.clip_grad_norm)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in trained:
                parameter.copy_(master)
    return losses, {name: parameter.detach() for name, parameter in masters.items()}


def _losses(model: CAVMAE, cfg: PretrainConfig, step: int, parts: int) -> PretrainLosses:
    batch = clips(step)
    audio, images = FrontEnd(inputs(cfg.model), torch.device("cpu"))(batch)
    plans = draw_plans(cfg.model, cfg.mask, cfg.train.seed, batch.epoch, batch.clip_index)
    contrastive = cfg.loss.contrastive_weight > 0
    output = model(audio, images, plans, mae=cfg.loss.mae_weight > 0, contrastive=contrastive)
    contrast = _contrast_in_parts(output, cfg, parts) if contrastive else None
    return pretrain_losses(output, contrast, cfg.loss)


def _contrast_in_parts(output: PretrainOutput, cfg: PretrainConfig, parts: int) -> Contrast:
    assert output.audio_pooled is not None and output.image_pooled is not None
    sides = zip(output.audio_pooled.chunk(parts), output.image_pooled.chunk(parts), strict=True)
    found = [contrast_within(output._replace(audio_pooled=a, image_pooled=v), cfg.contrastive) for a, v in sides]
    return Contrast(*(torch.stack(term).mean() for term in zip(*found, strict=True)))
