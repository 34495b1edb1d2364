"""One of two ranks: writes which addresses it listens on once all kinds of groups exist, and who can connect there."""

import json
import socket
import sys
from functools import partial
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.distributed.collectives import barrier, from_all_ranks
from cavmae_ds.distributed.process_group import World, close_world, open_store, open_world
from cavmae_ds.errors import ConfigError
from cavmae_ds.fault_tolerance.async_flags import refuse_together


def can_connect(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def refuse_on_rank_1(world: World) -> None:
    if world.rank == 1:
        raise ConfigError("no room")


if __name__ == "__main__":
    world = open_world()
    own = [link.laddr for link in psutil.Process().net_connections("tcp") if link.status == psutil.CONN_LISTEN]
    open_store("test").set("rank", str(world.rank))
    listening = [tuple(address) for addresses in from_all_ranks(own) for address in addresses]
    if world.is_first:
        reached = [host for host, port in listening if can_connect("127.0.0.2", port)]  # another address of this host
        Path(sys.argv[-1]).write_text(json.dumps([listening, reached]))
    try:
        refuse_together(partial(refuse_on_rank_1, world), world)
    except ConfigError as error:
        print(f"rank {world.rank} refuses: {error}", flush=True)  # noqa: T201
    barrier()
    close_world()
