"""Names that are markup, terminal codes, options or too long, as files, folders, classes and clips of every command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cavmae_ds.checkpoint import checkpoint_root
from cavmae_ds.data.prepare.videos import PrepareSettings, prepare
from cavmae_ds.data.synthetic import synthesize
from cavmae_ds.evaluation.score_tables import class_table
from cavmae_ds.models.common.weights import Weights
from cavmae_ds.tasks.finetune.final_evaluation import _as_text
from cavmae_ds.weights.single_file import save_single_file
from tests.checkpoint.made import make_checkpoint
from tests.compare.test_compare import run_folder
from tests.ranks import fork_script
from tests.weights.small_models import SIZES, small_model

WORKER = Path(__file__).with_name("commands_worker.py")
FOLDERS = (
    "[red]x :smile: \x1b[31m\x9b1m\x07 \u202egnp [",
    "-rf line\nbreak\r\ttab --out='\"%s%d{0}{x}$HOME`id`\\",
    "ünï 漢字 <script>&amp; \udcff",
)
"""The half of a surrogate pair is how Python shows a byte of a file name that is no UTF-8."""
CLIPS = (*FOLDERS, "x" * 200)
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
"""What a terminal acts on."""


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """A model, two runs with checkpoints, and a data set whose clips and classes are named so."""
    folder = tmp_path_factory.mktemp("hostile")
    made = folder / "made"
    synthesize(made, clips=2, classes=2, seconds=1.2, size=64, eval_share=0)
    video = next((made / "videos").iterdir())
    (folder / "videos").mkdir()
    rows = ["path,labels"]
    for name in CLIPS:
        (folder / "videos" / f"{name}.mp4").hardlink_to(video)
        cells = f"videos/{name}.mp4", f"[/red]{name}".replace("\udcff", "")
        rows.append(",".join('"' + text.replace('"', '""') + '"' for text in cells))
    (folder / "videos.csv").write_text("\n".join(rows), "utf-8", errors="surrogateescape")
    save_single_file(
        Weights("pretrain", SIZES, 0, dict(small_model("pretrain").state_dict()), "made"), folder / "model.safetensors"
    )
    for name in ("a", "b"):
        make_checkpoint(checkpoint_root(run_folder(folder / name, batch=8)), 10)
    prepare(folder / "videos.csv", str(folder / "shards"), PrepareSettings(frame_size=64), workers=1, max_bad_share=1)
    return folder


def commands(folder: Path) -> list[list[object]]:
    """Commands on things in a folder that has a hostile name; what they write goes there as well."""
    out, model, shards = folder / "b]", folder / "model.safetensors", folder / "shards"
    return [
        ["inspect", shards, "--verify", "--out", out / "page.html"],
        ["inspect", folder / "no shards"],
        ["create-official", shards, "--out", out / "official"],
        ["features", folder / "no model", shards, "--workers", 1, "--out", out / "f.npz"],
        ["evaluate", model, "--data", shards, "--classes-by", folder.name],
        ["export", model, "--out", out / f"{folder.name}.pth"],
        ["export", model, "--out", out / folder.name],
        ["report", folder / "a"],
        ["checkpoint", "inspect", folder / "a"],
        ["checkpoint", "convert", folder / "a", "--out", out / "c.safetensors"],
        ["checkpoint", "prune", folder / "a", "--keep-last", 1, "--dry-run"],
        ["plan", folder / "no run.yaml", "--gpus", 1],
        ["prepare", folder / "videos.csv", "--out", folder / "shards", "--workers", 1],
        ["synthesize", "--out", out / "made", "--classes", 99],
        [folder.name],
    ]


def slow_commands(folder: Path) -> list[list[object]]:
    out, model, shards = folder / "b]", folder / "model.safetensors", folder / "shards"
    return [
        ["stats", shards, "--workers", 1],
        ["features", model, shards, "--workers", 1, "--out", out / f"{folder.name}.npz"],
        ["evaluate", model, "--data", shards, "--gallery", out / "found.html"],
        ["inpaint", model, "--data", shards, "--clips", 1, "--out", out / "drawn.png"],
        ["compare", folder / "a", folder / "b", "--out", out / "compared.png"],
    ]


def test_no_name_breaks_a_command_or_reaches_the_terminal_raw(things, tmp_path):
    wanted = []
    for name in FOLDERS:
        folder = tmp_path / name
        folder.mkdir()
        for thing in ("model.safetensors", "shards", "a", "b", "videos.csv"):
            (folder / thing).symlink_to(things / thing)
        chosen = commands(folder) + (slow_commands(folder) if name == FOLDERS[0] else [])
        wanted += [list(map(str, command)) for command in chosen]
    (tmp_path / "asked.json").write_text(json.dumps({"commands": wanted, "folder": str(tmp_path), "keep": True}))

    done = fork_script(WORKER, tmp_path / "asked.json", seconds=300)

    assert done.returncode == 0, done.stderr
    for command, result in zip(wanted, json.loads(done.stdout), strict=True):
        assert result["code"] in (0, 2, 3, 4), (command, result)
        printed = result["out"] + result["err"]
        assert "Traceback" not in printed and not RAW.search(printed), (command, result)
    first = FOLDERS[0]
    for made in ("page.html", "official/data.json", f"{first}.npz", "found.html", "drawn.png", f"{first}.pth"):
        assert (tmp_path / first / "b]" / made).is_file(), made


def test_a_class_that_looks_like_markup_is_a_name_in_the_table_of_scores():
    scores = {"positives": 1, "average_precision": 0.5, "auc": None}
    shown = _as_text([class_table("audioonly", [scores | {"name": "[/red]"}, scores | {"name": "[b]\x1b[1m :x:"}])])
    assert "[/red]" in shown and "[b]\\x1b[1m :x:" in shown and not RAW.search(shown)
