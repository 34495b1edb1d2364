"""The doctor on this machine: alone, with a real bucket, and on two real ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import boto3
import pytest

from cavmae_ds.data.storage import S3Store
from cavmae_ds.doctor.bucket import check_address
from cavmae_ds.doctor.finding import Finding, Verdict, bounded
from tests.ranks import CHECKOUT, fork_cavmae, fork_ranks

pytestmark = pytest.mark.slow

DOCTOR = CHECKOUT / "launch" / "doctor.py"
RUN = """\
data: {{train: {shards}, workers: 1}}
model: {{preset: tiny, image_size: 64}}
train: {{steps: 4, global_batch: 8, micro_batch: 4, precision: fp32}}
"""


@pytest.fixture
def run_file(tmp_path, tiny_shards) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(shards=tiny_shards))
    return path


def findings(document: Path) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in json.loads(document.read_text())["findings"]}


def looked_at(url: str, clips_per_second: float = 0.0, written: bool = False) -> dict[str, Finding]:
    found = bounded(url, lambda: check_address(url, 3.0, clips_per_second, written), 60.0)
    return {finding.name: finding for finding in found}


def test_alone_a_run_in_order_is_said_to_be_and_written_down(run_file, tmp_path):
    told = fork_cavmae("doctor", run_file, "--json", tmp_path / "found.json", cwd=tmp_path)

    found = findings(tmp_path / "found.json")
    assert told.returncode == (2 if "FIX" in {each["verdict"] for each in found.values()} else 0)
    assert found["run"]["found"] == "24 clips, 4 steps of 8 clips", told.stdout + told.stderr
    in_order = (
        "packages",
        "matched set",
        "torchaudio",
        "/dev/shm",
        "TMPDIR",
        "run_dir",
        "C compiler",
        "Triton",
    )
    assert {name: found[name]["verdict"] for name in in_order} == dict.fromkeys(in_order, "OK"), told.stdout
    assert "built for sm_90" in found["Triton"]["found"] or "right" in found["Triton"]["found"]
    assert "in order" in told.stdout and not (tmp_path / "runs").exists()


def test_alone_what_is_wrong_with_a_run_is_to_fix_with_exit_code_2(run_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "not there"))
    run_file.write_text(run_file.read_text().replace("global_batch: 8", "global_batch: 7"))
    told = fork_cavmae("doctor", run_file, f"data.cache={tmp_path}", "--json", tmp_path / "found.json")

    found = findings(tmp_path / "found.json")
    assert told.returncode == 2 and "Traceback" not in told.stderr
    assert found["TMPDIR"]["verdict"] == found["run"]["verdict"] == "FIX"
    assert "multiple of train.micro_batch" in found["run"]["found"]


def test_a_bucket_is_timed_and_too_slow_for_a_run_that_takes_more_clips(s3_bucket, tiny_shards):
    url, client = f"s3://{s3_bucket}/train", boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    for file in (path for path in tiny_shards.rglob("*") if path.is_file()):
        client.upload_file(str(file), s3_bucket, f"train/{file.relative_to(tiny_shards)}")

    found = looked_at(url, clips_per_second=1e9)

    assert {name: finding.verdict.value for name, finding in found.items()} == {
        f"clock of {url}": "OK", url: "OK", f"reading {url}": "FIX",
    }  # fmt: skip
    assert "objects, may read and list" in found[url].found
    assert "with 16; enough for" in found[f"reading {url}"].found and "1000000000 are" in found[f"reading {url}"].found


def test_a_bucket_for_checkpoints_is_written_to_and_left_as_it_was(s3_bucket):
    url = f"s3://{s3_bucket}/checkpoints"
    assert looked_at(url, written=True)[url] == Finding(url, Verdict.OK, "0 objects, may list, write and remove")
    assert S3Store(s3_bucket, "").names("") == []


def test_wrong_credentials_an_absent_bucket_and_an_empty_one_are_to_fix(s3_bucket, monkeypatch):
    said = {
        "nothing to read": looked_at(f"s3://{s3_bucket}/empty"),
        "does not exist": looked_at("s3://never-made/train"),
    }
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    said["was refused"] = looked_at(f"s3://{s3_bucket}/train")
    for words, found in said.items():
        (broken,) = [finding for finding in found.values() if finding.verdict == Verdict.FIX]
        assert words in broken.found and broken.fix and "wrong" not in broken.found


def test_a_bucket_nobody_serves_is_to_fix_in_time(monkeypatch):
    for name, value in {"S3_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    (broken,) = looked_at("s3://any/train").values()
    assert broken.verdict == Verdict.FIX and "cannot be reached at http://127.0.0.1:9" in broken.found


def test_two_ranks_are_compared_and_their_links_measured(run_file, tmp_path):
    told = fork_ranks(2, DOCTOR, str(run_file), "--json", str(tmp_path / "found.json"), scratch=tmp_path)

    assert (tmp_path / "found.json").exists(), told.stdout
    found = findings(tmp_path / "found.json")
    assert told.returncode == (2 if "FIX" in {each["verdict"] for each in found.values()} else 0)
    assert "code, packages, Python, run, device" in found["alike on all ranks"]["found"], told.stdout
    for name in ("clocks", "all_reduce 1 MiB", "all_reduce 64 MiB", "all_gather 1 MiB", "all_gather 64 MiB"):
        assert found[name]["verdict"] == "OK", told.stdout
    assert "GB/s, 2 ranks, gloo" in found["all_reduce 64 MiB"]["found"]
    assert found["device"]["ranks"] == [0, 1] and found["TMPDIR"]["ranks"] == [0]
    assert told.stdout.count("in order") == 1 and "Traceback" not in told.stdout


def test_a_rank_that_the_others_cannot_be_met_from_says_so(monkeypatch):
    nobody = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    for name, value in (nobody | {"RANK": "1", "WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)

    told = fork_cavmae("doctor", "--seconds", "1")

    assert told.returncode == 2 and "Traceback" not in told.stderr
    assert "doctor: error: rank 1 on " in told.stderr, told.stderr
    assert "could not meet the others at 127.0.0.1:9 within 2 s" in told.stderr
