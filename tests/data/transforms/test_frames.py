"""What training does to frames: the values, and that they hang on the clip alone."""

from __future__ import annotations

import pytest
import torch

from cavmae_ds.data.format.clips import Batch
from cavmae_ds.data.input_spec import InputSpec
from cavmae_ds.data.transforms.frames import AUGMENTATIONS, FrameAugmentation
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.distributed.per_sample_rng import Stream, clip_uniform
from cavmae_ds.errors import ConfigError

SEED, CLIPS, CPU = 5, 64, torch.device("cpu")
SPEC = InputSpec(log_mel_frames=16, frames=3, frame_spacing_seconds=0.1, frame_size=8, augmentations=("flip",))


def frames_of(clips: int = CLIPS) -> torch.Tensor:
    """[B, T, 3, H, W], no two pixels of a row alike."""
    return torch.randint(0, 256, (clips, 3, 3, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def keys(clips: int = CLIPS) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(clips) % 3, torch.arange(clips) + 100


def test_flip_mirrors_all_frames_of_about_half_the_clips_and_leaves_the_others_as_they_are():
    frames, (epoch, index) = frames_of(), keys()
    changed = FrameAugmentation(("flip",), SEED)(frames, epoch, index)
    mirrored = clip_uniform(SEED, epoch, index, Stream.FLIP, 1)[:, 0] < 0.5
    for row in range(CLIPS):
        expected = frames[row][..., range(7, -1, -1)] if mirrored[row] else frames[row]
        assert torch.equal(changed[row], expected)
    assert mirrored.tolist()[:8] == [True, True, False, True, False, True, False, False]  # these clips for ever
    assert 20 <= int(mirrored.sum()) <= 44


def test_a_clip_is_flipped_alike_in_any_batch_and_anew_in_each_repeat():
    frames, (epoch, index) = frames_of(), keys()
    augment = FrameAugmentation(("flip",), SEED)
    together = augment(frames, epoch, index)
    alone = torch.cat([augment(frames[row : row + 1], epoch[row : row + 1], index[row : row + 1]) for row in range(64)])
    backwards = augment(frames.flip(0), epoch.flip(0), index.flip(0)).flip(0)
    assert torch.equal(alone, together) and torch.equal(backwards, together)
    assert not torch.equal(augment(frames, epoch + 1, index), together)
    assert not torch.equal(FrameAugmentation(("flip",), SEED + 1)(frames, epoch, index), together)


def batch_of(frames: torch.Tensor) -> Batch:
    epoch, index = keys(len(frames))
    sound = torch.zeros(len(frames), 1000, dtype=torch.int16)
    return Batch(index, epoch, sound, torch.full_like(index, 1000), frames, [[]] * len(frames), [])


def test_only_the_front_end_of_training_augments_frames():
    frames = frames_of()
    assert torch.equal(FrontEnd(SPEC, CPU)(batch_of(frames))[1], frames)
    trained = FrontEnd(SPEC, CPU, training_seed=SEED)(batch_of(frames))[1]
    assert torch.equal(trained, FrameAugmentation(("flip",), SEED)(frames, *keys()))
    assert not torch.equal(trained, frames)


def test_a_front_end_of_a_model_that_only_sees_or_only_hears_gives_empty_tensors_for_the_rest():
    deaf = InputSpec(log_mel_frames=0, frame_size=8, frames=3, frame_spacing_seconds=0.1)
    audio, frames = FrontEnd(deaf, CPU)(batch_of(frames_of(2))._replace(audio=torch.zeros(2, 0, dtype=torch.int16)))
    assert audio.shape == (2, 0, 128) and frames.shape == (2, 3, 3, 8, 8)
    blind = InputSpec(log_mel_frames=4, frame_size=8, frames=0)
    audio, frames = FrontEnd(blind, CPU)(batch_of(frames_of(2)[:, :0]))
    assert audio.shape == (2, 4, 128) and frames.shape == (2, 0, 3, 8, 8)


def test_unknown_augmentations_and_front_ends_are_refused_with_the_list():
    assert list(AUGMENTATIONS) == ["flip"]
    with pytest.raises(ConfigError, match="augmentations must be among flip, got rotate"):
        FrontEnd(InputSpec(log_mel_frames=4, augmentations=("flip", "rotate")), CPU, training_seed=SEED)
    with pytest.raises(ConfigError, match="front_end must be one of kaldi, got 'log10'"):
        FrontEnd(InputSpec(log_mel_frames=4, front_end="log10"), CPU)


@pytest.mark.gpu
def test_a_gpu_flips_the_clips_that_a_cpu_flips():
    frames, (epoch, index) = frames_of(), keys()
    augment = FrameAugmentation(("flip",), SEED)
    on_gpu = augment(frames.cuda(), epoch.cuda(), index.cuda())
    assert torch.equal(on_gpu.cpu(), augment(frames, epoch, index))
