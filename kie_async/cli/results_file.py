"""Writes a JSON Lines file that readers never see half written: all of it anew, then renamed into place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .output import escape_marks

_MIN_INTERVAL_S = 1.0
_MAX_WRITING_SHARE = 0.05
"""The most of the time that goes into writing: the whole file each time, so it grows with the batch."""


class ResultsFile:
    """Holds the lines in memory, encoded."""

    def __init__(self, path: Path, lines: Iterable[dict[str, Any]]) -> None:
        self.path = path
        self._lines = [_encode(line) for line in lines]
        self._changed = asyncio.Event()
        self._write_lock = threading.Lock()

    def set_line(self, index: int, line: dict[str, Any]) -> None:
        """Change a line."""
        self._lines[index] = _encode(line)
        self._changed.set()

    def line(self, index: int) -> dict[str, Any]:
        """Return a line as it is now."""
        return dict(json.loads(self._lines[index]))

    def read_lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines as they are now."""
        return (json.loads(line) for line in self._lines)

    async def write_changes(self) -> None:
        """Write when something changed, now and then, until cancelled; what came last is left to `write`.

        Raises:
            OSError: The file stays as it was.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._changed.wait()
            began = loop.time()
            await self.write()
            await asyncio.sleep(max(_MIN_INTERVAL_S, (loop.time() - began) / _MAX_WRITING_SHARE))

    async def write(self) -> None:
        """Write all lines.

        Raises:
            OSError: The file stays as it was.
        """
        # Before the writing, so that a change during it is written next time.
        self._changed.clear()
        await asyncio.to_thread(self._write)

    def _write(self) -> None:
        # A write whose caller was cancelled goes on in its thread and may come here late, even last:
        # it copies the lines only now, so that it never puts old ones over newer ones.
        with self._write_lock:
            replace_file(self.path, self._lines.copy())


def _encode(line: dict[str, Any]) -> bytes:
    # People read it on a terminal, too.
    return escape_marks(json.dumps(line, ensure_ascii=False)).encode(errors="replace") + b"\n"


def replace_file(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file anew and put it in the place of the one that is there.

    Raises:
        OSError: The file stays as it was.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("xb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
