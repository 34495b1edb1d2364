"""Folders, lists and tables mean what they say, or are refused with the place of the mistake."""

import pytest

from cavmae_ds.data.inputs import find_inputs
from cavmae_ds.errors import DataError


def test_a_folder_is_searched_to_its_depth_but_never_in_circles(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("z.mp4", "a/y.MKV", "a/b/x.webm", "a/readme.md", "a/.hidden.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)

    inputs, _ = find_inputs(tmp_path, None)

    assert [item.source for item in inputs] == ["a/b/x.webm", "a/y.MKV", "z.mp4"]
    assert [item.clip_id for item in inputs] == ["a/b/x", "a/y", "z"]


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
        ("file,labels\na.mp4,x\n", "columns file,labels; allowed are path,labels"),
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
