"""The temporary folder, where worker processes hand their batches over."""

from __future__ import annotations

import os
import tempfile

from cavmae_ds.errors import ConfigError

LONGEST_TEMPORARY_FOLDER = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes: a socket's whole name may have 107 (man 7 unix), the rest is how multiprocessing calls it."""


def check_temporary_folder(workers: int) -> None:
    """Refuse a temporary folder that worker processes could not hand their batches over through. Raises ConfigError.

    They do it through sockets there; with a longer name the first batch would be waited for until the time-out.
    """
    folder = tempfile.gettempdir()
    if workers and len(os.fsencode(folder)) > LONGEST_TEMPORARY_FOLDER:
        raise ConfigError(
            f"the temporary folder {folder!r} has a name of {len(os.fsencode(folder))} bytes, at most "
            f"{LONGEST_TEMPORARY_FOLDER} leave room for the sockets of data.workers; set TMPDIR to a shorter one"
        )
