"""`launch/evaluate.py` on ranks: the documents are those of one process, to the last digit; one sentence ends all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cavmae_ds.data.format.records import Records
from tests.data.small_shards import small_shards
from tests.evaluation.test_evaluate_command import evaluate, single_file
from tests.ranks import CHECKOUT, fork_ranks

EVALUATE = CHECKOUT / "launch" / "evaluate.py"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("together")
    return {kind: single_file(folder / f"{kind}.safetensors", kind) for kind in ("pretrain", "finetune")}


def on_ranks(ranks: int, *arguments, scratch: Path) -> str:
    finished = fork_ranks(ranks, EVALUATE, *map(str, arguments), scratch=scratch)
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_retrieval_on_ranks_is_that_of_one_process_and_is_told_once(ranks, weights, tiny_shards, tmp_path):
    file, asked = weights["pretrain"], ["--data", tiny_shards, "--batch", "5", "--frames", "0,5"]  # 5 groups, one of 4
    told = evaluate(file, *asked)
    document = file.with_suffix(".retrieval.json")
    expected = json.loads(document.read_text())
    document.unlink()

    page = tmp_path / "found.html"
    printed = on_ranks(ranks, file, *asked, "--gallery", page, "--queries", "2", scratch=tmp_path)

    assert json.loads(document.read_text()) == expected
    assert expected["pool"] == 24 and expected["frames"] == [0, 5]
    assert printed.count("retrieval among 24 clips") == 1 and told.splitlines()[3] in printed
    assert page.read_text().count("<article") == 2  # sounds and frames of all ranks' clips are read by the first one


def test_classification_of_uneven_shares_is_that_of_one_process(weights, tiny_shards, tmp_path):
    asked = ["--data", tiny_shards, "--batch", "7", "--frames", "0,5", "--mode", "all"]  # groups of 7, 7, 7 and 3
    evaluate(weights["finetune"], *asked)
    document = weights["finetune"].with_suffix(".classification.json")
    expected = json.loads(document.read_text())
    document.unlink()

    on_ranks(3, weights["finetune"], *asked, scratch=tmp_path)

    assert json.loads(document.read_text()) == expected
    assert [expected["modes"]["audioonly"]["clips"], len(expected["modes"])] == [24, 5]


def test_fewer_clips_than_ranks_are_scored_all_the_same(weights, tiny_shards, tmp_path):
    names = [sample["clip_id"] for sample in Records(str(tiny_shards)).read([3, 20])]
    (tmp_path / "ids.txt").write_text("\n".join(names))

    printed = on_ranks(
        3, weights["pretrain"], "--data", tiny_shards, "--ids", tmp_path / "ids.txt", "--batch", "1", scratch=tmp_path
    )

    assert "retrieval among 2 clips" in printed


def test_what_one_rank_meets_ends_all_with_one_sentence(weights, tiny_shards, tmp_path):
    small_shards(tiny_shards, tmp_path / "shards", range(8), shard_clips=2)
    damaged = sorted((tmp_path / "shards").rglob("*.mds"))[-1]  # clips of the second rank
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)

    finished = fork_ranks(
        2, EVALUATE, str(weights["pretrain"]), "--data", str(tmp_path / "shards"), "--batch", "2", scratch=tmp_path
    )

    assert finished.returncode == 2
    assert re.findall("evaluate: error: .*", finished.stdout) == [
        f"evaluate: error: rank 1: shard {damaged.relative_to(tmp_path / 'shards').as_posix()!r} of "
        f"{str(tmp_path / 'shards')!r} is damaged; prepare this data set again"
    ]
    assert "Traceback" not in finished.stdout
