"""Runs `cavmae` commands, each in a fork of this process, and prints as JSON what came of each.

It reads a JSON file: `commands`, lists of arguments; `folder`, where they write; `room`, which makes that folder a
file system of its own with so many bytes left, where only this process sees it and only root may; `links`, name ->
target, made there; `most_bytes`, beyond which no file may grow.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

CLONE_NEWNS = 0x00020000
DISK_BYTES = 1 << 20
MAY_NOT_MOUNT = 77


def make_small_disk(folder: Path, room: int) -> None:
    """A tmpfs that goes with this process. Ends it where it may not mount one."""
    commands = [
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)],
    ]
    alone = not ctypes.CDLL(None).unshare(CLONE_NEWNS)
    if not alone or any(subprocess.run(command).returncode for command in commands):
        sys.exit(MAY_NOT_MOUNT)
    (folder / "filler").write_bytes(bytes(DISK_BYTES - room))


def run(arguments: list[str], most_bytes: int | None) -> dict[str, object]:
    """The exit code of a command and what it printed on each stream."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            if most_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
            become(arguments)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return {"code": code, "out": texts[0], "err": texts[1]}


def become(arguments: list[str]) -> None:
    """Run the command in this process, and end it as the interpreter would."""
    from cavmae_ds.cli import main

    sys.argv, code = ["cavmae", *arguments], 0
    try:
        main()
    except SystemExit as left:
        code = left.code or 0
    except BaseException as error:  # main() itself must print what is wrong
        sys.stderr.write(f"escaped from main: {error!r}")
        code = 99
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(asked["folder"])
    if "room" in asked:
        make_small_disk(folder, asked["room"])
    for name, target in asked.get("links", {}).items():
        Path(name).symlink_to(target)
    results = []
    for command in asked["commands"]:
        before = set(folder.rglob("*"))
        result = run(command, asked.get("most_bytes"))
        left = [path for path in set(folder.rglob("*")) - before if path.is_file()]
        results.append(result | {"left": sorted(map(str, left))})
        if not asked.get("keep"):
            for path in left:
                path.unlink()
    sys.stdout.write(json.dumps(results))
