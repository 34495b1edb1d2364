"""Some of many, from all over them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.data.format.spread import spread


@given(st.integers(0, 300), st.integers(0, 300))
def test_places_are_the_first_and_others_at_even_distances_or_all_there_are(count, length):
    places = spread(count, length)
    assert len(places) == min(count, length) and places[:1] == [0][: len(places)]
    gaps = {after - before for before, after in zip(places, [*places[1:], length], strict=True)} if places else set()
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)
