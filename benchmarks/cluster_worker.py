"""A worker of a shared journal, in a process of its own: commands come as JSON lines, each has an answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from kie_async import CallbackReceiver, KieSession, Limits, PollSchedule, PostgresJournal, Rate

ROOT = Path(__file__).parent.parent
LINES = 6
"""Creates asked for at once: enough that only the limit holds them back."""
ECHO = "sandbox/echo"


# --- the side that measures ----------------------------------------------------------------------


class Worker:
    """Such a process, and the way to it."""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.cluster_worker"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def ask(self, what: str, **options: Any) -> Any:
        """Let it do something and return what it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **options}).encode() + b"\n")
        return json.loads(await self._process.stdout.readline())

    def kill(self) -> None:
        """End it on the spot."""
        self._process.kill()


# --- the side that works -------------------------------------------------------------------------


def session(url: str, journal: object, limit: tuple[int, float], **options: Any) -> KieSession:
    """Return a session that is held back by this limit of creates, and that does not poll."""
    given: dict[str, Any] = {
        "base_url": url,
        "journal": journal,
        "max_in_flight": 100_000,
        "limits": Limits(create=Rate(limit[0], per_s=limit[1]), query=Rate(100_000, per_s=1)),
        "poll": PollSchedule.fixed(3600),
    }
    return KieSession("sandbox-key", **given | options)


class _Commands:
    """What a worker can be told."""

    def __init__(self) -> None:
        self._open = AsyncExitStack()
        self._lines: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()

    async def open(self, *, url: str, dsn: str | None, names: list[str], limit: tuple[int, float]) -> None:
        """Open a session on the journal of each name, or one without a journal."""
        self._sessions = [
            await self._open.enter_async_context(
                session(url, None if dsn is None else PostgresJournal(dsn, name=name), limit)
            )
            for name in names
        ]

    async def serve(self, *, url: str, dsn: str, name: str, key: str) -> str:
        """Open a session that is called back, and return at which address."""
        receiver = CallbackReceiver([key])
        served = await self._open.enter_async_context(receiver.serve("127.0.0.1", 0))
        journal = PostgresJournal(dsn, name=name)
        options = {"receiver": receiver, "callback_url": served.url}
        kie = session(url, journal, (50, 0.001), **options)
        self._sessions = [await self._open.enter_async_context(kie)]
        return served.url

    async def create(self) -> None:
        """Create a task in each session."""
        for kie in self._sessions:
            await kie.create(ECHO, {"prompt": "one"})

    async def flood(self) -> None:
        """Begin to create tasks, as fast as may be."""

        async def line() -> None:
            for number in self._numbers:
                await self._sessions[0].create(ECHO, {"prompt": str(number)})

        self._lines = [asyncio.create_task(line()) for _ in range(LINES)]

    async def close(self) -> None:
        """Create nothing more, and close all sessions."""
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)
        self._lines = []
        await self._open.aclose()
        self._open = AsyncExitStack()


async def _serve() -> None:
    commands = _Commands()
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        answer = await getattr(commands, asked.pop("what"))(**asked)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    logging.getLogger("kie_async").setLevel(logging.ERROR)  # each close names what goes on
    asyncio.run(_serve())
