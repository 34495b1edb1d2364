"""One run changes a bucket at a time: what lives is found out by watching, on a real server."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest

from cavmae_ds.checkpoint import holder
from cavmae_ds.checkpoint.bucket import open_bucket
from cavmae_ds.checkpoint.holder import Holder, RunInUse
from cavmae_ds.checkpoint.lease import Lease, _LockObject
from cavmae_ds.checkpoint.run_lock import LOCK
from cavmae_ds.data import storage
from cavmae_ds.data.storage import s3_client
from cavmae_ds.errors import DataError
from tests.s3_server import RestartableServer

RENEW_S = 0.5
WINDOW_S = 3 * RENEW_S
"""A lease of another host that is not renewed for so long is free."""
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def address(s3_bucket) -> str:
    return f"s3://{s3_bucket}/runs/one"


def lease(address: str, lost=lambda error: None) -> Lease:
    return Lease(open_bucket(address), lost, RENEW_S)


def hold(address: str, machine: str, answers: Connection) -> None:
    holder._machine = lambda: machine
    held = lease(address, lambda error: answers.send(str(error)))
    held.confirm()
    answers.send("held")
    time.sleep(60)


@contextmanager
def process_with_lease(address: str, machine: str = "another") -> Iterator[tuple[BaseProcess, Connection]]:
    """A process, by default as of another host, that has the lease, and what it says later."""
    answers, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(address, machine, theirs))
    process.start()
    theirs.close()
    assert answers.recv() == "held"
    try:
        yield process, answers
    finally:
        process.kill()
        process.join()


def test_a_holder_on_another_host_that_lives_is_named_and_its_lease_left_alone(address):
    said: list[str] = []
    with process_with_lease(address) as (process, answers):
        mine = lease(address, lambda error: said.append(str(error)))
        with pytest.raises(RunInUse) as refusal:
            mine.confirm()
        mine.close()
        time.sleep(2 * RENEW_S)
        assert said == [str(refusal.value)] and not answers.poll()
    expected = f"checkpoint.address '{address}' is in use by process {process.pid} on host {os.uname().nodename}; wait"
    assert expected in said[0]


def test_the_lease_of_a_lost_host_is_taken_over_and_a_process_that_was_only_paused_gives_up(address):
    with process_with_lease(address) as (process, answers):
        os.kill(process.pid, signal.SIGSTOP)
        bucket, began = open_bucket(address), time.monotonic()
        mine = lease(address)
        record = Holder.parse(bucket.get_bytes(LOCK))
        assert record and record.pid == process.pid  # a start does not wait for what is found
        mine.confirm()
        assert time.monotonic() - began > WINDOW_S
        os.kill(process.pid, signal.SIGCONT)
        assert f"is in use by process {os.getpid()} on host" in answers.recv()
        mine.confirm()
        mine.close()
    assert not bucket.exists(LOCK)  # so the next start has nothing to watch


def test_a_process_of_this_host_is_known_dead_or_alive_at_once(address):
    with process_with_lease(address, holder._machine()) as (process, _):
        mine = lease(address)
        with pytest.raises(RunInUse, match=f"process {process.pid} on host"):
            mine.confirm()
        mine.close()
    mine, began = lease(address), time.monotonic()
    mine.confirm()
    assert time.monotonic() - began < WINDOW_S
    mine.close()


def test_of_two_writes_of_one_version_the_first_counts(s3_bucket):
    lock, me, other = _LockObject(s3_bucket, "run"), Holder.me(), Holder.me()
    first = lock.write(me, "")
    assert first and not lock.write(other, "")
    second = lock.write(me.renewed(), first)
    assert second and not lock.write(other, first)
    with pytest.raises(DataError):
        lock.remove(first)
    assert lock.read() == (me.renewed(), second)


def test_a_server_that_ignores_conditions_is_asked_again(address, monkeypatch):
    def without_conditions(**settings):
        client = s3_client(**settings)
        client.meta.events.register("before-sign.s3.PutObject", strip)
        return client

    def strip(request, **_):
        for name in ("If-Match", "If-None-Match"):
            del request.headers[name]

    monkeypatch.setattr(storage, "s3_client", without_conditions)
    other = _LockObject(open_bucket(address).bucket, "other")
    assert other.write(Holder.me(), "") and other.write(Holder.me(), "")  # as such a server does
    with process_with_lease(address, holder._machine()) as (process, _):
        mine = lease(address)
        with pytest.raises(RunInUse, match=f"process {process.pid} on host"):
            mine.confirm()
        mine.close()


def test_nothing_is_changed_by_a_run_whose_lease_is_anothers(address, tmp_path):
    (tmp_path / "file").write_bytes(b"something")
    with process_with_lease(address):
        bucket, mine = open_bucket(address), lease(address)
        bucket.before_change = mine.confirm
        for change in (
            lambda: bucket.put(10, tmp_path / "file"),
            lambda: bucket.withdraw(10),
            lambda: bucket.set_aside(10),
        ):
            with pytest.raises(RunInUse):
                change()
        mine.close()
        assert bucket.names("") == [LOCK]


def test_a_server_that_is_away_for_longer_than_the_window_costs_nobody_the_lease(tmp_path, monkeypatch):
    lost: list[RunInUse] = []
    with RestartableServer(tmp_path) as server:
        for name, value in server.address.environment.items():
            monkeypatch.setenv(name, value)
        address = f"s3://{server.address.fresh_bucket()}/run"
        with process_with_lease(address) as (process, answers):
            watching = lease(address, lost.append)
            server.kill()
            time.sleep(2 * WINDOW_S)
            server.start()
            with pytest.raises(RunInUse, match=f"process {process.pid} on host"):
                watching.confirm()
            assert not answers.poll()
            watching.close()
