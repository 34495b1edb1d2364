"""What a launcher says in the environment of a rank; read before torch is imported."""

import os


def from_launcher(name: str, alone: int) -> int:
    """An integer of the launcher's (RANK, WORLD_SIZE, LOCAL_RANK); `alone` for a process without a launcher."""
    return int(os.environ.get(name, alone))


def ranks_of_this_host() -> int:
    """torchrun and the Slurm script give it by one name, deepspeed by another; a process without a launcher is 1."""
    return from_launcher("LOCAL_WORLD_SIZE", from_launcher("LOCAL_SIZE", 1))
