"""Every mistake in a run gets one clear sentence and exit code 2, never a traceback (DESIGN 2.7)."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cavmae_ds import train_cli
from tests.ranks import CHECKOUT, PRETRAIN, environment, launch

RUN = """\
ds_config: {folder}/engine.json
model: {{embed_dim: 32, num_heads: 4, image_size: 64, audio_frames: 64}}
data: {{train: {shards}}}
train: {{global_batch: 8, micro_batch: 4, steps: 3}}
"""

# (what is changed on the command line, what the sentence must name)
MISTAKES = {
    "unknown key": (["mask.rato=0.5"], ["mask.rato", "did you mean", "mask.audio_ratio"]),
    "unknown section": (["modle.embed_dim=32"], ["modle", "did you mean 'model'"]),
    "key without its section": (["micro_batch=4"], ["micro_batch", "train.micro_batch"]),
    "wrong type": (["train.micro_batch=big"], ["train.micro_batch", "integer", "big"]),
    "number as text": (["optim.learning_rate=fast"], ["optim.learning_rate", "number", "fast"]),
    "fraction for a count": (["train.steps=2.5"], ["train.steps", "integer", "2.5"]),
    "value for a section": (["optim=3"], ["optim", "section", "3"]),
    "ratio above one": (["mask.audio_ratio=1.5"], ["mask.audio_ratio", "less than 1", "1.5"]),
    "ratio zero": (["mask.image_ratio=0"], ["mask.image_ratio", "greater than 0", "0"]),
    "ratio that keeps nothing": (["mask.image_ratio=0.99"], ["0.99", "keeps 0"]),
    "negative weight": (["loss.mae_weight=-1"], ["loss.mae_weight", "greater than or equal to 0", "-1"]),
    "nothing to learn": (["loss.mae_weight=0", "loss.contrastive_weight=0"], ["mae_weight", "contrastive_weight"]),
    "unknown choice": (["contrastive.direction=a2v"], ["contrastive.direction", "'v2a' or 'both'", "a2v"]),
    "not a number": (["optim.learning_rate=.nan"], ["optim.learning_rate", "finite"]),
    "audio length not a multiple of the patch": (["model.audio_frames=1000"], ["audio_frames", "16", "992 or 1008"]),
    "image not a multiple of the patch": (["model.image_size=100"], ["image_size", "16", "96 or 112"]),
    "heads that do not divide the width": (["model.num_heads=5"], ["embed_dim", "num_heads = 5", "30 or 35"]),
    "batch not divisible": (["train.global_batch=10"], ["4 x 1 = 4", "got 10", "8 or 12", "micro_batch: 2"]),
    "unknown negatives": (["contrastive.negatives=local"], ["negatives", "global, rank or chunk=n", "'local'"]),
    "parts that are not equal": (["contrastive.negatives=chunk=3"], ["train.global_batch", "negatives = 3", "6 or 9"]),
    "parts over several micro-batches": (["contrastive.negatives=chunk=1"], ["chunk=1", "2 micro-batches", "two_pass"]),
    "a ring of one": (["contrastive.negatives=rank", "contrastive.exchange=ring"], ["ring", "'rank'", "gather"]),
    "two passes for nothing": (["contrastive.two_pass=true", "loss.contrastive_weight=0"], ["two_pass", "weight 0"]),
    "steps and epochs": (["train.epochs=2"], ["steps", "epochs", "exactly one"]),
    "neither steps nor epochs": (["train.steps=null"], ["steps", "epochs", "exactly one"]),
    "warm-up longer than the run": (["optim.warmup_clips=20"], ["optim.warmup_clips", "got 20", "24 clips"]),
    "warm-up in steps and in clips": (
        ["optim.warmup_steps=1", "optim.warmup_clips=8"], ["optim.warmup_steps", "optim.warmup_clips", "both given"],
    ),
    "rate for an unknown batch": (["optim.lr_rule=linear"], ["lr_rule", "reference_batch"]),
    "reference batch without a rule": (["optim.reference_batch=256"], ["lr_rule", "reference_batch=256"]),
    "unknown optimizer": (["optim.name=adagrad"], ["optim.name", "'adamw', 'adam', 'lamb', 'lars' or 'lion'"]),
    "unknown family": (["model.family=jepa"], ["model.family", "one of cavmae", "'jepa'"]),
    "family that is no name": (["model.family=[1]"], ["model.family", "one of cavmae", "[1]"]),
    "task of another script": (["task=finetune"], ["task is 'finetune'", "launch/pretrain.py", "launch/finetune.py"]),
    "unknown task": (["task=segment"], ["task is 'segment'", "launch/pretrain.py", "launch/train.py"]),
    "task that is no name": (["task=[1]"], ["task is [1]", "launch/pretrain.py", "launch/train.py"]),
    "unknown preset": (["model.preset=colossal"], ["model.preset", "'large', 'huge' or 'giant'", "colossal"]),
    "batch larger than the data": (["train.global_batch=64"], ["train.global_batch", "24 clips"]),
    "silence within a few signs of life": (["watch.silence_seconds=1"], ["watch.silence_seconds", "equal to 5", "1"]),
    "every step a spike": (["guard.spike_factor=0.5"], ["guard.spike_factor", "larger than 1, or 0", "got 0.5"]),
    "stuck before silent": (["watch.stuck_seconds=30"], ["watch: stuck_seconds", "silence_seconds = 60", "got 30"]),
    "stuck while a batch may be waited for": (
        ["watch.stuck_seconds=300"], ["watch.stuck_seconds", "data.timeout_seconds = 300", "got 300"],
    ),
    "no data": (["data.train="], ["data.train"]),
    "checkpoints in a whole bucket": (["checkpoint.address=s3://mine"], ["s3://bucket/prefix", "got 's3://mine'"]),
    "missing folder": (["data.train=nowhere/shards"], ["nowhere/shards", "no such folder"]),
    "unknown kind of address": (["data.train=ftp://host/shards"], ["ftp://host/shards", "s3://"]),
    "frames of another size": (["model.image_size=96"], ["64 pixels", "model.image_size", "96"]),
    "train and sources": (["data.sources=[{remote: a}]"], ["exactly one", "train", "sources"]),
    "no source": (["data.train=''", "data.sources=[]"], ["data.train is not set", "data.sources"]),
    "source without an address": (["data.train=''", "data.sources=[{repeat: 2}]"], ["sources.0.remote", "missing"]),
    "misspelled amount": (["data.train=''", "data.sources=[{remote: a, repeats: 2}]"], ["data.sources.0.repeats"]),
    "two kinds of amounts": (
        ["data.train=''", "data.sources=[{remote: a, repeat: 2}, {remote: b, choose: 3}]"],
        ["proportion, repeat and choose", "'a': repeat", "'b': choose"],
    ),
    "two amounts for one source": (
        ["data.train=''", "data.sources=[{remote: a, repeat: 2, choose: 3}]"],
        ["proportion, repeat and choose", "'a': repeat and choose"],
    ),
    "the same source twice": (["data.train=''", "data.sources=[{remote: a}, {remote: a}]"], ["'a' twice"]),
    "length of an epoch beside repeats": (
        ["data.train=''", "data.sources=[{remote: a, repeat: 2}, {remote: b, repeat: 1}]", "data.epoch_clips=9"],
        ["epoch_clips goes with proportion", "repeat"],
    ),
    "negative amount": (["data.train=''", "data.sources=[{remote: a, choose: -2}]"], ["choose", "greater than 0"]),
    "all clips held out": (["data.validation_share=1"], ["data.validation_share", "less than 1"]),
    "more stripes than clips": (["data.canonical_nodes=48"], ["24 clips", "data.canonical_nodes = 48"]),
    "validation without clips": (["monitor.validate_every=5"], ["monitor.validate_every", "data.validation_share"]),
    "probe without clips": (["monitor.probe_every=5"], ["monitor.probe_every", "data.validation_share"]),
    "probe of one clip": (["monitor.probe_clips=1"], ["monitor.probe_clips", "greater than or equal to 2"]),
    "validation clips that are not there": (["data.validation=no/where"], ["no/where", "no such folder"]),
    "batches awaited less long than shards": (["data.timeout_seconds=60"], ["timeout_seconds", "= 120", "got 60"]),
    "unknown treatment of bad clips": (["data.on_bad_clip=stop"], ["data.on_bad_clip", "'skip' or 'fail'", "stop"]),
    "no room in the cache": (["data.cache_limit_gib=0"], ["data.cache_limit_gib", "greater than 0"]),
    "override without a value": (["train.steps"], ["'train.steps'", "section.key=value"]),
    "override that is not YAML": (["train.seed=["], ["train.seed=[", "YAML"]),
    "missing engine file": (["ds_config=zero9.json"], ["zero9.json", "ds_configs/zero2.json"]),
}  # fmt: skip

ENGINE_MISTAKES = {
    "owned by the run file": (
        {"train_batch_size": 8},
        ["train_batch_size", "train.global_batch", "engine.json"],
    ),
    "precision in both": ({"bf16": {"enabled": True}}, ["bf16", "train.precision"]),
    "misspelled": ({"zero_optimisation": {}}, ["zero_optimisation", "did you mean 'zero_optimization'"]),
    "accepted in silence by DeepSpeed": ({"grad_clipping": 1.0}, ["grad_clipping", "gradient_clipping"]),
    "stage 4": ({"zero_optimization": {"stage": 4}}, ["zero_optimization.stage", "0, 1, 2 or 3", "4"]),
    "bf16 sums": ({"zero_optimization": {"stage": 0}}, ["train.precision bf16", "1, 2 or 3", "stage 0", "fp32"]),
    "states on a disk": (
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
        ["zero_optimization.offload_optimizer.device", "none or cpu", "nvme"],
    ),
}


@pytest.fixture
def run_file(tmp_path, tiny_shards):
    (tmp_path / "engine.json").write_text('{"zero_optimization": {"stage": 2}}')
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(folder=tmp_path, shards=tiny_shards))
    return path


def refusal(monkeypatch, capsys, *arguments: str) -> str:
    """What a rank says before it gives up; fails if it does not give up, or not as promised."""
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        train_cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("pretrain: error: ") and said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_what_is_allowed(mistake, run_file, monkeypatch, capsys):
    overrides, expected = MISTAKES[mistake]
    said = refusal(monkeypatch, capsys, str(run_file), *overrides)
    assert all(part in said for part in expected), said


@pytest.mark.parametrize("mistake", ENGINE_MISTAKES)
def test_a_key_that_the_engine_file_must_not_hold_is_refused_by_name(mistake, run_file, monkeypatch, capsys):
    extra, expected = ENGINE_MISTAKES[mistake]
    fragment = {"zero_optimization": {"stage": 2}} | extra
    (run_file.parent / "engine.json").write_text(json.dumps(fragment))
    said = refusal(monkeypatch, capsys, str(run_file))
    assert all(part in said for part in expected), said


def test_a_bucket_that_nobody_answers_for_is_named(run_file, monkeypatch, capsys):
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-shown")
    said = refusal(monkeypatch, capsys, str(run_file), "data.train=s3://bucket/shards")
    assert "s3://bucket/shards" in said and "127.0.0.1:9" in said
    assert "never-shown" not in said


@pytest.mark.parametrize(
    ("name", "value", "address", "expected"),
    [
        ("AWS_SECRET_ACCESS_KEY", "never-shown", "s3://{bucket}/shards", ["was refused", "credentials"]),
        ("AWS_ACCESS_KEY_ID", "nobody", "s3://{bucket}/shards", ["was refused", "credentials"]),
        ("AWS_DEFAULT_REGION", "us-east-1", "s3://no-such-bucket/shards", ["no-such-bucket", "does not exist"]),
        ("AWS_DEFAULT_REGION", "us-east-1", "s3://{bucket}/shards", ["index.json", "missing", "cavmae prepare"]),
        ("S3_ENDPOINT_URL", "silent", "s3://{bucket}/shards", ["cannot be reached", "timeout"]),
    ],
)
def test_a_bucket_that_cannot_be_used_is_refused_in_time(
    name, value, address, expected, run_file, s3_bucket, monkeypatch, capsys
):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}" if value == "silent" else value)
        started = time.monotonic()
        said = refusal(
            monkeypatch, capsys, str(run_file),
            f"data.train={address.format(bucket=s3_bucket)}", "data.download_timeout_seconds=4",
        )  # fmt: skip
    assert time.monotonic() - started < 30
    assert all(part in said for part in expected) and "never-shown" not in said, said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: [", ["not valid YAML", "line"]),
        ("just words", ["mappings", "just words"]),
        ("train: {steps: 1}\ntrain: {steps: 2}", ["'train'", "twice"]),
        ("model: {}", ["missing key 'train'"]),
    ],
)
def test_a_run_file_that_is_no_run_file_is_refused(text, expected, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    said = refusal(monkeypatch, capsys, str(path))
    assert all(part in said for part in expected), said


def test_a_run_file_that_does_not_exist_is_named(monkeypatch, capsys):
    assert "no/such/run.yaml" in refusal(monkeypatch, capsys, "no/such/run.yaml")


def test_under_the_launcher_one_rank_speaks_and_the_exit_code_is_2(run_file, tmp_path):
    finished = launch(2, PRETRAIN, str(run_file), "mask.rato=0.5", scratch=tmp_path)
    assert finished.returncode == 2
    assert finished.stdout.count("unknown key 'mask.rato'") == 1
    assert "Traceback" not in finished.stdout


def test_a_dry_run_prints_a_config_that_loads_again_and_the_numbers_that_follow(run_file, tmp_path):
    from cavmae_ds.tasks import load_run

    finished = subprocess.run(
        [sys.executable, PRETRAIN, str(run_file), "--dry-run", "--ranks", "2", "optim.learning_rate=2e-4"],
        capture_output=True, text=True, env=environment(tmp_path), cwd=CHECKOUT,
    )  # fmt: skip

    assert finished.returncode == 0, finished.stderr
    (tmp_path / "again.yaml").write_text(finished.stdout)
    again = load_run(tmp_path / "again.yaml", "pretrain")
    assert again == load_run(run_file, "pretrain", ["optim.learning_rate=2e-4"])
    assert again.optim.learning_rate == 2e-4
    for line in (
        "# ranks: 2",
        "# accumulation: 1",
        "# steps_per_epoch: 3",
        "# total_clips: 24",
        "# zero_stage: 2",
    ):
        assert line in finished.stdout


def test_torchrun_lets_the_first_rank_say_what_is_wrong(run_file, tmp_path):
    """torchrun ends all ranks when one has left: the others wait until the first one has spoken."""
    options = "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"
    finished = subprocess.run(
        [Path(sys.executable).with_name("torchrun"), *options, str(PRETRAIN), str(run_file), "mask.rato=0.5"],
        env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert "pretrain: error: unknown key 'mask.rato', did you mean" in finished.stderr
