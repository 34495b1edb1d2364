"""A folder and buckets that are before each command as they were made: only what the last one changed is made anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class CleanFolder:
    """A copy of a folder, in which commands may do what they like."""

    def __init__(self, original: Path, path: Path):
        self._original, self.path = original, path
        shutil.copytree(original, path, symlinks=True)
        self._clean = self._state()

    def restore(self) -> None:
        """Undo what was added, changed and removed."""
        now = self._state()
        changed = [name for name, state in self._clean.items() if now.get(name) != state]
        for name in [*(now.keys() - self._clean.keys()), *changed]:
            _remove(self.path / name)
        for name in changed:  # folders before what is in them
            _copy(self._original / name, self.path / name)
        if changed:
            self._clean = self._state()

    def _state(self) -> dict[str, tuple[object, ...]]:
        """Name of everything below -> what shows that it is the same; folders before what is in them."""
        found: dict[str, tuple[object, ...]] = {}
        for folder, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                path = Path(folder, name)
                stat = path.lstat()
                known = (stat.st_mode, stat.st_ino)
                is_file = not path.is_dir() or path.is_symlink()
                found[str(path.relative_to(self.path))] = (*known, stat.st_size, stat.st_mtime_ns) if is_file else known
        return found


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy(original: Path, path: Path) -> None:
    if original.is_symlink():
        path.symlink_to(original.readlink())
    elif original.is_dir():
        path.mkdir()
    else:
        shutil.copy2(original, path)


class CleanBuckets:
    """Buckets with the content of files, and no other."""

    def __init__(self, client: Any, files: Mapping[tuple[str, str], Path]):
        """files: (bucket, key) -> what the object holds."""
        self._client, self._files = client, files
        self._etags: dict[tuple[str, str], str] = {}
        for bucket in self._buckets:
            client.create_bucket(Bucket=bucket)
        self.restore()

    @property
    def _buckets(self) -> list[str]:
        return sorted({bucket for bucket, _ in self._files})

    def restore(self, without: str = "") -> None:
        """Undo what was added, changed and removed; nothing is left below the prefix `without`."""
        wanted = {place for place in self._files if not (without and place[1].startswith(f"{without}/"))}
        there = {
            (bucket, found["Key"]): found["ETag"]
            for bucket in self._buckets
            for found in self._client.list_objects_v2(Bucket=bucket).get("Contents", [])
        }
        for bucket, key in there.keys() - wanted:
            self._client.delete_object(Bucket=bucket, Key=key)
        for bucket, key in wanted:
            if there.get((bucket, key), "") != self._etags.get((bucket, key)):
                content = self._files[bucket, key].read_bytes()
                self._etags[bucket, key] = self._client.put_object(Bucket=bucket, Key=key, Body=content)["ETag"]
