"""Unshuffle: every token in its place, and every gradient back where it belongs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.kernels.accuracy import outputs_and_gradients
from cavmae_ds.kernels.unshuffle import unshuffle, unshuffle_reference
from tests.kernels.accuracy import assert_as_accurate_as_eager, needs_kernels

pytestmark = needs_kernels
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
ROWS = ("visible", "mask_token", "positions_a", "positions_v", "modality_a", "modality_v")


def inputs_for(clips, audio, image, width, dtype=torch.float32, rows_dtype=None) -> dict:
    """audio and image: patches and how many of them are visible."""
    generator = torch.Generator().manual_seed(clips + width)
    (patches_a, kept_a), (patches_v, kept_v) = audio, image

    def normal(*shape: int, to=rows_dtype or dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(to)

    def shuffle(patches: int) -> torch.Tensor:
        return torch.rand(clips, patches, generator=generator).argsort(1)

    return {
        "visible": normal(clips, kept_a + kept_v, width, to=dtype),
        "mask_token": normal(width),
        "positions_a": normal(patches_a, width),
        "positions_v": normal(patches_v, width),
        "modality_a": normal(width),
        "modality_v": normal(width),
        "restore_a": shuffle(patches_a),
        "restore_v": shuffle(patches_v),
        "kept_a": kept_a,
    }


def assert_accurate(inputs: dict, differentiable=ROWS) -> None:
    assert_as_accurate_as_eager(unshuffle_reference, unshuffle, inputs, differentiable, ("tokens",))


PATCHES = st.integers(1, 9).flatmap(lambda patches: st.tuples(st.just(patches), st.integers(0, patches)))


@settings(max_examples=12, deadline=None)
@given(
    clips=st.integers(1, 4),
    audio=PATCHES,
    image=PATCHES,
    width=st.sampled_from([1, 4, 44, 100]),
    dtype=st.sampled_from(FLOATS),
)
def test_any_size_is_as_accurate_as_eager(clips, audio, image, width, dtype):
    if audio[1] + image[1] == 0:
        audio = (audio[0], 1)
    assert_accurate(inputs_for(clips, audio, image, width, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [512, 768])
def test_the_real_widths_with_poisoned_outputs(dtype, width, poisoned_memory):
    assert_accurate(inputs_for(2, (6, 2), (5, 3), width, dtype))


def test_more_clips_than_one_program_adds_up(poisoned_memory):
    assert_accurate(inputs_for(130, (3, 1), (2, 1), 40))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_may_be_narrower_than_the_parameters(dtype, poisoned_memory):
    assert_accurate(inputs_for(3, (7, 2), (4, 1), 44, dtype, rows_dtype=torch.float32))


@pytest.mark.parametrize(
    "trainable", [("visible",), ("mask_token", "modality_v"), ("positions_a",), ("visible", "modality_a")]
)
def test_frozen_inputs_get_no_gradient_and_the_others_theirs(trainable, poisoned_memory):
    inputs = inputs_for(3, (7, 2), (4, 1), 44)
    assert_accurate(inputs, trainable)
    leaves = {**inputs, **{name: inputs[name].clone().requires_grad_(name in trainable) for name in ROWS}}
    unshuffle(**leaves).sum().backward()
    assert {name for name in ROWS if leaves[name].grad is not None} == set(trainable)


def test_gradients_have_the_same_bits_every_time():
    inputs = inputs_for(140, (4, 1), (3, 2), 44)
    first, second = (outputs_and_gradients(unshuffle, inputs, ROWS, ("tokens",)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_survive_torch_compile():
    inputs = inputs_for(3, (7, 2), (4, 1), 44)
    compiled = torch.compile(lambda **x: unshuffle(**x).tanh(), backend="aot_eager")
    ours = outputs_and_gradients(compiled, inputs, ROWS, ("tokens",))
    plain = outputs_and_gradients(lambda **x: unshuffle_reference(**x).tanh(), inputs, ROWS, ("tokens",))
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name])


def test_no_clips_give_gradients_of_zero(poisoned_memory):
    inputs = inputs_for(0, (7, 2), (4, 1), 8)
    leaves = {name: inputs[name].requires_grad_() for name in ROWS}
    unshuffle(**{**inputs, **leaves}).sum().backward()
    assert all(not leaf.grad.any() for leaf in leaves.values())


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("visible", torch.zeros(3, 8), r"visible must be contiguous .* \[B, K, D\], got float32 \[3, 8\]"),
        ("visible", torch.zeros(3, 8, 3).mT, "visible must be contiguous .* not contiguous"),
        ("visible", torch.zeros(3, 3, 8).int(), "visible must be contiguous float32 or bfloat16"),
        ("mask_token", torch.zeros(1, 1, 8), r"mask_token must be contiguous .* \[8\]"),
        ("modality_a", torch.zeros(7), r"modality_a must be contiguous .* \[8\]"),
        ("modality_v", torch.zeros(7), r"modality_v must be contiguous .* \[8\]"),
        ("positions_a", torch.zeros(6, 8), r"positions_a must be contiguous .* \[7, 8\]"),
        ("positions_v", torch.zeros(1, 4, 8), r"positions_v must be contiguous .* \[4, 8\]"),
        ("restore_a", torch.zeros(3, 7, dtype=torch.int32), r"restore_a must be contiguous int64 \[3, La\]"),
        ("restore_v", torch.zeros(2, 4, dtype=torch.int64), r"restore_v must be contiguous int64 \[3, Lv\]"),
        ("kept_a", -1, "kept_a must split the 3 visible tokens into at most 7 of audio and 4 of image, got -1"),
        ("kept_a", 5, "kept_a must split"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        unshuffle(**{**inputs_for(3, (7, 2), (4, 1), 8), name: wrong})
