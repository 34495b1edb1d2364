"""What is shown of retrieval: the hits of features known by hand, and the page and picture of a model."""

from __future__ import annotations

import base64
import io
import json
import re
from html import escape

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.colors import to_hex
from PIL import Image

from cavmae_ds.data.format.records import Records
from cavmae_ds.data.format.schema import audio_of
from cavmae_ds.data.inspect.contact_sheet import ShownClip
from cavmae_ds.data.prepare.frames import encode_picture
from cavmae_ds.evaluation.gallery import COSINE, Gallery, Hit, Kinship, Query, Search, spread_queries
from cavmae_ds.evaluation.gallery_page import gallery_page
from cavmae_ds.evaluation.gallery_picture import draw_gallery
from cavmae_ds.evaluation.inference import Pooled
from tests.evaluation.test_evaluate_command import evaluate, single_file


def test_hits_are_the_most_similar_and_say_what_they_have_in_common():
    """Given sounds and frames at angles: frame k lies at 10 k degrees, sound k 12 degrees further."""

    def unit(degrees: torch.Tensor) -> torch.Tensor:
        return torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)

    angles = torch.arange(7) * 10.0
    pooled = Pooled(unit(angles + 12), 3 * unit(angles), [[0], [1], [0, 2], [], [1], [1], [2]])

    first, last = spread_queries(pooled, 2)

    assert [query.row for query in (first, last)] == [0, 3]
    found = [(hit.row, round(hit.similarity, 3), hit.kinship) for hit in first.frames.hits]
    cosines = [float(np.cos(np.deg2rad(d)).round(3)) for d in (2, 8, 12, 18, 28)]
    own, same, other = Kinship.partner, Kinship.same_class, Kinship.other
    assert found == list(zip([1, 2, 0, 3, 4], cosines, [other, same, own, other, other], strict=True))
    assert first.frames.partner_rank == 3  # sound 0, at 12 degrees, is nearer to frames 1 and 2
    assert [hit.row for hit in first.sounds.hits] == [0, 1, 2, 3, 4] and first.sounds.partner_rank == 1
    assert [hit.kinship for hit in last.sounds.hits].count(same) == 0  # a clip without labels


@pytest.mark.parametrize("asked", [2, 3, 9])
def test_no_more_queries_and_hits_than_clips(asked):
    draw = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    queries = spread_queries(Pooled(draw[0], draw[1], [[], [], []]), asked)
    assert [query.row for query in queries] == ([0, 1] if asked == 2 else [0, 1, 2])
    assert all(sorted(hit.row for hit in query.frames.hits) == [0, 1, 2] for query in queries)


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    draw = np.random.default_rng(0)

    def clip(name: str, labels: list[str]) -> ShownClip:
        frame = encode_picture(draw.integers(0, 256, (64, 64, 3), np.uint8), 64, 85)
        sound = draw.integers(-9999, 9999, 16000).astype(np.int16)
        return ShownClip(name, "", 0.0, labels, [], [frame], [], sound, draw.standard_normal((98, 128), np.float32))

    scores = "frame of a sound: R@1 <b>"
    hits = [Hit(1, 0.9, Kinship.same_class), Hit(0, 0.8, Kinship.partner), Hit(2, -0.1, Kinship.other)]
    clips = {0: clip("a<b", ["dog & cat"]), 1: clip("$x_1$", ["dog & cat"]), 2: clip("c", [])}
    return Gallery("run: <shards>", 3, [Query(0, Search(hits, 2), Search(hits[::-1], 2))], clips, scores)


def test_a_page_holds_every_sound_and_frame_loads_nothing_and_escapes_names(gallery):
    page = gallery_page(gallery)

    sounds = [base64.b64decode(found) for found in re.findall('src="data:audio/wav;base64,([^"]*)"', page)]
    heard = [soundfile.read(io.BytesIO(sound), dtype="int16")[0] for sound in sounds]
    asked_and_hits = [0, 2, 0, 1]  # the sound that is searched by, then what the frame finds
    for row, sound in zip(asked_and_hits, heard, strict=True):
        assert (sound == gallery.clips[row].audio).all()
    assert page.count('src="data:image/jpeg') == 4 and page.count('src="data:image/png') == 5  # and the colour bar
    assert "R@1 &lt;b&gt;" in page and escape(COSINE) in page
    assert re.findall('figure class="([a-z_]*)"', page) == [
        "same_class",
        "partner",
        "other",
        "other",
        "partner",
        "same_class",
    ]
    assert "a&lt;b" in page and "run: &lt;shards&gt;" in page and "dog &amp; cat" in page and "a<b" not in page
    assert "0.80  its own  dog" in page and "number 2 of 3" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "<script" not in page


def test_a_picture_frames_hits_by_what_they_are(gallery):
    figure = draw_gallery(gallery)
    *panels, bar = figure.subfigs[0].axes
    assert len(panels) == 12
    assert bar.get_ylabel() == "log energy" and bar.get_ylim() == pytest.approx(gallery.scale)
    ticks = [label.get_text() for label in panels[7].get_yticklabels()]
    assert panels[7].get_ylabel() == "kHz" and ticks == ["0.25", "0.5", "1", "2", "4"]
    assert gallery.scores in figure.get_suptitle() and "cosine" in figure.get_suptitle()
    edges = [to_hex(panel.spines["left"].get_edgecolor()) for panel in panels[1:4] + panels[7:10]]
    green, orange, grey = "#1f9d55", "#e69f00", "#c4c9d1"
    colours = {Kinship.partner: green, Kinship.same_class: orange, Kinship.other: grey}
    assert edges == [colours[hit.kinship] for search in gallery.queries[0][1:] for hit in search.hits]
    assert {green, orange, grey} == set(edges)
    assert panels[2].get_xlabel() == "0.80  its own  dog & cat" and not panels[4].axison  # no fourth hit


def test_a_model_is_shown_by_its_own_clips(tmp_path, tiny_shards):
    file = single_file(tmp_path / "base.safetensors", "pretrain")
    told = evaluate(file, "--data", tiny_shards, "--gallery", tmp_path / "found.html", "--queries", "2")
    evaluate(file, "--data", tiny_shards, "--gallery", tmp_path / "found.png", "--queries", "1")

    page = (tmp_path / "found.html").read_text()
    samples = list(Records(str(tiny_shards)).read([0, 12]))
    assert re.findall('<article class="card"><b>([^<]*)</b>', page) == [sample["clip_id"] for sample in samples]
    sound = base64.b64decode(re.findall('src="data:audio/wav;base64,([^"]*)"', page)[0])
    assert (soundfile.read(io.BytesIO(sound), dtype="int16")[0] == audio_of(samples[0])).all()
    assert "2 queries and what they find are shown in" in told
    scores = json.loads((tmp_path / "base.retrieval.json").read_text())
    assert f"frame of a sound: R@1 {scores['audio_to_image']['recall_at_1']:.1%}" in page
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 1000  # not a blank page
