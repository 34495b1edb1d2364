"""Masks read back as they were written, and no damage of their bytes is decoded or taken for a mask."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cavmae_ds.data.format.targets import Target, pack_targets, targets_of
from cavmae_ds.errors import DataError
from tests.fuzz.mutations import examples, mutated_bytes, works_or_is_refused

RNG = np.random.default_rng(0)
MASKS = [RNG.integers(0, 256, shape).astype(np.uint8) for shape in ((1, 1), (30, 50), (50, 30))]
PACKED = pack_targets([Target(1.5 * k, mask) for k, mask in enumerate(MASKS)])


def sample(content: bytes) -> dict:
    return {"clip_id": "a/b", "targets": content}


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def packed_files(*files: bytes) -> bytes:
    """The column as somebody else may write it: any files."""
    offsets = np.cumsum([0, *map(len, files)]).astype("<u4").tobytes()
    return struct.pack("<I", len(files)) + bytes(4 * len(files)) + offsets + b"".join(files)


def test_masks_and_times_read_back():
    found = targets_of(sample(PACKED))

    assert [target.time_s for target in found] == [0.0, 1.5, 3.0]
    assert all(np.array_equal(target.mask, mask) for target, mask in zip(found, MASKS, strict=True))
    assert all(target.mask.dtype == np.uint8 for target in found)
    assert targets_of(sample(pack_targets([]))) == []


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 4), np.uint8)])
def test_what_is_no_mask_is_not_written(mask):
    with pytest.raises(ValueError, match=r"a mask must be uint8 \[H, W\]"):
        pack_targets([Target(0.0, mask)])


def huge_png() -> bytes:
    """A small file that says it holds 60,000 x 60,000 pixels."""
    whole = png(Image.new("L", (2, 2)))
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return whole[:8] + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + whole[33:]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes of targets"),
        (struct.pack("<I", 2**32 - 1), "4 bytes of targets, too few for 4294967295"),
        (PACKED[:-1], "cannot be"),
        (PACKED + b"x", "cannot be"),
        (PACKED[:4] + struct.pack("<f", float("nan")) + PACKED[8:], "cannot be"),
        (PACKED[:16] + struct.pack("<4I", 0, 900, 400, 10**9) + PACKED[32:], "cannot be"),
        (packed_files(b"\xff\xd8\xff" + bytes(50)), "target 0 that is no PNG file"),
        (packed_files(png(Image.new("L", (2, 2))), b"\x89PNG\r\n\x1a\n"), "target 1 that is no PNG file"),
        (packed_files(huge_png()), "target 0 of 60000x60000 pixels"),
        (packed_files(png(Image.new("RGB", (2, 2)))), "colour type 2, expected 8 bits of grey"),
        (packed_files(png(Image.new("L", (99, 99), 7))[:-40]), "target 0 that does not decode"),
    ],
)
def test_targets_that_cannot_be_are_refused_by_the_clips_name(content, words):
    with pytest.raises(DataError, match=f"clip 'a/b' .*{words}.*prepare this data set again"):
        targets_of(sample(content))


@examples(200)
@given(st.data())
def test_changed_bytes_give_masks_or_one_sentence(data):
    content = data.draw(mutated_bytes(PACKED))
    works_or_is_refused(lambda: targets_of(sample(content)))
