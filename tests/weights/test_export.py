"""`cavmae export`: every format, what it says, and that a graph needs none of our code to give the same."""

import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from cavmae_ds.cli import app
from cavmae_ds.errors import CheckpointError, ConfigError
from cavmae_ds.models.cavmae.model import in_decoder
from cavmae_ds.weights import export as exporting
from cavmae_ds.weights.export import export, format_of
from cavmae_ds.weights.load import load_model, open_weights
from cavmae_ds.weights.official import save_official
from tests.weights.small_models import HEADS, clips, small_model


@pytest.fixture
def official(tmp_path):
    """A small pretrained model in an official file."""
    save_official(small_model("pretrain").state_dict(), tmp_path / "official.pth")
    return tmp_path / "official.pth"


def run(*arguments) -> str:
    outcome = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output.replace("\n", "")


def test_official_to_one_file_and_back_is_bit_by_bit(official, tmp_path):
    said = run(official, "--out", tmp_path / "one.safetensors", "--heads", 4, "--decoder-heads", 4)
    assert f"entries of {official} (pretrain) written to {tmp_path / 'one.safetensors'} as safetensors" in said
    run(tmp_path / "one.safetensors", "--out", tmp_path / "back.pth")
    assert (tmp_path / "one.safetensors").stat().st_mode == (tmp_path / "back.pth").stat().st_mode
    assert load_model(tmp_path / "one.safetensors").config.decoder_num_heads == 4
    first, back = (torch.load(path, weights_only=True) for path in (official, tmp_path / "back.pth"))
    assert list(first) == list(back) and all(torch.equal(first[name], back[name]) for name in first)


GRAPH_ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1])
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save(program.module()(*inputs), sys.argv[3])
assert not any(name.startswith("cavmae_ds") for name in sys.modules)
"""


def test_a_graph_runs_without_our_code_on_any_number_of_clips(official, tmp_path):
    said = run(official, "--out", tmp_path / "encoder.pt2", "--heads", 4, "--decoder-heads", 4)
    assert "its embeddings differ from the model's by at most" in said
    kept = torch.export.load(tmp_path / "encoder.pt2").state_dict
    assert all(t.numel() == 1 for name, t in kept.items() if in_decoder(name.removeprefix("model.")))
    inputs = clips(count=5)
    torch.save(inputs, tmp_path / "inputs.pt")
    files = [str(tmp_path / name) for name in ("encoder.pt2", "inputs.pt", "embeddings.pt")]
    subprocess.run([sys.executable, "-c", GRAPH_ALONE, *files], check=True, cwd=tmp_path, timeout=120)
    with torch.no_grad():
        features = load_model(official, **HEADS).model.features(*inputs)
    embeddings = torch.load(tmp_path / "embeddings.pt", weights_only=True)
    for embedding, tokens in zip(embeddings, features, strict=True):
        torch.testing.assert_close(embedding, tokens.mean(1), atol=1e-5, rtol=1e-5)


def test_an_audio_classifiers_graph_hears_only(tmp_path):
    save_official(small_model("finetune-audio").state_dict(), tmp_path / "audio.pth")
    difference = export(open_weights(tmp_path / "audio.pth", heads=4), tmp_path / "audio.pt2", "torch-export")
    (embedding,) = torch.export.load(tmp_path / "audio.pt2").module()(clips(count=1)[0])
    assert difference < 1e-5 and embedding.shape == (1, 48)


def test_onnx_gives_the_same_or_says_what_is_missing(official, tmp_path):
    weights, out = open_weights(official, **HEADS), tmp_path / "encoder.onnx"
    try:
        import onnxruntime  # noqa: F401  an extra
        import onnxscript  # noqa: F401
    except ImportError:
        with pytest.raises(
            ConfigError,
            match=r"needs onnx.*pip install -c \S+ 'cavmae-ds\[export\]'.*torch-export",
        ):
            export(weights, out, "onnx")
        assert not out.exists()
        return
    assert export(weights, out, "onnx") < 1e-5


def test_a_graph_that_is_not_the_model_is_not_written(official, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(CheckpointError, match=r"differ from the model's by .*encoder\.pt2 was not written"):
        export(open_weights(official, **HEADS), tmp_path / "encoder.pt2", "torch-export")
    assert [path.name for path in tmp_path.iterdir()] == ["official.pth"]


def test_an_exported_model_may_hear_shorter_sounds(official, tmp_path):
    run(official, "--out", tmp_path / "short.safetensors", "--audio-frames", 48, "--heads", 4, "--decoder-heads", 4)
    loaded = load_model(tmp_path / "short.safetensors")
    assert loaded.config.audio_frames == 48
    assert loaded.model.features(clips()[0][:, :48].contiguous(), None).audio.shape == (2, 24, 48)


def test_an_ending_that_tells_no_format_is_refused(tmp_path):
    assert format_of(tmp_path / "a.b.onnx") == "onnx"
    with pytest.raises(ConfigError, match=r"tells no format by its ending; known are \.safetensors \(safetensors\)"):
        format_of(tmp_path / "weights.bin")


def test_a_place_where_nothing_can_be_written_is_refused(official):
    with pytest.raises(ConfigError, match=r"cannot write .*x\.pth': (Not a directory|File exists)"):
        export(open_weights(official, **HEADS), official / "x.pth", "official")
