"""Official files in and out: both directions bit by bit, and what is refused instead of half loaded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cavmae_ds.errors import CheckpointError
from cavmae_ds.models.cavmae.model import CAVMAE
from cavmae_ds.models.cavmae.state_dict import in_official_order, recognise
from cavmae_ds.weights.load import load_model
from cavmae_ds.weights.official import load_official, save_official
from tests.weights.small_models import HEADS, SIZES, clips, small_model

KINDS = ["pretrain", "finetune", "finetune-audio"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_an_official_file_comes_back_bit_by_bit(kind, prefix, tmp_path):
    given = {prefix + name: tensor for name, tensor in small_model(kind).state_dict().items()}
    torch.save(given, tmp_path / "theirs.pth")

    read = load_official(tmp_path / "theirs.pth", **HEADS)
    shuffled = dict(sorted(read.tensors.items()))
    save_official(shuffled, tmp_path / "ours.pth", prefix=bool(prefix))

    assert (read.kind, read.classes) == (kind, 0 if kind == "pretrain" else 5)
    written = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert list(written) == list(given)
    assert all(torch.equal(written[name], given[name]) for name in given)
    assert all(file.suffix == ".pth" for file in tmp_path.iterdir()), "nothing unfinished is left"


def test_sizes_are_read_from_shapes(tmp_path):
    torch.save(small_model("pretrain").state_dict(), tmp_path / "small.pth")
    assert load_official(tmp_path / "small.pth", **HEADS).model == SIZES


def test_heads_of_a_published_width_are_known_and_of_an_odd_one_asked_for(tmp_path):
    tiny = SIZES.model_copy(update={"embed_dim": 192, "decoder_embed_dim": 512})
    torch.save(small_model("pretrain", sizes=tiny).state_dict(), tmp_path / "tiny.pth")
    torch.save(small_model("pretrain").state_dict(), tmp_path / "odd.pth")
    sizes = load_official(tmp_path / "tiny.pth").model
    assert (sizes.num_heads, sizes.decoder_num_heads) == (3, 16)
    with pytest.raises(CheckpointError, match="48 wide, which no shape splits into heads; say how many with --heads"):
        load_official(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        (lambda name: f"model.{name}", r"names start with 'model\.', expected bare names or 'module\.'"),
        (lambda name: f"encoder.{name}", r"names start with 'encoder\.'"),
        (lambda name: f"module.module.{name}", r"names start with 'module\.'"),
        (
            lambda name: f"module.{name}" if "blocks" in name else name,
            r"names start with 'module\.'; all must, or none",
        ),
        (lambda name: name.replace("norm1_a", "norm_1a"), r"14 names are missing .* 14 names are unexpected"),
        (lambda name: name.replace("modality", "kind"), "no CAV-MAE: expected names like modality_a"),
    ],
)
def test_names_under_another_prefix_or_spelling_are_refused_not_trained_from_scratch(renamed, message, tmp_path):
    """spec/cav-mae.md 6, traps 10 and 11."""
    torch.save({renamed(name): t for name, t in small_model("pretrain").state_dict().items()}, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=message):
        load_official(tmp_path / "wrong.pth", **HEADS)


def test_a_missing_an_additional_and_a_misshapen_entry_are_named(tmp_path):
    whole = small_model("pretrain").state_dict()
    for changed, message in (
        ({name: t for name, t in whole.items() if name != "norm_a.bias"}, r"1 name is missing \(norm_a.bias\)"),
        (whole | {"cls_token_a": torch.zeros(1, 1, 48)}, r"1 name is unexpected \(cls_token_a\)"),
        (whole | {"norm_a.bias": torch.zeros(47)}, r"norm_a.bias must be of shape \(48,\).*got \(47,\)"),
        (whole | {"epoch": 3}, "nothing but tensors of floats, got int under 'epoch'"),
        (whole | {"pos_embed_a": torch.zeros(1, 48)}, r"pos_embed_a must have 3 dimensions, got shape \(1, 48\)"),
    ):
        torch.save(changed, tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match=message):
            load_official(tmp_path / "wrong.pth", **HEADS)


def test_a_file_that_runs_code_or_is_none_is_refused(tmp_path):
    torch.save({"weights": Path("code")}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("code.pth", "no file of weights alone"),
        ("text.pth", "no file of weights alone"),
        ("list.pth", "must hold a dict of tensors by name, got list"),
        ("none.pth", "cannot read .*No such file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_official(tmp_path / name)


def test_weights_that_are_no_model_are_not_saved(tmp_path):
    weights = dict(small_model("pretrain").state_dict())
    del weights["norm.bias"]
    with pytest.raises(CheckpointError, match=r"the weights to save .*norm\.bias"):
        save_official(weights, tmp_path / "ours.pth")
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_a_loaded_model_gives_what_the_saved_one_gave(tmp_path):
    model = small_model("pretrain")
    save_official(model.state_dict(), tmp_path / "official.pth")
    loaded = load_model(tmp_path / "official.pth", **HEADS)
    assert isinstance(loaded.model, CAVMAE) and not loaded.model.training
    audio, images = clips()
    model.normalisation = loaded.model.normalisation  # the official statistics, for raw inputs
    for ours, theirs in zip(loaded.model.features(audio, images), model.features(audio, images), strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_loaded_classifier_gives_what_the_saved_one_gave(tmp_path):
    model, (audio, images) = small_model("finetune"), clips()
    save_official(model.state_dict(), tmp_path / "official.pth")
    loaded = load_model(tmp_path / "official.pth", heads=4)
    model.normalisation = loaded.model.normalisation
    assert loaded.classes == 5 and torch.equal(loaded.model(audio, images), model(audio, images))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_of_a_tensor_is_noticed_by_the_crc_of_its_entry(tmp_path):
    state = small_model("pretrain").state_dict()
    path = tmp_path / "flipped.pth"
    torch.save(state, path)
    values = state["blocks_u.0.mlp.fc1.weight"].numpy().tobytes()
    flip(path, path.read_bytes().index(values) + 1000)
    with pytest.raises(CheckpointError, match=r"flipped.pth' is damaged: its entry 'flipped/data/\d+' .* CRC .* again"):
        load_official(path, **HEADS)


def test_every_malformed_file_ends_in_a_sentence(tmp_path):
    path = tmp_path / "odd.pth"
    for content, message in (
        ({1: torch.ones(2)}, "by name, got the key 1"),
        ({"modality_a": torch.ones(3).to_sparse()}, "dense tensor with values, .*torch.sparse_coo"),
        ({"modality_a": torch.ones(1).expand(10**12)}, "dense tensor with values"),
        ({"modality_a": torch.ones(1, 1, 0)}, "dense tensor with values"),
        ({"modality_a": torch.ones(2, device="meta")}, "dense tensor with values, .* on meta"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load_official(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"odd.pth' is empty"):
        load_official(path)
    torch.save({"modality_a": torch.ones(4)}, path, _use_new_zipfile_serialization=False)  # pickles without a CRC
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(content)
        flip(path, at)
        with pytest.raises(CheckpointError) as refused:
            load_official(path)
        assert len(str(refused.value)) < 500 and "\n" not in str(refused.value) and "\x1b" not in str(refused.value)


@pytest.mark.parametrize(("key", "value"), [("embed_dim", 2**31), ("image_size", 2**34), ("mlp_ratio", 1e18)])
def test_sizes_beyond_what_torch_can_count_are_refused_in_one_line(key, value):
    weights = recognise(small_model("pretrain").state_dict(), "a file", **HEADS)
    beyond = replace(weights, model=weights.model.model_copy(update={key: value}))
    with pytest.raises(CheckpointError, match=r"^a file has sizes that no model has: [^\n]+$"):
        in_official_order(beyond)
