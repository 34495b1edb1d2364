"""A clip's draws depend on seed, epoch, clip, stream and element, and on nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.distributed.per_sample_rng import Stream, clip_uniform, frame_choice

SEED = st.integers(0, 2**32 - 1)
EPOCH = st.integers(0, 2**31 - 1)
CLIP = st.integers(0, 2**39 - 1)


@settings(max_examples=50, deadline=None)
@given(seed=SEED, epochs=st.lists(st.tuples(EPOCH, CLIP), min_size=1, max_size=5), stream=st.sampled_from(Stream))
def test_a_clip_draws_the_same_alone_and_in_any_batch(seed, epochs, stream):
    epoch, clip = (torch.tensor(x) for x in zip(*epochs, strict=True))
    together = clip_uniform(seed, epoch, clip, stream, count=9)
    alone = [clip_uniform(seed, int(e), clip[i : i + 1], stream, count=9) for i, e in enumerate(epoch)]
    assert torch.equal(together, torch.cat(alone))


def test_each_of_seed_epoch_clip_stream_and_element_changes_the_draw():
    clip = torch.tensor([5])
    draws = torch.cat(
        [
            clip_uniform(1, 2, clip, Stream.AUDIO_MASK, 2).flatten(),
            clip_uniform(3, 2, clip, Stream.AUDIO_MASK, 1).flatten(),
            clip_uniform(1, 4, clip, Stream.AUDIO_MASK, 1).flatten(),
            clip_uniform(1, 2, clip + 1, Stream.AUDIO_MASK, 1).flatten(),
            clip_uniform(1, 2, clip, Stream.IMAGE_MASK, 1).flatten(),
        ]
    )
    assert len(draws.unique()) == len(draws)


@settings(max_examples=50, deadline=None)
@given(seed=SEED, epoch=EPOCH, clips=st.lists(CLIP, min_size=1, max_size=5), frames=st.integers(1, 1000))
def test_a_data_worker_and_the_device_choose_the_same_frame(seed, epoch, clips, frames):
    in_worker = [frame_choice(seed, epoch, clip, frames) for clip in clips]
    on_device = frame_choice(seed, epoch, torch.tensor(clips), frames)
    assert on_device.tolist() == in_worker
    assert all(0 <= frame < frames for frame in in_worker)


def test_frames_are_chosen_equally_often():
    chosen = frame_choice(0, 3, torch.arange(100_000), 10)
    share = chosen.bincount(minlength=10) / 100_000
    assert (share - 0.1).abs().max() < 5 * (0.1 * 0.9 / 100_000) ** 0.5


@pytest.mark.parametrize(
    ("seed", "epoch", "clip", "field"),
    [
        (2**32, 0, 0, "seed"),
        (-1, 0, 0, "seed"),
        (0, 2**31, 0, "epoch"),
        (0, -1, 0, "epoch"),
        (0, torch.tensor([2**31]), 0, "epoch"),
        (0, 0, 2**39, "clip_index"),
        (0, 0, -1, "clip_index"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(seed, epoch, clip, field):
    with pytest.raises(ValueError, match=field):
        clip_uniform(seed, epoch, torch.tensor([clip]), Stream.AUDIO_MASK, 4)
    with pytest.raises(ValueError, match=field):
        frame_choice(seed, epoch, clip, 10)


@pytest.mark.parametrize("count", [0, 65_537])
def test_more_draws_than_a_stream_has_are_refused(count):
    with pytest.raises(ValueError, match="count"):
        clip_uniform(0, 0, torch.tensor([0]), Stream.AUDIO_MASK, count)


@pytest.mark.parametrize("frames", [0, 2**31])
def test_a_clip_without_frames_or_with_too_many_is_refused(frames):
    with pytest.raises(ValueError, match="frames"):
        frame_choice(0, 0, 0, frames)
