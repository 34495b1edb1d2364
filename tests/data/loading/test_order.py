"""Which clip comes when, as a property of pure functions: nothing twice before all once, shares, stripes, chances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cavmae_ds.config.sections.data import DataConfig
from cavmae_ds.data.loading.order import ClipOrder, EpochShape, Source, rank_micro_batches, shares, steps_per_epoch
from cavmae_ds.data.loading.sources import epoch_clips, held_out

sizes = (
    st.lists(st.integers(1, 30), min_size=1, max_size=6)
    .filter(lambda shards: sum(shards) >= 4)
    .map(lambda shards: np.array(shards, dtype=np.int64))
)
seeds = st.integers(0, 2**32 - 1)
stripes = st.sampled_from([1, 2, 4])


def clip_order(*parts, seed=0, count=1, block=64, shuffle=True) -> ClipOrder:
    """From parts (shard sizes, clips in an epoch, weights or None)."""
    sources, first = [], 0
    for shard_sizes, given_clips, weights in parts:
        clips = int(shard_sizes.sum())
        sources.append(Source(first, shard_sizes, given_clips, np.ones(clips, bool), weights))
        first += clips
    return ClipOrder(sources, seed, shuffle, block, count)


@given(sizes, seeds, st.integers(1, 6), st.integers(1, 40), st.booleans())
def test_no_clip_comes_again_before_all_others_have_come(shards, seed, epochs, in_epoch, shuffle):
    order = clip_order((shards, in_epoch, None), seed=seed, shuffle=shuffle)
    seen = np.concatenate([order.epoch(epoch, in_epoch) for epoch in range(epochs)])
    for number, start in enumerate(range(0, len(seen), shards.sum())):
        of_pass = seen[start : start + shards.sum()]
        assert len(set(of_pass[:, 0])) == len(of_pass) and set(of_pass[:, 1]) == {number}


@given(sizes, sizes, seeds, st.integers(0, 9), stripes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 60))
def test_an_epoch_mixes_its_sources_in_their_shares(one, other, seed, epoch, count, some, more, rounds):
    order = clip_order((one, some, None), (other, more, None), seed=seed, count=count)
    clips = rounds * count
    places = order.epoch(epoch, clips)[:, 0]
    first, second = shares(rounds, [some, more])
    assert (places < one.sum()).sum() == first * count and len(places) == (first + second) * count


@given(sizes, seeds, stripes)
def test_each_stripe_keeps_its_own_clips_for_the_whole_run(shards, seed, count):
    assume(shards.sum() >= 2 * count)
    order = clip_order((shards, int(shards.sum()), None), seed=seed, count=count)
    rounds = int(shards.sum()) // count
    epochs = np.stack([order.epoch(epoch, rounds * count)[:, 0].reshape(rounds, count) for epoch in range(4)])
    of_stripe = [set(epochs[:, :, stripe].ravel()) for stripe in range(count)]
    assert sum(map(len, of_stripe)) == len(set().union(*of_stripe)) == shards.sum()


@given(
    seeds,
    st.integers(0, 5),
    st.sampled_from([(1, 4, 1, 2), (2, 2, 1, 2), (4, 1, 2, 1), (1, 1, 8, 1), (2, 1, 1, 4)]),
    stripes,
    st.booleans(),
)
def test_every_way_of_dealing_gives_the_same_clips_to_the_same_step(seed, epoch, dealing, count, balanced):
    shape = EpochShape(*dealing)
    shards = np.array([7, 9, 5, 30], np.int64)
    weights = np.arange(51.0) if balanced else None
    order = clip_order((shards, 51, weights), (shards, 20, None if weights is None else weights + 1), count=count)
    steps = steps_per_epoch(71, count, shape.global_batch)
    whole = order.epoch(epoch, steps * 8)
    ranks = [
        rank_micro_batches(order, epoch, steps, shape, host, local_rank).reshape(steps, -1, 2)
        for host in range(shape.hosts)
        for local_rank in range(shape.ranks_per_host)
    ]
    for step in range(steps):
        dealt = np.concatenate([rank[step] for rank in ranks])
        assert sorted(dealt.tolist()) == sorted(whole[step * 8 : step * 8 + 8].tolist())
    assert steps == 71 // 8 or count == 4


@pytest.mark.parametrize("weights", [None, np.tile([1.0, 2.0, 3.0, 2.0], 1000)])
def test_the_clips_of_a_shard_stay_within_the_shuffle_block(weights):
    shards = np.full(200, 20, np.int64)  # 4,000 clips
    order = clip_order((shards, 4000, weights), (shards, 4000, weights), count=2, block=200)
    shard = order.epoch(3, 8000)[:, 0].reshape(-1, 2) // 20  # [4000, stripes]
    for stripe in range(2):
        for one in np.unique(shard[:, stripe]):
            at = np.flatnonzero(shard[:, stripe] == one)
            # twice the block, for the other source's clips lie between; and half of it again on each side of a copy
            assert at[-1] - at[0] < 1.25 * 2 * 200 * (1 if weights is None else 2.5)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("shuffle", [True, False])
def test_balanced_sampling_draws_each_clip_by_its_weight(count, shuffle):
    weights = np.concatenate([np.zeros(10), np.arange(1.0, 91.0), [400.0]])  # one clip alone outweighs a stripe's edge
    order = clip_order((np.full(101, 1, np.int64), 100, weights), seed=5, count=count, shuffle=shuffle)
    epochs = np.concatenate([order.epoch(epoch, 100) for epoch in range(400)])
    drawn = np.bincount(epochs[:, 0], minlength=101)
    expected = weights / weights.sum() * len(epochs)
    assert drawn[:10].sum() == 0 and drawn.sum() == 40_000
    chi_square = ((drawn - expected)[10:] ** 2 / expected[10:]).sum()
    assert 40 < chi_square < 140  # 90 degrees of freedom: standard deviation 13
    assert len(set(map(tuple, epochs.tolist()))) == len(epochs)  # a copy has a turn, and so a mask, of its own


@given(seeds, st.integers(0, 100), stripes)
def test_balanced_draws_depend_on_seed_and_epoch_alone(seed, epoch, count):
    part = (np.array([13, 20, 8]), 41, np.arange(41.0))
    first, again = (clip_order(part, seed=seed, count=count) for _ in range(2))
    first.epoch(epoch + 1, 40)
    assert first.epoch(epoch, 40).tolist() == again.epoch(epoch, 40).tolist()
    assert first.epoch(epoch, 40).tolist() != first.epoch(epoch + 1, 40).tolist()


@given(st.integers(0, 1000), st.lists(st.integers(1, 100), min_size=1, max_size=6))
def test_shares_add_up_and_are_less_than_one_off(total, parts):
    dealt = shares(total, parts)
    assert sum(dealt) == total
    assert all(abs(got - total * part / sum(parts)) < 1 for got, part in zip(dealt, parts, strict=True))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"train": "a"}, [100]),
        ({"train": "a", "epoch_clips": 30}, [30]),
        ({"sources": [{"remote": "a"}, {"remote": "b"}]}, [100, 50]),
        ({"sources": [{"remote": "a", "repeat": 0.5}, {"remote": "b", "repeat": 3.0}]}, [50, 150]),
        ({"sources": [{"remote": "a", "choose": 7}, {"remote": "b", "choose": 200}]}, [7, 200]),
        ({"sources": [{"remote": "a", "proportion": 0.1}, {"remote": "b", "proportion": 0.2}]}, [50, 100]),
        (
            {"sources": [{"remote": "a", "proportion": 1.0}, {"remote": "b", "proportion": 3.0}], "epoch_clips": 400},
            [100, 300],
        ),
    ],
)
def test_amounts_become_clips_of_an_epoch(data, expected):
    cfg = DataConfig(**data)
    assert epoch_clips(cfg, [100, 50][: len(cfg.all_sources)]) == expected


@given(st.integers(0, 10**6), st.integers(0, 300), st.sampled_from([0.0, 0.01, 0.5, 0.99]))
def test_being_held_out_is_a_property_of_the_clip(first, clips, share):
    mask = held_out(first, clips, share)
    assert mask.tolist() == held_out(0, first + clips, share)[first:].tolist() if first < 2000 else len(mask) == clips
    assert share or not mask.any()


def test_as_many_clips_are_held_out_as_was_asked_for_and_none_of_them_is_trained_on():
    mask = held_out(0, 100_000, 0.02)
    assert abs(mask.sum() - 2000) < 5 * 44  # five standard deviations
    shards = np.full(1000, 100, np.int64)
    order = ClipOrder([Source(0, shards, 98_000, ~mask)], 0, True, 1000, 4)
    trained = np.concatenate([order.epoch(epoch, 98_000)[:, 0] for epoch in range(2)])
    assert set(trained) == set(np.flatnonzero(~mask))
