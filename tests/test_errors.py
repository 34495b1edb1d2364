"""Sentences that compare two numbers show them with digits enough to differ."""

import pytest

from cavmae_ds.errors import distinct


@pytest.mark.parametrize(
    ("value", "limit", "spec", "texts"),
    [
        (0.25, 0.05, ".1%", ("25.0%", "5.0%")),
        (0.0504, 0.05, ".1%", ("5.04%", "5.00%")),
        (0.99996, 1.0, ".2f", ("0.99996", "1.00000")),
        (1234.04, 1234.0, ",.1f", ("1,234.04", "1,234.00")),
        (1.0, 1.0, ".1%", ("100.0%", "100.0%")),
    ],
)
def test_two_numbers_that_differ_never_look_the_same(value, limit, spec, texts):
    assert distinct(value, limit, spec) == texts
