"""Two hosts on one machine: Linux namespaces with a wire between them and an SSH server in each.

A host has its own network, processes, name and /dev/shm; the file system is shared, as over NFS. All of it hangs on one
process: when that ends, also because the tests were killed, the kernel takes away the rest. Nothing of the machine is
changed: what a host finds in /etc and ~/.ssh is mounted over the real files, inside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.ranks import CHECKOUT

ADDRESSES = {"node-a": "10.77.0.1", "node-b": "10.77.0.2"}
_PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_PROGRAMS = {
    name: shutil.which(name, path=_PATH)
    for name in ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "sshd", "pdsh")
}
# The end of a host must be the end of all that runs in it: the first process of a process namespace is that.
_ALONE = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]

_BOOT = """\
set -e
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
for file in hosts shadow ssh/ssh_config; do mount --bind "$2/${file##*/}" "/etc/$file"; done
if [ -d ~/.ssh ]; then mount -t tmpfs tmpfs ~/.ssh; fi
ip link set lo up
exec "$3" -D -e -f "$2/$1/sshd_config"
"""
_SSH_CONFIG = """\
Host *
  IdentityFile {folder}/user
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking yes
  LogLevel ERROR
"""
_SSHD_CONFIG = """\
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
MaxStartups 100
SetEnv TMPDIR={folder}/{name}
"""


def why_not() -> str | None:
    """Why there can be no such hosts on this machine; None if there can."""
    missing = [name for name, found in _PROGRAMS.items() if not found]
    if missing:
        return f"two hosts need {', '.join(missing)} (Debian: openssh-server, pdsh, iproute2, util-linux)"
    tried = subprocess.run([*_ALONE, "true"], capture_output=True, text=True)
    return f"two hosts are namespaces, which only root may make: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Host:
    """One of the two hosts; `first` is the process that it lives by, `temporary` its TMPDIR."""

    name: str
    first: psutil.Process
    temporary: Path

    def start(self, *command: str, log: Path, **variables: str) -> psutil.Popen:
        """Run a command here, as somebody would who is logged in, in the background; both streams go to `log`."""
        environment = {"PATH": _PATH, "HOME": os.environ.get("HOME", "/root"), "TMPDIR": str(self.temporary)}
        with log.open("wb") as output:
            return psutil.Popen(
                ["nsenter", "--all", f"--target={self.first.pid}", f"--wd={CHECKOUT}", "--", *command],
                env=environment | variables, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """What runs here, each with its command line in `info`, but for the SSH server and its sessions."""
        return [
            process
            for process in psutil.process_iter(["name", "cmdline", "status"])
            if _namespace(process.pid) == _namespace(self.first.pid)
            and process.info["name"] != "sshd"
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def shared_memory(self) -> list[str]:
        """Names in this host's /dev/shm."""
        return sorted(path.name for path in Path(f"/proc/{self.first.pid}/root/dev/shm").iterdir())

    def set_link(self, state: str) -> None:
        """Pull the plug of the wire (`down`) or put it in again (`up`); the other end loses its carrier too."""
        self.network("link", "set", "eth0", state)

    def network(self, *arguments: str) -> None:
        """Run `ip` in this host's network."""
        subprocess.run(
            ["nsenter", f"--target={self.first.pid}", "--net", "ip", *arguments], check=True, env={"PATH": _PATH}
        )


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """node-a and node-b with a wire between them; each lets the other in, and itself."""
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))
    boots = []
    try:
        _write_files(folder)
        boots = [_boot(name, folder) for name in ADDRESSES]
        a, b = hosts = [
            Host(name, _first_process(boot), folder / name) for name, boot in zip(ADDRESSES, boots, strict=True)
        ]
        subprocess.run(
            ["ip", "link", "add", "eth0", "netns", str(a.first.pid), "type", "veth",
             "peer", "name", "eth0", "netns", str(b.first.pid)],
            check=True, env={"PATH": _PATH},
        )  # fmt: skip
        for host in hosts:
            host.network("address", "add", f"{ADDRESSES[host.name]}/24", "dev", "eth0")
            host.set_link("up")
        wait_until(lambda: all(_answers(a, name, folder) for name in ADDRESSES), 30, "no SSH between the hosts")
        yield a, b
    finally:
        for boot in boots:
            boot.kill()
            boot.wait()
        shutil.rmtree(folder)


def wait_until(happened: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Look again and again; an AssertionError says `otherwise` if it has not happened after so many seconds."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def _write_files(folder: Path) -> None:
    for key in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key)],
            check=True, env={"PATH": _PATH},
        )  # fmt: skip
    names = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    (folder / "shadow").write_text("root:*:20000:0:99999:7:::\nsshd:!:20000::::::\n")
    (folder / "ssh_config").write_text(_SSH_CONFIG.format(folder=folder))
    key = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text("".join(f"{name},{address} {key}" for name, address in ADDRESSES.items()))
    for name in ADDRESSES:
        (folder / name).mkdir()
        (folder / name / "sshd_config").write_text(_SSHD_CONFIG.format(folder=folder, name=name))


def _boot(name: str, folder: Path) -> psutil.Popen:
    with (folder / name / "sshd.log").open("wb") as log:
        return psutil.Popen(
            ["setpriv", "--pdeathsig=KILL", *_ALONE, "bash", "-c", _BOOT, "boot", name, str(folder), _PROGRAMS["sshd"]],
            env={"PATH": _PATH, "HOME": os.environ.get("HOME", "/root")}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _first_process(boot: psutil.Popen) -> psutil.Process:
    wait_until(lambda: bool(boot.children()) or boot.poll() is not None, 10, "a host did not start")
    return boot.children()[0]


def _answers(host: Host, name: str, folder: Path) -> bool:
    return host.start("ssh", name, "true", log=folder / "ssh.log").wait() == 0


def _namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:  # ended meanwhile
        return None
