"""aiohttp handlers of the API: check the key and the limits, read or create tasks, apply the faults."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from aiohttp import web

from .bodies import ABSENT, encode_envelope
from .catalogue import Refusal
from .deliveries import Courier
from .faults import strikes
from .tasks import SandboxTask
from .world import World

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_JSON = {"Content-Type": "application/json;charset=UTF-8"}
_GATEWAY_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"


@attrs.define(kw_only=True, eq=False)
class Endpoints:
    """createTask, recordInfo, credit and download-url."""

    world: World
    courier: Courier
    sends_callbacks: bool
    arm: Callable[[SandboxTask], None]
    """Starts a new task's clock."""
    end: Callable[[SandboxTask], None]
    """Ends a task as a success without a callback."""

    def routes(self) -> list[web.RouteDef]:
        """Return the routes. https://docs.kie.ai/market/common/get-task-detail"""
        return [
            web.post("/api/v1/jobs/createTask", self._counted("create", self._create)),
            web.get("/api/v1/jobs/recordInfo", self._counted("query", self._query), allow_head=False),
            web.get("/api/v1/chat/credit", self._counted("credit", self._credit), allow_head=False),
            web.post("/api/v1/common/download-url", self._counted("download-url", self._download_url)),
        ]

    def _counted(self, endpoint: str, handler: Handler) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.world.counts[endpoint] += 1
            try:
                return await handler(request)
            except Refusal as refusal:
                return self._refuse(endpoint, refusal)

        return answer

    def _refuse(self, endpoint: str, refusal: Refusal) -> web.Response:
        self.world.counts[f"{endpoint}.{refusal.code}"] += 1
        data = ABSENT if refusal.code == 401 else None
        body = encode_envelope(refusal.code, refusal.msg, data, key_set=self.world.key_set)
        if refusal.code != 429:
            return web.Response(body=body, headers=_JSON)
        faults = self.world.faults
        headers = dict(_JSON)
        if faults.retry_after_s is not None:
            headers["Retry-After"] = f"{faults.retry_after_s:g}"
        return web.Response(status=429 if faults.http_429 else 200, body=body, headers=headers)

    def _answer(self, data: Any) -> web.Response:
        body = encode_envelope(200, "success", data, key_set=self.world.key_set)
        return web.Response(body=body, headers=_JSON)

    def _judge(self, endpoint: str, request: web.Request, *, task_id: str | None = None) -> Refusal | None:
        authorization = request.headers.get("Authorization", "")
        return self.world.judge_arrival(endpoint, authorization, time.monotonic(), task_id=task_id)

    async def _create(self, request: web.Request) -> web.Response:
        refusal = self._judge("create", request)
        body = await request.read()
        self.world.counts["create.bodies"] += 1
        faults = self.world.faults
        if faults.create_answers_next:
            return _canned(faults.create_answers_next.pop(0))
        if faults.take("drop_before_create_next"):
            return self._drop(request)
        if refusal is not None:
            raise refusal
        if request.content_type != "application/json":
            raise Refusal(401, "You do not have access permissions")
        task = self.world.create(_parsed(body))
        return await self._answer_create(request, task)

    async def _answer_create(self, request: web.Request, task: SandboxTask) -> web.Response:
        faults, rng = self.world.faults, self.world.rng
        if self.sends_callbacks and strikes(faults.early_callback, rng):
            self.end(task)
            if task.callback_url is not None:
                await self.courier.carry(task)
        else:
            self.arm(task)
        if faults.take("lose_answers_next") or strikes(faults.lose_answer, rng):
            self.world.counts["create.lost"] += 1
            return self._drop(request)
        if faults.take("refuse_but_create_next"):
            raise Refusal(422, "This field is required")
        if faults.create_answer_delay_s:
            await asyncio.sleep(faults.create_answer_delay_s)
        if faults.create_answer_gate is not None:
            await faults.create_answer_gate.wait()
        return self._answer(self._created(task))

    def _created(self, task: SandboxTask) -> dict[str, str]:
        task_id = self.world.faults.constant_task_id or task.task_id
        if self.world.key_set == "2025":
            return {"taskId": task_id}
        return {"taskId": task_id, "recordId": task_id}

    async def _query(self, request: web.Request) -> web.Response:
        task_id = request.query.get("taskId", "")
        refusal = self._judge("query", request, task_id=task_id)
        faults = self.world.faults
        if faults.query_answers_next:
            return _canned(faults.query_answers_next.pop(0))
        if faults.take("query_html_502_next"):
            return web.Response(status=502, body=_GATEWAY_PAGE, content_type="text/html")
        if refusal is not None:
            raise refusal
        if faults.take("query_500_next"):
            raise Refusal(500, "Server Error - An unexpected error occurred while processing the request")
        if not task_id:
            raise Refusal(400, "taskId parameter is required")
        return web.Response(body=await self._read_record(task_id), headers=_JSON)

    async def _read_record(self, task_id: str) -> bytes:
        gate = self.world.faults.query_answer_gate
        if gate is None:
            return self.world.read_record(task_id, time.monotonic())
        if not self.world.faults.query_reads_before_gate:
            await gate.wait()
            return self.world.read_record(task_id, time.monotonic())
        body = self.world.read_record(task_id, time.monotonic())
        await gate.wait()
        return body

    async def _credit(self, request: web.Request) -> web.Response:
        if (refusal := self._judge("credit", request)) is not None:
            raise refusal
        return self._answer(self.world.balance)

    async def _download_url(self, request: web.Request) -> web.Response:
        if (refusal := self._judge("download-url", request)) is not None:
            raise refusal
        asked = _parsed(await request.read())
        url = asked.get("url") if isinstance(asked, dict) else None
        if not isinstance(url, str) or not self.world.files.is_ours(url):
            raise Refusal(422, "url is wrong")
        return self._answer(f"{url.partition('?')[0]}?valid_for_s=1200")

    def _drop(self, request: web.Request) -> web.Response:
        self.world.counts["create.dropped"] += 1
        if request.transport is not None:
            request.transport.close()
        return web.Response()  # never leaves: the connection is closed


def _canned(answer: tuple[int, bytes]) -> web.Response:
    status, body = answer
    return web.Response(status=status, body=body, headers=_JSON)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The request body is not valid JSON") from error
