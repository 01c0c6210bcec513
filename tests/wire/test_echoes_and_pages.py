"""Over sockets: a service that echoes secrets, and a gateway that answers in its place."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import OpenSession
from support.clock import Clock
from support.tables import each

from kie_async import (
    ApiError,
    AuthenticationError,
    CallbackReceiver,
    CreateOutcomeUnknown,
    KieSession,
    PollSchedule,
    Sandbox,
    TaskRequest,
    TaskResult,
)

KEY, HMAC_KEY = "kie-canary-api-key", "canary/hmac-key"
PAGE = "<html><head><title>Just a moment...</title></head></html>"
SPRING = '{"timestamp":1,"status":404,"error":"Not Found","message":"No message available","path":"/x"}'
PAGES = [(status, text) for status in (302, 401, 403, 404, 407, 451) for text in (PAGE, SPRING, "")]


class Echo:
    """A service that tells everything it was sent: first in a refusal, then in a record and in a failure."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def create(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        said = f"{self.bodies[-1]['callBackUrl']} {request.headers['Authorization']} {HMAC_KEY}"
        if (number := len(self.bodies)) < 3:
            return web.json_response({"code": (422, 500)[number - 1], "msg": said})
        return web.json_response({"code": 200, "msg": said, "data": {"taskId": f"task{number}"}})

    async def record(self, request: web.Request) -> web.Response:
        url = self.bodies[-1]["callBackUrl"]
        said = f"{url} {request.headers['Authorization']} {HMAC_KEY}"
        spelled = dict.fromkeys(("callBackUrl", "callbackUrl", "callback_url", "webhook", "failMsg"), said)
        param = json.dumps({**self.bodies[-1], **spelled}).replace("/", "\\/")
        data = {
            "taskId": request.query["taskId"],
            "state": "fail",
            "param": param,
            "extra": [spelled],
            **spelled,
        }
        return web.json_response({"code": 200, "msg": said, "data": data})


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, str]]:
    """Serve an `Echo` and yield it with its address."""
    service = Echo()
    app = web.Application()
    app.router.add_post("/api/v1/jobs/createTask", service.create)
    app.router.add_get("/api/v1/jobs/recordInfo", service.record)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield service, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def contents_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_what_the_service_echoes_stands_nowhere(
    leaks: None, echo: tuple[Echo, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service, url = echo
    shown = b""
    async with KieSession(
        KEY,
        base_url=url,
        callback_url="http://127.0.0.1:1/kie",
        receiver=CallbackReceiver([HMAC_KEY]),
        journal=tmp_path / "run.db",
        poll=PollSchedule.fixed(0.05),
    ) as kie:
        for number in range(3):
            (error,) = await asyncio.gather(kie.run("m/x", {"n": number}), return_exceptions=True)
            assert isinstance(error, Exception)
            shown += f"{error!s} {error!r} {getattr(error, 'record', '')!r}".encode() + pickle.dumps(error)
            assert "***" in str(error)
        shown += contents_of(tmp_path)
    shown += contents_of(tmp_path) + caplog.text.encode()
    macs = [body["callBackUrl"].rpartition("/")[2] for body in service.bodies]
    assert len(macs) == 3
    for secret in (KEY, HMAC_KEY, HMAC_KEY.replace("/", "\\/"), *macs):
        assert secret.encode() not in shown


async def test_a_page_in_place_of_an_answer_to_a_create_refuses_no_key(
    sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session()

    async def check(page: tuple[int, str]) -> None:
        sandbox.faults.create_answers_next = [page]
        with pytest.raises(ApiError) as caught:
            await kie.create("sandbox/echo", {})
        assert not isinstance(caught.value, AuthenticationError)

    await each([page for page in PAGES if page[0] in (302, 401, 402, 403, 404)], check)


async def test_a_batch_goes_on_after_pages(sandbox: Sandbox, open_session: OpenSession) -> None:
    kie = await open_session(poll=PollSchedule.fixed(0.05))
    sandbox.faults.create_answers_next = [(401, PAGE), (403, PAGE), (402, PAGE)]
    jobs = [TaskRequest(model="sandbox/echo", input={"n": number}) for number in range(6)]

    async def finish() -> None:
        while True:
            for task_id in list(sandbox.tasks):
                sandbox.finish(task_id)
            await asyncio.sleep(0.01)

    finishing = asyncio.create_task(finish())
    outcomes = [type(outcome.error) async for outcome in kie.batch(jobs)]
    finishing.cancel()
    assert sorted(kind.__name__ for kind in outcomes) == ["NoneType"] * 3 + ["ServerError"] * 3


async def test_no_number_of_pages_ends_a_paid_wait(clock: Clock, sandbox: Sandbox, kie: KieSession) -> None:
    handle = await kie.create("sandbox/echo", {})
    sandbox.faults.query_answers_next = PAGES * 2
    await clock.advance(0.02 * len(PAGES))
    sandbox.finish(handle.task_id)
    await clock.advance(5.0)
    assert isinstance(await handle, TaskResult)


@pytest.mark.parametrize(
    "answer",
    [
        {"code": 500, "msg": "busy", "data": {"taskId": "task_abc"}},
        {"code": 200, "data": {"recordId": "task_abc"}},
        {"taskId": "task_abc"},
    ],
)
async def test_an_unknown_create_names_the_id_in_its_answer(
    sandbox: Sandbox, kie: KieSession, answer: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.faults.create_answers_next = [(200, json.dumps(answer))]
    with pytest.raises(CreateOutcomeUnknown, match="named task task_abc") as caught:
        await kie.create("sandbox/echo", {})
    assert caught.value.candidate_task_id == "task_abc"
    assert "task_abc" in caplog.text
