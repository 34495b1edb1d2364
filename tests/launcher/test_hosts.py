"""Which hosts a run gets, and how many ranks on them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae_ds.errors import ConfigError
from cavmae_ds.launcher.hosts import Host, read_hostfile
from cavmae_ds.launcher.world_size import check_fewer_hosts, largest_shape
from cavmae_ds.tasks import validate_run


def check_hosts(hosts: int, min_hosts: int, **contrastive: object) -> None:
    """For a run with this section contrastive."""
    cfg = validate_run({"train": {"global_batch": 8, "micro_batch": 2, "steps": 1}, "contrastive": contrastive})
    check_fewer_hosts(hosts, min_hosts, cfg.check_fewer_ranks)


def test_a_hostfile_names_hosts_and_their_places(tmp_path):
    (tmp_path / "hostfile").write_text("# rack 1\nnode-01 slots=8\n\n10.0.0.7  slots=4 # the old one\n")
    assert read_hostfile(tmp_path / "hostfile") == [Host("node-01", 8), Host("10.0.0.7", 4)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("node-a slots=1\nnode-b\n", "line 2 must read `name slots=8`, got 'node-b'"),
        ("node-a slots=0\n", "line 1 must read"),
        ("-oProxyCommand=reboot slots=1\n", "line 1 must read"),
        ("node-a slots=1\nnode-a slots=1\n", "line 2: node-a is there already"),
        ("# nothing\n", "names no host"),
        (None, "cannot be read"),
    ],
)
def test_a_mistake_in_a_hostfile_is_named_with_its_line(content, said, tmp_path):
    if content is not None:
        (tmp_path / "hostfile").write_text(content)
    with pytest.raises(ConfigError) as refused:
        read_hostfile(tmp_path / "hostfile")
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "slots", "shape"),
    [
        (4096, 64, [8] * 8, (8, 8)),
        (4096, 64, [8] * 7, (4, 8)),  # 64 micro-batches: 32 of the 56 ranks can share them evenly
        (96, 2, [8, 8, 8], (3, 8)),
        (96, 2, [8, 8], (2, 8)),
        (8, 2, [1], (1, 1)),
        (8, 2, [3], (1, 2)),
        (8, 2, [4, 1], (1, 4)),  # as many on each host: 4, not 2
    ],
)
def test_the_batch_is_shared_among_as_many_ranks_as_divide_it(global_batch, micro_batch, slots, shape):
    assert largest_shape(slots, 1, global_batch=global_batch, micro_batch=micro_batch) == shape


@given(
    micro_batches=st.integers(1, 200),
    micro_batch=st.integers(1, 4),
    slots=st.lists(st.integers(1, 9), min_size=1, max_size=9),
)
def test_no_larger_number_of_ranks_would_do(micro_batches, micro_batch, slots):
    hosts, each = largest_shape(slots, 1, global_batch=micro_batches * micro_batch, micro_batch=micro_batch)
    assert micro_batches % (hosts * each) == 0
    assert sum(places >= each for places in slots) >= hosts
    for more in range(hosts * each + 1, sum(slots) + 1):
        possible = any(
            more % on_each == 0 and sum(places >= on_each for places in slots) >= more // on_each
            for on_each in range(1, max(slots) + 1)
        )
        assert not possible or micro_batches % more


def test_hosts_that_cannot_share_the_batch_are_refused():
    with pytest.raises(ConfigError, match=r"8 is not a multiple of train.micro_batch = 2 x ranks on 3 hosts or more"):
        largest_shape([1, 1, 1], min_hosts=3, global_batch=8, micro_batch=2)


def test_going_on_with_fewer_hosts_needs_candidates_that_do_not_hang_on_the_ranks():
    check_hosts(hosts=4, min_hosts=2, two_pass=True)
    check_hosts(hosts=4, min_hosts=2, negatives="rank")
    check_hosts(hosts=4, min_hosts=4)
    with pytest.raises(ConfigError, match=r"--min-hosts 2 of 4: .* set contrastive.two_pass: true"):
        check_hosts(hosts=4, min_hosts=2)
    with pytest.raises(ConfigError, match="--min-hosts must be from 1 to the 4 hosts of the run, got 5"):
        check_hosts(hosts=4, min_hosts=5)
