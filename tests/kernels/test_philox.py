"""Philox against its published answers and against Triton's own generator."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cavmae_ds.kernels.philox import philox_reference, philox_uniform, philox_words, uniform_reference

# kat_vectors of Random123 (D. E. Shaw Research), philox4x32 with 10 rounds: counter, key, outcome.
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexadecimal(words: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in words.split())


def random_pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeds and offsets of all 64 bits, the extremes among them."""
    random = np.random.default_rng(5)
    seed, offset = random.integers(-(2**63), 2**63 - 1, (2, count), dtype=np.int64, endpoint=True)
    extremes = np.array([0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63)])
    seed[:64], offset[:64] = np.repeat(extremes, 8), np.tile(extremes, 8)
    return seed, offset


@pytest.mark.parametrize(("counter", "key", "outcome"), PUBLISHED)
def test_python_ints_and_tensors_give_the_published_answers(counter, key, outcome):
    counter, key, outcome = hexadecimal(counter), hexadecimal(key), hexadecimal(outcome)
    assert philox_words(key, counter) == outcome
    as_tensors = philox_words(tuple(map(torch.tensor, key)), tuple(map(torch.tensor, counter)))
    assert tuple(word.item() for word in as_tensors) == outcome


def test_a_python_int_and_a_tensor_element_draw_the_same_word():
    seed, offset = random_pairs(512)
    words = philox_reference(torch.from_numpy(seed), torch.from_numpy(offset)).tolist()
    assert words == [philox_reference(int(s), int(o)) for s, o in zip(seed, offset, strict=True)]


def test_the_reference_equals_tritons_generator_bit_for_bit(tmp_path: Path):
    seed, offset = random_pairs(8192)
    np.savez(tmp_path / "in.npz", seed=seed, offset=offset)
    script = Path(__file__).with_name("interpreted_philox.py")
    subprocess.run(
        [sys.executable, script, tmp_path / "in.npz", tmp_path / "out.npz"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
    )
    triton = np.load(tmp_path / "out.npz")
    seed, offset = torch.from_numpy(seed), torch.from_numpy(offset)
    np.testing.assert_array_equal(philox_reference(seed, offset).numpy(), triton["words"] & 0xFFFFFFFF)
    np.testing.assert_array_equal(
        uniform_reference(seed, offset).numpy().view(np.int32), triton["uniform"].view(np.int32)
    )


def test_draws_fill_the_unit_interval_evenly_and_never_reach_one():
    draws = philox_uniform(torch.tensor(7), torch.arange(1 << 18))
    assert draws.dtype == torch.float32
    assert 0 <= draws.min() < 1e-4 and 1 - 1e-4 < draws.max() < 1
    share = torch.histc(draws.double(), bins=64, min=0, max=1) / len(draws)
    deviation = (1 / 64 * (1 - 1 / 64) / len(draws)) ** 0.5
    assert (share - 1 / 64).abs().max() < 5 * deviation


@pytest.mark.gpu
def test_the_gpu_draws_the_same_numbers():
    seed, offset = (torch.from_numpy(x) for x in random_pairs(100_003))
    assert torch.equal(philox_uniform(seed.cuda(), offset.cuda()).cpu(), uniform_reference(seed, offset))
