"""What an embedding is made of: frames at several positions, and the audio of the middle one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cavmae_ds.data.format.schema import audio_of, frame_of
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.evaluation.embedding import excerpt_of
from tests.data.format.test_schema import jpeg_of, record

WHOLE = replace(
    record(samples=80_000), frames=tuple(jpeg_of((20 * k, 100, 50), size=(16, 16)) for k in range(10))
).to_mds()


def frames_at(*numbers: int) -> np.ndarray:
    return np.stack([frame_of(WHOLE, number) for number in numbers])


SIZE = 16


def test_one_frame_at_each_position_comes_with_the_whole_sound():
    excerpt = excerpt_of(WHOLE, InputSpec(log_mel_frames=512, frame_size=SIZE), (0, 5, 9))
    assert np.array_equal(excerpt.frames, frames_at(0, 5, 9)[:, None])
    assert np.array_equal(excerpt.audio, audio_of(WHOLE)) and excerpt.clip_id == "a/b ü"


def test_several_frames_at_each_position_come_with_the_sound_around_the_middle_position():
    spec = InputSpec(log_mel_frames=100, audio_seconds=1.0, frames=3, frame_spacing_seconds=0.5, frame_size=SIZE)
    excerpt = excerpt_of(WHOLE, spec, (0, 5, 9))
    assert np.array_equal(excerpt.frames, np.stack([frames_at(0, 1, 2), frames_at(4, 5, 6), frames_at(7, 8, 9)]))
    assert np.array_equal(excerpt.audio, audio_of(WHOLE)[32_000:48_000])  # 1 s around second 2.5


def test_what_the_model_does_not_read_is_none():
    seen = excerpt_of(WHOLE, InputSpec(log_mel_frames=0, frame_size=SIZE), (5,))
    assert seen.audio is None and np.array_equal(seen.frames, frames_at(5)[None])
    for spec, positions in ((InputSpec(log_mel_frames=512, frames=0), (5,)), (InputSpec(log_mel_frames=512), ())):
        heard = excerpt_of(WHOLE, spec, positions)
        assert heard.frames is None and np.array_equal(heard.audio, audio_of(WHOLE))
