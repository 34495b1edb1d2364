"""How many threads a rank takes: the cores of its host are shared by the ranks there, not by those of all hosts."""

from __future__ import annotations

import pytest

from cavmae_ds.distributed.environment import ranks_of_this_host


@pytest.mark.parametrize(
    ("said", "ranks"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "16", "LOCAL_SIZE": "8"}, 8),  # deepspeed
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "4"}, 4),  # torchrun, Slurm
    ],
)
def test_the_ranks_of_a_host_are_counted_as_its_launcher_says(said, ranks, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert ranks_of_this_host() == ranks
