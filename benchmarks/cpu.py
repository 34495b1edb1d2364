"""What can be compared on a CPU: front end, loader, training step. `python -m benchmarks.cpu`, about a minute.

Ways of doing the same work take turns in one run, so the ratios hold where the machine's speed drifts; the times are
this machine's. Writes benchmarks/results/cpu-<date>.json.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROUNDS = 7
CLIPS = 16
QUICKSTART = {
    "embed_dim": 96, "num_heads": 4, "modality_specific_depth": 2, "decoder_embed_dim": 64, "decoder_depth": 2,
    "decoder_num_heads": 4, "image_size": 96, "audio_frames": 256,
}  # fmt: skip


def take_turns(works: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each way, one round of all after another; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(ROUNDS + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def front_end() -> dict[str, float]:
    """Log-mels of ten-second clips: torchaudio one by one, and ours."""
    from torchaudio.compliance.kaldi import fbank

    from cavmae_ds.data.spectrogram import LogMel

    sound = torch.randn(CLIPS, 160_000, generator=torch.Generator().manual_seed(0)) * 0.1
    lengths, log_mel = torch.full((CLIPS,), 160_000), LogMel()
    settings = {"sample_frequency": 16_000, "window_type": "hanning", "num_mel_bins": 128, "htk_compat": True}

    def one_by_one() -> None:
        for clip in sound:
            fbank((clip - clip.mean())[None], use_energy=False, dither=0.0, frame_shift=10, **settings)

    return take_turns({"torchaudio": one_by_one, "ours": lambda: log_mel(sound, lengths, 1024)})


def loader(folder: Path) -> dict[str, float]:
    """A pass over synthetic shards (2.56 s, 96 pixels): read only, read and decode, and whole batches."""
    from torch.utils.data import DataLoader

    from cavmae_ds.data.prepare import PrepareSettings, prepare
    from cavmae_ds.data.schema import audio_of, frame_of
    from cavmae_ds.data.stream import EvaluationClips, collate
    from cavmae_ds.data.synthetic import synthesize

    synthesize(folder / "videos", clips=4 * CLIPS, eval_share=0, workers=2)
    prepare(folder / "videos" / "train.csv", str(folder / "shards"), PrepareSettings(frame_size=96), workers=2)
    clips = EvaluationClips(str(folder / "shards"), None)
    samples = [clips._shards[index] for index in range(CLIPS)]
    batches = DataLoader(clips, batch_size=CLIPS, collate_fn=collate)
    return take_turns(
        {
            "read": lambda: [clips._shards[index] for index in range(CLIPS)],
            "sound to int16": lambda: [audio_of(sample) for sample in samples],
            "one frame of ten": lambda: [frame_of(sample, 5) for sample in samples],
            "all ten frames": lambda: [frame_of(sample, k) for sample in samples for k in range(10)],
            "a batch, all together": lambda: next(iter(batches)),
        }
    )


def step() -> dict[str, float]:
    """Forward and backward of the quickstart's model: with predictions of all patches, and of hidden ones only."""
    from cavmae_ds.config import ContrastiveConfig, LossConfig, MaskConfig, ModelConfig
    from cavmae_ds.losses import contrast_within, pretrain_losses
    from cavmae_ds.model.cavmae import CAVMAE
    from cavmae_ds.model.masking import draw_plans
    from cavmae_ds.model.patches import select

    cfg = ModelConfig(**QUICKSTART)
    model, plans = CAVMAE(cfg), draw_plans(cfg, MaskConfig(), 0, 0, torch.arange(CLIPS))
    audio, images = torch.randn(CLIPS, 256, 128), torch.randn(CLIPS, 3, 96, 96)

    def train(all_patches: bool) -> None:
        output = model(audio, images, plans, all_patches=all_patches)
        if all_patches:
            output = output._replace(
                audio_prediction=select(output.audio_prediction, plans.audio.hidden),
                image_prediction=select(output.image_prediction, plans.image.hidden),
            )
        pretrain_losses(output, contrast_within(output, ContrastiveConfig()), LossConfig()).total.backward()

    return take_turns({"predict all patches": lambda: train(True), "predict hidden ones": lambda: train(False)})


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measured = {"front end": front_end(), "loader": loader(Path(folder)), "training step": step()}
    table = Table("work", "way", "ms a clip", "ratio to the first", title="one thread, medians of rounds in turn")
    rows = []
    for work, ways in measured.items():
        first = next(iter(ways.values()))
        for way, seconds in ways.items():
            row = {"work": work, "way": way, "ms_per_clip": 1000 * seconds / CLIPS, "ratio": seconds / first}
            rows.append(row)
            table.add_row(work, way, f"{row['ms_per_clip']:.3f}", f"{row['ratio']:.2f}")
    machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    (results / f"cpu-{date.today().isoformat()}.json").write_text(json.dumps({**machine, "rows": rows}, indent=1))
    Console().print(table)


if __name__ == "__main__":
    main()
