"""Writing that survives a power cut."""

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Make a file's content, or a folder's list of names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(finished: Path, path: Path) -> None:
    """Give a file its name, on the same file system, in place of one that has it: whole, and on the disk at the end."""
    flush(finished)
    finished.replace(path)
    flush(path.parent)
