"""What the tables of all commands have in common."""

from __future__ import annotations

import io
import re

import torch
from rich.console import Console

from cavmae_ds.evaluation.classification import classification_scores
from cavmae_ds.evaluation.inference import ModeScores
from cavmae_ds.evaluation.score_tables import mode_table
from cavmae_ds.terminal import folding_table
from tests.ranks import CHECKOUT


def printed(table, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


def test_a_name_that_is_too_long_for_its_column_is_on_two_lines_and_nothing_of_it_is_lost():
    table = folding_table("name", "number")
    table.add_row("validation/" + "x" * 60, "1")
    text = printed(table, 40)
    assert "…" not in text and text.count("x") == 60


def test_names_of_modes_stay_whole_at_80_columns():
    targets = torch.eye(4).repeat(3, 1)  # [12, 4]
    scores = classification_scores(targets, targets * 0.5)
    found = {mode: ModeScores(range(10), scores, [scores, scores], targets, targets)
             for mode in ("multimodal", "missingaudioonly", "missingvideoonly")}  # fmt: skip
    text = printed(mode_table(found, "sigmoid"), 80)
    assert "missingaudioonly" in text and "missingvideoonly" in text and "…" not in text


def test_every_table_of_a_command_is_made_to_fold():
    own = re.compile(r"(?<![\w.\]])Table\(")
    makers = [path.name for path in (CHECKOUT / "cavmae_ds").rglob("*.py") if own.search(path.read_text())]
    assert makers == ["terminal.py"]
