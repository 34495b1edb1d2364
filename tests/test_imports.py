"""Commands do not wait for what they do not use: `import streaming` and torch take seconds."""

from __future__ import annotations

import subprocess
import sys

from tests.ranks import CHECKOUT, environment
from tests.weights.small_models import run_folder, small_model

PROBE = """
import sys
from cavmae_ds import train_cli
from cavmae_ds.cli import app

def run(command, arguments, absent):
    sys.argv = ["command", *arguments]
    try:
        train_cli.main(command) if command is not app else app(arguments, prog_name="cavmae")
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
    loaded = [name for name in absent if name in sys.modules]
    assert not loaded, f"{arguments} has imported {loaded}"

run_dir, shards, run_file = sys.argv[1:]
heavy = ["streaming", "transformers", "sklearn", "deepspeed"]
for arguments in (
    ["checkpoint", "inspect", run_dir, "--verify"], ["checkpoint", "prune", run_dir, "--keep-last", "1"],
    ["inspect", shards, "--verify"],
):
    run(app, arguments, [*heavy, "torch", "matplotlib"])
run(train_cli.pretrain_command, [run_file, "--dry-run"], heavy)
run(app, ["plan", run_file, "--gpus", "1"], heavy)
run(app, ["stats", shards, "--workers", "1"], heavy)
run(app, ["export", run_dir, "--out", run_dir + "/out.safetensors"], heavy)
"""


def test_commands_import_only_what_they_use(tmp_path, tiny_shards):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(
        f"data: {{train: {tiny_shards}}}\nmodel: {{preset: tiny, image_size: 64, audio_frames: 64}}\n"
        "train: {global_batch: 8, micro_batch: 8, steps: 3}\n"
    )
    run_dir = run_folder(tmp_path / "run", small_model("pretrain"))
    finished = subprocess.run(
        [sys.executable, "-c", PROBE, run_dir, tiny_shards, run_file],
        cwd=CHECKOUT, env=environment(tmp_path), capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
