"""Which cells of the exactness matrix are run: all of them, or few that meet every pair of switches."""

from __future__ import annotations

import itertools

from tests.training.whole_batch import Cell

SWITCHES = {
    "stage": (0, 1, 2, 3),
    "accumulation": (1, 2, 4),
    "two_pass": (False, True),
    "direction": ("v2a", "both"),
    "decoder_chunk": (0, 3),
    "checkpoint_towers": (False, True),
}


def every_cell(ranks: int) -> list[Cell]:
    """All 192 combinations."""
    return [Cell(ranks, *values) for values in itertools.product(*SWITCHES.values())]


def few_cells(ranks: int) -> list[Cell]:
    """Combinations in which any two switches meet in all their positions; greedily few."""
    left = every_cell(ranks)
    missing = set().union(*map(_pairs, left))
    chosen = []
    while missing:
        best = max(left, key=lambda cell: len(_pairs(cell) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def special_cells(ranks: int) -> list[Cell]:
    """What is no switch of the matrix: other negatives, losses that are off, the ring, bf16."""
    if ranks == 1:
        return [Cell(ranks, negatives="chunk=4")]
    if ranks == 4:
        return [
            Cell(ranks, negatives="rank"),
            Cell(ranks, accumulation=2, negatives="chunk=4"),
            Cell(ranks, stage=3, accumulation=2, two_pass=True, direction="both", negatives="chunk=2"),
            Cell(ranks, accumulation=2, two_pass=True, direction="both", exchange="ring"),
        ]
    stages = SWITCHES["stage"]
    return [
        *(Cell(ranks, stage=stage, contrastive=0.0, decoder_chunk=3 * (stage % 2)) for stage in stages),
        *(Cell(ranks, stage=stage, mae=0.0, accumulation=2, two_pass=stage > 1) for stage in stages),
        Cell(ranks, stage=3, exchange="ring"),
        *(
            Cell(ranks, stage=stage, accumulation=2, two_pass=two_pass, decoder_chunk=chunk, precision="bf16")
            for stage, two_pass, chunk in ((1, False, 3), (1, True, 0), (2, False, 0), (2, True, 3), (3, True, 3))
        ),
    ]


def _pairs(cell: Cell) -> set[tuple]:
    values = [(name, getattr(cell, name)) for name in SWITCHES]
    return set(itertools.combinations(values, 2))
