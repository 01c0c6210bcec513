"""Runs ``kie-async`` on a loop whose clock is fast: ``python -m tests.support.fast_cli 60``.

It is all imported when the arguments come, as JSON in one line of standard input: ``["batch", "jobs.csv"]``.

Every timeout, backoff and pause of the package asks the loop for the time, so that at 60 an hour without
network takes a minute. The wall clock, which dates what is written down, stays as it is. While a file
``disk-is-full`` lies in the working folder, no file can be finished.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import selectors
import sys
from pathlib import Path

from kie_async import cli
from kie_async.cli import app, runtime  # noqa: F401  (now, and not when it begins)

FULL = Path("disk-is-full")


class FastLoop(asyncio.SelectorEventLoop):
    """A loop on whose clock so many seconds pass in one."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        super().__init__(_Selector(speed))

    def time(self) -> float:
        return super().time() * self._speed


class _Selector(selectors.DefaultSelector):
    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self._speed)


def fill_disk_on_demand() -> None:
    """Let what must lie on the disk fail there while `FULL` exists; the journal's file is SQLite's own."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if FULL.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def main() -> None:
    speed = float(sys.argv[1])
    runtime.fast_loop = lambda: lambda: FastLoop(speed)  # type: ignore[assignment]
    fill_disk_on_demand()
    if given := sys.stdin.readline():  # nothing comes if nobody needs it any more
        cli.main(json.loads(given))


if __name__ == "__main__":
    main()
