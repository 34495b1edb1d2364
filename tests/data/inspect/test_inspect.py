"""An inspection tells what is in a data set, names bad files, and shows clips on a page that needs nothing else."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from PIL import Image

from cavmae_ds.data.format.records import Records
from cavmae_ds.data.format.schema import ClipFlag, audio_of, frame_jpeg
from cavmae_ds.data.inspect.contact_sheet import draw_sheet, spread_clips
from cavmae_ds.data.inspect.inspection import inspect_data_set
from cavmae_ds.data.inspect.page import html_page
from cavmae_ds.data.inspect.summary import summary
from cavmae_ds.data.official.importing import import_official
from cavmae_ds.data.prepare.settings import BuildSettings
from cavmae_ds.data.storage import open_store
from tests.data.official_files import OfficialFolder, sound
from tests.ranks import fork_cavmae

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Nine clips in three parts, one of them ten seconds long, one nameless of class, one rejected, one named badly."""
    root = tmp_path_factory.mktemp("inspected")
    folder = OfficialFolder(root / "official")
    for k in range(7):
        folder.add(f"clip{k}", "/m/a,/m/b" if k < 2 else "/m/a", sound(1 + 0.1 * k, seed=k))
    folder.add("long", "", sound(10.5))
    folder.add("mute", "/t/c", np.zeros(16_000, np.int16))
    folder.add("evil", "/m/b", sound(2))
    folder.entries[-1]["video_id"] = EVIL
    for k in range(10):
        target = folder.root / "frames" / f"frame_{k}" / f"{EVIL}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder.root / "frames" / f"frame_{k}" / "evil.jpg", target)
    listing, label_csv = folder.write()
    settings = BuildSettings(frame_size=64, inputs_per_part=4)
    import_official(listing, root / "shards", settings, label_csv=label_csv, workers=1, max_bad_share=0.5)
    return root / "shards"


@pytest.fixture
def copied(tmp_path, shards):
    return shutil.copytree(shards, tmp_path / "copied")


def rows_of(found, title):
    [section] = [section for section in summary(found) if section.title == title]
    return {row.name: row.value for row in section.rows}


def test_the_summary_counts_what_is_there(shards):
    found = inspect_data_set(Records(str(shards)), verify=True)

    assert found.faults == []
    assert sorted(found.seconds) == pytest.approx([1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 2, 10])
    assert found.flags == {ClipFlag.SHORT: 8}
    assert rows_of(found, "data set")["clips"] == "9"
    assert rows_of(found, "classes") == {"Dog": "7", "Cat, small": "3", "Rain": "0"}
    assert rows_of(found, "rejected inputs") == {"silent_audio: every sample of the sound is zero": "1"}
    lengths = rows_of(found, "length of clips")
    assert (lengths["1 to 2 s"], lengths["2 to 3 s"], lengths["9 to 10 s"]) == ("7", "1", "1")
    [classes] = [section for section in summary(found) if section.title == "classes"]
    assert classes.note.startswith("1 clips without a label, 1 classes without a clip; as varied as 1.8 ")


def test_files_that_are_missing_cut_or_changed_are_named(copied):
    # Given one shard gone, one cut, one with a byte changed, notes that are no JSON and a label nobody knows
    first, second, third = (copied / f"part-{k:05d}" / "shard.00000.mds" for k in range(3))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    content = bytearray(third.read_bytes())
    content[-9] ^= 1
    third.write_bytes(content)
    (copied / "part-00001" / "part.json").write_text("[{]")
    notes = copied / "part-00000" / "part.json"
    notes.write_text(notes.read_text().replace('"labels": [\n   0', '"labels": [\n   9'))
    (copied / "sample_weights.npy").write_bytes(b"no numbers")

    # When the data set is inspected, shallowly and in depth
    shallow = inspect_data_set(Records(str(copied))).faults
    deep = inspect_data_set(Records(str(copied)), verify=True).faults

    # Then the changed byte is found in depth only, and all else by both
    named = (
        "part-00000/part.json is damaged: ValueError: it has a label that is no class",
        "part-00000/shard.00000.mds is missing",
        "part-00001/shard.00000.mds has ",
        "part-00001/part.json is damaged",
    )
    for words in (*named, "sample_weights.npy in "):
        assert sum(fault.startswith(words) for fault in shallow) == 1, words
        assert sum(fault.startswith(words) for fault in deep) == 1, words
    assert len(shallow) == 5
    damaged = [fault for fault in deep if fault not in shallow]
    assert [fault.split(":")[0] for fault in damaged] == [
        "part-00001/shard.00000.mds is damaged",
        "part-00002/shard.00000.mds is damaged",
    ]


class Page(HTMLParser):
    """Collects what a browser would load or run, and the text it would show."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.urls, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [value for name, value in attrs if name in ("src", "href", "data", "poster", "action")]

    def handle_data(self, data):
        self.text.append(data.strip())

    def files(self, kind):
        start = f"data:{kind};base64,"
        return [base64.b64decode(url[len(start) :]) for url in self.urls if url.startswith(start)]


def test_the_page_holds_pictures_and_sounds_and_loads_nothing(shards):
    records = Records(str(shards))
    found = inspect_data_set(records)
    clips = spread_clips(records, 20)
    text = html_page("a <title>", summary(found), ["part-00009 is <missing>"], clips)

    page = Page(text)

    stored = list(records.read(range(9)))
    assert all(url.startswith("data:") for url in page.urls)
    assert "script" not in page.tags and EVIL in page.text  # shown, not run
    assert "part-00009 is <missing>" in page.text
    assert not re.search(r"url\(|@import|https?:", text)
    assert page.files("image/jpeg") == [frame_jpeg(sample, k) for sample in stored for k in (0, 3, 6, 9)]
    for wav, sample in zip(page.files("audio/wav"), stored, strict=True):
        samples, rate_hz = soundfile.read(io.BytesIO(wav), dtype="int16")
        assert rate_hz == 16_000 and np.array_equal(samples, audio_of(sample))
    pictures = [Image.open(io.BytesIO(png)) for png in page.files("image/png")]
    assert len(pictures) == 9
    assert all(picture.getpixel((0, 0))[3] == 0 for picture in pictures)  # transparent: dark pages show through


def test_the_log_mel_is_drawn_over_seconds_and_khz(shards):
    clips = spread_clips(Records(str(shards)), 3)

    figure = draw_sheet(clips, "three")

    panels = [axes for row in figure.subfigs for axes in row.axes if axes.get_ylabel() == "kHz"]
    assert [panel.get_xlim()[1] for panel in panels] == pytest.approx([clip.seconds for clip in clips])
    [image] = panels[0].images
    assert image.get_array().shape == clips[0].log_mel.T.shape
    # 1 kHz is in the middle between the left foot of a triangle's middle and the next: 1127 ln(1 + f / 700) is linear
    ticks = dict(zip((label.get_text() for label in panels[0].get_yticklabels()), panels[0].get_yticks(), strict=True))
    spacing = 1127 * np.log((1 + 8000 / 700) / (1 + 20 / 700)) / 129
    middle_hz = [700 * ((1 + 20 / 700) * np.exp((k + 1) * spacing / 1127) - 1) for k in range(128)]
    assert np.interp(1000, middle_hz, range(128)) == pytest.approx(ticks["1"], abs=0.05)


def test_a_bucket_is_inspected_without_fetching_its_shards(shards, s3_bucket, tmp_path):
    address = f"s3://{s3_bucket}/set"
    for file in (path for path in shards.rglob("*") if path.is_file()):
        open_store(address).put_bytes(file.relative_to(shards).as_posix(), file.read_bytes())

    records = Records(address)
    found = inspect_data_set(records)
    [clip] = spread_clips(records, 1)

    assert (found.faults, len(found.seconds)) == ([], 9)
    [expected] = Records(str(shards)).read([0])
    assert np.array_equal(clip.audio, audio_of(expected))


def test_the_command_shows_tables_writes_the_page_and_ends_with_4_when_files_are_bad(copied, tmp_path):
    (copied / "part-00002" / "shard.00000.mds").unlink()

    done = fork_cavmae("inspect", copied, "--out", tmp_path / "sub" / "report.png", "--clips", "2")

    assert done.returncode == 4, done.stderr
    assert done.stderr == "cavmae: part-00002/shard.00000.mds is missing\n"
    assert "length of clips" in done.stdout and "Cat, small" in done.stdout
    with Image.open(tmp_path / "sub" / "report.png") as picture:
        assert picture.width > 1000


def test_notes_of_an_older_version_are_told_apart_from_clips_without_labels(copied):
    for part in copied.glob("part-*/part.json"):
        rows = json.loads(part.read_bytes())
        part.write_text(json.dumps([{k: row[k] for k in ("source", "code", "detail", "seconds")} for row in rows]))

    found = inspect_data_set(Records(str(copied)))

    assert found.faults == []
    [classes] = [section for section in summary(found) if section.title == "classes"]
    assert "a version that did not note labels" in classes.note
