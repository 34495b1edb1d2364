"""One run at a time changes what lies below an address in a bucket: it holds a lease, the object PREFIX/run.lock.

A bucket has no locks that end with a process, so the holder renews the object every few seconds, and a start watches
the object of an earlier run for some renewals (holder.py) before it takes the lease over. It reads checkpoints and
trains meanwhile; only what changes the bucket waits. A run that ends removes the object, so nothing is watched then.

Every write names the version of the object that it replaces (If-Match), so of two starts one gets the lease. A server
that ignores this is noticed; there the object is read again after a renewal's time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cavmae_ds.checkpoint.bucket import Bucket, patiently
from cavmae_ds.checkpoint.holder import RENEW_S, Holder, Observation, RunInUse
from cavmae_ds.checkpoint.run_lock import LOCK
from cavmae_ds.data.storage import S3Store
from cavmae_ds.errors import DataError

log = logging.getLogger(__name__)

# HTTP status of a conditional write.
_REFUSED = (404, 409, 412)  # the object is gone, is being written by another process, is another version
_UNSUPPORTED = (400, 501)
_LOOKS = 5.0  # at the object of another holder, within the time of a renewal


class Lease:
    """Sought from the moment it is made, and held until close()."""

    def __init__(self, bucket: Bucket, lost: Callable[[RunInUse], object], renew_s: float = RENEW_S):
        """lost: called by a thread if another process holds the lease, or took it over while this one was stopped.

        Raises DataError if the bucket cannot be used.
        """
        self._object = patiently(lambda: _LockObject(bucket.bucket, bucket.prefix, renew_s, attempts=1), "locking")
        self._me, self._lost, self._renew_s = Holder.me(), lost, renew_s
        self._observation = Observation("checkpoint.address", bucket.url, renew_s)
        self._version = ""
        self._renewed_at: float | None = None  # monotonic; None before the lease is held
        self._failure: DataError | RunInUse | None = None  # why the last attempt failed
        self._stop, self._changed = threading.Event(), threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def confirm(self) -> None:
        """Return when this process holds the lease and has renewed it a moment ago: it may change the bucket.

        Raises RunInUse if another process holds it, DataError if the bucket does not answer.
        """
        with self._changed:
            while self._renewed_at is None or time.monotonic() - self._renewed_at > 2 * self._renew_s:
                if self._failure:
                    raise self._failure
                if self._stop.is_set():
                    raise DataError("the run is ending")
                self._changed.wait(self._renew_s)

    def close(self) -> None:
        """Give the lease back, if it is held."""
        self._stop.set()
        self._thread.join()
        with suppress(DataError):
            if self._version and not self._failure:
                self._object.remove(self._version)
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._take()
            while not self._stop.wait(self._renew_s):
                with self._noting():
                    self._renew()
        except RunInUse as error:
            self._note(error)
            self._lost(error)
        except Exception as error:
            log.exception("the lease of %s is no longer renewed", self._object.url)
            self._note(DataError(f"the lease of {self._object.url} is no longer renewed: {error}"))

    def _take(self) -> None:
        while not self._stop.is_set():
            with self._noting():
                sent, (holder, version) = time.monotonic(), self._object.read()
                if holder == self._me:
                    self._version, self._renewed_at = version, sent
                    return
                if self._observation.is_free(holder) and self._object.write(self._me, version):
                    if self._object.write(self._me, ""):  # refused, unless the server ignores conditions
                        self._stop.wait(self._renew_s)
                    continue
            self._stop.wait(self._renew_s / _LOOKS)

    def _renew(self) -> None:
        sent, (holder, version) = time.monotonic(), self._object.read()
        if holder and holder.id != self._me.id:
            raise self._observation.in_use(holder)
        if written := self._object.write(self._me.renewed(), version):
            self._me, self._version, self._renewed_at = self._me.renewed(), written, sent

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """A bucket that does not answer ends nothing: the lease stays, and is sought or renewed later."""
        try:
            yield
            self._note(None)
        except DataError as error:
            self._observation.restart()
            self._note(error)

    def _note(self, failure: DataError | RunInUse | None) -> None:
        with self._changed:
            self._failure = failure
            self._changed.notify_all()


class _LockObject(S3Store):
    """The object. All methods raise DataError."""

    def read(self) -> tuple[Holder | None, str]:
        """Its holder and version; None and "" if there is none."""
        from botocore.exceptions import ClientError

        with self._plain_errors(LOCK):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(LOCK))
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    return None, ""
                raise
            return Holder.parse(answer["Body"].read()), answer["ETag"]

    def write(self, holder: Holder, version: str) -> str:
        """Replace a version, "" where there must be none; the version that is there now, or "" if it was another."""
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        try:
            return self._write(holder, condition)
        except DataError as error:
            if (status := _status(error)) in _UNSUPPORTED:
                return self._write(holder, {})
            if status in _REFUSED:
                return ""
            raise

    def _write(self, holder: Holder, condition: dict[str, str]) -> str:
        with self._plain_errors(LOCK):
            key, body = self._key(LOCK), holder.to_bytes()
            return self._client.put_object(Bucket=self.bucket, Key=key, Body=body, **condition)["ETag"]

    def remove(self, version: str) -> None:
        """Remove that version; another one stays."""
        with self._plain_errors(LOCK):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(LOCK), IfMatch=version)


def _status(error: DataError) -> int:
    """Of the answer that an error comes from; 0 if there was none."""
    response = getattr(error.__cause__, "response", {})
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
