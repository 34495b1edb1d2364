"""Work that is tried again after longer and longer pauses, and which failures no other attempt will change."""

from __future__ import annotations

import errno
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

log = logging.getLogger(__name__)

FINAL_ANSWERS = {
    *("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("404", "NoSuchBucket", "NoSuchKey"),
}
"""S3 error codes that another attempt will hardly change."""
FINAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}
FINAL_ATTEMPTS = 3
"""Attempts at what seems final: a server that is just starting may not know its keys and objects yet."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Backoff:
    """Pauses between attempts: `first_s`, then `factor` times as long after each failure, up to `longest_s`."""

    first_s: float
    longest_s: float
    factor: float = 2.0
    jitter: float = 0.0
    """Each pause is up to this share longer or shorter, drawn at random."""

    def pause_s(self, failures: int) -> float:
        """The pause after `failures` failures in a row, at least 1."""
        grown = self.first_s * self.factor ** min(failures - 1, 100)  # any more overflows in the end
        return min(self.longest_s, grown) * random.uniform(1 - self.jitter, 1 + self.jitter)


BUCKET = Backoff(0.5, 15.0, jitter=0.25)
"""For a request to a bucket."""


def call_with_retries(
    work: Callable[[], Result],
    what: str,
    limit_s: float,
    attempts: float = math.inf,
    catch: type[Exception] = Exception,
    explained: Callable[[Exception, int, float], Exception] | None = None,
) -> Result:
    """What `work` returns, in one of several attempts with the pauses of BUCKET.

    Args:
        what: of the log sentence, as in "fetching x".
        limit_s: no attempt begins later than this after the first.
        catch: errors after which to try again, unless they are final.
        explained: makes the error to raise in the end from the last one, the attempts and the seconds they took.

    Raises the last error, or what `explained` makes of it.
    """
    started, failures = time.monotonic(), 0
    while True:
        try:
            return work()
        except catch as error:
            failures += 1
            spent_s, pause_s = time.monotonic() - started, BUCKET.pause_s(failures)
            hopeless = is_final(error) and failures >= FINAL_ATTEMPTS
            if hopeless or failures >= attempts or spent_s + pause_s > limit_s:
                if explained is None:
                    raise
                raise explained(error, failures, spent_s) from error
            log.warning("%s failed (%s), next attempt in %.1f s", what, error, pause_s)
        time.sleep(pause_s)


def is_final(error: BaseException) -> bool:
    """Will hardly change by waiting: the server's definite answer, or a disk that is full or may not be written.

    It is the error itself or its direct cause.
    """
    for one in filter(None, (error, error.__cause__)):
        answer = getattr(one, "response", None) or {}  # botocore's time-outs have one that is None
        if answer.get("Error", {}).get("Code") in FINAL_ANSWERS:
            return True
        if isinstance(one, OSError) and one.errno in FINAL_ERRNOS:
            return True
    return False
