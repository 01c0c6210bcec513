"""Sends the callbacks: few connections, no retries unless asked for, every attempt on record."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Literal

import aiohttp
import attrs

from . import bodies
from .faults import strikes
from .tasks import Delivery, SandboxTask
from .world import World

_ANSWER_WITHIN_S = 15.0
"""How long a receiver may take. https://docs.kie.ai/common-api/webhook-verification"""
_CONNECTIONS = 64

Kind = Literal["genuine", "duplicate", "forged", "manual"]


@attrs.define(kw_only=True, eq=False)
class Courier:
    """Delivers callbacks with a bounded number of senders; owns every one of them until closed."""

    world: World
    hmac_key: str | None = attrs.field(repr=False)
    delay_s: float
    retries_s: tuple[float, ...]
    _http: aiohttp.ClientSession | None = None
    _due: deque[tuple[SandboxTask, int]] = attrs.field(factory=deque)
    _senders: set[asyncio.Task[None]] = attrs.field(factory=set)
    _timers: set[asyncio.TimerHandle] = attrs.field(factory=set)

    def open(self) -> None:
        """Make the HTTP session all callbacks share."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def aclose(self) -> None:
        """Stop every sender and timer and close the connections; what was due is forgotten."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._due.clear()
        senders = list(self._senders)
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
        if self._http is not None:
            await self._http.close()
            self._http = None

    def announce(self, task: SandboxTask) -> None:
        """Let the callback of an ended task leave in its time, unless a fault drops it."""
        if task.callback_url is None:
            return
        if strikes(self.world.faults.drop_callbacks, self.world.rng):
            self.world.counts["callback.dropped"] += 1
            return
        self._later(task, 0, self.delay_s + self.world.faults.late_callback_s)

    def _later(self, task: SandboxTask, attempt: int, delay_s: float) -> None:
        if delay_s <= 0:
            self._enqueue(task, attempt)
            return

        def enqueue() -> None:
            self._timers.discard(timer)
            self._enqueue(task, attempt)

        timer = asyncio.get_running_loop().call_later(delay_s, enqueue)
        self._timers.add(timer)

    def _enqueue(self, task: SandboxTask, attempt: int) -> None:
        self._due.append((task, attempt))
        if len(self._senders) < _CONNECTIONS:
            sender = asyncio.get_running_loop().create_task(self._send_due())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)

    async def _send_due(self) -> None:
        while self._due:
            task, attempt = self._due.popleft()
            await self.carry(task, attempt)

    async def carry(self, task: SandboxTask, attempt: int = 0) -> None:
        """Send one callback with the copies and forgeries the faults ask for; plan the retry."""
        if attempt == 0 and strikes(self.world.faults.forge_callbacks, self.world.rng):
            await self._post_forged(task)
        status = await self._post_genuine(task, "genuine")
        if attempt == 0:
            for _ in range(self.world.faults.duplicate_callbacks):
                await self._post_genuine(task, "duplicate")
        is_refused = status is None or not 200 <= status < 300
        if is_refused and attempt < len(self.retries_s):
            self.world.counts["callback.retried"] += 1
            self._later(task, attempt + 1, self.retries_s[attempt])

    async def _post_genuine(self, task: SandboxTask, kind: Kind) -> int | None:
        body, headers = self.world.callback_body(task), self.headers(task.task_id)
        return await self.post(task, body, headers, kind=kind)

    async def _post_forged(self, task: SandboxTask) -> None:
        rng = self.world.rng
        headers: dict[str, str] = {}
        if rng.random() < 0.5:
            headers = bodies.signature_headers(task.task_id, int(time.time()), hmac_key="not the real key")
        body = bodies.forged_callback(task, as_success=rng.random() < 0.5)
        await self.post(task, body, headers, kind="forged")

    def headers(self, task_id: str) -> dict[str, str]:
        """Return the headers of a callback leaving now; unsigned without a key, as in the service."""
        if self.hmac_key is None:
            return {}
        return bodies.signature_headers(task_id, int(time.time()), hmac_key=self.hmac_key)

    async def post(
        self, task: SandboxTask, body: bytes, headers: Mapping[str, str], *, kind: Kind
    ) -> int | None:
        """Post *body* to the task's URL once; return the HTTP status, None without an answer."""
        at = time.monotonic()
        self._count_sent(kind)
        status = await self._status_of(task.callback_url or "", body, headers)
        if status is not None and 200 <= status < 300 and kind != "forged":
            self.world.counts["callback.ok"] += 1
        self.world.deliveries.append(
            Delivery(
                task_id=task.task_id,
                url=task.callback_url or "",
                kind=kind,
                status=status,
                at=at,
                headers=dict(headers),
                body=body,
            )
        )
        return status

    def _count_sent(self, kind: Kind) -> None:
        if kind == "forged":
            self.world.counts["callback.forged"] += 1
            return
        self.world.counts["callback.sent"] += 1
        if kind == "duplicate":
            self.world.counts["callback.duplicate"] += 1

    async def _status_of(self, url: str, body: bytes, headers: Mapping[str, str]) -> int | None:
        if self._http is None:
            raise RuntimeError("the sandbox is not running")
        headers = {"Content-Type": "application/json", **headers}
        try:
            async with self._http.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None  # the delivery's record says that no answer came
