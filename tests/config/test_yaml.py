"""YAML that could mean two things, or too much, is refused in one sentence and within a second; merge keys work."""

from __future__ import annotations

import time

import pytest

from cavmae_ds.config.load import to_yaml
from cavmae_ds.errors import ConfigError
from cavmae_ds.tasks import load_run

RUN = "run_dir: run\ndata: {train: a}\ntrain: {steps: 4, global_batch: 8, micro_batch: 4}\n"
BILLION = "a0: &a0 [lol, lol]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12))

REFUSED = {
    "base 60": (RUN + "optim: {warmup_clips: 1:30}", ["line 4", "1:30", "90", '"1:30"']),
    "base 60 with a fraction": (RUN + "optim: {learning_rate: 1:30.5}", ["1:30.5", "90.5"]),
    "octal": (RUN + "optim: {warmup_clips: 010}", ["line 4", "010", "write 10 or 8"]),
    "section twice": (
        "run_dir: run\ndata:\n  train: a\nmodel: {}\ndata:\n  train: b\n",
        ["'data'", "line 2", "line 5"],
    ),
    "key twice": ("data:\n  train: a\n  cache: x\n  train: b\n", ["'train'", "line 2", "line 4"]),
    "merged twice": ("data:\n  <<: {train: a}\n  <<: {train: b}\n", ["'<<'", "line 2", "line 3"]),
    "billion laughs": (BILLION + RUN.replace("{train: a}", "{train: *a11}"), ["more than 10,000 values", "aliases"]),
    "alias to itself": ("data: &a [*a]", ["*a", "inside"]),
    "20,000 nested lists": ("data: " + "[" * 20_000, ["deeper than 20"]),
    "20,000 lines of nested lists": ("[\n" * 20_000, ["deeper than 20"]),
    "5,001 digits": (RUN.replace("steps: 4", f"steps: {'9' * 5001}"), ["5,001 characters"]),
    "20 digits": (RUN.replace("steps: 4", f"steps: {'9' * 20}"), ["line 3", "larger than"]),
    "a long key": (f"{'x' * 1000}: 1", ["unknown key 'xxx"]),
    "thousands of unknown keys": ("".join(f"k{k}: 1\n" for k in range(1000)), ["'k0'", "and 993 more"]),
    "a long value": (RUN.replace("steps: 4", f"steps: [{'1, ' * 3000}]"), ["train.steps", "..."]),
    "half a megabyte": ("#" * 500_000, ["larger than 256 KiB"]),
    "a tag that makes objects": ("data: !!python/object/apply:os.system [id]", ["tag", "python"]),
    "a tag that does not fit": ("data: !!int many", ["'many' is no int"]),
    "UTF-16": (RUN.encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
    "UTF-16 without a mark": (RUN.encode("utf-16-le"), ["UTF-16", "save it as UTF-8"]),
    "Latin-1": ("# first line\n# caf\xe9\n".encode("latin-1"), ["Latin-1", "line 2", "0xe9", "save it as UTF-8"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_by_a_short_sentence_within_a_second(name, tmp_path):
    content, expected = REFUSED[name]
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    with pytest.raises(ConfigError) as refused:
        load_run(path, "pretrain")
    assert time.process_time() - started < 1
    assert all(part in str(refused.value) for part in expected), refused.value
    assert len(str(refused.value)) < 2000 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=1:30", ["train.steps=1:30", "write 90"]),
        ("train.steps=010", ["train.steps=010", "write 10 or 8"]),
        ("train.steps=" + "[" * 20_000, ["deeper than 20"]),
        ("train.steps=" + "9" * 5001, ["5,001 characters"]),
        ("train" + ".a" * 20_000 + "=1", ["section.key=value"]),
    ],
)
def test_an_override_is_read_by_the_same_rules(override, expected, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    with pytest.raises(ConfigError) as refused:
        load_run(path, "pretrain", [override])
    assert all(part in str(refused.value) for part in expected), refused.value
    assert len(str(refused.value)) < 2000


def test_merge_keys_and_aliases_give_values_that_can_be_changed_one_by_one(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        RUN + "optim:\n  <<: {learning_rate: 2e-4, warmup_clips: 8}\n  warmup_clips: 16\n"
        "mask: &half {audio_ratio: 0.5}\nloss: {}\n"
    )
    cfg = load_run(path, "pretrain")
    assert (cfg.optim.learning_rate, cfg.optim.warmup_clips, cfg.mask.audio_ratio) == (2e-4, 16, 0.5)
    path.write_text("run_dir: run\ntrain: {steps: 4, global_batch: 8, micro_batch: 4}\ndata: {sources: [&a {remote: a, "
                    "repeat: 1}, {<<: *a, remote: b}]}\n")  # fmt: skip
    assert [(source.remote, source.repeat) for source in load_run(path, "pretrain").data.sources] == [
        ("a", 1),
        ("b", 1),
    ]


def test_quoted_texts_that_look_like_numbers_and_dates_are_texts_also_when_the_config_is_written(tmp_path):
    path = tmp_path / "run.yaml"
    for name in ('"1:30"', '"010"', "2026-11-30", '"2e4"'):
        path.write_text(RUN.replace("run_dir: run", f"run_dir: {name}"))
        cfg = load_run(path, "pretrain")
        assert str(cfg.run_dir) == name.strip('"')
        path.write_text(to_yaml(cfg))
        assert load_run(path, "pretrain") == cfg
