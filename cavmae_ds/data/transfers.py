"""How objects are moved to and from a bucket: parts, pauses between attempts, and which failure is final."""

from __future__ import annotations

import errno

PART_BYTES, PARTS_AT_ONCE = 16 << 20, 4  # spec/data-path.md 6: 1.6 times the rate of one stream, half the CPU
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
FINAL_ANSWERS = {
    *("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("404", "NoSuchBucket", "NoSuchKey"),
}
"""S3 error codes that another attempt will hardly change."""

FINAL_ATTEMPTS = 3
"""Attempts at what seems final: a server that is just starting may not know its keys and objects yet."""


def is_final(error: BaseException | None) -> bool:
    """Will hardly change by waiting: the server's definite answer, or a disk that is full or may not be written."""
    answer = getattr(error, "response", None) or {}  # botocore's time-outs have one that is None
    code = answer.get("Error", {}).get("Code")
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
    return code in FINAL_ANSWERS or full
