"""DESIGN 2.3: mask and frame belong to the clip, its turn to the step; neither to rank, worker or resume."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.data.order import EpochShape, epoch_order, rank_micro_batches
from tests.launcher import launch

WORKER = Path(__file__).with_name("stream_worker.py")
STEPS = 7  # the 24 clips make 3 steps an epoch: this reaches into the third


def by_step(shards: Path, folder: Path, *, ranks: int, accumulation: int = 1, workers: int, first: int = 0) -> dict:
    """Step -> all its clips as real ranks got them, as sorted JSON."""
    folder.mkdir()
    arguments = (str(shards), str(accumulation), str(workers), str(first), str(STEPS - first), str(folder))
    finished = launch(ranks, WORKER, *arguments, scratch=folder)
    assert finished.returncode == 0, finished.stdout
    steps = defaultdict(list)
    for rank in range(ranks):
        for clip in json.loads((folder / f"rank-{rank}.json").read_text()):
            steps[clip["step"]].append(json.dumps(clip, sort_keys=True))
    return {step: sorted(clips) for step, clips in steps.items()}


@pytest.fixture(scope="module")
def one_rank(tiny_shards, tmp_path_factory):
    """The reference: one rank that decodes in its own process."""
    return by_step(tiny_shards, tmp_path_factory.mktemp("order") / "one", ranks=1, workers=0)


def test_four_ranks_with_two_workers_see_the_clips_frames_and_masks_of_one_rank_without_workers(
    one_rank, tiny_shards, tmp_path
):
    assert by_step(tiny_shards, tmp_path / "four", ranks=4, workers=2) == one_rank


def test_accumulation_on_two_ranks_with_three_workers_changes_nothing(one_rank, tiny_shards, tmp_path):
    assert by_step(tiny_shards, tmp_path / "two", ranks=2, accumulation=2, workers=3) == one_rank


def test_a_resume_in_the_middle_of_an_epoch_sees_exactly_the_remaining_steps(one_rank, tiny_shards, tmp_path):
    resumed = by_step(tiny_shards, tmp_path / "resumed", ranks=2, workers=2, first=4)
    assert resumed == {step: clips for step, clips in one_rank.items() if step >= 4}


def test_an_epoch_shows_every_clip_once_in_another_order_with_another_frame(one_rank):
    epochs = defaultdict(list)
    for clips in one_rank.values():
        for clip in map(json.loads, clips):
            epochs[clip["epoch"]].append(clip)
    assert sorted(clip["clip"] for clip in epochs[0]) == list(range(24))
    assert sorted(clip["clip"] for clip in epochs[1]) == list(range(24))
    by_clip = [{clip["clip"]: clip for clip in epochs[epoch]} for epoch in (0, 1)]
    assert all(by_clip[0][i]["sound"] == by_clip[1][i]["sound"] for i in range(24))
    assert all(by_clip[0][i]["audio_mask"] != by_clip[1][i]["audio_mask"] for i in range(24))
    # ten frames: by chance the same one in two epochs for about 2 of the 24 clips
    assert sum(by_clip[0][i]["frame"] != by_clip[1][i]["frame"] for i in range(24)) > 12


shards = (
    st.lists(st.integers(1, 40), min_size=1, max_size=8)
    .filter(lambda sizes: sum(sizes) >= 4)
    .map(lambda sizes: np.array(sizes, dtype=np.int64))
)


@given(shards, st.integers(0, 2**31), st.integers(0, 50), st.sampled_from([1, 2, 4]))
def test_an_order_holds_each_clip_at_most_once_and_leaves_out_less_than_the_stripes(sizes, seed, epoch, stripes):
    order = epoch_order(sizes, seed=seed, epoch=epoch, shuffle=True, block=64, canonical_nodes=stripes)
    assert len(set(order.tolist())) == len(order) > sizes.sum() - stripes
    assert set(order.tolist()) <= set(range(sizes.sum()))


@given(
    st.integers(0, 300),
    st.sampled_from([(1, 4, 1, 2), (2, 2, 1, 2), (4, 1, 2, 1), (1, 1, 8, 1), (2, 1, 1, 4)]),
)
def test_every_way_of_dealing_a_global_batch_gives_the_same_clips_to_the_same_step(clips, dealing):
    shape = EpochShape(*dealing)
    order = np.random.RandomState(0).permutation(clips)
    ranks = [
        rank_micro_batches(order, shape, host, local_rank).reshape(-1, shape.accumulation * shape.micro_batch)
        for host in range(shape.hosts)
        for local_rank in range(shape.ranks_per_host)
    ]
    for step in range(clips // shape.global_batch):
        dealt = np.concatenate([rank[step] for rank in ranks])
        assert sorted(dealt) == sorted(order[step * 8 : step * 8 + 8])
