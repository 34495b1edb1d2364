"""Ranks side by side: each says who and what it is, the first one hears them and looks for differences.

They talk through the store of the process group, so that who is silent can be named:

    facts/r    who r is, and what it would run            -> rank 0
    found/r    what r found on its host                   -> rank 0
    go         all have come so far, collectives begin    -> all
    links/r    what r saw of them, and its clock          -> rank 0
"""

from __future__ import annotations

import json
import os
import platform
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed import Store

from cavmae_ds.config.load import to_yaml
from cavmae_ds.distributed.process_group import World, open_store, open_world
from cavmae_ds.doctor.environment import SHOWN, clocks_of_ranks
from cavmae_ds.doctor.examine import Asked, own_findings, run_findings
from cavmae_ds.doctor.finding import Finding, Verdict, bounded, fix, ok
from cavmae_ds.doctor.links import check_links, moment
from cavmae_ds.doctor.report import Line, merged, spans, with_hosts
from cavmae_ds.doctor.versions import installed_packages
from cavmae_ds.errors import RankError
from cavmae_ds.fault_tolerance.exit import ExitCode, leave, say

JOIN_LIMITS = 2
"""Times the limit of one check that the ranks wait to meet: their starts are seconds apart."""
PATIENCE = 3
"""Times the limit of one check that the first rank, done itself, waits for what others found."""
MOST_LIMITS = 30
"""Times the limit of one check that a rank takes for everything, at most: there are some twenty checks."""
_PAUSE_S = 0.05
PACKAGE = Path(__file__).resolve().parents[1]

ADVICE = {
    "code": "check out the same commit on every host, without changes",
    "packages": "install the same environment on every host: launch/quickstart.sh",
    "Python": "make the environment with the same Python on every host",
    "run": "copy the same run file to every host",
    "device": "use hosts with the same GPUs, or lower train.micro_batch to what the smallest one holds",
    "network settings": "set them alike on every host; `cavmae launch` passes them on (docs/multinode.md)",
}


@dataclass(frozen=True)
class Facts:
    """What must be alike on all ranks, and where this one is."""

    host: str
    local_rank: int
    alike: dict[str, str]
    """Key of ADVICE -> value."""


def examine_together(asked: Asked, local_rank: int) -> tuple[list[Line], dict[int, str]]:
    """All ranks call it. What all found, and every rank's host: on the first rank; the others hear nothing.

    Raises RankError if the ranks do not meet.
    """
    world = _join(JOIN_LIMITS * asked.limit_s)
    _end_after(MOST_LIMITS * asked.limit_s)
    meeting = Meeting(world)
    meeting.tell("facts", asdict(facts(asked, local_rank)))
    own = [*own_findings(asked, local_rank), *bounded("address", partial(check_own_address, world), asked.limit_s)]
    if world.is_first:
        own += run_findings(asked)
    meeting.tell("found", own)
    heard = meeting.hear("found", PATIENCE * asked.limit_s) if world.is_first else {}
    if meeting.all_begin(len(heard) == world.size):
        meeting.tell("links", _links(world, asked.limit_s))
    return _concluded(meeting, heard, asked.limit_s) if world.is_first else ([], {})


def _join(limit_s: float) -> World:
    meeting_point = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        return open_world(limit_s, watched=True)
    except (RuntimeError, OSError) as error:  # what torch and gloo raise, after limit_s or at once
        said = str(error).partition("\n")[0]
        raise RankError(
            f"rank {os.environ['RANK']} on {socket.gethostname()} could not meet the others at {meeting_point} within "
            f"{limit_s:g} s ({said}); let every host resolve and reach that address, with no firewall in between"
        ) from error


def _end_after(seconds: float) -> None:
    """A rank that is still here then waits for one that is gone: a call to the store may hang when a link is cut."""

    def end() -> None:
        say(f"doctor: error: {socket.gethostname()} heard nothing from the first rank for {seconds:.0f} s")
        leave(ExitCode.LOST)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _links(world: World, limit_s: float) -> dict[str, Any]:
    """Of one rank: findings about the links, and its clock at a moment that all have in common."""
    now_s: list[float] = []

    def look_at_clock() -> list[Finding]:
        now_s.append(moment())
        return []

    found = bounded("links", look_at_clock, limit_s)
    if now_s:  # else nobody would answer here either
        found += bounded("links", partial(check_links, world), limit_s)
    return {"found": found, "now_s": now_s}


def _concluded(meeting: Meeting, heard: dict[int, Any], limit_s: float) -> tuple[list[Line], dict[int, str]]:
    who = {rank: Facts(**said) for rank, said in meeting.hear("facts", limit_s).items()}
    links = meeting.hear("links", PATIENCE * limit_s) if len(heard) == meeting.size else {}
    hosts = {rank: each.host for rank, each in who.items()}
    by_rank = {rank: _findings(heard.get(rank, [])) for rank in range(meeting.size)}
    for rank, said in links.items():
        by_rank[rank] += _findings(said["found"])
    times_s = {rank: said["now_s"][0] for rank, said in links.items() if said["now_s"]}
    common = [*silent(meeting.size, links if links else heard, hosts), *differences(who), *shared_names(who)]
    if times_s:
        common.append(clocks_of_ranks(times_s))
    return [*(Line(finding) for finding in common), *merged(by_rank)], hosts


def _findings(said: Sequence[Sequence[str]]) -> list[Finding]:
    return [Finding(name, Verdict(verdict), found, do) for name, verdict, found, do in said]


def facts(asked: Asked, local_rank: int) -> Facts:
    """Of this rank."""
    packages = sorted(f"{name} {version}" for name, version in installed_packages().items())
    sources = [path.read_bytes() for path in sorted(PACKAGE.rglob("*.py"))]
    network = sorted(f"{name}={value}" for name, value in asked.environment.items() if name.startswith(SHOWN))
    gpu = torch.cuda.is_available()
    alike = {
        "code": _digest(b"".join(sources)),
        "packages": _digest("\n".join(packages).encode()),
        "Python": platform.python_version(),
        "run": _digest(to_yaml(asked.cfg).encode()),
        "device": torch.cuda.get_device_name(0) if gpu else "CPU",
        "network settings": _digest("\n".join(network).encode()),
    }
    return Facts(socket.gethostname(), local_rank, alike)


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:12]


def check_own_address(world: World) -> list[Finding]:
    """This host's name leads to an address that others reach, and which interface leads to them."""
    name = socket.gethostname()
    try:
        resolved = socket.gethostbyname(name)
    except OSError as error:
        resolved = f"nothing ({error.strerror})"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing: the kernel chooses a way
        probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        towards = probe.getsockname()[0]
    interfaces = [
        interface
        for interface, addresses in psutil.net_if_addrs().items()
        if towards in (address.address for address in addresses)
    ]
    return [own_name(name, resolved, interfaces[0] if interfaces else "?", towards, world.hosts)]


def own_name(name: str, resolved: str, interface: str, towards: str, hosts: int) -> Finding:
    """gloo tells the other hosts the address that a host's own name leads to."""
    said = f"{name} is {resolved}, {towards} on {interface} leads to the first rank"
    if hosts > 1 and not os.environ.get("GLOO_SOCKET_IFNAME") and (not resolved[0].isdigit() or resolved[:4] == "127."):
        return fix(
            "address",
            said,
            f"in /etc/hosts let {name} be its address in the common network, or set GLOO_SOCKET_IFNAME={interface}",
        )
    return ok("address", said)


def differences(who: Mapping[int, Facts]) -> list[Finding]:
    """What is not the same on all ranks."""
    found, hosts = [], {rank: each.host for rank, each in who.items()}
    for key, do in ADVICE.items():
        ranks_of = defaultdict(list)
        for rank, each in who.items():
            ranks_of[each.alike[key]].append(rank)
        if len(ranks_of) > 1:
            parts = [f"{value} on ranks {with_hosts(ranks, hosts)}" for value, ranks in ranks_of.items()]
            found.append(fix(f"same {key}", "; ".join(parts), do))
    same = [key for key in ADVICE if f"same {key}" not in {finding.name for finding in found}]
    return [*found, ok("alike on all ranks", ", ".join(same))] if same else found


def shared_names(who: Mapping[int, Facts]) -> list[Finding]:
    """Hosts that call themselves the same."""
    ranks_of = defaultdict(list)
    for rank, each in who.items():
        ranks_of[each.host].append(rank)
    return [
        fix("host names", f"several hosts are called {host}: ranks {spans(ranks)}", "give each host a name of its own")
        for host, ranks in ranks_of.items()
        if len({who[rank].local_rank for rank in ranks}) < len(ranks)
    ]


def silent(size: int, heard: Iterable[int], hosts: Mapping[int, str]) -> list[Finding]:
    """Ranks that said nothing in time."""
    missing = sorted(set(range(size)) - set(heard))
    if not missing:
        return []
    names = ", ".join(dict.fromkeys(hosts.get(rank, "unknown") for rank in missing))
    return [
        fix("silent ranks", f"{spans(missing)} (host {names})", "look at that host: what it prints, dmesg, its load")
    ]


class Meeting:
    """What the ranks tell each other, by way of the store; a call waits no longer than it is told to."""

    def __init__(self, world: World) -> None:
        self.size, self._rank = world.size, world.rank
        self._store: Store = open_store("doctor")

    def tell(self, key: str, value: Any) -> None:
        """The first rank."""
        self._store.set(f"{key}/{self._rank}", json.dumps(value))

    def hear(self, key: str, limit_s: float) -> dict[int, Any]:
        """What the ranks that spoke within limit_s have told."""
        deadline = time.monotonic() + limit_s
        waited_for, heard = set(range(self.size)), {}
        while waited_for and time.monotonic() < deadline:
            for rank in sorted(waited_for):
                if self._store.check([f"{key}/{rank}"]):
                    heard[rank] = json.loads(self._store.get(f"{key}/{rank}"))
            waited_for -= heard.keys()
            time.sleep(_PAUSE_S if waited_for else 0)
        return heard

    def all_begin(self, go: bool) -> bool:
        """Whether the first rank, whose word counts, says so; it says something in the end, or its store is gone."""
        if self._rank == 0:
            self._store.set("go", json.dumps(go))
        while not self._store.check(["go"]):
            time.sleep(_PAUSE_S)
        return json.loads(self._store.get("go"))
