"""What can be compared of a training step on a CPU. `python -m benchmarks.cpu`, some seconds.

Ways of doing the same work take turns in one run, so the ratios hold where the machine's speed drifts; the times are
this machine's. Writes benchmarks/results/cpu-<date>.json. Loader and front end: `python -m benchmarks.loader`.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.turns import Spent, machine, take_turns

CLIPS = 16
QUICKSTART = {
    "embed_dim": 96, "num_heads": 4, "modality_specific_depth": 2, "decoder_embed_dim": 64, "decoder_depth": 2,
    "decoder_num_heads": 4, "image_size": 96, "audio_frames": 256,
}  # fmt: skip


def step() -> dict[str, Spent]:
    """Forward and backward of the quickstart's model: with predictions of all patches, and of hidden ones only."""
    from cavmae_ds.models.cavmae.config import MaskConfig, ModelConfig
    from cavmae_ds.models.cavmae.masking import draw_plans
    from cavmae_ds.models.cavmae.model import CAVMAE
    from cavmae_ds.models.common.patches import select
    from cavmae_ds.tasks.pretrain.config import ContrastiveConfig, LossConfig
    from cavmae_ds.tasks.pretrain.losses import contrast_within, pretrain_losses

    cfg = ModelConfig(**QUICKSTART)
    model, plans = CAVMAE(cfg), draw_plans(cfg, MaskConfig(), 0, 0, torch.arange(CLIPS))
    audio, images = torch.randn(CLIPS, 256, 128), torch.randn(CLIPS, 3, 96, 96)

    def train(all_patches: bool) -> None:
        output = model(audio, images, plans, all_patches=all_patches)
        if all_patches:
            output = output.predicting(*(select(one.prediction, one.plan.hidden) for one in output.targets))
        pretrain_losses(output, contrast_within(output, ContrastiveConfig()), LossConfig()).total.backward()

    return take_turns({"predict all patches": lambda: train(True), "predict hidden ones": lambda: train(False)})


def main() -> None:
    """Measure a training step on a CPU, print, write benchmarks/results/cpu-DATE.json; some seconds."""
    torch.set_num_threads(1)
    table = Table("work", "way", "ms a clip", "ratio to the first", title="one thread, medians of rounds in turn")
    rows = []
    ways = step()
    first = next(iter(ways.values())).cpu_s
    for way, spent in ways.items():
        row = {
            "work": "training step",
            "way": way,
            "ms_per_clip": 1000 * spent.cpu_s / CLIPS,
            "ratio": spent.cpu_s / first,
        }
        rows.append(row)
        table.add_row("training step", way, f"{row['ms_per_clip']:.3f}", f"{row['ratio']:.2f}")
    where = {**machine(), "torch": torch.__version__, "threads": 1}
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    (results / f"cpu-{date.today().isoformat()}.json").write_text(json.dumps({**where, "rows": rows}, indent=1))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
