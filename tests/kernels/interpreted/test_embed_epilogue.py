"""The embedding's epilogue: one rounding, gradients to bias, positions and modality that do not depend on order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_ds.kernels.accuracy import outputs_and_gradients
from cavmae_ds.kernels.embed_epilogue import embed_epilogue, embed_epilogue_reference
from tests.kernels.accuracy import assert_as_accurate_as_eager, needs_kernels

pytestmark = needs_kernels
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
ROWS = ("tokens", "bias", "positions", "modality")


def inputs_for(clips: int, patches: int, kept: int, width: int, dtype=torch.float32, rows_dtype=None) -> dict:
    generator = torch.Generator().manual_seed(clips + patches)

    def normal(*shape: int, to=rows_dtype or dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(to)

    return {
        "tokens": normal(clips, kept, width, to=dtype),
        "bias": normal(width),
        "positions": normal(patches, width),
        "modality": normal(width),
        "keep": torch.rand(clips, patches, generator=generator).argsort(1)[:, :kept].contiguous(),
    }


def assert_accurate(inputs: dict, differentiable=ROWS) -> None:
    assert_as_accurate_as_eager(embed_epilogue_reference, embed_epilogue, inputs, differentiable, ("tokens",))


@settings(max_examples=12, deadline=None)
@given(
    clips=st.integers(1, 5),
    size=st.integers(1, 9).flatmap(lambda patches: st.tuples(st.just(patches), st.integers(1, patches))),
    width=st.sampled_from([1, 4, 44, 76, 100]),
    dtype=st.sampled_from(FLOATS),
)
def test_any_size_is_as_accurate_as_eager(clips, size, width, dtype):
    assert_accurate(inputs_for(clips, *size, width, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [768, 1280])
def test_the_real_widths_with_poisoned_outputs(dtype, width, poisoned_memory):
    assert_accurate(inputs_for(2, 6, 4, width, dtype))


def test_more_clips_than_one_program_adds_up(poisoned_memory):
    assert_accurate(inputs_for(130, 3, 2, 40))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_may_be_narrower_than_the_parameters(dtype, poisoned_memory):
    assert_accurate(inputs_for(3, 7, 3, 44, dtype, rows_dtype=torch.float32))


@pytest.mark.parametrize("trainable", [("tokens",), ("bias", "modality"), ("positions",), ("tokens", "bias")])
def test_frozen_inputs_get_no_gradient_and_the_others_theirs(trainable):
    inputs = inputs_for(3, 7, 3, 44)
    assert_accurate(inputs, trainable)
    leaves = {name: inputs[name].clone().requires_grad_(name in trainable) for name in ROWS}
    embed_epilogue(**leaves, keep=inputs["keep"]).sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == set(trainable)


def test_gradients_have_the_same_bits_every_time():
    inputs = inputs_for(140, 5, 3, 44)
    first, second = (outputs_and_gradients(embed_epilogue, inputs, ROWS, ("tokens",)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_survive_torch_compile():
    inputs = inputs_for(3, 7, 3, 44)
    compiled = torch.compile(lambda **x: embed_epilogue(**x).tanh(), backend="aot_eager")
    ours = outputs_and_gradients(compiled, inputs, ROWS, ("tokens",))
    plain = outputs_and_gradients(lambda **x: embed_epilogue_reference(**x).tanh(), inputs, ROWS, ("tokens",))
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name])


def test_no_clips_give_gradients_of_zero(poisoned_memory):
    inputs = inputs_for(0, 4, 2, 8)
    leaves = {name: inputs[name].requires_grad_() for name in ROWS}
    embed_epilogue(**leaves, keep=inputs["keep"]).sum().backward()
    assert all(not leaf.grad.any() for leaf in leaves.values())


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("tokens", torch.zeros(3, 8), r"tokens must be contiguous .* \[B, K, D\], got float32 \[3, 8\]"),
        ("tokens", torch.zeros(3, 8, 2).mT, "tokens must be contiguous .* not contiguous"),
        ("tokens", torch.zeros(3, 2, 8).int(), "tokens must be contiguous float32 or bfloat16"),
        ("bias", torch.zeros(1, 8), r"bias must be contiguous .* \[8\], got float32 \[1, 8\]"),
        ("positions", torch.zeros(4, 7), r"positions must be contiguous .* \[L, 8\]"),
        ("modality", torch.zeros(7), r"modality must be contiguous .* \[8\]"),
        ("keep", torch.zeros(3, 1, dtype=torch.int64), r"keep must be contiguous int64 \[3, 2\]"),
        ("keep", torch.zeros(3, 2), r"keep must be contiguous int64 .* got float32"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        embed_epilogue(**{**inputs_for(3, 4, 2, 8), name: wrong})
