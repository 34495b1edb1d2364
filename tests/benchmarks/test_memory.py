"""What a large batch promises about memory: linear in the candidates, and less than half with a decoder in chunks."""

from __future__ import annotations

from benchmarks.memory import measure, slope


def test_the_contrastive_peak_is_linear_in_the_candidates_though_their_products_are_not():
    """A sixteenth of the candidates' queries on this rank: all products at once would be 64 MiB and 256 MiB."""
    rows = [measure("contrastive", candidates=1024 * factor, ranks=16) for factor in (16, 32)]
    assert slope(rows) <= 1.05
    assert rows[-1]["peak_bytes"] < 200 * 2**20


def test_a_decoder_in_chunks_halves_the_peak_of_a_step_or_better():
    whole, chunked = measure("step", clips=8), measure("step", clips=8, decoder_chunk=1)
    assert chunked["peak_bytes"] < whole["peak_bytes"] / 2
