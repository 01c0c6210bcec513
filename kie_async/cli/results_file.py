"""A file of one JSON object a line that is always whole: all of it is written anew, and replaced at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_AT_MOST_EVERY_S = 1.0
_SHARE = 0.05
"""The most of the time that goes into writing."""


class ResultsFile:
    """Holds the lines in memory, encoded."""

    def __init__(self, path: Path, lines: Iterable[dict[str, Any]]) -> None:
        self.path = path
        self._lines = [_encoded(line) for line in lines]
        self._changed = asyncio.Event()
        self._turn = threading.Lock()

    def put(self, index: int, line: dict[str, Any]) -> None:
        """Change a line."""
        self._lines[index] = _encoded(line)
        self._changed.set()

    async def keep_written(self) -> None:
        """Write when something changed, now and then, until cancelled; what came last is left to `write`.

        Raises:
            OSError: The file stays as it was.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._changed.wait()
            began = loop.time()
            await self.write()
            await asyncio.sleep(max(_AT_MOST_EVERY_S, (loop.time() - began) / _SHARE))

    async def write(self) -> None:
        """Write all lines.

        Raises:
            OSError: The file stays as it was.
        """
        self._changed.clear()
        await asyncio.to_thread(self._write)

    def _write(self) -> None:
        """Write the lines as they are now: a writing that was given up on may come here late, or last."""
        with self._turn:
            _replace(self.path, self._lines.copy())


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n"


def _replace(path: Path, lines: list[bytes]) -> None:
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
