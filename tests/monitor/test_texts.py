"""What is shown of a run names all that matters and no secret."""

from __future__ import annotations

import sys

import pytest

from cavmae_ds.errors import without_secrets
from cavmae_ds.monitor.texts import Machine, environment, hyperparameters, texts
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.pretrain.task import Pretraining

MACHINES = [Machine("gpu01", "NVIDIA H100, 80 GiB")] * 2 + [Machine("gpu02", "NVIDIA H100, 80 GiB")] * 2


@pytest.mark.parametrize(
    "given",
    [
        "data.train=s3://user:hunter2@store/bucket",
        "https://hunter2@store/x",
        "AWS_SECRET_ACCESS_KEY=hunter2 python",
        "--hf-token=hunter2",
        "password: hunter2",
        "aws_session_token=hunter2",
    ],
)
def test_secrets_in_a_text_are_left_out(given):
    assert "hunter2" not in without_secrets(given)


@pytest.mark.parametrize("given", ["optim.learning_rate=2e-4", "data.train=s3://bucket/a", "mask.audio_ratio: 0.5"])
def test_what_is_no_secret_stays_as_it_is(given):
    assert without_secrets(given) == given


def test_the_environment_names_command_versions_hosts_and_gpus_and_no_credentials(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch/pretrain.py", "run.yaml", "data.train=s3://me:hunter2@store/clips"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter3")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")

    found = environment(MACHINES)

    assert "launch/pretrain.py run.yaml" in found["command"]
    assert found["ranks 0-1"] == "gpu01, NVIDIA H100, 80 GiB"
    assert found["ranks 2-3"].startswith("gpu02")
    assert found["torch"].startswith("2.") and found["deepspeed"] == "0.19.8"
    assert found["NCCL_SOCKET_IFNAME"] == "eth0"
    assert "hunter" not in str(found)


def test_hyperparameters_are_those_that_are_no_default_and_the_two_that_everybody_asks_for():
    changed = {"optim": {"name": "lion"}, "data": {"workers": 3}, "loss": {"normalise_pixels": False}}
    cfg = validate_run({"train": {"steps": 5}} | changed)
    assert hyperparameters(cfg) == {
        "loss.normalise_pixels": "False",
        "optim.name": "lion",
        "optim.learning_rate": 1e-4,
        "optim.beta1": 0.9,
        "optim.beta2": 0.99,
        "train.steps": 5,
        "train.global_batch": 256,
    }


def test_config_and_numbers_are_blocks_of_lines():
    cfg = validate_run({"train": {"steps": 5}})
    shown = texts(cfg, Pretraining.resolve(cfg, 4, clips=10_000), MACHINES)
    assert "    train:\n" in shown["run/config"] and "    total_steps: 5\n" in shown["run/numbers"]
    assert all(line.startswith("    ") for text in shown.values() for line in text.splitlines())
