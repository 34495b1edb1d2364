"""Which weights, clips and frames `cavmae evaluate` takes, and where it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cavmae_ds.cli import app
from cavmae_ds.data.format.records import Records
from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.evaluation.subsets import first_of_each_class
from tests.evaluation.test_evaluate_command import evaluate, single_file
from tests.weights.small_models import run_folder, small_model


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return single_file(tmp_path_factory.mktemp("base") / "base.safetensors", "pretrain")


def retrieval(base: Path, *arguments) -> dict:
    evaluate(base, *arguments)
    return json.loads(base.with_suffix(".retrieval.json").read_text())


def test_only_named_clips_are_searched_among(base, tiny_shards, tmp_path):
    names = [sample["clip_id"] for sample in Records(str(tiny_shards)).read(range(24))]
    (tmp_path / "ids.txt").write_text("\n".join([names[9], "", names[2], names[20], names[9]]))
    scores = retrieval(base, "--data", tiny_shards, "--ids", tmp_path / "ids.txt")
    assert scores["pool"] == 3 and scores["ids"] == str(tmp_path / "ids.txt")


def test_so_many_clips_of_each_class_are_searched_among_perhaps_of_some_classes_alone(base, tiny_shards):
    names = json.loads((tiny_shards / "manifest.json").read_text())["classes"]
    assert retrieval(base, "--data", tiny_shards, "--per-class", "2")["pool"] == 2 * len(names)
    one_class = retrieval(base, "--data", tiny_shards, "--per-class", "3", "--classes-by", names[1])
    assert (one_class["pool"], one_class["chance_class_precision_at_1"]) == (3, 1.0)


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=4), st.sets(st.integers(0, 3)), max_size=12),
    st.integers(1, 3),
    st.sets(st.integers(0, 3)),
)
def test_of_each_class_the_first_clips_by_id_are_taken_and_no_others(labels_of, clips, classes):
    names = list(labels_of.items())
    chosen = first_of_each_class(names, clips, classes)
    expected = {
        clip_id
        for k in classes
        for clip_id in sorted(clip_id for clip_id, labels in names if k in labels)[:clips]
    }  # fmt: skip
    assert [names[place][0] for place in chosen] == [clip_id for clip_id, _ in names if clip_id in expected]


def test_a_list_of_frames_is_looked_at_and_averaged(tmp_path, tiny_shards):
    file = single_file(tmp_path / "model.safetensors", "finetune")
    evaluate(file, "--data", tiny_shards, "--mode", "videoonly", "--frames", "0,5,9")
    found = json.loads((tmp_path / "model.classification.json").read_text())["modes"]["videoonly"]
    assert found["frames"] == [0, 5, 9] and list(found["by_frame"]) == ["0", "5", "9"]
    evaluate(file, "--data", tiny_shards, "--mode", "videoonly", "--frames", "9,")
    alone = json.loads((tmp_path / "model.classification.json").read_text())["modes"]["videoonly"]
    assert alone["mean_average_precision"] == found["by_frame"]["9"]["mean_average_precision"]


def test_averaged_weights_of_a_run_are_scored_beside_its_last_ones(tmp_path, tiny_shards):
    run_folder(tmp_path, small_model("finetune"))
    single_file(tmp_path / "averaged.safetensors", "finetune", small_model("finetune", seed=1))

    for weights in ("last", "averaged"):
        evaluate(tmp_path, "--data", tiny_shards, "--mode", "audioonly", "--weights", weights)

    last, averaged = (
        json.loads((tmp_path / name).read_text()) for name in ("classification.json", "averaged.classification.json")
    )
    assert averaged["weights"] == str(tmp_path / "averaged.safetensors")
    assert averaged["modes"] != last["modes"]


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        (["--frames", "3"], ConfigError, r"--frames must be 1 \(the middle one\), 10 \(all\) or different .* got '3'"),
        (["--frames", "0,10"], ConfigError, "numbers from 0 to 9"),
        (["--frames", "4,4"], ConfigError, "different numbers"),
        (["--weights", "ema"], CheckpointError, "chooses among those of a run folder"),
        (["--gallery", "found.pdf"], ConfigError, r"--gallery must end in \.html or \.png, got 'found\.pdf'"),
        (["--ids", "IDS"], ConfigError, "--ids: 2 of 2 ids are those of no clip: 'no such', 'nor this'"),
        (["--mode", "audioonly"], ConfigError, "--mode has no use in retrieval: leave it out, or score by --what clas"),
        (["--probabilities", "softmax"], ConfigError, "--probabilities has no use in retrieval"),
        (["--ids", "nowhere.txt"], ConfigError, "--ids nowhere.txt cannot be read"),
        (["--gallery", "/proc/found.png"], ConfigError, "cannot write '/proc/found.png'"),
    ],
    ids=[
        "a number",
        "no frame",
        "twice",
        "a file",
        "no picture",
        "no clips",
        "a mode",
        "probabilities",
        "no list",
        "nowhere",
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(options, kind, sentence, base, tiny_shards, tmp_path):
    (tmp_path / "ids.txt").write_text("nor this\nno such\n")
    options = [str(tmp_path / "ids.txt") if option == "IDS" else option for option in options]
    with pytest.raises(kind, match=sentence):
        CliRunner().invoke(app, ["evaluate", str(base), "--data", str(tiny_shards), *options], catch_exceptions=False)


def test_a_run_without_averaged_weights_and_a_gallery_of_a_classifier_are_refused(tmp_path, tiny_shards):
    run_folder(tmp_path, small_model("finetune"))
    for options, sentence in (
        (["--weights", "averaged"], r"holds no averaged\.safetensors: a finetuning run writes it at its end"),
        (["--gallery", "found.png"], "this is a classifier: add --what retrieval"),
        (["--classes-by", "nonsense"], "--classes-by has no use in classification: leave it out, or score by --what"),
        (["--classes-by", "nonsense", "--per-class", "2"], "no class has a name or an id that begins with 'nonsense'"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=sentence):
            CliRunner().invoke(
                app, ["evaluate", str(tmp_path), "--data", str(tiny_shards), *options], catch_exceptions=False
            )
