"""Records become clips and batches: several frames, frames of other shapes, parts that are missing."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_ds.data.format.clips import Clip, collate, decode_clip
from cavmae_ds.data.format.crop import centre_crop
from cavmae_ds.data.format.schema import decode_frame
from cavmae_ds.data.format.shard_file import Selection, all_audio_and, select_from
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.errors import DataError
from tests.data.format.test_schema import record

SPEC = InputSpec(log_mel_frames=64, frame_size=16)


def picture(height: int, width: int, number: int = 0) -> bytes:
    pixels = np.random.RandomState(number).randint(0, 256, (height // 4, width // 4, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(file, "JPEG", quality=95)
    return file.getvalue()


def clip_of(shape: tuple[int, int], frames: tuple[int, ...], spec: InputSpec) -> Clip:
    """Of ten frames of a shape, these."""
    whole = replace(record(), frames=tuple(picture(*shape, number) for number in range(10)))
    return decode_clip(select_from(whole.to_mds(), all_audio_and(*frames)), spec, clip_index=3, epoch=1)


def test_several_frames_of_a_clip_are_stacked_in_their_order():
    clip = clip_of((16, 16), (4, 0, 4), SPEC)
    expected = [decode_frame(picture(16, 16, number)) for number in (4, 0, 4)]
    assert np.array_equal(clip.frames, np.stack(expected))


def test_a_batch_has_frames_b_t_3_h_w_with_the_colours_of_a_pixel_side_by_side_in_memory():
    clips = [clip_of((16, 16), frames, SPEC) for frames in ((0, 1), (2, 3), (4, 5))]
    batch = collate(clips)
    assert batch.frames.shape == (3, 2, 3, 16, 16) and batch.frames.dtype == torch.uint8
    assert batch.frames.movedim(2, 4).is_contiguous() and batch.frame_sizes is None
    assert np.array_equal(batch.frames[2, 1].permute(1, 2, 0).numpy(), clips[2].frames[1])


@pytest.mark.parametrize("shape, size", [((40, 64), (16, 25)), ((64, 40), (25, 16)), ((32, 32), (16, 16))])
def test_frames_of_another_shape_are_scaled_and_cut_as_preparing_does(shape, size):
    [frame] = clip_of(shape, (7,), SPEC).frames
    height, width = size
    scaled = Image.fromarray(decode_frame(picture(*shape, 7))).resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 16) / 2), round((height - 16) / 2)
    assert np.array_equal(frame, np.asarray(scaled)[top : top + 16, left : left + 16])


def test_a_picture_of_the_right_height_is_only_cut():
    wide = np.random.RandomState(0).randint(0, 256, (16, 40, 3)).astype(np.uint8)
    assert np.array_equal(centre_crop(wide, 16), wide[:, 12:28])


def test_whole_frames_keep_their_shapes_and_are_padded_to_the_largest_of_the_batch():
    whole = replace(SPEC, frame_fit="whole", frames=2, frame_spacing_seconds=1.0)
    clips = [clip_of(shape, (1, 2), whole) for shape in ((16, 32), (24, 16), (8, 8))]
    batch = collate(clips)
    assert batch.frames.shape == (3, 2, 3, 24, 32)
    assert batch.frame_sizes.tolist() == [[16, 32], [24, 16], [8, 8]] and batch.frame_sizes.dtype == torch.int64
    for row, clip in enumerate(clips):
        height, width = clip.frames.shape[1:3]
        assert np.array_equal(batch.frames[row, :, :, :height, :width].permute(0, 2, 3, 1).numpy(), clip.frames)
        assert not batch.frames[row, :, :, height:].any() and not batch.frames[row, :, :, :, width:].any()


def test_whole_frames_of_one_clip_must_have_one_shape():
    several = replace(record(), frames=(picture(16, 16), picture(16, 32), *[picture(16, 16)] * 8))
    sample = select_from(several.to_mds(), all_audio_and(0, 1))
    with pytest.raises(DataError, match="clip 'a/b ü' has frames of several shapes"):
        decode_clip(sample, replace(SPEC, frame_fit="whole"), clip_index=0, epoch=0)
    assert decode_clip(sample, SPEC, clip_index=0, epoch=0).frames.shape == (2, 16, 16, 3)


def test_a_clip_without_what_the_model_reads_is_named_and_one_without_the_rest_is_fine():
    silent = select_from(record().to_mds(), lambda _: Selection((3,), 0, 0))
    with pytest.raises(DataError, match="clip 'a/b ü' has no sound, which the model reads") as error:
        decode_clip(silent, SPEC, clip_index=0, epoch=0)
    assert error.value.damage == "sound"
    assert decode_clip(silent, replace(SPEC, log_mel_frames=0), clip_index=0, epoch=0).audio.shape == (0,)

    dark = select_from(record().to_mds(), all_audio_and())
    with pytest.raises(DataError, match="clip 'a/b ü' has no frames, which the model reads") as error:
        decode_clip(dark, SPEC, clip_index=0, epoch=0)
    assert error.value.damage == "frame"
    assert decode_clip(dark, replace(SPEC, frames=0), clip_index=0, epoch=0).frames.shape == (0, 16, 16, 3)
