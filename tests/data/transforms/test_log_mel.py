"""The log-mel front end against torchaudio's Kaldi filter bank and the official values."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi

from cavmae_ds.data.transforms.log_mel import LogMel, frames_of, mel_bank
from cavmae_ds.data.transforms.normalise import AUDIO_MEAN, AUDIO_STD, denormalise_images, training_normalisation
from cavmae_ds.models.common.patches import Grid, Picture, unpatchify
from tests.data.usual_videos import ENCODINGS

SILENCE = np.log(np.float32(1.1920929e-07))
SECONDS_10 = 160_000


def torchaudio_log_mel(sound: torch.Tensor) -> torch.Tensor:
    """Kaldi's filter bank as torchaudio has it, of one float clip [N] after its mean is taken away."""
    return kaldi.fbank(
        (sound - sound.mean()).unsqueeze(0),
        htk_compat=True,
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )


def log_mel_of(sound: torch.Tensor, frames: int = 1024) -> torch.Tensor:
    """Of one whole clip [N]: [frames, 128]."""
    return LogMel()(sound.unsqueeze(0), torch.tensor([len(sound)]), frames)[0]


def synthetic(kind: str, samples: int = SECONDS_10) -> torch.Tensor:
    time = torch.arange(samples, dtype=torch.float64) / 16_000  # seconds
    random = torch.Generator().manual_seed(0)
    if kind == "speech-like":  # noise that comes and goes, over a hum and an offset
        noise = torch.randn(samples, generator=random, dtype=torch.float64)
        sound = 0.1 * noise * (2 * torch.pi * 3 * time).sin().square() + 0.05 * (2 * torch.pi * 120 * time).sin()
        sound += 0.02
    elif kind == "sine":
        sound = (2 * torch.pi * 1000 * time).sin()
    elif kind == "chirp":
        sound = (2 * torch.pi * (50 + 395 * time) * time).sin()
    else:
        sound = torch.zeros(samples)
    return sound.float()


def first_channel_16k(video: Path) -> torch.Tensor:
    """At most 10 s of a video's first channel, int16."""
    parts = []
    with av.open(str(video)) as container:
        resampler = av.AudioResampler(format="s16p", rate=16_000)
        for frame in [*container.decode(audio=0), None]:
            parts += [resampled.to_ndarray()[0] for resampled in resampler.resample(frame)]
    return torch.from_numpy(np.concatenate(parts)[:SECONDS_10].copy())


def assert_parity(got: torch.Tensor, wanted: torch.Tensor, worst: float, mean: float) -> None:
    rows = min(len(wanted), len(got))
    difference = (got[:rows] - wanted[:rows]).abs()
    assert difference.max() <= worst and difference.mean() <= mean, (difference.max(), difference.mean())
    assert got[rows:].eq(0).all()


@pytest.mark.parametrize("name", ENCODINGS)
def test_decoded_sounds_equal_torchaudios_within_the_parity_gate(usual_videos, name):
    sound = first_channel_16k(usual_videos / name)
    assert len(sound) > 16_000
    assert_parity(log_mel_of(sound), torchaudio_log_mel(sound.float() / 32768), worst=2e-3, mean=1e-5)


@pytest.mark.parametrize(
    ("kind", "worst", "mean"),
    [("speech-like", 2e-3, 1e-5), ("sine", 5e-2, 5e-4), ("chirp", 5e-2, 5e-4), ("silence", 0, 0)],
)
def test_synthetic_clips_equal_torchaudios_within_the_parity_gate(kind, worst, mean):
    sound = synthetic(kind)
    assert_parity(log_mel_of(sound), torchaudio_log_mel(sound), worst, mean)


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 16_000])
def test_short_clips_equal_torchaudios(samples):
    sound = synthetic("speech-like", samples)
    wanted = torchaudio_log_mel(sound)
    assert len(wanted) == frames_of(torch.tensor([samples])).item()
    assert_parity(log_mel_of(sound), wanted, worst=2e-3, mean=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_a_clip_shorter_than_a_window_is_all_padding(samples):
    assert log_mel_of(torch.ones(samples)).eq(0).all()
    in_a_batch = LogMel()(torch.rand(1, 16_000), torch.tensor([samples]), 1024)
    assert in_a_batch.eq(0).all()


def test_a_clip_comes_out_the_same_alone_and_padded_in_a_batch_whatever_the_padding_holds():
    lengths = torch.tensor([400, 5_000, 399, 159_999, 160_000])
    batch = synthetic("speech-like").repeat(5, 1)
    batch[torch.arange(SECONDS_10) >= lengths[:, None]] = 0.7
    together = LogMel()(batch, lengths, 1024)
    for clip, length, got in zip(batch, lengths, together, strict=True):
        torch.testing.assert_close(got, log_mel_of(clip[:length]), atol=2e-3, rtol=0)
        assert got[frames_of(length) :].eq(0).all()


def test_long_clips_are_cut_to_the_frames_asked_for():
    sound = synthetic("speech-like")
    assert torch.equal(log_mel_of(sound, frames=500), log_mel_of(sound)[:500])


def test_int16_and_the_float_it_stands_for_give_the_same():
    sound = (synthetic("speech-like") * 32768).to(torch.int16)
    assert torch.equal(log_mel_of(sound), log_mel_of(sound.float() / 32768))


def test_values_are_the_official_ones():
    # given the clip of spec/cav-mae.md 3.5
    time = np.arange(SECONDS_10) / 16_000
    noise = np.random.RandomState(0).standard_normal(SECONDS_10)
    sound = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3000 * time) * (time > 3)
    raw = log_mel_of(torch.from_numpy((sound + 0.01 * noise + 0.05).astype(np.float32)))
    normalised = (raw - AUDIO_MEAN) / AUDIO_STD

    def near(got, *wanted):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-4)

    near(raw[0, :4], -11.3772, -13.69636, -10.25296, -15.94238)
    near(raw[500, :4], -9.75799, -12.8475, -9.4041, -15.94238)
    near(normalised[0, [0, 1, 64, 127]], -1.40387, -1.92097, 0.10120, 0.75362)
    near(normalised[500, [0, 30, 100, 127]], -1.04283, -0.45082, 0.37498, 0.85879)
    near(torch.stack([normalised.mean(), normalised.std()]), 0.13700, 0.82848)


def test_padding_is_louder_than_silence():
    raw = log_mel_of(torch.zeros(16_000))
    assert raw[:98].eq(SILENCE).all() and raw[98:].eq(0).all()
    got = ((raw - AUDIO_MEAN) / AUDIO_STD)[[0, 98], 0]
    np.testing.assert_allclose(got.numpy(), [-2.42177, 1.13291], atol=5e-6)


def test_only_the_fourth_mel_bin_is_empty_and_nyquist_counts_for_nothing():
    bank = mel_bank()
    assert bank.shape == (257, 128)
    assert bank.sum(0).eq(0).nonzero().flatten().tolist() == [3]
    assert bank[256].eq(0).all()


def test_the_callers_reduced_precision_does_not_reach_the_front_end():
    sound = synthetic("chirp")
    plain, before = log_mel_of(sound), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            reduced = log_mel_of(sound)
    finally:
        torch.set_float32_matmul_precision(before)
    assert reduced.dtype == torch.float32 and torch.equal(reduced, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["speech-like", "sine", "chirp", "silence"])
def test_the_gpu_passes_the_parity_gate_under_tf32_and_autocast(kind):
    sound = synthetic(kind)
    batch, before = sound.cuda().repeat(65, 1), torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with torch.autocast("cuda", torch.bfloat16):
            got = LogMel("cuda")(batch, torch.full((65,), SECONDS_10, device="cuda"), 1024).cpu()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    worst, mean = {"speech-like": (2e-3, 1e-5), "silence": (0, 0)}.get(kind, (5e-2, 5e-4))
    assert_parity(got[64], torchaudio_log_mel(sound), worst, mean)
    assert torch.equal(got, got[:1].expand_as(got))


def test_images_are_normalised_per_channel_and_back():
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    normal = training_normalisation()
    picture = Picture(images, Grid(1, 1, 16, 3), normal.image_mean, normal.image_std)
    normalised = unpatchify(picture.patches(picture.every_patch(), torch.float32), picture.grid)
    expected = (images[1, :, 15, 15] / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(normalised[1, :, 15, 15], expected)
    assert torch.equal(denormalise_images(normalised), images)
