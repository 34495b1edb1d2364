"""Which frames and which part of the sound are read: values for clips that are easy to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.data.format.shard_file import Contents, Selection
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.loading.selection import evaluation_selection, training_selection
from cavmae_ds.distributed.per_sample_rng import frame_choice
from cavmae_ds.errors import ConfigError

TEN = Contents(160_000, np.arange(10, dtype=np.float32))  # CAV-MAE's: a frame a second, ten seconds
DENSE = Contents(160_000, np.arange(80, dtype=np.float32) / 8)  # eight frames a second
ONE_FRAME = InputSpec(log_mel_frames=1024)


def several(frames: int, spacing: float, **more) -> InputSpec:
    return InputSpec(log_mel_frames=1024, frames=frames, frame_spacing_seconds=spacing, **more)


def drawn(value: int):
    """A draw that comes out as this number, whatever the range, which it must lie in."""

    def draw(count: int) -> int:
        assert 0 <= value < count
        return value

    return draw


@pytest.mark.parametrize("turn, clip", [(0, 0), (1, 0), (3, 1_000_000)])
def test_one_frame_is_the_one_that_the_clips_own_draw_gives_and_comes_with_the_whole_sound(turn, clip):
    chosen = training_selection(ONE_FRAME, TEN, lambda frames: frame_choice(7, turn, clip, frames))
    assert chosen == Selection((frame_choice(7, turn, clip, 10),), 0, 160_000)


def test_a_record_decides_how_many_frames_there_are_to_choose_from():
    asked = []
    training_selection(ONE_FRAME, DENSE, lambda frames: asked.append(frames) or 79)
    assert asked == [80]


@pytest.mark.parametrize("position", range(10))
def test_evaluation_takes_frame_k_of_ten_and_the_one_at_k_tenths_of_any_other_number(position):
    assert evaluation_selection(ONE_FRAME, TEN, position).frames == (position,)
    assert evaluation_selection(ONE_FRAME, DENSE, position).frames == (8 * position,)
    assert evaluation_selection(ONE_FRAME, Contents(9, np.zeros(3, np.float32)), position).frames == (
        position * 3 // 10,
    )


def test_evaluation_takes_the_middle_frame_by_default():
    assert evaluation_selection(ONE_FRAME, TEN) == Selection((5,), 0, 160_000)


@pytest.mark.parametrize(
    "frames, spacing, start, expected",
    [
        (4, 1.0, 0, (0, 1, 2, 3)),
        (4, 1.0, 6, (6, 7, 8, 9)),  # the last start that fits
        (3, 2.0, 5, (5, 7, 9)),
        (4, 0.5, 2, (2, 2, 3, 3)),  # 2.0, 2.5, 3.0 and 3.5 s: the earlier one of two that are equally near
        (3, 1.3, 1, (1, 2, 4)),  # 1.0, 2.3 and 3.6 s
    ],
)
def test_several_frames_are_the_stored_ones_nearest_to_equal_steps_from_the_drawn_start(
    frames, spacing, start, expected
):
    assert training_selection(several(frames, spacing), TEN, drawn(start)).frames == expected


def test_starts_are_drawn_among_those_from_which_all_frames_fit():
    asked = []
    for frames, spacing in ((4, 1.0), (10, 1.0), (16, 0.5)):
        training_selection(several(frames, spacing), TEN, lambda count: asked.append(count) or 0)
    assert asked == [7, 1, 2]  # 3, 9 and 7.5 s long, in 9 s


def test_float32_times_hide_no_start():
    times = np.float32([k / 30 for k in range(90)])
    asked = []
    training_selection(several(4, 1 / 30), Contents(48_000, times), lambda count: asked.append(count) or 0)
    assert asked == [87]


def test_a_clip_that_is_too_short_begins_again_at_its_end():
    short = Contents(48_000, np.arange(3, dtype=np.float32))
    assert training_selection(several(8, 1.0), short, drawn(0)).frames == (0, 1, 2, 0, 1, 2, 0, 1)
    assert training_selection(several(4, 1.0), short, drawn(2)).frames == (2, 0, 1, 2)
    assert evaluation_selection(several(4, 1.0), short).frames == (0, 1, 2, 0)
    single = Contents(16_000, np.float32([0.4]))
    assert training_selection(several(3, 0.1), single, drawn(0)).frames == (0, 0, 0)


@pytest.mark.parametrize(
    "position, expected", [(0, (0, 1, 2)), (1, (0, 1, 2)), (5, (4, 5, 6)), (8, (7, 8, 9)), (9, (7, 8, 9))]
)
def test_evaluations_window_is_centred_on_its_position_and_stays_in_the_clip(position, expected):
    assert evaluation_selection(several(3, 1.0), TEN, position).frames == expected


@pytest.mark.parametrize(
    "alignment, start, first",
    [
        ("centre", 4, 72_000),  # frames at 4, 5 and 6 s: 1 s around second 5
        ("start", 4, 64_000),
        ("centre", 0, 8_000),
        ("start", 7, 112_000),
    ],
)
def test_a_window_of_sound_is_aligned_to_the_frames(alignment, start, first):
    spec = several(3, 1.0, audio_seconds=1.0, audio_alignment=alignment)
    assert training_selection(spec, TEN, drawn(start)) == Selection((start, start + 1, start + 2), first, 16_000)


def test_a_window_of_sound_stays_in_the_clip():
    centred = InputSpec(log_mel_frames=300, audio_seconds=3.0)
    assert training_selection(centred, TEN, drawn(0)) == Selection((0,), 0, 48_000)
    starting = InputSpec(log_mel_frames=300, audio_seconds=3.0, audio_alignment="start")
    assert training_selection(starting, TEN, drawn(9)) == Selection((9,), 112_000, 48_000)
    assert training_selection(starting, Contents(20_000, np.float32([0.0, 1.0])), drawn(1)) == Selection(
        (1,), 0, 20_000
    )


def test_without_frames_a_window_of_sound_is_drawn_and_evaluation_takes_the_middle():
    sound = InputSpec(log_mel_frames=100, audio_seconds=1.0, frames=0)
    assert training_selection(sound, TEN, drawn(144_000)) == Selection((), 144_000, 16_000)
    assert evaluation_selection(sound, TEN) == Selection((), 72_000, 16_000)
    assert evaluation_selection(sound, TEN, 0) == Selection((), 0, 16_000)
    whole = InputSpec(log_mel_frames=1024, frames=0)
    assert training_selection(whole, TEN, drawn(0)) == Selection((), 0, 160_000)


def test_without_sound_no_sample_is_read():
    assert training_selection(InputSpec(log_mel_frames=0), TEN, drawn(3)) == Selection((3,), 0, 0)


def test_of_a_clip_without_frames_none_are_chosen():
    silent_film = Contents(160_000, np.empty(0, np.float32))
    assert training_selection(ONE_FRAME, silent_film, drawn(0)).frames == ()
    assert evaluation_selection(several(4, 1.0), silent_film).frames == ()


@given(
    st.lists(st.floats(2**-6, 2, width=32), min_size=1, max_size=40),
    st.integers(0, 200_000),
    st.integers(1, 20),
    st.floats(0.01, 3),
    st.floats(0.1, 12),
    st.sampled_from(["centre", "start"]),
    st.floats(0, 0.999),
)
def test_whatever_the_clip_there_are_t_frames_of_it_and_a_window_within_it(
    steps, n_samples, frames, spacing, seconds, alignment, share
):
    contents = Contents(n_samples, np.cumsum(steps, dtype=np.float32))
    spec = several(frames, spacing, audio_seconds=seconds, audio_alignment=alignment)
    for chosen in (
        training_selection(spec, contents, lambda count: int(share * count)),
        evaluation_selection(spec, contents, int(share * 10)),
    ):
        assert len(chosen.frames) == frames and set(chosen.frames) <= set(range(len(steps)))
        assert chosen.samples == min(round(seconds * 16_000), n_samples)
        assert 0 <= chosen.first_sample <= n_samples - chosen.samples


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"log_mel_frames": -1}, "log_mel_frames must be at least 0, got -1"),
        ({"frames": -1}, "frames must be at least 0, got -1"),
        ({"mel_bins": 0}, "mel_bins must be at least 1, got 0"),
        ({"frame_size": 0}, "frame_size must be at least 1, got 0"),
        ({"log_mel_frames": 0, "frames": 0}, "are both 0: it must read audio or video frames"),
        ({"audio_seconds": 0.0}, "audio_seconds must be above 0, or None, got 0.0"),
        ({"audio_seconds": float("nan")}, "audio_seconds must be above 0, or None, got nan"),
        ({"frames": 4}, "frame_spacing_seconds must be above 0 for 4 frames, got 0.0"),
        ({"audio_alignment": "end"}, "audio_alignment must be centre or start, got 'end'"),
        ({"frame_fit": "stretch"}, "frame_fit must be crop or whole, got 'stretch'"),
        ({"frame_fit": "whole", "augmentations": ("flip",)}, "cannot be augmented, got augmentations flip"),
    ],
)
def test_a_model_that_asks_for_the_impossible_is_refused_in_a_sentence(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        InputSpec(**{"log_mel_frames": 1024} | values)
