"""Pauses between attempts, and when there is no further attempt."""

from __future__ import annotations

import errno

import pytest

from cavmae_ds import retry
from cavmae_ds.errors import DataError
from cavmae_ds.retry import Backoff, call_with_retries


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(retry, "BUCKET", Backoff(0.001, 0.002))


class Failing:
    """Work that raises the error so often, and returns its number of calls then."""

    def __init__(self, error: Exception, times: int):
        self.error, self.times, self.calls = error, times, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.calls


def test_pauses_double_up_to_the_longest_however_many_attempts_have_failed():
    pauses = Backoff(1.0, 60.0)
    assert [pauses.pause_s(failures) for failures in (1, 2, 3, 6, 7, 10_000)] == [1, 2, 4, 32, 60, 60]
    assert Backoff(0.005, 0.5, factor=1.5).pause_s(10_000) == 0.5


def test_jitter_makes_a_pause_longer_or_shorter_by_at_most_its_share():
    pauses = [Backoff(4.0, 60.0, jitter=0.25).pause_s(1) for _ in range(200)]
    assert 3 <= min(pauses) < 3.9 and 4.1 < max(pauses) <= 5


def test_work_that_fails_for_a_while_returns_in_the_end(caplog):
    assert call_with_retries(Failing(OSError("away"), 6), "fetching x", limit_s=60) == 7
    assert [record.getMessage() for record in caplog.records] == ["fetching x failed (away), next attempt in 0.0 s"] * 6


@pytest.mark.parametrize("limits", [{"limit_s": 60, "attempts": 4}, {"limit_s": 0.0, "attempts": 4}])
def test_attempts_end_at_either_limit_with_the_last_error(limits):
    work = Failing(TimeoutError("no answer"), 9)
    with pytest.raises(TimeoutError, match="no answer"):
        call_with_retries(work, "fetching x", **limits)
    assert work.calls == (4 if limits["limit_s"] else 1)


def caused_by(cause: BaseException) -> DataError:
    error = DataError("in a sentence")
    error.__cause__ = cause
    return error


class Answer(Exception):
    response = {"Error": {"Code": "NoSuchBucket"}}  # noqa: RUF012


class NoAnswer(Exception):
    response = None


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (Answer(), 3),
        (caused_by(Answer()), 3),
        (OSError(errno.ENOSPC, "full"), 3),
        (OSError(errno.EIO, "flaky"), 6),
        (NoAnswer(), 6),
        (caused_by(NoAnswer()), 6),
    ],
)
def test_a_final_error_is_tried_three_times_and_others_until_the_end(error, calls):
    work = Failing(error, 99)
    with pytest.raises(type(error)):
        call_with_retries(work, "x", limit_s=60, attempts=6)
    assert work.calls == calls


def test_an_error_that_is_not_of_the_given_kind_ends_it_at_once():
    work = Failing(KeyError("defect"), 9)
    with pytest.raises(KeyError):
        call_with_retries(work, "x", limit_s=60, catch=DataError)
    assert work.calls == 1


def test_the_last_error_is_explained_with_its_attempts():
    error = OSError("away")
    with pytest.raises(DataError, match=r"^2 attempts, 0 s: away$") as raised:
        call_with_retries(
            Failing(error, 9), "x", limit_s=60, attempts=2,
            explained=lambda error, attempts, spent_s: DataError(f"{attempts} attempts, {spent_s:.0f} s: {error}"),
        )  # fmt: skip
    assert raised.value.__cause__ is error
