"""CAVMAE against the official model: recorded losses, features, predictions, gradients, names and shapes."""

import hashlib
import random

import numpy as np
import pytest
import torch

from cavmae_ds.models.cavmae.config import ModelConfig
from cavmae_ds.models.cavmae.masking import audio_grid
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.common.masking import Plans, kept_patches, plan_from_noise, structured
from cavmae_ds.models.common.output import PretrainOutput
from cavmae_ds.models.common.patches import select
from cavmae_ds.tasks.pretrain.config import ContrastiveConfig, LossConfig
from cavmae_ds.tasks.pretrain.losses import PretrainLosses, contrast_within, pretrain_losses
from tests.models.cavmae.official import assert_summary, give_golden_weights, give_spec_weights, golden_cases, normals

RELATIVE = 1e-5  # the parity we promise
GRADIENT_RELATIVE = 1e-4


def model_config_of(case: dict) -> ModelConfig:
    return ModelConfig(**{name: value for name, value in case["config"].items() if name != "norm_pix_loss"})


@pytest.fixture(scope="module", params=[0, 1], ids=["v2a-normalised", "both-raw"])
def golden(request):
    """A recorded case and what this model makes of the same weights, inputs and noise."""
    case = golden_cases("pretrain")[request.param]
    model = CAVMAE(model_config_of(case))
    give_golden_weights(model)
    draw, clips = np.random.RandomState(case["input_seed"]), case["batch"]
    audio = torch.from_numpy(draw.standard_normal((clips, 1024, 128)).astype(np.float32))
    images = torch.from_numpy(draw.standard_normal((clips, 3, 224, 224)).astype(np.float32))
    audio_noise = torch.from_numpy(draw.random_sample((clips, 512)).astype(np.float32))
    image_noise = torch.from_numpy(draw.random_sample((clips, 196)).astype(np.float32))
    plans = Plans(
        plan_from_noise(audio_noise, kept_patches(512, case["mask_ratio_a"])),
        plan_from_noise(image_noise, kept_patches(196, case["mask_ratio_v"])),
    )
    output = model(audio, images, plans)
    weights = LossConfig(
        mae_weight=case["mae_loss_weight"],
        contrastive_weight=case["contrast_loss_weight"],
        normalise_pixels=case["config"]["norm_pix_loss"],
    )
    direction = ContrastiveConfig(direction="both" if case["bidirectional"] else "v2a")
    losses = pretrain_losses(output, contrast_within(output, direction), weights)
    losses.total.backward()
    with torch.no_grad():
        everything = model(audio, images, plans, all_patches=True)
    return case, model, output, losses, model.features(audio, images), everything


def test_losses_are_the_official_ones(golden):
    case, _, _, losses, *_ = golden
    mae = case["mae_loss_weight"] * (losses.mae["audio"] + losses.mae["image"])
    contrastive = case["contrast_loss_weight"] * losses.contrastive
    got = [losses.total, mae, losses.mae["audio"], losses.mae["image"], contrastive, losses.in_batch_accuracy]
    names = ["loss", "loss_mae", "loss_mae_a", "loss_mae_v", "loss_c_weighted", "c_acc"]
    assert [x.item() for x in got] == pytest.approx([case[name] for name in names], rel=RELATIVE)


def test_masks_are_the_official_ones(golden):
    case, _, output, *_ = golden
    audio, image = output.target("audio").plan.mask, output.target("image").plan.mask
    assert (int(audio[0].sum()), int(image[0].sum())) == (case["masked_a"], case["masked_v"])
    assert audio[0].nonzero().flatten()[:40].tolist() == case["mask_a0"]


def test_predictions_are_the_official_ones(golden):
    case, _, output, _, _, everything = golden
    assert_summary(everything.target("audio").prediction, case["pred_a"], RELATIVE)
    assert_summary(everything.target("image").prediction, case["pred_v"], RELATIVE)
    hidden = output.target("audio").plan.hidden  # and those of training are the same, without the visible patches
    torch.testing.assert_close(output.target("audio").prediction, select(everything.target("audio").prediction, hidden))


def test_features_are_the_official_ones(golden):
    case, _, _, _, features, _ = golden
    assert_summary(features.audio.mean(1), case["feat_a"], RELATIVE)
    assert_summary(features.image.mean(1), case["feat_v"], RELATIVE)


def test_every_gradient_has_the_official_norm_and_no_other_parameter_has_one(golden):
    case, model, *_ = golden
    got = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == case["grads"].keys()
    assert got == pytest.approx(case["grads"], rel=GRADIENT_RELATIVE, abs=1e-9)


def test_names_shapes_and_order_are_the_official_ones(golden):
    case, model, *_ = golden
    got = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    assert got == list(case["shapes"].items())


# The base model, with the values of spec/cav-mae.md 1.2 and 1.13.


@pytest.fixture(scope="module")
def base() -> CAVMAE:
    model = CAVMAE(ModelConfig())
    give_spec_weights(model)
    return model


@pytest.fixture(scope="module")
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    return normals(1, 2, 1024, 128), normals(2, 2, 3, 224, 224)


def test_the_base_model_has_the_official_names_shapes_and_counts(base):
    entries = {name: tuple(tensor.shape) for name, tensor in base.state_dict().items()}
    listing = "\n".join(sorted(f"{name} {shape}" for name, shape in entries.items()))
    digest = hashlib.sha256(listing.encode()).hexdigest()
    assert digest == "42e4b0718fec0e86ff027b319681cfc26023bd8ea75935069e4e0e3b93d16539"
    assert len(entries) == 647
    assert sum(p.numel() for p in base.parameters()) == 191_036_160
    assert sum(p.numel() for p in base.parameters() if p.requires_grad) == 190_129_920


@torch.no_grad()
def test_base_features_are_the_official_ones(base, clips):
    features = base.features(*clips)
    expected = {
        "first audio token": (features.audio[0, 0, :4], [-1.220416, 0.718752, -0.719687, 0.758857]),
        "last audio token": (features.audio[1, 511, -4:], [-0.725217, -0.707926, 0.679920, 1.657047]),
        "first image token": (features.image[0, 0, :4], [0.341308, 0.312924, 0.361076, -0.738342]),
        "last image token": (features.image[1, 195, -4:], [-0.088605, 0.458856, -0.269809, 0.007776]),
        "pooled audio": (features.audio.mean(1)[0, :4], [-0.276387, 0.115545, -0.595815, 0.576513]),
        "pooled image": (features.image.mean(1)[0, :4], [-0.030567, -0.537800, 0.201796, -0.887482]),
    }
    for what, (got, wanted) in expected.items():
        np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5, err_msg=what)


def official_plans(mode: str) -> Plans:
    """Official draws at ratio 0.75 with seed 0: torch's for noise, Python's for whole columns and rows."""
    torch.manual_seed(0)
    random.seed(0)
    noise, image_noise = torch.rand(2, 512), torch.rand(2, 196)
    if mode == "time":
        columns = torch.tensor([random.sample(range(64), 48) for _ in range(2)])
        noise = structured(noise, columns, torch.empty(2, 0, dtype=torch.long), audio_grid(ModelConfig()))
    if mode == "freq":
        rows = torch.tensor([random.sample(range(8), 6) for _ in range(2)])
        noise = structured(noise, torch.empty(2, 0, dtype=torch.long), rows, audio_grid(ModelConfig()))
    return Plans(plan_from_noise(noise, 128), plan_from_noise(image_noise, 49))


@torch.no_grad()
def run_with(base: CAVMAE, clips, mode: str, normalise: bool) -> tuple[PretrainOutput, PretrainLosses]:
    output = base(*clips, official_plans(mode))
    weights = LossConfig(normalise_pixels=normalise)
    return output, pretrain_losses(output, contrast_within(output, ContrastiveConfig()), weights)


@pytest.mark.parametrize(
    ("mode", "normalise", "expected"),
    [
        ("unstructured", False, [2.435526, 1.223829, 1.204791, 0.6907, 0.5]),
        ("unstructured", True, [2.431115, 1.219086, 1.205123, 0.6907, 0.5]),
        ("time", False, [2.437446, 1.225652, 1.204795, 0.6999, 0.5]),
        ("freq", False, [2.435780, 1.224889, 1.204161, 0.6730, 0.5]),
    ],
)
def test_base_losses_are_the_official_ones(base, clips, mode, normalise, expected):
    _, losses = run_with(base, clips, mode, normalise)
    got = [losses.total, losses.mae["audio"], losses.mae["image"], losses.contrastive, losses.in_batch_accuracy]
    np.testing.assert_allclose([float(x) for x in got], expected, atol=6e-5)  # contrastive is printed to 4 digits
    np.testing.assert_allclose([float(x) for x in got[:3]], expected[:3], rtol=RELATIVE)


@torch.no_grad()
def test_base_masks_and_predictions_are_the_official_ones(base, clips):
    output = base(*clips, official_plans("unstructured"), all_patches=True)
    audio_mask, image_mask = output.target("audio").plan.mask, output.target("image").plan.mask
    assert audio_mask[0, :16].tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1]
    assert image_mask[0, :16].tolist() == [1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1]
    audio, image = output.target("audio").prediction, output.target("image").prediction
    np.testing.assert_allclose(audio[0, 0, :4].numpy(), [0.284962, 1.078136, 0.716200, 0.161558], atol=1e-5)
    np.testing.assert_allclose(image[0, 0, :4].numpy(), [0.672929, 0.290843, -0.207856, 0.602174], atol=1e-5)
