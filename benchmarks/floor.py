"""Clients that a session is measured against: aiohttp alone, and the one that everybody writes.

Beside them stands how a session is opened for a benchmark: its own limits out of the way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

import aiohttp
from yarl import URL

from kie_async import KieSession, Limits, Rate

from .emulated import dumps
from .emulator import AVATAR, AVATAR_INPUT

CREATES, QUERIES = 16, 64
"""Connections: more creates at once buy nothing."""
MANY = Rate(100_000, per_s=1)
NOBODY: Any = None
"""The owner of a handle that asks nothing of a session."""
FREE = Limits(create=MANY, query=MANY, create_connections=CREATES, query_connections=QUERIES)

_T = TypeVar("_T")
_R = TypeVar("_R")


def free_session(url: str, **options: Any) -> KieSession:
    """Return a session that is held back by nothing but its connections."""
    given: dict[str, Any] = {"base_url": url, "max_in_flight": 100_000, "limits": FREE}
    return KieSession("a-key", **given | options)


class Bare:
    """Sends creates and queries with aiohttp alone, over as many connections as ours, all of them kept.

    Bodies are encoded beforehand, answers are read and not decoded.
    """

    body = dumps({"model": AVATAR, "input": AVATAR_INPUT})

    def __init__(self, url: str) -> None:
        self._create_url = URL(f"{url}/api/v1/jobs/createTask", encoded=True)
        self._query_url = f"{url}/api/v1/jobs/recordInfo?taskId="

    async def __aenter__(self) -> Self:
        headers = {"Authorization": "Bearer a-key", "Content-Type": "application/json"}
        self._creates, self._queries = _kept(CREATES, headers), _kept(QUERIES, headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._creates.close()
        await self._queries.close()

    async def create(self, _: object = None) -> bytes:
        """Return the answer to a create."""
        async with self._creates.post(self._create_url, data=self.body) as answer:
            return await answer.read()

    async def query(self, task_id: str) -> bytes:
        """Return the answer to a query."""
        async with self._queries.get(URL(self._query_url + task_id, encoded=True)) as answer:
            return await answer.read()


def _kept(connections: int, headers: dict[str, str]) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=75)
    return aiohttp.ClientSession(connector=connector, headers=headers)


def task_id_of(answer: bytes) -> str:
    """Return the id in the emulator's answer to a create, without decoding it."""
    return answer.split(b'"', 12)[11].decode()


class Everyday:
    """A coroutine per task that creates, sleeps and asks, over as many connections as ours, all kept."""

    def __init__(self, url: str, *, every_s: float) -> None:
        self._url = f"{url}/api/v1/jobs/"
        self._every_s = every_s

    async def __aenter__(self) -> Self:
        headers = {"Authorization": "Bearer a-key"}
        self._creates, self._http = _kept(CREATES, headers), _kept(QUERIES, headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._creates.close()
        await self._http.close()

    async def run(self) -> list[str]:
        """Return the URLs of a new task's result."""
        request = {"model": AVATAR, "input": AVATAR_INPUT}
        async with self._creates.post(self._url + "createTask", json=request) as answer:
            asked = {"taskId": (await answer.json())["data"]["taskId"]}
        while True:
            await asyncio.sleep(self._every_s)
            async with self._http.get(self._url + "recordInfo", params=asked) as answer:
                record = (await answer.json())["data"]
            if record["state"] in ("success", "fail"):
                urls: list[str] = json.loads(record["resultJson"])["resultUrls"]
                return urls


async def at_most(lines: int, work: Callable[[_T], Awaitable[_R]], given: Iterable[_T]) -> list[_R]:
    """Do *work* for everything given, so many at once; return the results in no order."""
    found: list[_R] = []
    turns: Iterator[_T] = iter(given)

    async def go() -> None:
        for turn in turns:
            found.append(await work(turn))  # noqa: PERF401  # many share the list

    await asyncio.gather(*[go() for _ in range(lines)])
    return found
