"""Balance weights are the official ones, and whoever asks for missing or damaged ones is told what to do."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.data.format.balance import balance, read_sample_weights, write_sample_weights
from cavmae_ds.data.storage import open_store
from cavmae_ds.errors import DataError

CLASSES = 5


@given(st.lists(st.lists(st.integers(0, CLASSES - 1), unique=True, max_size=4), max_size=30))
def test_a_clip_weighs_the_sum_of_a_thousand_over_its_classes_counts(labels):
    found = balance(labels, CLASSES)

    counts = [sum(k in clip for clip in labels) for k in range(CLASSES)]
    assert found.class_counts.tolist() == counts
    expected = [sum(1000 / (counts[k] + 0.01) for k in clip) for clip in labels]
    np.testing.assert_allclose(found.sample_weights, expected, rtol=1e-12)


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    if request.param == "folder":
        return open_store(tmp_path / "set")
    return open_store(f"s3://{request.getfixturevalue('s3_bucket')}/set")


def test_written_weights_are_read_back_beside_a_table_of_the_classes(store):
    write_sample_weights(store, [(0, 1), (), (1,)], ["dog, small", "cat", "none"], ["/m/0", "/m/1", "/m/2"])

    weights = read_sample_weights(store, clips=3)
    table = list(csv.DictReader(io.StringIO(store.get_bytes("class_weights.csv").decode())))
    cat = 1000 / 2.01
    np.testing.assert_allclose(weights, [1000 / 1.01 + cat, 0, cat], rtol=1e-12)
    assert [(row["index"], row["mid"], row["display_name"], row["count"]) for row in table] == [
        ("0", "/m/0", "dog, small", "1"),
        ("1", "/m/1", "cat", "2"),
        ("2", "/m/2", "none", "0"),
    ]
    assert [float(row["weight"]) for row in table] == pytest.approx([1000 / 1.01, cat, 1e5])


def test_given_weights_win_over_computed_ones(tmp_path):
    store = open_store(tmp_path)

    write_sample_weights(store, [(0,), (0,)], ["dog"], given=[0.25, 7])

    assert read_sample_weights(store, clips=2).tolist() == [0.25, 7.0]


def test_without_labels_there_is_nothing_to_read_and_the_reader_says_so(tmp_path):
    store = open_store(tmp_path)
    write_sample_weights(store, [(), ()], [])

    assert store.names("") == []
    with pytest.raises(DataError, match=r"has no sample_weights\.npy.*no labels or it was prepared by an older"):
        read_sample_weights(store, clips=2)


def as_npy(values):
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not numpy", "is damaged"),
        (b"", "is damaged"),
        (as_npy(np.ones(2))[:-1], "is damaged"),
        (as_npy(np.array([{}, {}], object)), "is damaged"),  # a pickle is never opened
        (as_npy(np.ones(3)), r"holds float64 \[3\], expected one float64 for each of 2 clips"),
        (as_npy(np.ones(2, np.float32)), r"holds float32 \[2\]"),
        (as_npy(np.array([1, np.nan])), "finite numbers from 0 up"),
        (as_npy(np.array([1.0, -1.0])), "finite numbers from 0 up"),
        (as_npy(np.zeros(2)), "not all of them 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(tmp_path, content, words):
    store = open_store(tmp_path)
    store.put_bytes("sample_weights.npy", content)

    with pytest.raises(DataError, match=words):
        read_sample_weights(store, clips=2)
