"""Where a data set lives: a local folder or an s3:// prefix, behind the few operations we need.

An object is whole or absent in both: local files are renamed into place after fsync, S3 does it anyway.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from cavmae_ds.atomic_io import flush, refusing_to_write, written_whole
from cavmae_ds.errors import DataError, without_secrets

PART_BYTES, PARTS_AT_ONCE = 16 << 20, 4  # measured: 1.6 times the rate of one stream, half the CPU
_OBJECTS_AT_ONCE = 1000  # that S3 removes in one request


class Store(Protocol):
    """Objects by name below one root. Names are relative, with "/" between folders."""

    url: str

    def names(self, prefix: str) -> list[str]:
        """All objects whose names begin with `prefix`, sorted."""
        ...

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of each object whose name begins with `prefix`."""
        ...

    def exists(self, name: str) -> bool: ...

    def get_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes start to stop of an object, fewer where it ends before. Raises DataError when it is not there."""
        ...

    def get_bytes(self, name: str) -> bytes:
        """Content of an object. Raises DataError naming it when it is not there."""
        ...

    def put_bytes(self, name: str, content: bytes) -> None: ...

    def put_file(self, name: str, file: Path) -> None:
        """The same with the content of a file, which is gone afterwards."""
        ...

    def put_folder(self, name: str, folder: Path, last: str) -> None:
        """Publishes the files of a finished folder, the file `last` never before the others.

        Where `last` is there already, another has published the same: it stays.
        """
        ...

    def building(self, tag: str = "") -> AbstractContextManager[Path]:
        """An empty folder to build in, gone afterwards. Local data sets refuse a second builder with the same tag."""
        ...


def open_store(url: str | Path, answer_timeout_s: float = 60.0) -> Store:
    """The store at a local path or at s3://bucket/prefix; each of a few attempts waits so long for S3 to answer.

    S3 finds its endpoint in S3_ENDPOINT_URL, as streaming does, and its credentials in boto3's own chain.
    Raises DataError for another scheme, a missing bucket, refused credentials or a silent endpoint.
    """
    if "://" in str(url):
        return S3Store(*bucket_and_prefix(str(url)), answer_timeout_s)
    return LocalStore(Path(url))


def bucket_and_prefix(address: str) -> tuple[str, str]:
    """Of s3://bucket/prefix, every character of the prefix as it is: S3's keys are no URLs, # and ? and % are letters.

    Raises DataError for another scheme, or a bucket that can be none.
    """
    scheme, _, rest = address.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise DataError(f"the address {address} is not supported; give a local folder or s3://bucket/prefix")
    if "@" in bucket:
        raise DataError(
            f"the address {address} has an @ in front of its prefix, which no bucket's name may have; give "
            "s3://bucket/prefix, and credentials by the environment or a profile"
        )
    return bucket, prefix.strip("/")


class LocalStore:
    """A folder. It is created by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = str(root)

    def names(self, prefix: str) -> list[str]:
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        sizes = {}
        for folder, subfolders, files in os.walk(self.root):
            # Hidden names are of what is still being written, perhaps by others, and come and go.
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for path in (Path(folder) / file for file in files if not file.startswith(".")):
                name = path.relative_to(self.root).as_posix()
                if name.startswith(prefix):
                    sizes[name] = path.stat().st_size
        return sizes

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def get_range(self, name: str, start: int, stop: int) -> bytes:
        with self._plain_errors(name), (self.root / name).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def get_bytes(self, name: str) -> bytes:
        with self._plain_errors(name):
            return (self.root / name).read_bytes()

    @contextmanager
    def _plain_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if not self.root.exists():
                raise DataError(
                    f"{self.url}: no such folder; give the folder or s3://bucket/prefix that `cavmae prepare` wrote"
                ) from error
            raise _missing(self.url, name) from error
        except OSError as error:
            raise DataError(f"{self.root / name} cannot be read: {error.strerror}") from error

    def put_bytes(self, name: str, content: bytes) -> None:
        with written_whole(self.root / name) as unfinished:
            unfinished.write_bytes(content)

    def put_file(self, name: str, file: Path) -> None:
        with written_whole(self.root / name) as unfinished:
            shutil.move(file, unfinished)

    def put_folder(self, name: str, folder: Path, last: str) -> None:
        for file in folder.iterdir():
            flush(file)
        flush(folder)
        try:
            folder.replace(self.root / name)  # all files at once, so `last` needs no care here
        except OSError:
            if not self.exists(f"{name}/{last}"):
                raise
        flush(self.root)

    @contextmanager
    def building(self, tag: str = "") -> Iterator[Path]:
        folder = self.root / f".building{tag}"
        with ExitStack() as undo, refusing_to_write(self.url):
            with refusing_to_write(self.url, errno.ENOENT):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                lock = os.open(folder, os.O_RDONLY)
                undo.callback(os.close, lock)  # the lock goes with it, and with a process that dies
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(lock), folder.stat()):
                    raise BlockingIOError  # one builder removed the folder just now, and another made it anew
                for left in folder.iterdir():  # by a process that was killed
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                undo.callback(shutil.rmtree, folder)
            except (BlockingIOError, FileNotFoundError) as error:
                raise DataError(f"another process is writing to {self.url}; wait for it or stop it") from error
            yield folder


def s3_client(*, connect_timeout_s: float, answer_timeout_s: float, attempts: int) -> Any:
    """A boto3 client for the endpoint in S3_ENDPOINT_URL. Raises BotoCoreError or ValueError for a wrong setting."""
    import boto3  # half a second to import, and only needed here
    from botocore.config import Config

    config = Config(
        connect_timeout=connect_timeout_s,
        read_timeout=answer_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    # boto3 does not send a user and password of this address, and would repeat them in every error.
    scheme, sign, host = os.environ.get("S3_ENDPOINT_URL", "").rpartition("://")
    endpoint = scheme + sign + host.rpartition("@")[2]
    return boto3.session.Session().client("s3", endpoint_url=endpoint or None, config=config)


def transfer_config() -> Any:
    """How boto3 moves a file to or from a bucket: in which parts, and how many at once."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE)


class S3Store:
    """A prefix in a bucket. The bucket must be there; it is asked for at once, so mistakes show early."""

    def __init__(self, bucket: str, prefix: str, answer_timeout_s: float = 60.0, attempts: int = 4) -> None:
        from botocore.exceptions import BotoCoreError

        self.bucket, self.prefix = bucket, prefix
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        try:
            self._client = s3_client(connect_timeout_s=5, answer_timeout_s=answer_timeout_s, attempts=attempts)
        except (BotoCoreError, ValueError) as error:
            raise DataError(f"{self.url} cannot be reached: {error}") from error
        with self._plain_errors():
            self._client.head_bucket(Bucket=bucket)

    def names(self, prefix: str) -> list[str]:
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        start = len(self._key(""))
        with self._plain_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            return {entry["Key"][start:]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    def exists(self, name: str) -> bool:
        return name in self.names(name)

    def get_range(self, name: str, start: int, stop: int) -> bytes:
        with self._plain_errors(name):
            wanted = f"bytes={start}-{stop - 1}"
            return self._client.get_object(Bucket=self.bucket, Key=self._key(name), Range=wanted)["Body"].read()

    def get_bytes(self, name: str) -> bytes:
        with self._plain_errors(name):
            return self._client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()

    def put_bytes(self, name: str, content: bytes) -> None:
        with self._plain_errors(name):
            self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    def put_file(self, name: str, file: Path) -> None:
        self.upload(name, file)
        file.unlink()

    def upload(self, name: str, file: Path) -> None:
        """An object with the content of a file, which stays."""
        with self._plain_errors(name):
            self._client.upload_file(str(file), self.bucket, self._key(name), Config=transfer_config())

    def download(self, name: str, file: Path) -> None:
        """A file with the content of an object."""
        with self._plain_errors(name):
            self._client.download_file(self.bucket, self._key(name), str(file), Config=transfer_config())

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """The content of an object, in pieces of at most so many bytes."""
        with self._plain_errors(name):
            yield from self._client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].iter_chunks(size)

    def modified(self, name: str) -> float:
        """When an object was written, seconds since 1970."""
        with self._plain_errors(name):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(name))["LastModified"].timestamp()

    def remove(self, name: str) -> None:
        """One object, which need not be there."""
        with self._plain_errors(name):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def remove_all(self, prefix: str) -> None:
        """Every object whose name begins with `prefix`."""
        keys = [{"Key": self._key(name)} for name in self.names(prefix)]
        for start in range(0, len(keys), _OBJECTS_AT_ONCE):
            some = {"Objects": keys[start : start + _OBJECTS_AT_ONCE], "Quiet": True}
            with self._plain_errors():
                self._client.delete_objects(Bucket=self.bucket, Delete=some)

    def put_folder(self, name: str, folder: Path, last: str) -> None:
        for file in sorted(folder.iterdir(), key=lambda file: (file.name == last, file.name)):
            self.put_file(f"{name}/{file.name}", file)

    @contextmanager
    def building(self, tag: str = "") -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="cavmae-building-") as folder, refusing_to_write(folder):
            yield Path(folder)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextmanager
    def _plain_errors(self, name: str = "") -> Iterator[None]:
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise self._explained(error.response, name) from error
        except S3UploadFailedError as error:
            raise DataError(f"{self.url}/{name} could not be written: {error}") from error
        except BotoCoreError as error:  # no credentials, nobody at the endpoint, a time-out
            endpoint = without_secrets(os.environ.get("S3_ENDPOINT_URL") or "the AWS endpoint")
            raise DataError(
                f"{self.url} cannot be reached at {endpoint}: {error}; "
                "check S3_ENDPOINT_URL and that credentials are configured"
            ) from error

    def _explained(self, response: Any, name: str) -> DataError:
        code = str(response.get("Error", {}).get("Code"))
        if code == "NoSuchBucket" or (code == "404" and not name):
            return DataError(f"the bucket {self.bucket} does not exist; create it or correct the address")
        if code in ("404", "NoSuchKey"):
            return _missing(self.url, name)
        if code in ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            return DataError(f"access to {self.url} was refused ({code}); check the credentials and what they may do")
        return DataError(f"{self.url}/{name} failed with {code}: {response['Error'].get('Message')}")


def _missing(url: str, name: str) -> DataError:
    return DataError(f"{name} is missing in {url}; it is written by `cavmae prepare` when all has gone well")
