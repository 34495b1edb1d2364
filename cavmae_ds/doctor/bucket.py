"""A bucket or folder as a run uses it: reached, listed, read in ranges over several connections, written to."""

from __future__ import annotations

import secrets
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from itertools import count, islice
from typing import Any, NamedTuple

from cavmae_ds.data.storage import S3Store, open_store, s3_client
from cavmae_ds.doctor.environment import clock_finding
from cavmae_ds.doctor.finding import Finding, fix, note, ok
from cavmae_ds.doctor.space import STORED_CLIP_BYTES
from cavmae_ds.errors import DataError, distinct

CONNECTIONS = 1, 4, 16
CONNECTIONS_OF_A_CLIENT = 8  # of the ten that boto3 keeps
RANGE_BYTES = 4 << 20
MEASURE_S = 3.0
"""For each number of connections, at most."""
ANSWER_S = 10.0
LATENCY_READS = 8
OBJECTS = 1000

Read = Callable[[str, int, int], bytes]
"""Bytes start to stop of an object by name."""


class Objects(NamedTuple):
    """Some of what lies at an address, and how it is read."""

    sizes: Mapping[str, int]
    readers: Sequence[Read]
    """Each for a few connections."""


def check_address(url: str, limit_s: float, clips_per_second: float, written: bool) -> list[Finding]:
    """Everything about one address; measuring takes a third of limit_s at most.

    clips_per_second: what this host must get, 0 if that is not known. written: the run writes there, else it reads.
    """
    store = open_store(url, ANSWER_S)
    found = []
    if isinstance(store, S3Store):
        client = s3_client(connect_timeout_s=5, answer_timeout_s=ANSWER_S, attempts=2)
        found.append(_clock(store, client))
        if written:
            _write_and_remove(store, client)
        objects = Objects(_listed(store, client), [store.get_range, open_store(url, ANSWER_S).get_range])
    else:
        objects = Objects(store.sizes(""), [store.get_range])
    count_said = f"{len(objects.sizes)}{'+' if len(objects.sizes) == OBJECTS else ''} objects"
    if written:
        return [*found, ok(url, f"{count_said}, may list, write and remove")]
    sizes = {name: size for name, size in objects.sizes.items() if size}
    if not sizes:
        do = "write shards there with `cavmae prepare`, or correct the address"
        return [*found, fix(url, "holds nothing to read", do)]
    milliseconds = _latency_ms(objects.readers[0], sizes)
    seconds = min(MEASURE_S, limit_s / (3 * len(CONNECTIONS)))
    rates = {n: rate(objects.readers, sizes, n, seconds) for n in CONNECTIONS}
    reached = ok(url, f"{count_said}, may read and list, {milliseconds:.1f} ms to the first byte")
    return [*found, reached, throughput(url, rates, clips_per_second)]


def throughput(url: str, rates: Mapping[int, float], clips_per_second: float) -> Finding:
    """Bytes/s by number of connections against what this host needs."""
    best = max(rates.values())
    measured = ", ".join(f"{value / 1e6:.0f} with {n}" for n, value in rates.items())
    enough, wanted = distinct(best / STORED_CLIP_BYTES, clips_per_second, ".0f")
    said = f"MB/s by connections: {measured}; enough for {enough} clips/s on this host"
    name = f"reading {url}"
    needed = clips_per_second * STORED_CLIP_BYTES
    if best >= needed:
        return ok(name, said)
    return fix(
        name,
        f"{said}, and {wanted} are needed",
        "put the shards nearer (a bucket in the same region, a disk: data.cache holds them after the first epoch)",
    )


def rate(readers: Sequence[Read], sizes: Mapping[str, int], connections: int, seconds: float) -> float:
    """Bytes/s that so many threads read together, each one range after the other. Raises what a read raises."""
    ranges = list(islice(_ranges(sizes), 256))
    began, turn, read_bytes, errors = time.perf_counter(), count(), [0] * connections, []

    def work(number: int) -> None:
        read = readers[number // CONNECTIONS_OF_A_CLIENT % len(readers)]
        try:
            while time.perf_counter() - began < seconds:
                name, start, stop = ranges[next(turn) % len(ranges)]
                read_bytes[number] += len(read(name, start, stop))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(read_bytes) / (time.perf_counter() - began)


def _ranges(sizes: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
    """(name, start, stop), the largest objects first."""
    for name, size in sorted(sizes.items(), key=lambda entry: -entry[1]):
        for start in range(0, size, RANGE_BYTES):
            yield name, start, min(size, start + RANGE_BYTES)


def _latency_ms(read: Read, sizes: Mapping[str, int]) -> float:
    taken = []
    for name in islice(sizes, LATENCY_READS):
        began = time.perf_counter()
        read(name, 0, 1)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e3


def _listed(store: S3Store, client: Any) -> dict[str, int]:
    """The first objects, and their bytes."""
    prefix = _key(store, "")
    with _allowed(store, "s3:ListBucket"):
        page = client.list_objects_v2(Bucket=store.bucket, Prefix=prefix, MaxKeys=OBJECTS)
    return {entry["Key"][len(prefix) :]: entry["Size"] for entry in page.get("Contents", [])}


def _write_and_remove(store: S3Store, client: Any) -> None:
    key = _key(store, f".doctor-{secrets.token_hex(8)}")
    with _allowed(store, "s3:PutObject and s3:DeleteObject"):
        client.put_object(Bucket=store.bucket, Key=key, Body=b"")
        client.delete_object(Bucket=store.bucket, Key=key)


def _clock(store: S3Store, client: Any) -> Finding:
    """This host's clock and the server's; the header has whole seconds, so half a one is added."""
    began = time.time()
    with _allowed(store, "s3:ListBucket"):
        answer = client.head_bucket(Bucket=store.bucket)
    here = (began + time.time()) / 2
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        return note(f"clock of {store.url}", "the server does not say its time")
    return clock_finding(f"clock of {store.url}", here - parsedate_to_datetime(date).timestamp() - 0.5, "the server's")


@contextmanager
def _allowed(store: S3Store, rights: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise DataError(f"{store.url}: {error}; allow these credentials {rights} there") from error


def _key(store: S3Store, name: str) -> str:
    return f"{store.prefix}/{name}" if store.prefix else name
