"""Who this process is among the ranks, and how ranks meet."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from cavmae_ds.errors import ConfigError

COLLECTIVE_TIMEOUT_S = 600.0
LOOPBACK = ("127.0.0.1", "localhost")
STORE_PATIENCE = timedelta(seconds=30)
_patience = timedelta(seconds=COLLECTIVE_TIMEOUT_S)


@dataclass(frozen=True)
class World:
    """This process among its peers. rank in [0, size); local_rank counts on this host; hosts = machines."""

    rank: int
    size: int
    local_rank: int
    hosts: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes files and speaks."""
        return self.rank == 0


def open_world(collective_timeout_s: float = COLLECTIVE_TIMEOUT_S, watched: bool = False) -> World:
    """Join the process group that the launcher described in the environment (a group of one without a launcher).

    collective_timeout_s: how long ranks wait for each other, here and in every collective. watched: a heartbeat monitor
    will end this process before that, when another rank is gone.
    """
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (alone | {"MASTER_PORT": str(_free_port())}).items():
        os.environ.setdefault(name, value)
    # The deepspeed launcher says LOCAL_SIZE; streaming reads LOCAL_WORLD_SIZE and else takes each rank for a host.
    os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", os.environ["WORLD_SIZE"]))

    import deepspeed

    # On a CPU DeepSpeed would compile a shared-memory all-reduce that only inference uses: a minute, a compiler, 66 MiB
    # of /dev/shm left behind by each rank, a silent hang on a stale lock, and no blanks allowed in any path.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if watched:  # NCCL's watchdog would abort this process first, and cannot say who is gone
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    global _patience
    _patience = timedelta(seconds=collective_timeout_s)
    deepspeed.init_distributed(timeout=_patience, verbose=False, init_method=_rendezvous())
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    size = dist.get_world_size()
    return World(dist.get_rank(), size, local_rank, size // int(os.environ["LOCAL_WORLD_SIZE"]), device)


def _rendezvous() -> str:
    """How ranks meet: through torch's environment variables, and out of reach of other hosts if there is but one.

    torch's store listens on all addresses, whatever MASTER_ADDR says, and whoever can connect to it, or to gloo's
    ports, can end the run or run code in it. A name or an address of a network is left alone: it may be one that is
    translated on its way here, to which nothing on this host can be bound.
    """
    if os.environ["MASTER_ADDR"] not in LOOPBACK or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        return "env://"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with suppress(RuntimeError):  # registered already
        dist.register_rendezvous_handler("loopback", _meet_on_loopback)
    return "loopback://"


def _meet_on_loopback(_: str, timeout: timedelta, **__: Any) -> Iterator[tuple[dist.Store, int, int]]:
    address, port = "127.0.0.1", int(os.environ["MASTER_PORT"])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    listening = None
    if rank == 0:
        try:
            listening = socket.create_server((address, port), backlog=size + 128).detach()
        except OSError as error:
            raise ConfigError(
                f"the ranks of this host cannot meet at port {port} ({os.strerror(error.errno or 0)}), which another "
                "run may have; give this one another, as in deepspeed --master_port 29600"
            ) from error
    store = dist.TCPStore(
        address, port, size, is_master=rank == 0, timeout=timeout, multi_tenant=True, master_listen_fd=listening
    )
    yield store, rank, size


def _free_port() -> int:
    """For a process without a launcher, so that two of them never meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def close_world() -> None:
    """Leave the process group; nothing happens if there is none."""
    if dist.is_initialized():
        dist.destroy_process_group()
    control_group.cache_clear()


def open_store(prefix: str, patience: timedelta = STORE_PATIENCE) -> dist.Store:
    """A connection of its own to the ranks' common store, for one thread; its keys all begin with `prefix`.

    A call that waits (get, wait) ends after `patience` in dist.DistStoreError, but one whose link was cut may hang for
    ever. The connection that came with the process group is never shared: one waiting call would hold up all others.
    """
    # The launcher's agent (torchrun) keeps its store from one attempt to the next.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    client = dist.TCPStore(address, port, is_master=False, timeout=patience)
    return dist.PrefixStore(f"cavmae/{attempt}/{prefix}", client)


@cache
def control_group() -> dist.ProcessGroup:
    """All ranks over gloo on the CPU, whatever the device: for small numbers that must not wait for the device.

    Made by the first call, which all ranks make together.
    """
    return dist.new_group(backend="gloo", timeout=_patience)


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective or the store failed because another rank is gone, or does not answer in time."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
