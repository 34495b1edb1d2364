"""Folders, lists and tables mean what they say, or are refused with the place of the mistake."""

import os
from functools import partial
from pathlib import Path

import pytest

from cavmae_ds.config.ds_config import read_fragment
from cavmae_ds.data.official.importing import Classes, find_official, read_label_csv
from cavmae_ds.data.prepare.inputs import find_inputs
from cavmae_ds.errors import DataError, UserError
from cavmae_ds.terminal import read_lines


def test_a_folder_is_searched_to_its_depth_but_never_in_circles(tmp_path, caplog):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("z.mp4", "a/y.MKV", "a/b/x.webm", "a/readme.md", "a/b/b.MD", "a/LICENSE", "a/.hidden.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)

    inputs, _ = find_inputs(tmp_path, None)

    assert [item.source for item in inputs] == ["a/b/x.webm", "a/y.MKV", "z.mp4"]
    assert [item.clip_id for item in inputs] == ["a/b/x", "a/y", "z"]
    assert caplog.messages == [f"{tmp_path}: 3 files are skipped for their suffix: 2 .md, 1 without"]


def test_a_list_means_its_lines_as_they_stand(tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_bytes("\ufeff#1 hit.mp4\r\n\r\nsub/two.mp4\r\n/else/three.40.000.mp4\r\n".encode())

    inputs, _ = find_inputs(listing, None)

    assert {item.clip_id: item.path for item in inputs} == {
        "#1 hit": str(tmp_path / "#1 hit.mp4"),
        "sub/two": str(tmp_path / "sub/two.mp4"),
        "else/three.40.000": "/else/three.40.000.mp4",
    }


def test_class_numbers_follow_the_sorted_names_unless_they_are_given(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("path,labels\na.mp4,dog; cat\nb.mp4,ant\nc.mp4,\n")

    sorted_inputs, sorted_names = find_inputs(table, None)
    given_inputs, given_names = find_inputs(table, ["dog", "ant", "cat"])

    assert sorted_names == ("ant", "cat", "dog")
    assert [item.labels for item in sorted_inputs] == [(1, 2), (0,), ()]
    assert given_names == ("dog", "ant", "cat")
    assert [item.labels for item in given_inputs] == [(0, 2), (1,), ()]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("file,labels\na.mp4,x\n", "columns file,labels; allowed in its first line are path,labels"),
        ("path,label\na.mp4,x\n", "columns path,label; allowed"),
        ("path,labels\na.mp4\n", "line 2 has no path or not 2 fields"),
        ("path,labels\n", "names no video"),
        ("path,labels\na.mp4,cow\n", "a.mp4 has the label 'cow', which the class list lacks"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_with_the_place(tmp_path, content, complaint):
    (tmp_path / "t.csv").write_text(content)

    with pytest.raises(DataError, match=complaint):
        find_inputs(tmp_path / "t.csv", ["cat", "dog"])


@pytest.mark.parametrize(
    ("encoding", "complaint"),
    [
        ("latin-1", "line 2 is not UTF-8, got "),
        ("utf-16", "is no UTF-8 text but UTF-16 or binary; save it as UTF-8"),
        ("utf-16-le", "is no UTF-8 text but UTF-16 or binary; save it as UTF-8"),
    ],
)
def test_a_text_file_in_another_encoding_is_refused_by_name(tmp_path, encoding, complaint):
    texts = {
        "labels.csv": "path,labels\na.mp4,café\n",
        "paths.csv": "path\ncafé.mp4\n",
        "list.txt": "a.mp4\ncafé.mp4\n",
        "classes.txt": "dog\ncafé\n",
        "official.csv": "index,mid,display_name\n0,/m/a,café\n",
        "official.json": '{"data":\n["café"]}',
        "weights.csv": "1\ncafé\n",
        "engine.json": '{"a":\n"café"}',
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode(encoding))
    clip = tmp_path / "clip.json"
    clip.write_text('{"data": {"video_id": "a", "wav": "a.wav", "video_path": "a"}}')
    classes = Classes((), ())
    readers = {
        **{name: partial(find_inputs, tmp_path / name, None) for name in ("labels.csv", "paths.csv", "list.txt")},
        "classes.txt": partial(read_lines, "--classes", tmp_path / "classes.txt"),
        "official.csv": partial(read_label_csv, tmp_path / "official.csv"),
        "official.json": partial(find_official, tmp_path / "official.json", classes),
        "weights.csv": partial(find_official, clip, classes, tmp_path / "weights.csv"),
        "engine.json": partial(read_fragment, tmp_path / "engine.json", "fp32"),
    }

    for name, reader in readers.items():
        with pytest.raises(UserError) as refused:
            reader()
        assert f"{tmp_path / name} {complaint}" in str(refused.value)


def test_a_list_may_name_a_file_whose_name_is_not_utf_8(tmp_path):
    name = b"caf\xe9.mp4"
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    (tmp_path / "list.txt").write_bytes(name + b"\n")

    [video], _ = find_inputs(tmp_path / "list.txt", None)

    assert video.rejected.detail == "the name is not valid UTF-8"
