"""Knows which file in a folder is of which task, by a list beside them; so no task gets another's name."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from .names import key_of
from .part_file import is_complete, open_no_link

LIST_NAME = ".kie-async-files.jsonl"
"""Hidden, beside the files. Without it nothing is lost: files are there, and what comes gets other names."""

_Owner = tuple[str, int]
"""A task, and the number of the file among its files."""


class SavedFiles:
    """The list of one folder. Several processes may add to it: the first line with a name has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / LIST_NAME
        self._forget()
        self._lock = threading.Lock()

    def _forget(self) -> None:
        self._owners: dict[str, _Owner] = {}
        self._names: dict[_Owner, list[str]] = {}
        self._rest = b""
        """What stands behind the last whole line."""
        self._read_bytes = 0

    def find(self, task_id: str, at: int) -> Path | None:
        """Return the file of a task that is there already.

        Raises:
            OSError: The list cannot be read.
        """
        with self._lock:
            self._read()
            paths = (self._folder / name for name in self._names.get((task_id, at), ()))
            return next((path for path in paths if is_complete(path)), None)

    def is_of_another(self, name: str, task_id: str) -> bool:
        """Tell whether a name is that of another task's file."""
        with self._lock:
            self._read()
            owner = self._owners.get(key_of(name))
            return owner is not None and owner[0] != task_id

    def claim(self, names: Iterable[str], task_id: str, at: int) -> str:
        """Return the first of *names* that no other file has, nor gets from now on.

        Raises:
            OSError: The list cannot be read or written.
        """
        with self._lock:
            self._read()
            return next(name for name in names if self._may_have(name, (task_id, at)))

    def by_task(self) -> dict[str, list[Path]]:
        """Return all files on the list that are there, by task.

        Raises:
            OSError: The list cannot be read.
        """
        with self._lock:
            self._read()
            found: dict[str, list[Path]] = {}
            for (task_id, _), names in sorted(self._names.items()):
                paths = (self._folder / name for name in names)
                found.setdefault(task_id, []).extend(path for path in paths if is_complete(path))
            return found

    def _may_have(self, name: str, asking: _Owner) -> bool:
        key = key_of(name)
        if key not in self._owners and not os.path.lexists(self._folder / name):
            self._add(name, asking)
            self._read()  # another process may have been faster
        return self._owners.get(key) == asking

    def _add(self, name: str, owner: _Owner) -> None:
        line = json.dumps({"name": name, "task_id": owner[0], "number": owner[1]}, ensure_ascii=False)
        # Whoever was cut off in the middle of a line must not spoil this one.
        begin = b"\n" if self._rest else b""
        with open(self._path, "ab", opener=open_no_link) as file:
            file.write(begin + line.encode() + b"\n")

    def _read(self) -> None:
        """Take in what was added since it was last read."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._read_bytes:  # another list
                    self._forget()
                file.seek(self._read_bytes)
                added = file.read()
        except FileNotFoundError:
            self._forget()
            return
        self._read_bytes += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            name, owner = said["name"], (said["task_id"], said["number"])
            is_sound = isinstance(owner[0], str) and isinstance(owner[1], int) and _is_plain(name)
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if is_sound and self._owners.setdefault(key_of(name), owner) == owner:
            self._names.setdefault(owner, []).append(name)


def _is_plain(name: object) -> bool:
    """Tell whether it names a file in the folder itself: the list may have come from anywhere."""
    return isinstance(name, str) and name not in {"", ".", ".."} and not set(name) & {"/", "\\", "\0"}
