"""`cavmae checkpoint`: what it shows, takes out and removes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from cavmae_ds.checkpoint import checkpoint_root
from cavmae_ds.checkpoint.bucket import open_bucket
from cavmae_ds.checkpoint.commands import checkpoint
from cavmae_ds.checkpoint.folder import partial, read_manifest
from cavmae_ds.errors import CheckpointError
from tests.checkpoint.made import flip_a_byte, make_checkpoint
from tests.ranks import fork_cavmae


def cavmae_checkpoint(*words: object, code: int = 0) -> str:
    """What the command prints on both streams."""
    result = CliRunner().invoke(checkpoint, [str(word) for word in words], env={"COLUMNS": "120"})
    if isinstance(result.exception, CheckpointError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(params=["folder", "s3"])
def run(request, tmp_path) -> str:
    """The address of checkpoints 10, 20, 30 of a run."""
    root = checkpoint_root(tmp_path)
    folders = [make_checkpoint(root, step) for step in (10, 20, 30)]
    if request.param == "folder":
        return str(tmp_path)
    address = f"s3://{request.getfixturevalue('s3_bucket')}/some/run"
    bucket = open_bucket(address)
    for folder in folders:
        manifest = read_manifest(folder)
        for name in manifest.files:
            bucket.put(manifest.step, folder / name)
        bucket.publish(manifest)
    return address


def one(run: str, step: int) -> str:
    return f"{run}/step-{step:08d}" if "://" in run else f"{checkpoint_root(Path(run))}/step-{step:08d}"


def test_a_run_is_shown_with_all_its_checkpoints(run):
    shown = cavmae_checkpoint("inspect", run, "--verify")
    rows = [line.split() for line in shown.splitlines() if line.startswith("step-")]
    assert [row[:4] for row in rows] == [["step-00000010", "whole", "80", "2"], ["step-00000020", "whole", "160", "2"],
                                         ["step-00000030", "whole", "240", "2"]]  # fmt: skip
    assert all(row[-2:] == ["master,", "ema"] for row in rows)


def test_one_checkpoint_is_shown_with_what_is_in_it(run):
    shown = cavmae_checkpoint("inspect", one(run, 20))
    assert "rank-00001-of-00002.safetensors" in shown and "train.seed" in shown
    assert "200 parameters in 1 tensors" in shown and "step-00000010" not in shown


def test_prune_removes_what_it_said_it_would(run):
    said = cavmae_checkpoint("prune", run, "--keep-last", 1, "--keep-every", 20, "--dry-run")
    assert "step-00000010" in said and "would be removed" in said and "step-00000020" not in said
    assert "step-00000010" in cavmae_checkpoint("inspect", run)

    cavmae_checkpoint("prune", run, "--keep-last", 1, "--keep-every", 20)

    left = cavmae_checkpoint("inspect", run)
    assert "step-00000010" not in left and "step-00000020" in left and "step-00000030" in left
    assert "nothing to remove" in cavmae_checkpoint("prune", run, "--keep-last", 1, "--keep-every", 20)


@pytest.mark.parametrize("ema", [False, True])
def test_convert_takes_the_weights_of_the_newest_or_of_the_one_given(ema, run, tmp_path):
    flag = ["--ema"] if ema else []
    for address, step in ((run, 30.0), (one(run, 20), 20.0)):
        cavmae_checkpoint("convert", address, "--out", tmp_path / "out" / "weights.safetensors", *flag)
        weights = load_file(tmp_path / "out" / "weights.safetensors")
        assert weights.keys() == {"weight"}
        assert torch.equal(weights["weight"], torch.full((200,), step / 2 if ema else step))
    with safe_open(tmp_path / "out" / "weights.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["model"]) == {"embed_dim": 32}


def test_damage_is_named_with_exit_code_4_and_the_rest_is_shown(tmp_path):
    root = checkpoint_root(tmp_path)
    for step in (10, 20, 30):
        make_checkpoint(root, step)
    partial(root, 40).mkdir()
    flip_a_byte(root / "step-00000020" / "rank-00000-of-00002.safetensors")
    (root / "step-00000030" / "manifest.json").write_text('{"format": 2, "st')

    quick = cavmae_checkpoint("inspect", tmp_path, code=4)
    assert "'step-00000030' is damaged: manifest.json is no JSON" in quick.replace(f"{root}/", "")
    thorough = cavmae_checkpoint("inspect", tmp_path, "--verify", code=4)
    assert "rank-00000-of-00002.safetensors is not what was written" in thorough
    conditions = {line.split()[0]: line.split()[1] for line in thorough.splitlines() if line.startswith("step-")}
    assert conditions == {"step-00000010": "whole", "step-00000020": "damaged", "step-00000030": "damaged",
                          "step-00000040.partial": "unfinished"}  # fmt: skip
    with pytest.raises(CheckpointError, match="is not what was written"):
        cavmae_checkpoint("convert", root / "step-00000020", "--out", tmp_path / "weights.safetensors")
    assert not (tmp_path / "weights.safetensors").exists()


def test_mistakes_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    for words, said in (
        (["inspect", str(tmp_path / "empty")], "holds no checkpoint; give a run folder"),
        (["inspect", "gs://bucket/run"], "gs://bucket/run is not supported; give a local folder or s3://bucket/prefix"),
    ):
        done = fork_cavmae("checkpoint", *words)
        assert done.returncode == 2 and said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
