"""Names of curves: whatever names one, a chart, a page or another module, names one that runs draw."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from cavmae_ds.evaluation.roc_curves import read_curves
from tests.data.small_shards import small_shards
from tests.ranks import CHECKOUT, fork_ranks

pytestmark = pytest.mark.slow

FINETUNING = """\
run_dir: {folder}/run
model: {{embed_dim: 32, num_heads: 4, modality_specific_depth: 1, image_size: 64, audio_frames: 112}}
data: {{train: {folder}/train, validation: {folder}/held, workers: 1, max_bad_share: 0.2}}
classifier: {{mode: audioonly}}
evaluate: {{batch: 4}}
train: {{global_batch: 8, micro_batch: 8, epochs: 1, precision: fp32}}
checkpoint: {{address: "s3://{bucket}/run"}}
monitor: {{log_every: 1}}
"""


@pytest.fixture(scope="module")
def finetuned(tiny_shards, tmp_path_factory, s3_server) -> Path:
    """The folder of a finetuning run with a damaged clip, uploaded to a bucket."""

    def no_frames(number: int, record: dict) -> None:
        if number == 5:
            record["frames"] = bytes(len(record["frames"]))

    folder = tmp_path_factory.mktemp("finetuned")
    small_shards(tiny_shards, folder / "train", range(16), shard_clips=16, change=no_frames)
    small_shards(tiny_shards, folder / "held", range(16, 24), shard_clips=8)
    (folder / "run.yaml").write_text(FINETUNING.format(folder=folder, bucket=s3_server.fresh_bucket()))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        script = CHECKOUT / "launch" / "finetune.py"
        finished = fork_ranks(1, script, str(folder / "run.yaml"), scratch=folder)
    assert finished.returncode == 0, finished.stdout
    return folder / "run"


@pytest.fixture(scope="module")
def drawn(everything, finetuned) -> set[str]:
    """Tags of all curves that the two runs drew."""
    return read_curves(everything).keys() | read_curves(finetuned).keys()


@pytest.fixture(scope="module")
def events(everything) -> EventAccumulator:
    accumulator = EventAccumulator(str(everything / "tensorboard"))
    accumulator.Reload()
    return accumulator


def documented(page: str) -> list[str]:
    """Curves of the page's tables that begin with "curve" or "curves": a * or a word in capitals stands for any."""
    text = (CHECKOUT / "docs" / page).read_text()
    tables = re.findall(r"^\| curves? \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    cells = [row.split(" | ")[0] for table in tables for row in table.splitlines()]
    return [re.sub("[A-Z]+", "*", name) for cell in cells for name in re.findall("`([^`]+)`", cell)]


def test_docs_monitoring_explains_every_curve_that_is_drawn_and_no_other(drawn):
    explained = documented("monitoring.md")
    assert [tag for tag in drawn if not any(fnmatchcase(tag, name) for name in explained)] == []
    assert [name for name in explained if not any(fnmatchcase(tag, name) for tag in drawn)] == []
    assert len(explained) > 25


def test_every_curve_that_docs_operations_tells_to_look_at_is_drawn(drawn):
    watched = documented("operations.md")
    assert [name for name in watched if not any(fnmatchcase(tag, name) for tag in drawn)] == []
    assert len(watched) > 15


def test_every_line_of_every_chart_in_the_overview_is_a_curve_that_is_drawn(drawn, events):
    (written,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(written.tensor_proto.string_val[0])
    lines = [(chart.title, tag) for tab in layout.category for chart in tab.chart for tag in chart.multiline.tag]
    assert [tab.title for tab in layout.category] == ["is it learning", "is it well", "is it fast"]
    # Whole tags, though TensorBoard asks for a beginning alone: a name that is cut short is a mistake too.
    assert [line for line in lines if not any(re.fullmatch(line[1], tag) for tag in drawn)] == []


def test_every_metric_beside_the_hyperparameters_is_a_curve_that_is_drawn(drawn, events):
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = {metric.name.tag for metric in HParamsPluginData.FromString(content).experiment.metric_infos}
    assert metrics - drawn == set()
    assert {"loss/total", "validation/map", "probe/audio_to_image_recall_at_1"} <= metrics


def test_every_curve_that_a_module_names_is_drawn(drawn):
    """As comparisons and reports do, which read curves back by name."""
    folders = "|".join({tag.partition("/")[0] for tag in drawn})
    names = {
        node.value: path.name
        for path in (CHECKOUT / "cavmae_ds").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and re.fullmatch(rf"({folders})/\w*[a-z0-9]", str(node.value))
    }
    assert {name: where for name, where in names.items() if name not in drawn} == {}
    assert len(names) > 20
