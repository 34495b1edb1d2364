"""Where points, events, pictures and texts go: TensorBoard, log.jsonl and the terminal. The first rank's only."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from cavmae_ds.atomic_io import written_whole
from cavmae_ds.errors import ConfigError, for_display, without_secrets
from cavmae_ds.monitor.log import LOG, LogWriter

METRICS = (
    "loss/total", "retrieval/in_batch_accuracy", "validation/total", "validation/map", "validation/accuracy",
    "probe/audio_to_image_recall_at_1",
)  # fmt: skip
"""Curves that TensorBoard lists beside the hyperparameters; of those a run does not draw the column stays empty."""

ROOM = 4 << 20
"""Bytes that must be free, or TensorBoard's writer may run full in a thread of its own, which ends in a traceback."""

OVERVIEW = {
    "is it learning": {
        "loss": ["Multiline", ["loss/total", "validation/total"]],
        "contrastive loss": ["Multiline", ["loss/contrastive", "validation/contrastive"]],
        "retrieval, first hit": ["Multiline", ["probe/.*recall_at_1$"]],
        "retrieval, class of the first hit": ["Multiline", ["probe/.*class_precision_at_1"]],
        "classifier on validation clips": ["Multiline", ["validation/map", "validation/accuracy"]],
    },
    "is it well": {
        "gradient norm": ["Multiline", ["optim/grad_norm"]],
        "skipped steps, bad clips, failed checkpoints": [
            "Multiline",
            ["guard/skipped_steps", "data/bad_clips", "checkpoint/failed"],
        ],
    },
    "is it fast": {
        "clips a second": ["Multiline", ["perf/clips_per_second$"]],
        "share of a step lost to data and to the slowest rank": [
            "Multiline",
            ["perf/data_wait_share", "ranks/straggler_share"],
        ],
        "memory, GiB": ["Multiline", ["memory/.*"]],
    },
}
"""Charts of TensorBoard's custom scalars: what belongs together drawn together. Tags are regular expressions."""


CONFIG = "config.yaml"


class Curves:
    """Writes what it is given at once.

    A disk that is full or read-only costs points, never the run: one line when it begins, one when it is over. A run
    folder that is deleted is made again, with its config.yaml; earlier points are lost.
    """

    def __init__(self, run_dir: Path, step: int):
        """Points after `step` belong to a process that was killed: the resumed run draws them again."""
        self._run_dir, self._folder, self._step = run_dir, run_dir / "tensorboard", step
        self._config = (run_dir / CONFIG).read_bytes() if (run_dir / CONFIG).is_file() else b""
        self._writer: SummaryWriter | None = SummaryWriter(str(self._folder), purge_step=step + 1)
        self._log = LogWriter(run_dir / LOG)
        self._failing = False

    def draw(self, step: int, values: Mapping[str, float]) -> None:
        """A point of each of some curves."""

        def scalars(writer: SummaryWriter) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

        self._keep(scalars, lambda: self._log.write(step, values))

    def event(self, step: int, name: str, facts: Mapping[str, Any]) -> None:
        """One line in the log.jsonl."""
        self._keep(None, lambda: self._log.write(step, {"event": name, **facts}))

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """[H, W, 3] uint8."""
        self._keep(lambda writer: writer.add_image(tag, pixels, step, dataformats="HWC"))

    def texts(self, texts: Mapping[str, str], hyperparameters: Mapping[str, float | str]) -> None:
        """Markdown under a tag each, and what the run is listed with beside other runs."""

        def add(writer: SummaryWriter) -> None:
            for tag, text in texts.items():
                writer.add_text(tag, without_secrets(text), self._step)
            writer.add_custom_scalars(OVERVIEW)
            # Not add_hparams: it opens a folder of its own, and the run would be listed twice.
            for summary in hparams(dict(hyperparameters), dict.fromkeys(METRICS, 0.0))[:2]:
                writer._get_file_writer().add_summary(summary)

        self._keep(add)

    def text(self, tag: str, text: str) -> None:
        """Lines under a tag, at the step that this process began with."""
        self._keep(lambda writer: writer.add_text(tag, text, self._step))

    def close(self) -> None:
        """Flush."""
        self._keep(lambda writer: writer.close())
        self._log.close()

    def _keep(self, drawn: Callable[[SummaryWriter], None] | None, logged: Callable[[], None] | None = None) -> None:
        try:
            if self._log.is_gone():
                self._make_folder_again()
            if logged:
                logged()
            if drawn:
                self._check_folder()
                if self._writer is None:
                    self._writer = SummaryWriter(str(self._folder))
                drawn(self._writer)
                self._writer.flush()
        except (OSError, ConfigError) as error:
            if not self._failing:
                tqdm.write(for_display(f"curves cannot be written and have a gap: {error}"))
            # Its thread has ended with the error; a new one begins a file of its own.
            self._writer, self._failing = None, True
        else:
            if self._failing:
                tqdm.write("curves are written again")
            self._failing = False

    def _make_folder_again(self) -> None:
        """Raises OSError or ConfigError where that is not possible yet."""
        log = LogWriter(self._run_dir / LOG)
        self._log.close()
        self._log, self._writer = log, None
        if self._config:
            with written_whole(self._run_dir / CONFIG) as unfinished:
                unfinished.write_bytes(self._config)
        tqdm.write(
            for_display(f"{self._run_dir} was deleted: log.jsonl and config.yaml begin again, earlier curves are lost")
        )

    def _check_folder(self) -> None:
        """Raises OSError here for what would end TensorBoard's writer in its own thread, with a traceback each time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=self._folder):  # a read-only file system
            pass
        if shutil.disk_usage(self._folder).free < ROOM:
            raise OSError(f"less than {ROOM >> 20} MiB are free in {self._folder}")
