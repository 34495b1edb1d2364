"""Batches made ready for the model one ahead: the same numbers, in the same order, whatever is late."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cavmae_ds.data.format.clips import Batch
from cavmae_ds.data.transforms.front_end import FrontEnd, ahead, one_ahead
from cavmae_ds.errors import DataError
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.models.cavmae.config import ModelConfig

MODEL = ModelConfig(embed_dim=32, num_heads=4, image_size=64, audio_frames=64)
CLIPS, BATCHES = 4, 6
DELAY_CYCLES = 50_000_000  # about 30 ms on a GPU
CPU = torch.device("cpu")


def numbered_batch(number: int) -> Batch:
    """Noise that belongs to the number, with clips of different lengths."""
    generator = torch.Generator().manual_seed(number)
    return Batch(
        clip_index=torch.arange(CLIPS) + CLIPS * number,
        epoch=torch.full((CLIPS,), number // 3),
        audio=torch.randint(-9000, 9000, (CLIPS, 10_000), generator=generator, dtype=torch.int16),
        n_samples=torch.tensor([10_000, 9_000, 5_000, 300]),
        frames=torch.randint(0, 256, (CLIPS, 1, 64, 64, 3), generator=generator, dtype=torch.uint8).permute(
            0, 1, 4, 2, 3
        ),
        labels=[[number]] * CLIPS,
        bad=[],
    )


def batches_until_damage(good: int, fetched: list[int]) -> Iterator[Batch]:
    """Notes what was asked for; damaged after `good` batches."""
    for number in range(good):
        fetched.append(number)
        yield numbered_batch(number)
    raise DataError("clip 'x' is damaged")


def test_ready_batches_are_the_front_ends_output_in_the_loaders_order_with_their_keys():
    front_end = FrontEnd(inputs(MODEL), CPU)
    given = [numbered_batch(number) for number in range(BATCHES)]
    ready = list(ahead(given, front_end))
    assert [one.batch is batch for one, batch in zip(ready, given, strict=True)] == [True] * BATCHES
    for one, batch in zip(ready, given, strict=True):
        audio, frames = front_end(batch)
        assert torch.equal(one.audio, audio) and torch.equal(one.frames, frames)
        assert torch.equal(one.frames, batch.frames) and one.frames.is_contiguous()
        assert torch.equal(one.keys[0], batch.epoch) and torch.equal(one.keys[1], batch.clip_index)


def test_without_a_gpu_no_batch_is_fetched_before_it_is_asked_for():
    fetched: list[int] = []
    source = ahead(batches_until_damage(3, fetched), FrontEnd(inputs(MODEL), CPU))
    assert fetched == []
    next(source), next(source)
    assert fetched == [0, 1]


def test_the_loaders_error_comes_after_the_batches_before_it():
    source = ahead(batches_until_damage(2, []), FrontEnd(inputs(MODEL), CPU))
    assert [next(source).batch.labels[0] for _ in range(2)] == [[0], [1]]
    with pytest.raises(DataError, match="clip 'x' is damaged"):
        next(source)


@pytest.mark.parametrize("good", [0, 1, 2, 5])
def test_one_ahead_gives_every_item_before_the_error_and_then_the_error(good):
    source = one_ahead(batches_until_damage(good, []))
    assert [next(source).labels[0] for _ in range(good)] == [[number] for number in range(good)]
    with pytest.raises(DataError, match="clip 'x' is damaged"):
        next(source)


@pytest.mark.parametrize("count", range(4))
def test_one_ahead_keeps_what_it_is_given_and_fetches_exactly_one_more(count):
    fetched: list[int] = []

    def counted() -> Iterator[int]:
        for number in range(count):
            fetched.append(number)
            yield number

    for given, number in enumerate(one_ahead(counted())):
        assert number == given
        assert len(fetched) == min(given + 2, count)
    assert len(fetched) == count


class Late(FrontEnd):
    """Its side of the GPU is slow: whoever does not wait for it reads what was in the memory before."""

    def __call__(self, batch):
        torch.cuda._sleep(DELAY_CYCLES)
        return super().__call__(batch)


@pytest.mark.gpu
@pytest.mark.parametrize("late", ["front end", "model"])
def test_on_a_gpu_batches_made_ready_ahead_are_bitwise_those_made_one_by_one(late):
    device = torch.device("cuda", torch.cuda.current_device())
    plain = [FrontEnd(inputs(MODEL), device)(numbered_batch(number)) for number in range(BATCHES)]
    pinned = (
        Batch(*(part.pin_memory() if isinstance(part, torch.Tensor) else part for part in numbered_batch(number)))
        for number in range(BATCHES)
    )
    seen = []
    for one in ahead(pinned, (Late if late == "front end" else FrontEnd)(inputs(MODEL), device)):
        if late == "model":  # reads long after the names are gone: their memory must not be given to a later batch
            torch.cuda._sleep(DELAY_CYCLES)
        seen.append((one.audio.clone(), one.frames.clone(), one.keys[0].clone(), one.keys[1].clone()))
        del one
    for number, (audio, frames, epoch, clip_index) in enumerate(seen):
        assert torch.equal(audio, plain[number][0]) and torch.equal(frames, plain[number][1])
        assert torch.equal(epoch.cpu(), numbered_batch(number).epoch)
        assert torch.equal(clip_index.cpu(), numbered_batch(number).clip_index)


@pytest.mark.gpu
def test_on_a_gpu_the_front_end_works_while_the_model_does():
    device = torch.device("cuda", torch.cuda.current_device())
    front_end, given = Late(inputs(MODEL), device), [numbered_batch(number) for number in range(BATCHES)]

    def milliseconds(ready) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in ready:
            torch.cuda._sleep(DELAY_CYCLES)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    front_end(given[0])  # what the first call sets up is not counted
    one_by_one = milliseconds(front_end(batch) for batch in given)
    assert milliseconds(ahead(given, front_end)) < 0.8 * one_by_one  # 7 delays instead of 12
