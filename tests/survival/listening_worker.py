"""One of two ranks: writes which addresses it listens on once all kinds of groups exist, and who can connect there."""

import json
import socket
import sys
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cavmae_ds.distributed import barrier, close_world, from_all_ranks, open_store, open_world


def can_connect(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


if __name__ == "__main__":
    world = open_world()
    own = [link.laddr for link in psutil.Process().net_connections("tcp") if link.status == psutil.CONN_LISTEN]
    open_store("test").set("rank", str(world.rank))
    listening = [tuple(address) for addresses in from_all_ranks(own) for address in addresses]
    if world.is_first:
        reached = [host for host, port in listening if can_connect("127.0.0.2", port)]  # another address of this host
        Path(sys.argv[-1]).write_text(json.dumps([listening, reached]))
    barrier()
    close_world()
