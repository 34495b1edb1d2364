"""A real S3 server for tests: SeaweedFS on free ports, one a session, a fresh bucket for each test."""

import os
import secrets
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """Where the server listens and who may use it."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead boto3 and streaming to this server."""
        return {
            "S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 1}),
        )

    def fresh_bucket(self) -> str:
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[S3Server]:
    """The running server. Import this name into a test module (or conftest) to use it."""
    with running_s3_server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server, monkeypatch) -> str:
    """A fresh bucket; the environment of the test leads to its server."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.fresh_bucket()


@contextmanager
def running_s3_server(folder: Path) -> Iterator[S3Server]:
    """A server in a folder, ended afterwards."""
    with RestartableServer(folder) as server:
        yield server.address


class RestartableServer:
    """`weed server` in a folder: killed and started again it has the same address, keys and objects."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._ports = _free_ports(4)
        self._process: subprocess.Popen | None = None
        self.address = S3Server(f"http://127.0.0.1:{self._ports[3]}", "tester", secrets.token_hex(16))

    def __enter__(self) -> "RestartableServer":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Returns when objects are stored."""
        folder, (master, volume, filer, s3) = self._folder, self._ports
        command = [
            *(Path(sysconfig.get_path("scripts")) / "weed", "server", f"-dir={folder}", "-ip=127.0.0.1"),
            *("-ip.bind=127.0.0.1", "-volume.max=1000", "-master.volumeSizeLimitMB=64", "-s3", "-filer"),
            *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"),
            # Off: reports to an outside host, and listeners on fixed ports.
            *("-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        ]
        keys = {"AWS_ACCESS_KEY_ID": self.address.access_key, "AWS_SECRET_ACCESS_KEY": self.address.secret_key}
        with (folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env=os.environ | keys, start_new_session=True
            )
        try:
            _wait_until_ready(self.address, self._process, folder / "log")
        except RuntimeError:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL: nothing in it is worth the seconds of a tidy end."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def _wait_until_ready(server: S3Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            bucket = server.fresh_bucket()
            server.client().put_object(Bucket=bucket, Key="ready", Body=b"yes")
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.3)
    raise RuntimeError(f"the S3 server did not start; its last words:\n{log.read_text()[-2000:]}")


def _free_ports(count: int) -> list[int]:
    """Ports of which port + 10000, where SeaweedFS puts its gRPC listeners, is free as well."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
            if not {port, port - 10_000, port + 10_000} & set(ports):
                ports.append(port)
    return ports
