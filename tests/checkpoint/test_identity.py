"""What a resume may change, and what it is told when it may not."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.checkpoint.identity import Resumption, check_same_run, identity
from cavmae_ds.checkpoint.manifest import Manifest
from cavmae_ds.errors import CheckpointError
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.finetune.config import FinetuneConfig
from cavmae_ds.tasks.finetune.plan import FinetunePlan
from cavmae_ds.tasks.pretrain.config import PretrainConfig
from cavmae_ds.tasks.run_plan import RunPlan
from tests.training.optim_problem import numbers

BATCH = 16


def run(train: dict[str, Any], **sections: Any) -> PretrainConfig:
    return validate_run({"train": {"global_batch": BATCH, "steps": 4, "precision": "fp32"} | train, **sections})


def saved(cfg: PretrainConfig, ranks: int = 2, used: Sequence[str] = (), **facts: Any) -> Manifest:
    """As it comes back from the disk. facts: of the data, that are not those of numbers()."""
    manifest = Manifest(
        step=2, clips_seen=2 * BATCH, ranks=ranks, zero_stage=1,
        identity=identity(cfg, replace(numbers(ranks), **facts), used), config=cfg.model_dump(mode="json"),
    )  # fmt: skip
    return Manifest.model_validate_json(manifest.model_dump_json())


def go_on(manifest: Manifest, cfg: PretrainConfig, ranks: int = 2, **facts: Any) -> Resumption:
    return check_same_run(manifest, cfg, replace(numbers(ranks), **facts), "RUN/checkpoints/step-00000002")


def resume(before: PretrainConfig, ranks_before: int, now: PretrainConfig, ranks: int) -> None:
    """Raises CheckpointError if `now` cannot go on with what `before` saved."""
    go_on(saved(before, ranks_before), now, ranks)


def test_ranks_may_change_when_a_clip_keeps_its_candidates():
    resume(run({"micro_batch": 4}), 2, run({"micro_batch": 8}), 1)
    resume(run({"micro_batch": 4}), 2, run({"micro_batch": 2}), 4)


@pytest.mark.parametrize(
    ("micro_batch", "ranks", "now", "expected"),
    [
        (2, 2, 1, "this run (ranks: 1, train.micro_batch: 2) among 2; set train.micro_batch: 4 or choose"),
        (8, 2, 1, "among 8; set train.micro_batch: 16 or contrastive.two_pass: true or choose another run_dir"),
        (1, 2, 4, "among 4; start it on as many ranks as before (2) or choose another run_dir"),
    ],
)  # fmt: skip
def test_other_candidates_are_refused_with_the_settings_that_keep_them(micro_batch, ranks, now, expected):
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        resume(run({"micro_batch": micro_batch}), ranks, run({"micro_batch": micro_batch}), now)


@pytest.mark.parametrize("before", [{}, {"from_checkpoint": "first.pth"}])
def test_other_weights_to_begin_with_change_nothing_and_whoever_asks_for_them_is_told(before, caplog):
    first, other = run({"micro_batch": 4}, init=before), run({"micro_batch": 4}, init={"from_checkpoint": "other.pth"})
    with caplog.at_level(logging.INFO):
        resume(first, 1, first, 1)
        resume(other, 1, run({"micro_batch": 4}), 1)  # given up: the file may be gone
        assert not caplog.messages
        resume(first, 1, other, 1)
    (said,) = caplog.messages
    assert (
        f"init.from_checkpoint was {before.get('from_checkpoint', 'null')}, now other.pth: this run goes on from"
        in said
    )
    assert "choose another run_dir" in said


sizes = st.sampled_from([1, 2, 4])


@given(sizes, sizes, sizes, sizes, st.sampled_from(["global", "rank", "chunk=2"]), st.booleans(), st.booleans())
def test_the_settings_that_are_named_are_accepted(micro, ranks, micro_now, ranks_now, negatives, two_pass, two_now):
    before = run({"micro_batch": micro}, contrastive={"negatives": negatives, "two_pass": two_pass})
    try:
        now = run({"micro_batch": micro_now}, contrastive={"negatives": negatives, "two_pass": two_now})
        resume(before, ranks, now, ranks_now)
    except CheckpointError as refusal:
        if advised := re.search(r"set train\.micro_batch: (\d+)", str(refusal)):
            contrastive = {"negatives": negatives, "two_pass": two_now}
            resume(before, ranks, run({"micro_batch": int(advised[1])}, contrastive=contrastive), ranks_now)
        if "contrastive.two_pass: true" in str(refusal):
            contrastive = {"negatives": negatives, "two_pass": True}
            resume(before, ranks, run({"micro_batch": micro_now}, contrastive=contrastive), ranks_now)


def test_without_a_contrastive_loss_any_ranks_go_on():
    cfg = run({"micro_batch": 2}, loss={"contrastive_weight": 0.0})
    resume(cfg, 2, cfg, 8)


def test_a_running_mean_may_be_given_up_but_not_taken_up():
    plain, mean = run({"micro_batch": 4}), run({"micro_batch": 4, "ema_clips": 100})
    resume(mean, 2, plain, 2)
    with pytest.raises(CheckpointError, match=r"train\.ema_clips was 0, now 100"):
        resume(plain, 2, mean, 2)


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("train", {"precision": "bf16"}, "train.precision was fp32, now bf16"),
        ("train", {"seed": 7}, "train.seed was 0, now 7"),
        ("optim", {"name": "lion"}, "optim.name was adamw, now lion"),
    ],
)
def test_another_run_is_refused_by_what_differs(section, values, expected):
    now = run({"micro_batch": 4} | (values if section == "train" else {}), optim=values if section == "optim" else {})
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        resume(run({"micro_batch": 4}), 2, now, 2)


def changed(key: str, value: Any, allow: Sequence[str] = ()) -> PretrainConfig:
    section, name = key.split(".")
    train = {"micro_batch": 4} | ({name: value} if section == "train" else {})
    others = {} if section == "train" else {section: {name: value}}
    return run(train, **others, resume={"allow": list(allow)})


CHANGES: list[tuple[str, Any, str]] = [
    ("mask.audio_ratio", 0.9, "mask.audio_ratio was 0.75, now 0.9"),
    ("mask.audio_mode", "tf", "mask.audio_mode was unstructured, now tf"),
    ("loss.contrastive_weight", 0.1, "loss.contrastive_weight was 0.01, now 0.1"),
    ("loss.normalise_pixels", False, "loss.normalise_pixels was true, now false"),
    ("contrastive.temperature", 0.1, "contrastive.temperature was 0.05, now 0.1"),
    ("augment.noise", True, "augment.noise was false, now true"),
    ("data.audio_mean", -4.0, "data.audio_mean was -5.081, now -4.0"),
    ("data.shuffle", False, "data.shuffle was true, now false"),
    ("data.shuffle_block", 64, "data.shuffle_block was 16384, now 64"),
    ("data.canonical_nodes", 2, "data.canonical_nodes was 1, now 2"),
    ("train.seed", 7, "train.seed was 0, now 7"),
]


@pytest.mark.parametrize(("key", "value", "named"), CHANGES)
@pytest.mark.parametrize("older", [False, True])
def test_what_is_learnt_and_the_order_change_only_where_the_run_file_allows_it(key, value, named, older):
    manifest, plain = saved(run({"micro_batch": 4})), changed(key, value)
    if older:  # a checkpoint of a version that compared less
        kept = {name: manifest.identity[name] for name in ("train.global_batch", "clips in an epoch")}
        manifest = manifest.model_copy(update={"identity": kept})
    with pytest.raises(CheckpointError) as refusal:
        go_on(manifest, plain)
    assert str(refusal.value) == (
        f"checkpoint 'RUN/checkpoints/step-00000002' belongs to another run ({named}); restore it, choose another "
        f"run_dir, or allow it with resume.allow: [{key}]"
    )
    with pytest.raises(CheckpointError, match=re.escape(named)):
        go_on(manifest, changed(key, value, ["mask.image_ratio"]))
    resumption = go_on(manifest, changed(key, value, [key, "mask.image_ratio"]))
    assert [str(change) for change in resumption.changes if change.refusable] == [named] and resumption.used == [key]


def test_an_entry_is_used_up_by_the_change_that_it_allowed_and_one_with_a_value_allows_that_value():
    key = "mask.audio_ratio"
    first = go_on(saved(run({"micro_batch": 4})), changed(key, 0.9, [key]))
    # Killed before it saved, the same start is the same again.
    assert go_on(saved(run({"micro_batch": 4})), changed(key, 0.9, [key])) == first
    go_on(saved(run({"micro_batch": 4})), changed(key, 0.9, [f"{key}=0.90"]))
    after = saved(changed(key, 0.9, [key]), used=first.used)
    assert go_on(after, changed(key, 0.9, [key])) == ([], [key])
    with pytest.raises(CheckpointError) as refusal:
        go_on(after, changed(key, 0.5, [key]))
    assert str(refusal.value).endswith(
        "(mask.audio_ratio was 0.9, now 0.5); restore it, choose another run_dir, or allow it with resume.allow: "
        "[mask.audio_ratio=0.5] (mask.audio_ratio there has allowed a change before)"
    )
    resumption = go_on(after, changed(key, 0.5, [key, f"{key}=0.5"]))
    with pytest.raises(CheckpointError, match=r"was 0\.5, now 0\.6"):
        go_on(saved(changed(key, 0.5), used=resumption.used), changed(key, 0.6, [key, f"{key}=0.5"]))


def test_other_clips_or_other_shards_are_refused_and_another_address_of_the_same_is_not():
    here, there = changed("data.train", "/here"), changed("data.train", "s3://there/clips")
    manifest = saved(here, fingerprints=("0123456789ab",))
    (moved,) = go_on(manifest, there, fingerprints=("0123456789ab",)).changes
    assert str(moved) == "data.train was /here, now s3://there/clips" and not moved.refusable
    go_on(manifest, changed("data.sources", [{"remote": "/there"}]), fingerprints=("0123456789ab",))
    other = {"fingerprints": ("ba9876543210",), "clips_by_source": (7,), "epoch_clips": 7}
    with pytest.raises(CheckpointError) as refusal:
        go_on(manifest, here, **other)
    assert "(data.train (its index) was 0123456789ab, now ba9876543210); restore it" in str(refusal.value)
    allowed = changed("data.train", "/here", ["data.train"])
    assert go_on(manifest, allowed, **other).used == ["data.train"]
    # Before there were fingerprints.
    go_on(saved(here), here, **other | {"clips_by_source": numbers(2).clips_by_source, "epoch_clips": BATCH // 2})
    with pytest.raises(CheckpointError, match=r"clips in each source was \[8\], now \[7\].*allow: \[data\.train\]"):
        go_on(saved(here), here, **other)


def test_amounts_of_sources_are_compared_and_allowed_by_their_key():
    def two(*, allow: Sequence[str] = (), **amount: Any) -> PretrainConfig:
        sources = [{"remote": name} | amount for name in ("/a", "/b")]
        return run({"micro_batch": 4}, data={"sources": sources}, resume={"allow": list(allow)})

    manifest = saved(two(), epoch_clips=8)
    with pytest.raises(CheckpointError, match=r"\(data\.sources\.repeat was null, now \[2\.0, 2\.0\]\); "):
        go_on(manifest, two(repeat=2.0), epoch_clips=16)
    go_on(manifest, two(repeat=2.0, allow=["data.sources.repeat"]), epoch_clips=16)
    with pytest.raises(CheckpointError, match=r"clips in an epoch was 8, now 16.*allow: \[data\.epoch_clips\]"):
        go_on(manifest, two(), epoch_clips=16)


def test_other_candidates_can_be_allowed():
    manifest = saved(run({"micro_batch": 8}), ranks=2)
    with pytest.raises(CheckpointError, match=re.escape("or allow it with resume.allow: [contrastive.negatives]")):
        go_on(manifest, run({"micro_batch": 8}), ranks=1)
    go_on(manifest, changed("train.micro_batch", 8, ["train.micro_batch"]), ranks=1)


@pytest.mark.parametrize(
    ("section", "name", "value", "end"),
    [
        (
            "loss",
            "label_smoothing",
            0.0,
            "now 0.0); restore it, choose another run_dir, or allow it with",
        ),
        ("augment", "mixup", 0.0, "now 0.0); restore it, choose another run_dir, or allow it with"),
        ("classifier", "mode", "audioonly", "now audioonly); restore it, choose another run_dir, or allow it with"),
        ("classifier", "freeze_base", True, "now true); restore it or choose another run_dir"),
    ],
)
def test_a_finetuning_is_compared_by_its_own_settings(section, name, value, end):
    def finetuning(**changes: dict[str, Any]) -> FinetuneConfig:
        return validate_run({"train": {"epochs": 1}, "classifier": {}} | changes, "finetune")

    shared = {one.name: getattr(numbers(2), one.name) for one in fields(RunPlan)}
    counted = FinetunePlan(**shared, classes=4, class_names=())
    manifest = Manifest(
        step=2, clips_seen=512, ranks=2, zero_stage=1, identity=identity(finetuning(), counted),
        config=finetuning().model_dump(mode="json"),
    )  # fmt: skip
    check_same_run(manifest, finetuning(evaluate={"batch": 3}), counted, "there")
    with pytest.raises(CheckpointError, match=re.escape(f"({section}.{name} was ") + ".*" + re.escape(end)):
        check_same_run(manifest, finetuning(**{section: {name: value}}), counted, "there")


def test_what_cannot_be_allowed_is_refused_without_that_advice():
    with pytest.raises(CheckpointError) as refusal:
        go_on(saved(run({"micro_batch": 4})), run({"micro_batch": 4, "precision": "bf16"}, mask={"audio_ratio": 0.9}))
    assert str(refusal.value).endswith("; restore it or choose another run_dir")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.learning_rate", 1e-3), ("optim.weight_decay", 0.1), ("train.steps", 9), ("data.workers", 0),
        ("data.validation", "/other"), ("model.decoder_chunk", 2), ("model.checkpoint_towers", True),
        ("monitor.log_every", 1), ("watch.grace_seconds", 9.0), ("contrastive.exchange", "ring"),
    ],
)  # fmt: skip
def test_other_settings_are_free_and_their_change_is_reported(key, value):
    (change,) = go_on(saved(run({"micro_batch": 4})), changed(key, value)).changes
    assert (change.key, change.now, change.refusable) == (key, value, False)
