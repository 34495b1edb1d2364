"""Run files, engine fragments, hostfiles, tables, lists, logs: each works or is refused by one short sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.config.ds_config import read_fragment
from cavmae_ds.config.load import to_yaml
from cavmae_ds.data.official.importing import Classes, find_official, read_label_csv
from cavmae_ds.data.prepare.inputs import find_inputs
from cavmae_ds.launcher.hosts import read_hostfile
from cavmae_ds.monitor.log import LOG, read_log
from cavmae_ds.tasks import load_run, validate_run
from cavmae_ds.terminal import read_lines
from tests.data.official_files import LABELS
from tests.fuzz.mutations import (
    ODD_VALUES,
    TIMEOUT_S,
    examples,
    mutated_bytes,
    mutated_json,
    mutated_values,
    works_or_is_refused,
)

pytestmark = pytest.mark.timeout(TIMEOUT_S)

RUN = """\
run_dir: &run runs/mine   # a comment
defaults: &rates {learning_rate: 2e-4, warmup_clips: 16}
data: {sources: [{remote: a, repeat: 2}, {remote: s3://bucket/b, repeat: 1}], workers: 0}
optim:
  <<: *rates
  betas: [0.9, 0.95]
train: {steps: 4, global_batch: 8, micro_batch: 4, precision: fp32}
mask:
  audio_ratio: 0.5
"""
PLAIN = to_yaml(validate_run({"data": {"train": "a"}, "train": {"steps": 4, "global_batch": 8, "micro_batch": 4}}))
FRAGMENT = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "steps_per_print": 10}
HOSTS = b"# all of them\nnode-01 slots=8\nnode-02 slots=8 # slow\n10.0.0.3 slots=4\n"
VIDEOS = b'path,labels\na/one.mp4,Dog;Cat\n"a/two, three.mp4",Rain\nfour.mkv,\n'
CLIP = {"video_id": "one", "wav": "a/one.wav", "video_path": "frames", "labels": "/m/a,/m/b"}
LISTING = {"data": [CLIP, CLIP | {"video_id": "two"}]}
EVENTS = b'{"time": 1.0, "step": 0, "event": "start"}\n{"time": 2.0, "step": 1, "loss/total": 0.5}\n' * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@examples(200)
@given(mutated_bytes(RUN.encode()) | mutated_bytes(PLAIN.encode()))
def test_a_run_file(folder, content):
    path = written(folder / "run.yaml", content)
    works_or_is_refused(lambda: load_run(path))


@examples(200)
@given(mutated_values(yaml.safe_load(PLAIN)))
def test_a_run_file_with_other_values(folder, values):
    path = written(folder / "run.yaml", yaml.safe_dump(values).encode())
    works_or_is_refused(lambda: to_yaml(load_run(path)))


@examples(150)
@given(
    st.sampled_from(
        ["train.steps", "data.sources", "optim", "run_dir", "x", "train.steps.a", "", "a..b", "model.preset"]
    ),
    mutated_bytes(b"[{remote: a, repeat: 1e-1}]") | st.sampled_from([json.dumps(odd).encode() for odd in ODD_VALUES]),
)
def test_an_override(folder, key, value):
    path = written(folder / "run.yaml", PLAIN.encode())
    override = f"{key}={value.decode(errors='surrogateescape')}"  # as Python gives a command line that is not UTF-8
    works_or_is_refused(lambda: load_run(path, overrides=[override]))


@examples(200)
@given(mutated_json(FRAGMENT))
def test_an_engine_fragment(folder, content):
    path = written(folder / "engine.json", content)
    works_or_is_refused(lambda: read_fragment(path, "fp32"))


@examples(150)
@given(mutated_bytes(HOSTS))
def test_a_hostfile(folder, content):
    path = written(folder / "hostfile", content)
    works_or_is_refused(lambda: read_hostfile(path))


@examples(200)
@given(mutated_bytes(VIDEOS), st.sampled_from(["list.csv", "list.txt"]))
def test_a_table_or_list_of_videos(folder, content, name):
    path = written(folder / name, content)
    works_or_is_refused(lambda: find_inputs(path, None))
    works_or_is_refused(lambda: read_lines("--ids", path))


@examples(200)
@given(mutated_bytes(LABELS.encode()))
def test_a_label_csv(folder, content):
    path = written(folder / "labels.csv", content)
    works_or_is_refused(lambda: read_label_csv(path))


@examples(200)
@given(mutated_json(LISTING), mutated_bytes(b"0.5\n1.5\n"))
def test_an_official_listing_with_weights(folder, listing, weights):
    path, weight_csv = written(folder / "clips.json", listing), written(folder / "weights.csv", weights)
    classes = Classes(("/m/a", "/m/b"), ("Dog", "Cat"))
    works_or_is_refused(lambda: find_official(path, classes, weight_csv))
    works_or_is_refused(lambda: find_official(path, classes))


@examples(150)
@given(mutated_bytes(EVENTS))
def test_a_log(folder, content):
    written(folder / LOG, content)
    works_or_is_refused(lambda: read_log(folder))
