"""Runs ``kie-async`` as a process of its own; `nothing_left_running` ends what a failed test left running."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

AS_PROCESS = [sys.executable, "-W", "error", "-m", "kie_async"]

PATIENCE_S = 40.0
"""For a machine that has much else to do."""

_started: list[Process] = []


class Process:
    """``kie-async`` as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ended: tuple[str, str] | None = None

    async def line(self) -> str:
        """Return the next line of standard output."""
        assert self._process.stdout is not None
        return (await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_S)).decode()

    async def said(self, words: str) -> None:
        """Wait until it has said *words* on standard error."""
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while words not in (await self._process.stderr.readline()).decode():
                assert not self._process.stderr.at_eof()

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it whatever it does, if it still runs."""
        if self._process.returncode is None:
            self._process.kill()

    async def end(self) -> tuple[int, str, str]:
        """Wait for its end; return its code and what it wrote to both streams."""
        if self._ended is None:
            out, err = await asyncio.wait_for(self._process.communicate(), PATIENCE_S)
            self._ended = out.decode(), err.decode()
        assert self._process.returncode is not None
        return self._process.returncode, *self._ended


async def start(*arguments: str, folder: Path | None = None, **environment: str) -> Process:
    """Start it with no other ``KIE_`` variables than these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
    process = await asyncio.create_subprocess_exec(
        *(*AS_PROCESS, *arguments),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean | environment,
    )
    _started.append(Process(process))
    return _started[-1]


@pytest.fixture
async def nothing_left_running() -> AsyncIterator[None]:
    """End whatever a test started and left running because it failed."""
    yield
    for process in _started:
        process.kill()
        await process.end()
    _started.clear()
