"""The classifiers against the official ones: recorded logits, names and shapes; modes, positions, unused parameters."""

import hashlib

import numpy as np
import pytest
import torch

from cavmae_ds.models.cavmae.classifier import CAVMAEFT, MODES, CAVMAEFTAudio
from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.positions import position_table, refit_columns
from tests.models.cavmae.official import give_golden_weights, give_spec_weights, golden_cases, normals
from tests.models.cavmae.test_model import SMALL

OFFICIAL_HASHES = {
    CAVMAEFT: (478, 164_907_023, "47f38618604e0e12788da740d041ff65b550ae8cf285b08f5b4bb5838e0f428c"),
    CAVMAEFTAudio: (252, 86_129_423, "d2f37d8d594b80a9666a721eb863b7983255249e8acc5191fc6059629213f110"),
}


def small(seed: int = 0, **changes) -> CAVMAEFT:
    torch.manual_seed(seed)
    return CAVMAEFT(ModelConfig(**{**SMALL, **changes}), classes=5)


def clips(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mels and images of the small model's sizes."""
    return normals(1, count, SMALL["audio_frames"], 128), normals(2, count, 3, SMALL["image_size"], SMALL["image_size"])


@torch.no_grad()
def test_logits_of_every_mode_are_the_official_ones():
    (case,) = golden_cases("finetune")
    model = CAVMAEFT(ModelConfig(**case["config"]), case["label_dim"])
    give_golden_weights(model)
    draw = np.random.RandomState(case["input_seed"])
    audio = torch.from_numpy(draw.standard_normal((case["batch"], 1024, 128)).astype(np.float32))
    images = torch.from_numpy(draw.standard_normal((case["batch"], 3, 224, 224)).astype(np.float32))
    assert set(case["logits"]) == set(MODES)
    for mode, logits in case["logits"].items():
        np.testing.assert_allclose(model(audio, images, mode).numpy(), logits, atol=1e-5, rtol=1e-5, err_msg=mode)
    got = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    assert got == list(case["shapes"].items())


@torch.no_grad()
def test_base_logits_are_the_official_ones():
    model = CAVMAEFT(ModelConfig(), classes=10)
    give_spec_weights(model)
    audio, images = normals(1, 2, 1024, 128), normals(2, 2, 3, 224, 224)
    expected = {
        "multimodal": ([0.625685, -0.557609, 0.377121, 0.892982, -0.139368], [0.628375, -0.559393, 0.335924]),
        "audioonly": ([0.493774, -0.586276, 0.450736, 0.831752, -0.100452], [0.519783, -0.580219, 0.428736]),
        "videoonly": ([0.277749, -0.601533, -0.103610, 0.437105, -0.061685], [0.213362, -0.613280, -0.142483]),
        "missingaudioonly": ([0.550504, -0.513176, 0.436102, 0.826429, -0.130838], [0.575802, -0.506335, 0.410219]),
        "missingvideoonly": ([0.257142, -0.567134, -0.071042, 0.436767, -0.032074], [0.190626, -0.582577, -0.113505]),
    }
    for mode, (first, second) in expected.items():
        logits = model(audio, images, mode).numpy()
        np.testing.assert_allclose(logits[0, :5], first, atol=1e-5, err_msg=mode)
        np.testing.assert_allclose(logits[1, :3], second, atol=1e-5, err_msg=mode)


@pytest.mark.parametrize("kind", OFFICIAL_HASHES)
def test_names_shapes_and_counts_are_the_official_ones(kind):
    """And all of them are trained, position tables too (spec/cav-mae.md 6, trap 6)."""
    with torch.device("meta"):
        model = kind(ModelConfig(), 527)
    entries = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    listing = "\n".join(sorted(f"{name} {shape}" for name, shape in entries.items()))
    digest = hashlib.sha256(listing.encode()).hexdigest()
    assert (len(entries), sum(p.numel() for p in model.parameters()), digest) == OFFICIAL_HASHES[kind]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_exactly_the_parameters_called_unused_get_no_gradient(mode):
    """What is to be frozen against spec/cav-mae.md 6, trap 3."""
    model = small()
    model(*clips(), mode).square().sum().backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == model.unused_parameters(mode)
    assert idle >= {"blocks_a.0.norm1_a.weight"}, "the towers' modality norms are never used"


def test_a_mode_looks_at_no_more_than_it_needs():
    model, (audio, images) = small(), clips()
    for mode, given in {
        "audioonly": (audio, None),
        "missingaudioonly": (audio, None),
        "videoonly": (None, images),
        "missingvideoonly": (None, images),
    }.items():
        assert torch.equal(model(*given, mode), model(audio, images, mode)), mode
    with pytest.raises(ValueError, match="mode 'multimodal' needs images"):
        model(audio, None, "multimodal")


def test_an_unknown_mode_is_refused_with_the_five_that_there_are():
    """spec/cav-mae.md 6, trap 5."""
    with pytest.raises(ValueError, match="missingvideoonly, got 'mm_grad'") as refusal:
        small()(*clips(), "mm_grad")
    assert all(mode in str(refusal.value) for mode in MODES)


def test_features_of_one_side_are_those_of_both():
    model, (audio, images) = small(), clips()
    both = model.features(audio, images)
    assert both.audio.shape == (3, 8 * 6, 48) and both.image.shape == (3, 4 * 4, 48)
    assert torch.equal(model.features(audio, None).audio, both.audio) and model.features(audio, None).image is None
    assert torch.equal(model.features(None, images).image, both.image)


def test_the_audio_classifier_hears_what_the_whole_one_hears():
    whole, (audio, images) = small(), clips()
    hears = CAVMAEFTAudio(ModelConfig(**SMALL), classes=5)
    hears.load_state_dict({name: whole.state_dict()[name] for name in hears.state_dict()})
    for mode in ("audioonly", "missingaudioonly"):
        assert torch.equal(hears(audio, mode=mode), whole(audio, images, mode))
    assert torch.equal(hears.features(audio, None).audio, whole.features(audio, None).audio)
    with pytest.raises(ValueError, match="one of audioonly, missingaudioonly, got 'multimodal'"):
        hears(audio, images, "multimodal")


def test_the_head_starts_like_every_linear_map_and_the_rest_as_in_pretraining():
    model = small()
    bound = (6 / (48 + 5)) ** 0.5
    assert 0.9 * bound < model.mlp_head[1].weight.abs().max() <= bound
    assert model.mlp_head[1].bias.eq(0).all() and model.mlp_head[0].weight.eq(1).all()
    torch.manual_seed(0)
    pretrained = CAVMAE(ModelConfig(**SMALL)).state_dict()
    towers = [name for name in pretrained if name.startswith(("blocks_", "patch_embed", "pos_embed"))]
    assert towers and all(torch.equal(pretrained[name], model.state_dict()[name]) for name in towers)


def test_positions_of_a_shorter_sound_are_the_first_columns_of_each_row():
    long, short = position_table(48, 8, 64), position_table(48, 8, 31)
    assert torch.equal(refit_columns(long, 8, 31, "trim"), short)
    assert refit_columns(long, 8, 64, "trim") is long
    with pytest.raises(ValueError, match="31 columns cannot be trimmed to 64"):
        refit_columns(short, 8, 64, "trim")


def test_interpolated_positions_stretch_time_and_leave_frequency_alone():
    ramp = torch.arange(4.0).repeat(8, 1) + 100 * torch.arange(8.0)[:, None]  # [rows, columns]
    stretched = refit_columns(ramp.reshape(1, 32, 1), 8, 8, "interpolate").reshape(8, 8)
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(stretched, expected + 100 * torch.arange(8.0)[:, None])


def test_audio_of_no_whole_patches_is_refused_with_the_lengths_that_fit():
    """spec/cav-mae.md 6, trap 27."""
    with pytest.raises(ValueError, match="got 1000; 992 or 1008 would fit"):
        ModelConfig(audio_frames=1000)
