"""Every command that writes, on a disk that takes no more: one sentence, exit code 2, nothing under the final name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cavmae_ds.checkpoint import checkpoint_root
from cavmae_ds.models.common.weights import Weights
from cavmae_ds.weights.single_file import save_single_file
from tests.checkpoint.made import make_checkpoint
from tests.commands_worker import MAY_NOT_MOUNT
from tests.compare.test_compare import run_folder
from tests.data.official_files import OfficialFolder
from tests.ranks import fork_script
from tests.weights.small_models import SIZES, small_model

WORKER = Path(__file__).with_name("commands_worker.py")


def commands(tmp_path: Path, shards: Path) -> dict[str, list[object]]:
    """Output -> the command that would write it, below tmp_path/full."""
    full, model = tmp_path / "full", tmp_path / "model.safetensors"
    full.mkdir()
    save_single_file(Weights("pretrain", SIZES, 0, dict(small_model("pretrain").state_dict()), "made"), model)
    runs = [run_folder(tmp_path / name, batch=8) for name in ("a", "b")]
    make_checkpoint(checkpoint_root(tmp_path), 10)
    official = OfficialFolder(tmp_path / "official")
    official.add("clip")
    listing, label_csv = official.write()
    (tmp_path / "run.yaml").write_text(json.dumps({"data": {"train": str(shards)}, "train": {"epochs": 1}}))
    written = {
        "made": ["synthesize", "--clips", 2, "--classes", 2, "--seconds", 1, "--size", 16, "--workers", 1, "--out"],
        "shards": [
            "prepare",
            shards.parent / "videos" / "train.csv",
            "--classes",
            shards.parent / "videos" / "classes.txt",
            "--workers",
            1,
            "--out",
        ],
        "imported": ["import-official", listing, "--label-csv", label_csv, "--frame-size", 64, "--workers", 1, "--out"],
        "official": ["create-official", shards, "--limit", 1, "--out"],
        "page.html": ["inspect", shards, "--clips", 1, "--out"],
        "page.png": ["inspect", shards, "--clips", 1, "--out"],
        "f.npz": ["features", model, shards, "--workers", 1, "--out"],
        "f.safetensors": ["features", model, shards, "--workers", 1, "--out"],
        "found.html": ["evaluate", model, "--data", shards, "--gallery"],
        "drawn.png": ["inpaint", model, "--data", shards, "--clips", 1, "--out"],
        "e.safetensors": ["export", model, "--out"],
        "e.pth": ["export", model, "--out"],
        "e.pt2": ["export", model, "--out"],
        "compared.png": ["compare", *runs, "--out"],
        "c.safetensors": ["checkpoint", "convert", tmp_path, "--out"],
        "findings.json": ["doctor", tmp_path / "run.yaml", "--seconds", 5, "--json"],
    }
    return {name: [*command, full / name] for name, command in written.items()}


def printed(tmp_path: Path, wanted: dict[str, list[object]], **asked: object) -> dict[str, dict[str, object]]:
    """Output -> what its command left: code, out, err, and new files (left)."""
    arguments = [list(map(str, command)) for command in wanted.values()]
    (tmp_path / "asked.json").write_text(json.dumps({"folder": str(tmp_path / "full"), "commands": arguments, **asked}))
    done = fork_script(WORKER, tmp_path / "asked.json")
    if done.returncode == MAY_NOT_MOUNT:
        pytest.skip("only root may mount a small disk")
    assert done.returncode == 0, done.stderr
    return dict(zip(wanted, json.loads(done.stdout), strict=True))


def assert_refused(name: str, result: dict[str, object], reason: str) -> None:
    assert result["code"] == 2, (name, result)
    assert re.fullmatch(rf"cavmae: error: [^\n]*/full/[^\n]*: {reason}; [^\n]+\n", str(result["err"])), (name, result)
    # prepare.json says what was asked for, so that the same command can go on.
    assert [left for left in result["left"] if not left.endswith("/prepare.json")] == [], (name, result)


def test_a_full_disk_is_one_sentence_and_leaves_no_file(tmp_path, tiny_shards):
    wanted, model = commands(tmp_path, tiny_shards), tmp_path / "full" / "model.safetensors"
    wanted["model.retrieval.json"] = ["evaluate", model, "--data", tiny_shards]
    links = {str(model): str(tmp_path / "model.safetensors")}
    for name, result in printed(tmp_path, wanted, room=0, links=links).items():
        assert_refused(name, result, "No space left on device")


def test_a_limit_on_the_size_of_files_is_one_sentence_and_leaves_no_file(tmp_path, tiny_shards):
    wanted = commands(tmp_path, tiny_shards)
    some = {name: wanted[name] for name in ("made", "shards", "drawn.png", "e.safetensors", "e.pth")}
    for name, result in printed(tmp_path, some, most_bytes=8192).items():
        assert_refused(name, result, "File too large")


def test_an_output_that_cannot_be_made_is_one_sentence(tmp_path, tiny_shards):
    wanted = commands(tmp_path, tiny_shards)
    some = ("made", "shards", "official", "page.html", "e.safetensors", "compared.png", "c.safetensors")
    (tmp_path / "file").touch()
    for folder, reason in ((Path("/proc/x"), "No such file or directory"), (tmp_path / "file", "Not a directory")):
        moved = {name: [*wanted[name][:-1], folder / name] for name in some}
        for name, result in printed(tmp_path, moved).items():
            assert result["code"] == 2, (name, result)
            sentence = rf"cavmae: error: [^\n]*cannot write '{folder}/{name}[^\n]*': ({reason}|File exists); [^\n]+\n"
            assert re.fullmatch(sentence, str(result["err"])), (name, result)
