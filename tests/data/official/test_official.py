"""Official data files come in and go out without loss, and each of their oddities is accepted or named."""

import csv
import json
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from benchmarks.digits_maker import make_digits, read_recordings
from cavmae_ds.cli import app
from cavmae_ds.data.format.balance import read_sample_weights
from cavmae_ds.data.format.records import Records
from cavmae_ds.data.format.schema import ClipFlag, audio_of, frame_jpeg, frame_of, labels_of
from cavmae_ds.data.official.clip import read_official
from cavmae_ds.data.official.exporting import create_official, file_name
from cavmae_ds.data.official.importing import Classes, find_official, import_official, read_label_csv
from cavmae_ds.data.prepare.rejects import ClipRejected
from cavmae_ds.data.prepare.settings import BuildSettings
from cavmae_ds.data.storage import open_store
from cavmae_ds.errors import DataError, UserError
from tests.data.official_files import OfficialFolder, official_clips, sound, write_recordings
from tests.ranks import fork_cavmae

SMALL = BuildSettings(frame_size=64, inputs_per_part=16)
CLASSES = Classes(("/m/a", "/m/b", "/t/c"), ("Dog", "Cat, small", "Rain"))


def clips_in(out):
    records = Records(str(out))
    return {sample["clip_id"]: sample for sample in records.read(range(len(records)))}


def rejections_in(out):
    with (out / "rejected.csv").open(newline="") as file:
        return {row["source"]: row["code"] for row in csv.DictReader(file)}


def assert_same_records(one, other):
    assert one.keys() == other.keys()
    for clip_id in one:
        assert one[clip_id].keys() == other[clip_id].keys()
        for column in one[clip_id]:
            assert np.array_equal(one[clip_id][column], other[clip_id][column]), (clip_id, column)


@pytest.fixture(scope="module")
def made_shards(tmp_path_factory):
    """Twenty clips, imported: one or two labels each, of different lengths and frames."""
    root = tmp_path_factory.mktemp("made")
    folder = OfficialFolder(root / "official")
    for k in range(20):
        folder.add(f"clip {k:02d}", ("/m/a", "/m/b", "/t/c,/m/a")[k % 3], sound(0.5 + 0.01 * k, seed=k))
        folder.frame(f"clip {k:02d}", 0, Image.new("RGB", (64, 64), (0, 10 * k, 0)))
    listing, label_csv = folder.write()
    import_official(listing, root / "shards", SMALL, label_csv=label_csv, workers=1)
    return root / "shards"


@pytest.fixture
def folder(tmp_path):
    return OfficialFolder(tmp_path / "official")


def record_of(folder, classes=CLASSES):
    """The only clip of a folder as a record."""
    [item] = find_official(folder.write()[0], classes)
    if item.rejected:
        raise item.rejected
    return read_official(item, SMALL)


def test_digits_arrive_as_the_official_loader_reads_them(tmp_path):
    digits = tmp_path / "digits"
    make_digits(digits, read_recordings(write_recordings(tmp_path / "recordings")), size=64)
    label_csv = digits / "class_labels.csv"

    for split in ("train", "test"):
        import_official(digits / f"{split}.json", tmp_path / split, SMALL, label_csv=label_csv, workers=1)

        expected = official_clips(digits / f"{split}.json", label_csv)
        found = clips_in(tmp_path / split)
        assert list(found) == sorted(clip["video_id"] for clip in expected)
        assert len(found) == 60
        for clip in expected:
            sample = found[clip["video_id"]]
            assert np.array_equal(audio_of(sample), clip["wave"])
            assert labels_of(sample).tolist() == clip["labels"]
            assert all(np.abs(frame_of(sample, k) - clip["frames"][k].astype(int)).max() <= 1 for k in range(10))
            path = digits / "frames" / "frame_3" / f"{clip['video_id']}.jpg"
            assert frame_jpeg(sample, 3) == path.read_bytes()
            assert ClipFlag(sample["flags"]) == ClipFlag.SHORT
        manifest = Records(str(tmp_path / split)).manifest
        assert (manifest.frame_rule, manifest.jpeg_quality) == ("given", None)
        assert (manifest.class_ids[1], manifest.classes[1], len(manifest.classes)) == ("/d/1", "one", 16)


def test_out_and_in_again_gives_the_same_records_and_weights(made_shards, tmp_path):
    exported = create_official(str(made_shards), tmp_path / "out")
    import_official(
        tmp_path / "out" / "data.json",
        tmp_path / "again",
        SMALL,
        label_csv=tmp_path / "out" / "class_labels.csv",
        weight_csv=tmp_path / "out" / "data_weight.csv",
        workers=1,
    )

    assert exported == (20, 0, 0)
    assert_same_records(clips_in(made_shards), clips_in(tmp_path / "again"))
    before, after = (Records(str(place)).manifest for place in (made_shards, tmp_path / "again"))
    assert (before.classes, before.class_ids) == (after.classes, after.class_ids)
    weights = [read_sample_weights(open_store(place), 20) for place in (made_shards, tmp_path / "again")]
    assert np.array_equal(*weights)


def test_exported_files_are_what_the_official_loader_expects(made_shards, tmp_path):
    # Given some clips chosen by id, one line with a BOM before it
    wanted = sorted(clips_in(made_shards))[2::5]
    (tmp_path / "ids.txt").write_text("\ufeff" + "\n".join(wanted) + "\n", encoding="utf-8")

    # When they are written
    done = fork_cavmae("create-official", made_shards, "--out", tmp_path / "out", "--ids", tmp_path / "ids.txt")

    # Then a reader that knows only the official layout finds them, with the official weights of the whole data set
    assert done.returncode == 0, done.stderr
    clips = official_clips(tmp_path / "out" / "data.json", tmp_path / "out" / "class_labels.csv")
    stored = clips_in(made_shards)
    counts = np.bincount(np.concatenate([labels_of(sample) for sample in stored.values()]), minlength=3)
    weights = [float(line) for line in (tmp_path / "out" / "data_weight.csv").read_text().splitlines()]
    assert [clip["video_id"] for clip in clips] == wanted
    assert len(weights) == len(wanted)
    for clip, weight in zip(clips, weights, strict=True):
        assert np.array_equal(clip["wave"], audio_of(stored[clip["video_id"]]))
        assert clip["labels"] == labels_of(stored[clip["video_id"]]).tolist()
        assert [frame.shape for frame in clip["frames"]] == [(64, 64, 3)] * 10
        assert weight == pytest.approx(sum(1000 / (counts[label] + 0.01) for label in clip["labels"]))


def test_each_bad_clip_is_rejected_by_name_and_the_good_ones_stay(folder, tmp_path):
    # Given good clips among bad ones
    folder.add("good", " /m/b , ,/m/a,/m/b")
    folder.add("unlabelled", "")
    folder.add("unmentioned", None)
    expected = {}

    def bad(name, code, **options):
        expected[f"audio/{name}.wav"] = code
        return folder.add(name, **options)

    bad("mute", "silent_audio", wave=np.zeros(16_000, np.int16))
    bad("blip", "too_short", wave=sound()[:399])
    bad("nan", "corrupt_audio", wave=np.full(16_000, np.nan, np.float32))
    bad("label", "unknown_label", labels="/m/a,/m/nobody")
    bad("gone", "unreadable").unlink()
    bad("empty", "empty_file").write_bytes(b"")
    bad("text", "not_media").write_text("Remember the milk.\n" * 20)
    wav = bad("cut", "truncated")
    wav.write_bytes(wav.read_bytes()[:10_000])
    bad("blind", "no_video")
    bad("blurred", "corrupt_video")
    for k in range(10):
        (folder.root / "frames" / f"frame_{k}" / "blind.jpg").unlink()
    for k in (2, 7):
        path = folder.root / "frames" / f"frame_{k}" / "blurred.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    shutil.copy(folder.root / "audio" / "good.wav", folder.root / "audio" / "twin.wav")
    folder.entry("good", "/m/a", "audio/twin.wav")  # relative paths count from the JSON
    folder.entry("../../escape", "/m/a", "audio/escape.wav")
    expected |= {"audio/twin.wav": "duplicate_id", "audio/escape.wav": "unreadable"}
    listing, label_csv = folder.write(encoding="utf-8-sig")

    # When they are imported
    arguments = ("--label-csv", label_csv, "--out", tmp_path / "out", "--frame-size", 64, "--max-bad", 0.9)
    done = fork_cavmae("import-official", listing, *arguments)

    # Then each reason is told
    assert done.returncode == 0, done.stderr
    assert all(code in done.stdout for code in expected.values())
    assert rejections_in(tmp_path / "out") == expected
    found = clips_in(tmp_path / "out")
    assert {name: labels_of(sample).tolist() for name, sample in found.items()} == {
        "good": [0, 1],
        "unlabelled": [],
        "unmentioned": [],
    }


def test_a_long_sound_cut_after_the_clip_s_end_is_whole_enough(folder):
    wav = folder.add("long", wave=sound(20.0))
    wav.write_bytes(wav.read_bytes()[: 12 * 32_000])

    assert len(record_of(folder).audio) == 160_000


@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
def test_sound_of_another_rate_is_converted_not_taken_for_16_khz(folder, rate_hz):
    tone = (9000 * np.sin(2 * np.pi * 440 * np.arange(2 * rate_hz) / rate_hz)).astype(np.int16)
    folder.add("tone", wave=tone, rate_hz=rate_hz)

    audio = record_of(folder).audio

    spectrum = np.abs(np.fft.rfft(audio[8_000:24_000]))  # bins of 1 Hz
    assert len(audio) == 32_000
    assert spectrum.argmax() == 440


def test_the_first_channel_is_kept_and_ten_seconds_of_it(folder):
    left, right = sound(11.0, seed=1), sound(11.0, seed=2)
    folder.add("long", wave=np.stack([left, right], 1))

    record = record_of(folder)

    assert np.array_equal(record.audio, left[:160_000])
    assert record.flags == 0
    assert record.frame_times == tuple(range(10))


def test_a_flac_file_is_read_like_a_wav(folder):
    wav = folder.add("clip", wave=sound(seed=3))
    soundfile.write(wav.with_suffix(".flac"), sound(seed=3), 16_000)
    folder.entries[0]["wav"] = "audio/clip.flac"

    assert np.array_equal(record_of(folder).audio, sound(seed=3))


def test_colour_files_of_the_size_stay_as_they_are_and_others_are_made_so(folder):
    folder.add("clip")
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3)).astype(np.uint8))
    kept = {
        0: folder.frame("clip", 0, noise, quality=40),
        1: folder.frame("clip", 1, noise, progressive=True),
        2: folder.frame("clip", 2, noise, subsampling=0),
    }
    folder.frame("clip", 3, Image.new("L", (64, 64), 130))
    folder.frame("clip", 4, Image.new("CMYK", (64, 64), (255, 0, 0, 0)))
    folder.frame("clip", 5, Image.new("RGB", (200, 100), (10, 200, 30)))
    halves = Image.new("RGB", (64, 128), (255, 0, 0))
    halves.paste((0, 0, 255), (0, 64, 64, 128))
    folder.frame("clip", 6, halves)

    frames = record_of(folder).frames

    assert all(frames[k] == path.read_bytes() for k, path in kept.items())
    pixels = [frame_of({"frames": jpeg, "frame_offsets": [0, len(jpeg)], "clip_id": "clip"}, 0) for jpeg in frames]
    assert {image.shape for image in pixels} == {(64, 64, 3)}
    assert np.abs(pixels[3].astype(int) - 130).max() <= 2
    assert np.abs(pixels[4].astype(int) - [0, 255, 255]).max() <= 4
    assert np.abs(pixels[5].astype(int) - [10, 200, 30]).max() <= 4
    assert pixels[6][:20].mean((0, 1)).argmax() == 0 and pixels[6][-20:].mean((0, 1)).argmax() == 2  # its centre


def test_a_missing_frame_takes_the_next_lower_one_that_exists(folder):
    folder.add("clip")
    files = [folder.root / "frames" / f"frame_{k}" / "clip.jpg" for k in range(10)]
    content = [path.read_bytes() for path in files]
    for k in (0, 4, 5):
        files[k].unlink()

    record = record_of(folder)

    assert record.frames == tuple(content[k] for k in (1, 1, 2, 3, 3, 3, 6, 7, 8, 9))
    assert record.flags == ClipFlag.SHORT | ClipFlag.REPEATED_FRAMES


def test_one_damaged_frame_is_replaced_and_flagged(folder):
    folder.add("clip")
    path = folder.root / "frames" / "frame_6" / "clip.jpg"
    path.write_bytes(path.read_bytes()[:-200])

    record = record_of(folder)

    assert record.frames[6] == record.frames[5]
    assert record.flags == ClipFlag.SHORT | ClipFlag.REPEATED_FRAMES | ClipFlag.SOME_CORRUPT_FRAMES


def test_a_picture_of_too_many_pixels_is_not_decoded(folder):
    folder.add("clip")
    folder.frame("clip", 1, Image.new("RGB", (300, 300)))
    [item] = find_official(folder.write()[0], CLASSES)

    with pytest.raises(ClipRejected, match="too_large: 300x300 pixels"):
        read_official(item, BuildSettings(frame_size=64, max_frame_pixels=200 * 200))


def test_a_single_clip_needs_no_list_around_it(folder):
    folder.add("only", "/t/c")
    listing, _ = folder.write()
    listing.write_text(json.dumps({"data": folder.entries[0]}))

    [item] = find_official(listing, CLASSES)

    assert (item.clip_id, item.source, item.labels) == ("only", "audio/only.wav", (2,))


def test_moved_files_are_found_below_the_new_root(folder, tmp_path):
    folder.add("clip")
    listing, _ = folder.write()
    text = listing.read_text().replace(str(folder.root), "/data/sls/audioset")
    listing.write_text(text)

    [moved] = find_official(listing, CLASSES, roots=[("/data/sls", tmp_path), ("/data/sls/audioset", folder.root)])
    [found] = find_official(listing, CLASSES, roots=[("/data/sls/audioset", folder.root)])

    assert read_official(found, SMALL).clip_id == "clip"
    assert moved.wav == f"{tmp_path}/audioset/audio/clip.wav"  # the first that fits
    with pytest.raises(DataError, match=r"--root /data/sl=.*no path in .* begins with /data/sl;"):
        find_official(listing, CLASSES, roots=[("/data/sl", tmp_path)])


def test_given_weights_are_stored_in_the_order_of_the_records(folder, tmp_path):
    for name in ("b", "a", "c"):
        folder.add(name)
    folder.add("d", wave=np.zeros(16_000, np.int16))  # rejected: its weight goes with it
    listing, label_csv = folder.write()
    weights = tmp_path / "weights.csv"
    weights.write_text("2.5\n1\n0\n9\n")

    import_official(
        listing, tmp_path / "out", SMALL, label_csv=label_csv, weight_csv=weights, workers=1, max_bad_share=0.5
    )

    assert read_sample_weights(open_store(tmp_path / "out"), 3).tolist() == [1, 2.5, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "the file: Invalid JSON"),
        ('{"clips": []}', "data: Field required"),
        ('{"data": []}', "names no clip"),
        ('{"data": [{"wav": "x.wav", "video_path": "f", "labels": ""}]}', r"data\.0\.video_id: Field required"),
        ('{"data": [{"video_id": "x", "wav": "x.wav", "video_path": "f", "labels": 5.5}, 7]}', r"data\.1: "),
    ],
)
def test_a_file_that_is_no_official_json_is_refused_with_the_field(tmp_path, text, words):
    listing = tmp_path / "data.json"
    listing.write_text(text)

    with pytest.raises(DataError, match=words):
        find_official(listing, CLASSES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index,mid\n0,/m/a\n", "lacks the column display_name"),
        ("index,mid,display_name\nzero,/m/a,Dog\n", "line 2 has no whole number index"),
        ("index,mid,display_name\n0,/m/a,Dog\n0,/m/b,Cat\n", "line 3 gives the index 0 a second time"),
        ("index,mid,display_name\n0,/m/a,Dog\n2,/m/b,Cat\n", "must be 0 to 1, each once"),
        ("index,mid,display_name\n0,/m/a,Dog\n1,/m/a,Cat\n", "names the mid /m/a more than once"),
        ("index,mid,display_name\n", "names no class"),
    ],
)
def test_a_label_csv_that_makes_no_sense_is_refused(tmp_path, text, words):
    path = tmp_path / "labels.csv"
    path.write_text(text)

    with pytest.raises(DataError, match=words):
        read_label_csv(path)


def test_classes_are_numbered_by_their_index_wherever_their_line_stands(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('\ufeffindex,mid,display_name\n1,/m/b,"Cat, small"\n0, /m/a,Dog\n', encoding="utf-8")

    assert read_label_csv(path) == Classes(("/m/a", "/m/b"), ("Dog", "Cat, small"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\n2\n", "has 2 weights for 1 clips"),
        ("heavy\n", "cannot be read"),
        ("-1\n", "finite numbers from 0 up"),
        ("nan\n", "finite numbers from 0 up"),
        ("0\n", "not all of them 0"),
    ],
)
def test_a_weight_csv_that_does_not_fit_is_refused(folder, tmp_path, text, words):
    folder.add("clip")
    path = tmp_path / "weights.csv"
    path.write_text(text)

    with pytest.raises(DataError, match=words):
        find_official(folder.write()[0], CLASSES, path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["import-official", "x.json", "--label-csv", "x.csv", "--out", "out", "--root", "old"],
            "--root must be OLD=NEW",
        ),
        (["import-official", "x.json", "--label-csv", "x.csv", "--out", "out", "--root", "=new"], "got '=new'"),
        (["import-official", "x.json", "--label-csv", "x.csv", "--out", "out"], "x.csv cannot be read"),
        (["create-official", "shards", "--out", "out", "--limit", "3", "--ids", "ids.txt"], "give one of them"),
        (["create-official", "shards", "--out", "out", "--ids", "ids.txt"], "--ids ids.txt cannot be read"),
        (["inspect", "shards", "--out", "report.pdf"], "--out must end in .html or .png, got report.pdf"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)

    refusal = CliRunner().invoke(app, arguments).exception

    assert isinstance(refusal, UserError) and words in str(refusal)
    assert not list(tmp_path.iterdir())


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), st.text(max_size=3))
def test_every_clip_id_has_a_plain_file_name_of_its_own(clip_id, more):
    name = file_name(clip_id)

    assert not set(name) & set('/\\\0\n:*?<>|"') and name.isascii()
    assert unquote(name) == clip_id  # so no two ids share a name


def test_clip_ids_that_look_like_paths_stay_inside_the_exported_folder(tmp_path, tiny_shards):
    # tiny_shards come from a folder: their clip ids hold a slash
    [name] = [sample["clip_id"] for sample in Records(str(tiny_shards)).read([0])]

    exported = create_official(str(tiny_shards), tmp_path / "out", limit=1)

    assert "/" in name
    assert exported.clips == 1
    [entry] = json.loads((tmp_path / "out" / "data.json").read_text())["data"]
    assert Path(entry["wav"]).parent == tmp_path / "out" / "audio"
    assert entry["labels"].startswith("class_")
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 10


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path, made_shards):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")

    with pytest.raises(DataError, match="lacks 1 of 2 ids; the first is 'nobody'"):
        create_official(str(made_shards), tmp_path / "out", ids=["nobody", "clip 03"])
    with pytest.raises(DataError, match="is there already"):
        create_official(str(made_shards), tmp_path / "full")
    with pytest.raises(DataError, match="file name of 300 bytes"):
        file_name("é" * 50)

    assert [path.name for path in tmp_path.iterdir()] == ["full"]
