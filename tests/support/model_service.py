"""A model of the service inside the process: no sockets, its own faults, everything in virtual time.

It stands where the package opens its HTTP sessions, so that all of `CreateTransport` and `Transport` runs
above it. What was created stays when a client's process is gone.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import aiohttp
import attrs

MODEL = "sandbox/echo"
PRICE = 3.0

_CREATES = {
    "created": 46,
    "lost": 12,
    "lost, not created": 5,
    "cut": 3,
    "garbled, with an id": 5,
    "500, created": 6,
    "500": 4,
    "422": 4,
    "429": 6,
    "no connection": 5,
    "dropped before the body": 2,
    "silent": 4,
}
"""What becomes of a create in bad weather, and how often."""
_QUERIES = {"ok": 60, "500": 8, "401": 2, "403 page": 2, "429": 4, "broken": 8, "slow": 8, "not yet": 8}


@attrs.define
class ServiceTask:
    """One task as the service has it."""

    task_id: str
    prompt: str
    intent_id: str
    url: str
    created_at: float
    ends_at: float
    end: str
    is_refused: bool = False
    """The answer said that nothing was created."""
    was_delivered: bool = False
    """A callback of it was answered with 200."""


class ModelService:
    """What was asked for, what was made of it, and what is said about it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.is_bad = True
        self.tasks: dict[str, ServiceTask] = {}
        self.bodies: list[tuple[str, str, str]] = []
        """Intent, prompt and fate of every body that arrived."""
        self.counts: Counter[str] = Counter()
        self.reads: list[tuple[float, str]] = []
        """When which record was read."""
        self.create_fates: list[str] = []
        self.query_fates: list[str] = []
        self.connect_fates: list[str] = []
        """What becomes of the next ones, whatever the weather."""
        self.lasts_s: float | None = None
        self.answer_gate: asyncio.Event | None = None
        self.query_gate: asyncio.Event | None = None
        """Answers wait for them."""

    def create(self, body: bytes) -> tuple[str, int, Any]:
        """Take in a body; return what becomes of the answer, and the answer."""
        asked = json.loads(body)
        url = asked.get("callBackUrl", "")
        intent_id = url.rsplit("/", 2)[1] if url else ""
        prompt = asked["input"]["prompt"]
        fate = self._draw(_CREATES) if self.is_bad else "created"
        if self.create_fates:
            fate = self.create_fates.pop(0)
        if fate in {"no connection", "dropped before the body"}:
            fate = "created"  # it came through: that was decided before
        self.bodies.append((intent_id, prompt, fate))
        self.counts[fate] += 1
        if fate == "429":
            return "answer", self.rng.choice((200, 429)), {"code": 429, "msg": "slow down", "data": None}
        if fate == "422":
            return "answer", 200, {"code": 422, "msg": "no such model", "data": None}
        if fate == "500":
            return "answer", 200, {"code": 500, "msg": "oops", "data": None}
        if fate == "lost, not created":
            return "lost", 0, None
        task = self._make(prompt, intent_id, url)
        if fate == "500, created":
            task.is_refused = True
            return "answer", 200, {"code": 500, "msg": "oops", "data": None}
        answer = {"code": 200, "msg": "success", "data": {"taskId": task.task_id}}
        if fate == "garbled, with an id":
            return "answer", 502, answer
        return (fate if fate in {"lost", "cut", "silent"} else "answer"), 200, answer

    def _make(self, prompt: str, intent_id: str, url: str) -> ServiceTask:
        now, rng = asyncio.get_running_loop().time(), self.rng
        task_id = f"task{len(self.tasks):03d}"
        lasts_s = rng.choice((0.0, 0.1, 1.0, 5.0, 60.0, 500.0))
        lasts_s = lasts_s if self.lasts_s is None else self.lasts_s
        end = rng.choice(("success", "success", "fail"))
        task = self.tasks[task_id] = ServiceTask(task_id, prompt, intent_id, url, now, now + lasts_s, end)
        return task

    def finish(self, task: ServiceTask) -> None:
        """Let a task end now, and well."""
        task.ends_at, task.end = asyncio.get_running_loop().time(), "success"

    def make_foreign(self) -> ServiceTask:
        """Make a task that somebody else asked for."""
        return self._make("foreign", "f" * 32, f"https://elsewhere.example/kie/{'f' * 32}/{'a' * 26}")

    def query(self, task_id: str) -> tuple[str, int, Any]:
        """Return what becomes of a query's answer, and the answer."""
        self.counts["query"] += 1
        self.reads.append((asyncio.get_running_loop().time(), task_id))
        fate = self._draw(_QUERIES) if self.is_bad else "ok"
        if self.query_fates:
            fate = self.query_fates.pop(0)
        if fate == "500":
            return "answer", 200, {"code": 500, "msg": "oops", "data": None}
        if fate == "401":
            return "answer", 401, {"code": 401, "msg": "no key", "data": None}
        if fate == "403 page":
            return "answer", 403, None
        if fate == "429":
            return "answer", 429, {"code": 429, "msg": "slow down", "data": None}
        if task_id not in self.tasks or fate == "not yet":
            return "answer", 200, {"code": 422, "msg": "recordInfo is null", "data": None}
        kind = {"broken": "lost", "slow": "silent"}.get(fate, "answer")
        return kind, 200, {"code": 200, "msg": "", "data": self.record(task_id)}

    def credits(self) -> tuple[str, int, Any]:
        """Return what becomes of the answer when the balance is asked for, and the answer."""
        self.counts["credits"] += 1
        fate = self._draw(_QUERIES) if self.is_bad else "ok"
        if fate == "429":
            return "answer", 429, {"code": 429, "msg": "slow down", "data": None}
        kind = {"broken": "lost", "slow": "silent"}.get(fate, "answer")
        return kind, 200, {"code": 200, "msg": "success", "data": 1000}

    def record(self, task_id: str) -> dict[str, Any]:
        """Return the record of a task as it stands."""
        task = self.tasks[task_id]
        param = {"model": MODEL, "input": {"prompt": task.prompt}, "callBackUrl": task.url}
        found = {"taskId": task_id, "model": MODEL, "param": json.dumps(param), "state": self.state(task)}
        if found["state"] == "success":
            found["resultJson"] = json.dumps({"resultUrls": [f"https://files.example/{task_id}.png"]})
        if found["state"] == "fail":
            found |= {"failCode": "500", "failMsg": "it failed"}
        return found | {"creditsConsumed": PRICE if task.end == "success" else 0}

    def state(self, task: ServiceTask) -> str:
        """Return the state of a task now."""
        now = asyncio.get_running_loop().time()
        if now >= task.ends_at:
            return task.end
        return "waiting" if now < task.created_at + 0.05 else "generating"

    def callback(self, task_id: str) -> bytes:
        """Return the body of a callback."""
        record = self.record(task_id)
        code = 501 if record["state"] == "fail" else 200
        return json.dumps({"code": code, "msg": "", "data": record}).encode()

    def _draw(self, weights: dict[str, int]) -> str:
        return self.rng.choices(list(weights), weights=list(weights.values()))[0]

    def connects(self) -> str:
        """Return what becomes of a connection before any body."""
        if self.connect_fates:
            return self.connect_fates.pop(0)
        if not self.is_bad:
            return "open"
        weights = {name: _CREATES[name] for name in ("no connection", "dropped before the body")}
        return self._draw({"open": 100, **weights})

    def latency_s(self) -> float:
        return self.rng.choice((0.0, 0.02, 0.02, 0.2, 3.0) if self.is_bad else (0.02,))


class Wire:
    """The connections of one client process; after a crash nothing passes any more."""

    def __init__(self, service: ModelService) -> None:
        self._service = service
        self._is_dead = asyncio.Event()

    def cut(self) -> None:
        """Let nothing through any more."""
        self._is_dead.set()

    @property
    def is_dead(self) -> bool:
        return self._is_dead.is_set()

    async def pass_time(self, seconds: float) -> None:
        """Let a latency pass.

        Raises:
            aiohttp.ServerDisconnectedError: The process is gone.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._is_dead.wait()
        except TimeoutError:
            return
        raise aiohttp.ServerDisconnectedError

    async def until(self, gate: asyncio.Event) -> None:
        """Wait for a gate to open.

        Raises:
            aiohttp.ServerDisconnectedError: The process is gone.
        """
        waits = [asyncio.ensure_future(event.wait()) for event in (gate, self._is_dead)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.is_dead:
            raise aiohttp.ServerDisconnectedError

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let sessions that are made in the block use this instead of sockets."""

        def open_session(*_: Any, **__: Any) -> _Session:
            return _Session(self, self._service)

        with (
            mock.patch("kie_async.http.transport.open_http_session", open_session),
            mock.patch("kie_async.creating.create_transport.open_http_session", open_session),
            mock.patch("kie_async.files.downloads.open_http_session", open_session),
        ):
            yield


class _Session:
    """Stands for aiohttp's session, as far as the package uses it."""

    closed = False
    connector = None

    def __init__(self, wire: Wire, service: ModelService) -> None:
        self._wire = wire
        self._service = service

    def post(self, url: Any, *, data: Any, **_: Any) -> _Exchange:
        assert data.size > 0  # every real request has to know it
        return _Exchange(self._wire, self._service, str(url), data)

    def request(self, method: str, url: Any, **_: Any) -> _Exchange:
        return _Exchange(self._wire, self._service, str(url), None)

    async def close(self) -> None:
        self._wire.cut()


class _Exchange:
    """One request and its answer."""

    def __init__(self, wire: Wire, service: ModelService, url: str, data: Any) -> None:
        self._wire, self._service, self._url, self._data = wire, service, url, data

    async def __aenter__(self) -> _Answer:
        wire, service = self._wire, self._service
        await wire.pass_time(service.latency_s())
        if self._data is None and "/credit" in self._url:
            gate = service.query_gate
            kind, status, answer = service.credits()
        elif self._data is None:
            task_id = parse_qs(urlsplit(self._url).query)["taskId"][0]
            gate = service.query_gate
            kind, status, answer = service.query(task_id)
        else:
            if (fate := service.connects()) == "no connection":
                raise aiohttp.ClientOSError(111, "refused")
            if fate == "dropped before the body":
                raise aiohttp.ServerDisconnectedError
            writer = _Writer(wire)
            await self._data.write(writer)
            gate = service.answer_gate
            kind, status, answer = service.create(writer.body)
        if gate is not None:
            await wire.until(gate)
        if kind == "silent":
            await wire.pass_time(service.rng.choice((25.0, 65.0)))
        await wire.pass_time(service.latency_s())
        if kind == "lost":
            raise aiohttp.ServerDisconnectedError
        return _Answer(status, b"<html>no</html>" if answer is None else json.dumps(answer).encode(), kind)

    async def __aexit__(self, *_: object) -> None:
        """Leave nothing open."""


class _Writer:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.body = b""

    async def write(self, body: bytes) -> None:
        if self._wire.is_dead:
            raise aiohttp.ServerDisconnectedError
        self.body += body


class _Answer:
    """Stands for aiohttp's answer."""

    def __init__(self, status: int, body: bytes, kind: str) -> None:
        self.status = status
        self.headers: dict[str, str] = {}
        self.content = self
        self._chunks = [body[: len(body) // 2], body[len(body) // 2 :]]
        self._is_cut = kind == "cut"

    def at_eof(self) -> bool:
        return not self._chunks

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        if self._is_cut and len(self._chunks) == 1:
            raise aiohttp.ClientPayloadError
        return self._chunks.pop(0)
