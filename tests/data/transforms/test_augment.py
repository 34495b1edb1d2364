"""What finetuning does to clips, against a plain clip-by-clip reading of spec/cav-mae.md 3.6."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from cavmae_ds.config.sections.augment import AugmentConfig
from cavmae_ds.data.format.clips import Batch, Clip, collate
from cavmae_ds.data.transforms.augment import SoundAugmentation, draw_partner, mix, targets
from cavmae_ds.data.transforms.front_end import FrontEnd
from cavmae_ds.data.transforms.log_mel import LogMel
from cavmae_ds.distributed.per_sample_rng import Stream, clip_noise, clip_uniform
from cavmae_ds.distributed.process_group import World
from cavmae_ds.models.cavmae import inputs
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.tasks import validate_run
from cavmae_ds.tasks.pretrain.task import Pretraining

SEED, TURN, STD = 7, 2, 4.4849
FRAMES = 112
TRAIN = {"global_batch": 4, "micro_batch": 4, "steps": 2}


def clip(index: int, samples: int, labels: list[int], partner: Clip | None = None, share: float = 1.0) -> Clip:
    random = np.random.RandomState(index)
    audio = (random.standard_normal(samples) * 3000 + 500).astype(np.int16)
    frames = random.randint(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    return Clip(index, TURN, audio, frames, np.array(labels, np.int32), None, partner, share)


@pytest.fixture
def batch() -> Batch:
    return collate(
        [
            clip(0, 16_000, [1], clip(10, 20_000, [3]), 0.3),  # the partner is longer
            clip(1, 18_000, [0, 2]),
            clip(2, 12_000, [1, 3], clip(11, 9_000, [1]), 0.6),  # shorter, and a label in common
        ]
    )


def test_sounds_are_mixed_before_the_log_mel_frames_with_the_same_share(batch):
    sounds, frames = mix(batch.audio, batch.n_samples, batch.frames, batch.partners)

    for row, samples, partner, share in ((0, 16_000, 10, 0.3), (2, 12_000, 11, 0.6)):
        own, other = clip(row, samples, []), clip(partner, 20_000 if partner == 10 else 9_000, [])
        first, second = ((sound.audio - sound.audio.mean()) / 32768 for sound in (own, other))
        second = np.pad(second, (0, max(0, samples - len(second))))[:samples]
        expected = share * first + (1 - share) * second
        np.testing.assert_allclose(sounds[row, :samples], expected, atol=1e-6)
        assert not sounds[row, samples:].any()
        blended = (share * own.frames.astype(float) + (1 - share) * other.frames) / 255
        np.testing.assert_allclose(frames[row].permute(0, 2, 3, 1), blended, atol=1e-6)
    np.testing.assert_allclose(frames[1], batch.frames[1] / 255, atol=1e-6)


def test_a_clip_without_a_partner_sounds_and_looks_the_same_in_a_mixed_batch(batch):
    mixed = FrontEnd(inputs(ModelConfig(audio_frames=FRAMES)), torch.device("cpu"))(batch)[0]
    alone = FrontEnd(inputs(ModelConfig(audio_frames=FRAMES)), torch.device("cpu"))(collate([clip(1, 18_000, [0, 2])]))[
        0
    ]
    torch.testing.assert_close(mixed[1:2], alone, rtol=0, atol=2e-3)  # the log of nearly empty bins magnifies rounding


def test_acceptance_10_label_vectors_mixed_and_unmixed(batch):
    wanted = targets(batch, classes=5, smoothing=0.1)

    rest = 0.1 / 5
    assert wanted[1].tolist() == pytest.approx([0.9, rest, 0.9, rest, rest])
    assert wanted[0].tolist() == pytest.approx([rest, rest + 0.3 * 0.9, rest, rest + 0.7 * 0.9, rest])
    assert wanted[2].tolist() == pytest.approx([rest, rest + 0.9, rest, rest + 0.6 * 0.9, rest])
    assert wanted[0].sum() == pytest.approx(1)  # single labels, mixed; unmixed it is 1 - smoothing / C
    assert targets(collate([clip(4, 8000, [2])]), 5, 0.1).sum() == pytest.approx(1 - rest)
    assert targets(collate([clip(4, 8000, [2])]), 5, 0.0).tolist() == [[0, 0, 1, 0, 0]]


def test_a_label_without_a_class_is_refused(batch):
    with pytest.raises(ValueError, match=r"\[1, 3\].*3 classes"):
        targets(batch, classes=3, smoothing=0.0)


def test_bands_noise_and_shift_follow_the_official_order():
    cfg, index = AugmentConfig(freqm=48, timem=60), torch.tensor([5, 9, 1000])
    turn = torch.tensor([0, 3, 1])
    log_mel = torch.randn(3, FRAMES, 128) * 4 - 5

    given = SoundAugmentation(cfg, SEED, STD)(log_mel, turn, index)

    bands = clip_uniform(SEED, turn, index, Stream.BANDS, 4)
    loud = clip_uniform(SEED, turn, index, Stream.LOUDNESS, 1)
    noise = clip_noise(SEED, turn, index, FRAMES * 128).view(3, FRAMES, 128)
    roll = clip_uniform(SEED, turn, index, Stream.ROLL, 1)
    for row in range(3):
        x = log_mel[row].clone()
        width, start = (bands[row, 0] * 48).item(), bands[row, 1].item()
        first = int(start * (128 - width))
        x[:, first : first + int(width)] = 0
        width, start = (bands[row, 2] * 60).item(), bands[row, 3].item()
        first = int(start * (FRAMES - width))
        x[first : first + int(width)] = 0
        x = (x + 5.081) / STD  # the official program adds noise to what is normalised
        x = x + noise[row] * loud[row] / 10
        shift = int(roll[row].item() * 2 * FRAMES) - FRAMES
        x = torch.roll(x, shift, 0)
        torch.testing.assert_close((given[row] + 5.081) / STD, x, rtol=0, atol=2e-6)


def test_bands_of_width_zero_and_no_noise_leave_the_sound_alone():
    log_mel = torch.randn(2, FRAMES, 128)
    still = SoundAugmentation(AugmentConfig(freqm=0, timem=0, noise=False), SEED, STD)
    assert torch.equal(still(log_mel, torch.tensor([0, 0]), torch.tensor([1, 2])), log_mel)


def test_what_happens_to_a_clip_does_not_hang_on_its_batch():
    augmentation = SoundAugmentation(AugmentConfig(), SEED, STD)
    log_mel, turn, index = torch.randn(4, FRAMES, 128), torch.tensor([0, 1, 1, 4]), torch.tensor([8, 3, 11, 90])
    together = augmentation(log_mel, turn, index)
    for row in range(4):
        assert torch.equal(
            augmentation(log_mel[row : row + 1], turn[row : row + 1], index[row : row + 1])[0], together[row]
        )


def test_partners_are_drawn_at_the_given_rate_evenly_with_shares_of_beta_10_10():
    drawn = [draw_partner(SEED, turn, place, 0.4, 50) for turn in range(4) for place in range(2000)]
    mixed = [one for one in drawn if one]
    assert len(mixed) / len(drawn) == pytest.approx(0.4, abs=0.02)  # 3.6 standard deviations
    counts = np.bincount([one.place for one in mixed], minlength=50)
    assert counts.min() > 30 and counts.max() < 105  # 64 expected
    shares = np.array([one.share for one in mixed])
    scipy_stats = pytest.importorskip("scipy.stats")
    assert scipy_stats.kstest(shares, "beta", (10, 10)).pvalue > 1e-3
    assert draw_partner(SEED, 0, 1, 1.0, 50) == draw_partner(SEED, 0, 1, 1.0, 50)
    assert len({draw_partner(SEED, turn, 1, 1.0, 50) for turn in range(20)}) == 20


def test_noise_beyond_one_stream_repeats_nothing():
    noise = clip_noise(SEED, 0, torch.tensor([3]), 1024 * 128)[0]
    first, second = noise[: 1 << 16], noise[1 << 16 :]
    assert not torch.equal(first, second) and len(noise) == 1024 * 128
    assert noise.mean().item() == pytest.approx(0.5, abs=5e-3)
    assert all(not torch.equal(a, b) for a, b in pairwise(noise.view(8, -1)))


def test_a_mixed_log_mel_is_that_of_the_mixed_sound(batch):
    log_mel, _ = FrontEnd(inputs(ModelConfig(audio_frames=FRAMES)), torch.device("cpu"))(batch)
    sounds, _ = mix(batch.audio, batch.n_samples, batch.frames, batch.partners)
    assert torch.equal(log_mel, LogMel()(sounds, batch.n_samples, FRAMES))


def test_pretraining_with_noise_adds_what_finetuning_adds_and_hides_nothing(batch):
    cfg = validate_run({"model": {"audio_frames": FRAMES}, "augment": {"noise": True}, "train": TRAIN})
    world = World(rank=0, size=1, local_rank=0, hosts=1, device=torch.device("cpu"))

    task = Pretraining(cfg, Pretraining.resolve(cfg, 1, clips=8))
    task.start(world, engine=None)
    heard = task.front_end(batch)[0]

    plain = FrontEnd(inputs(cfg.model), world.device)(batch)[0]
    noise = SoundAugmentation(AugmentConfig(freqm=0, timem=0), cfg.train.seed, cfg.data.audio_std)
    assert not torch.equal(heard, plain)
    torch.testing.assert_close(heard, noise(plain, batch.epoch, batch.clip_index), rtol=0, atol=0)
