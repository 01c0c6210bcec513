"""Each fault of the sandbox does what its name says, and only that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from kie_async.sandbox import Faults, Fixed, Never, Sandbox

CREATE, QUERY = "/api/v1/jobs/createTask", "/api/v1/jobs/recordInfo"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer sandbox-key"}) as http:
        yield http


@pytest.fixture
async def got() -> AsyncIterator[list[Any]]:
    """Give the bodies a receiver took; the first item is its URL."""
    taken: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        taken.append((dict(request.headers), await request.json()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/kie", take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    taken.append(f"http://127.0.0.1:{runner.addresses[0][1]}/kie")
    yield taken
    await runner.cleanup()


def sandbox(**options: Any) -> Sandbox:
    return Sandbox(**({"query_limit": None, "create_limit": None} | options))


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  what is waited for happens in a server
            await asyncio.sleep(0.002)


async def post(
    http: aiohttp.ClientSession, kie: Sandbox, url: str | None = None
) -> tuple[int, bytes, Mapping[str, str]]:
    body: dict[str, Any] = {"model": "sandbox/echo", "input": {}} | ({"callBackUrl": url} if url else {})
    async with http.post(kie.url + CREATE, json=body) as answer:
        return answer.status, await answer.read(), answer.headers


async def create(http: aiohttp.ClientSession, kie: Sandbox, url: str | None = None) -> str:
    _, body, _ = await post(http, kie, url)
    return str(json.loads(body)["data"]["taskId"])


async def code_of_create(http: aiohttp.ClientSession, kie: Sandbox) -> int:
    return int(json.loads((await post(http, kie))[1])["code"])


async def query(http: aiohttp.ClientSession, kie: Sandbox, task_id: str) -> dict[str, Any]:
    async with http.get(kie.url + QUERY, params={"taskId": task_id}) as answer:
        return dict(await answer.json())


# -- createTask ------------------------------------------------------------------------------------


async def test_a_lost_answer_leaves_a_task_that_is_charged_and_calls_back(
    http: aiohttp.ClientSession, got: list[Any]
) -> None:
    async with sandbox(faults=Faults(lose_answers_next=1)) as kie:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await create(http, kie, got[0])
        (task,) = kie.tasks.values()
        assert kie.balance == 99_999
        await eventually(lambda: len(got) == 2)
        assert got[1][1]["data"]["taskId"] == task.task_id
        await create(http, kie)
        assert kie.counts["create.lost"] == 1


async def test_answers_are_lost_by_share(http: aiohttp.ClientSession) -> None:
    async with sandbox(faults=Faults(lose_answer=0.5), seed=3) as kie:
        for _ in range(30):
            try:
                await create(http, kie)
            except aiohttp.ServerDisconnectedError:
                continue
        assert 5 < kie.counts["create.lost"] < 25
        assert len(kie.tasks) == 30


async def test_a_drop_before_the_create_leaves_nothing(http: aiohttp.ClientSession) -> None:
    async with sandbox(faults=Faults(drop_before_create_next=1)) as kie:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await create(http, kie)
        assert (kie.counts["create.bodies"], len(kie.tasks), kie.balance) == (1, 0, 100_000)


async def test_canned_create_answers_come_first_and_create_nothing(http: aiohttp.ClientSession) -> None:
    async with sandbox(faults=Faults(create_answers_next=[(503, b"<html>"), (200, b"")])) as kie:
        assert (await post(http, kie))[:2] == (503, b"<html>")
        assert (await post(http, kie))[:2] == (200, b"")
        assert not kie.tasks
        await create(http, kie)
        assert len(kie.tasks) == 1


async def test_a_create_answer_can_be_delayed(http: aiohttp.ClientSession) -> None:
    async with sandbox(faults=Faults(create_answer_delay_s=0.15), durations=Fixed(0.02)) as kie:
        loop = asyncio.get_running_loop()
        started = loop.time()
        task_id = await create(http, kie)
        assert loop.time() - started >= 0.15
        assert kie.tasks[task_id].end_state == "success"


async def test_a_create_answer_waits_at_its_gate_while_the_task_exists(http: aiohttp.ClientSession) -> None:
    gate = asyncio.Event()
    async with sandbox(faults=Faults(create_answer_gate=gate)) as kie:
        asking = asyncio.create_task(create(http, kie))
        await eventually(lambda: len(kie.tasks) == 1)
        assert not asking.done()
        gate.set()
        assert await asking in kie.tasks


async def test_an_answer_at_a_closed_gate_does_not_hold_up_the_end(http: aiohttp.ClientSession) -> None:
    async with sandbox(faults=Faults(create_answer_gate=asyncio.Event())) as kie:
        asking = asyncio.create_task(create(http, kie))
        await eventually(lambda: len(kie.tasks) == 1)
    with pytest.raises(aiohttp.ClientError):
        await asking


async def test_a_ghost_is_refused_and_yet_created(http: aiohttp.ClientSession) -> None:
    async with sandbox(faults=Faults(refuse_but_create_next=1)) as kie:
        assert await code_of_create(http, kie) == 422
        assert len(kie.tasks) == 1
        assert kie.balance == 99_999
        assert await code_of_create(http, kie) == 200


async def test_an_early_callback_is_answered_before_the_create_is(
    http: aiohttp.ClientSession, got: list[Any]
) -> None:
    async with sandbox(faults=Faults(early_callback=1.0, create_answer_delay_s=0.05)) as kie:
        asking = asyncio.create_task(create(http, kie, got[0]))
        await eventually(lambda: len(kie.deliveries) == 1)
        assert not asking.done()
        task_id = await asking
        assert got[1][1]["data"]["taskId"] == task_id
        assert kie.tasks[task_id].end_state == "success"
        await asyncio.sleep(0.08)
        assert len(got) == 2


async def test_counted_429s_come_with_or_without_the_http_status(http: aiohttp.ClientSession) -> None:
    async with sandbox(faults=Faults(create_429_next=2)) as kie:
        status, body, headers = await post(http, kie)
        assert (status, json.loads(body)["code"]) == (200, 429)
        assert "Retry-After" not in headers
        kie.faults.http_429, kie.faults.retry_after_s = True, 1.5
        status, body, headers = await post(http, kie)
        assert (status, json.loads(body)["code"], headers["Retry-After"]) == (429, 429, "1.5")
        assert await code_of_create(http, kie) == 200
        assert kie.counts["create.429"] == 2


async def test_a_constant_task_id_is_told_to_everyone_but_belongs_to_the_first(
    http: aiohttp.ClientSession,
) -> None:
    async with sandbox(faults=Faults(constant_task_id="same")) as kie:
        assert [await create(http, kie) for _ in range(3)] == ["same"] * 3
        assert len(kie.tasks) == 3
        assert next(iter(kie.tasks)) == "same"


async def test_too_few_credits_can_be_a_500(http: aiohttp.ClientSession) -> None:
    async with sandbox(credits=0.5, faults=Faults(credits_error_as_500=True)) as kie:
        answer = json.loads((await post(http, kie))[1])
        assert (answer["code"], answer["msg"]) == (500, "Credits insufficient")


# -- recordInfo ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("as_404", "code", "msg"), [(False, 422, "recordInfo is null"), (True, 404, "Task not found")]
)
async def test_a_new_task_can_be_invisible_for_a_while(
    http: aiohttp.ClientSession, as_404: bool, code: int, msg: str
) -> None:
    async with sandbox(faults=Faults(invisible_s=0.2, invisible_as_404=as_404)) as kie:
        task_id = await create(http, kie)
        assert await query(http, kie, task_id) == {"code": code, "msg": msg, "data": None}
        await asyncio.sleep(0.21)
        assert (await query(http, kie, task_id))["code"] == 200


async def test_counted_query_faults_strike_and_pass(http: aiohttp.ClientSession) -> None:
    async with sandbox() as kie:
        task_id = await create(http, kie)
        kie.faults.query_429_next = kie.faults.query_500_next = kie.faults.query_html_502_next = 1
        async with http.get(kie.url + QUERY, params={"taskId": task_id}) as answer:
            assert (answer.status, answer.content_type) == (502, "text/html")
        kie.faults.query_answers_next = [(200, b"{")]
        async with http.get(kie.url + QUERY, params={"taskId": task_id}) as answer:
            assert await answer.read() == b"{"
        codes = [(await query(http, kie, task_id))["code"] for _ in range(2)]
        assert codes == [500, 200]
        assert kie.faults.query_429_next == 0


async def test_a_query_reads_the_record_after_its_gate_or_before(http: aiohttp.ClientSession) -> None:
    async with sandbox(durations=Never()) as kie:
        for reads_before, state in ((False, "success"), (True, "waiting")):
            task_id, gate = await create(http, kie), asyncio.Event()
            kie.faults = Faults(query_answer_gate=gate, query_reads_before_gate=reads_before)
            asking = asyncio.create_task(query(http, kie, task_id))
            await asyncio.sleep(0.05)
            assert not asking.done()
            kie.finish(task_id)
            gate.set()
            assert (await asking)["data"]["state"] == state


# -- the task --------------------------------------------------------------------------------------


async def test_tasks_fail_by_share_with_the_chosen_words(http: aiohttp.ClientSession) -> None:
    faults = Faults(fail_rate=1.0, fail_code="400", fail_msg="Resource exists risk.")
    async with sandbox(durations=Fixed(0), faults=faults) as kie:
        task_id = await create(http, kie)
        await eventually(lambda: kie.tasks[task_id].end_state is not None)
        record = (await query(http, kie, task_id))["data"]
        assert (record["state"], record["failCode"], record["failMsg"]) == (
            "fail",
            "400",
            "Resource exists risk.",
        )
        assert kie.balance == 100_000


async def test_an_empty_result_shows_after_so_many_reads(http: aiohttp.ClientSession) -> None:
    async with sandbox(durations=Never(), faults=Faults(empty_result_looks=2)) as kie:
        task_id = await create(http, kie)
        kie.finish(task_id)
        records = [(await query(http, kie, task_id))["data"] for _ in range(3)]
        assert [record["state"] for record in records] == ["success"] * 3
        assert [len(record["response"]["resultUrls"]) for record in records] == [0, 0, 1]
        assert json.loads(records[0]["resultJson"]) == {"resultUrls": []}


async def test_an_empty_result_shows_after_a_time(http: aiohttp.ClientSession) -> None:
    async with sandbox(durations=Never(), faults=Faults(empty_results_for_s=0.15)) as kie:
        task_id = await create(http, kie)
        kie.finish(task_id)
        assert (await query(http, kie, task_id))["data"]["response"]["resultUrls"] == []
        await asyncio.sleep(0.16)
        assert (await query(http, kie, task_id))["data"]["response"]["resultUrls"] != []


async def test_an_empty_result_can_stay_empty(http: aiohttp.ClientSession) -> None:
    async with sandbox(durations=Never(), faults=Faults(empty_result_rate=1.0)) as kie:
        task_id = await create(http, kie)
        kie.finish(task_id)
        for _ in range(5):
            assert (await query(http, kie, task_id))["data"]["response"]["resultUrls"] == []


# -- callbacks -------------------------------------------------------------------------------------


async def test_callbacks_are_duplicated(http: aiohttp.ClientSession, got: list[Any]) -> None:
    async with sandbox(faults=Faults(duplicate_callbacks=2)) as kie:
        await create(http, kie, got[0])
        await eventually(lambda: len(kie.deliveries) == 3)
        assert got[1][1] == got[2][1] == got[3][1]
        assert [delivery.kind for delivery in kie.deliveries] == ["genuine", "duplicate", "duplicate"]
        assert kie.counts["callback.ok"] == 3


async def test_callbacks_are_dropped(http: aiohttp.ClientSession, got: list[Any]) -> None:
    async with sandbox(faults=Faults(drop_callbacks=1.0), durations=Fixed(0)) as kie:
        await create(http, kie, got[0])
        await eventually(lambda: kie.counts["callback.dropped"] == 1)
        await asyncio.sleep(0.03)
        assert len(got) == 1


async def test_a_forged_callback_comes_before_the_genuine_and_never_signs_rightly(
    http: aiohttp.ClientSession, got: list[Any]
) -> None:
    async with sandbox(faults=Faults(forge_callbacks=1.0), hmac_key="k", durations=Fixed(0)) as kie:
        for _ in range(12):
            await create(http, kie, got[0])
        await eventually(lambda: len(kie.deliveries) == 24)
        forged = [delivery for delivery in kie.deliveries if delivery.kind == "forged"]
        assert len(forged) == kie.counts["callback.forged"] == 12
        assert {json.loads(delivery.body)["data"]["state"] for delivery in forged} == {"success", "fail"}
        assert {"X-Webhook-Signature" in delivery.headers for delivery in forged} == {True, False}
        for delivery in forged:
            assert (
                delivery.headers.get("X-Webhook-Signature")
                != kie.callback_headers(delivery.task_id)["X-Webhook-Signature"]
            )
            first = next(each for each in kie.deliveries if each.task_id == delivery.task_id)
            assert first.kind == "forged"


async def test_callbacks_are_late(http: aiohttp.ClientSession, got: list[Any]) -> None:
    async with sandbox(faults=Faults(late_callback_s=0.15), durations=Fixed(0)) as kie:
        task_id = await create(http, kie, got[0])
        await eventually(lambda: kie.tasks[task_id].end_state is not None)
        await asyncio.sleep(0.05)
        assert len(got) == 1
        await eventually(lambda: len(got) == 2)


# -- the whole service -----------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "code"), [("revoke_key", 401), ("maintenance", 455)])
async def test_the_whole_service_can_refuse(http: aiohttp.ClientSession, fault: str, code: int) -> None:
    async with sandbox() as kie:
        task_id = await create(http, kie)
        setattr(kie.faults, fault, True)
        assert await code_of_create(http, kie) == code
        assert (await query(http, kie, task_id))["code"] == code
        async with http.get(kie.url + "/api/v1/chat/credit") as answer:
            assert (await answer.json())["code"] == code
        async with http.post(kie.url + "/api/file-base64-upload", json={}) as answer:
            assert (await answer.json())["code"] == code
        setattr(kie.faults, fault, False)
        assert (await query(http, kie, task_id))["code"] == 200


async def test_an_outage_is_a_closed_sandbox_that_opens_again(http: aiohttp.ClientSession) -> None:
    kie = sandbox(durations=Never())
    async with kie:
        task_id = await create(http, kie)
    with pytest.raises(aiohttp.ClientConnectorError):
        await query(http, kie, task_id)
    async with kie:
        assert (await query(http, kie, task_id))["data"]["state"] == "waiting"


async def test_faults_are_changed_from_outside_all_or_none(http: aiohttp.ClientSession) -> None:
    async with sandbox() as kie:
        url = kie.url + "/sandbox/faults"
        wanted = {"fail_rate": 0.25, "create_answers_next": [[418, "tea"]]}
        async with http.post(url, json=wanted) as answer:
            shown = await answer.json()
        assert (shown["fail_rate"], shown["create_answers_next"]) == (0.25, [[418, "tea"]])
        assert (await post(http, kie))[:2] == (418, b"tea")
        for bad in ({"fail_rate": 2}, {"fail_rate": "x"}, {"nonsense": 1}, {"query_answer_gate": 1}):
            async with http.post(url, json={"lose_answers_next": 9} | bad) as answer:
                assert answer.status == 400
        assert kie.faults.lose_answers_next == 0


def test_faults_are_off_by_default_and_refuse_impossible_values() -> None:
    assert not any(value for name, value in Faults().shown().items() if not name.startswith("fail_"))
    for bad in (
        {"lose_answer": 1.1},
        {"fail_rate": float("nan")},
        {"create_429_next": -1},
        {"invisible_s": -1},
    ):
        with pytest.raises(ValueError):
            Faults(**bad)
    with pytest.raises(ValueError):
        Faults().drop_callbacks = -0.1
