"""The sandbox behaves as the documented service does, over real sockets."""

from __future__ import annotations

import ast
import asyncio
import base64
import hashlib
import hmac
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import wave
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

import kie_async.sandbox as sandbox_package
from kie_async.sandbox import Fixed, Lognormal, Never, Sandbox, ServeOptions, Uniform, parse_durations, serve
from kie_async.sandbox.serving import parse_options

CREATE, QUERY = "/api/v1/jobs/createTask", "/api/v1/jobs/recordInfo"
AVATAR = {"image_url": "https://files.example/face.png", "audio_url": "https://files.example/voice.mp3"}


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  what is waited for happens in a server
            await asyncio.sleep(0.002)


class Caller:
    """A bare HTTP client with the key; it knows nothing of the package's own client."""

    def __init__(self, sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
        self.sandbox, self.http = sandbox, http

    async def create(self, model: str = "sandbox/echo", /, **fields: Any) -> dict[str, Any]:
        body = {"model": model, "input": fields.pop("input", {}), **fields}
        async with self.http.post(self.sandbox.url + CREATE, json=body) as answer:
            assert answer.status == 200
            return await answer.json()

    async def task_id(self, *args: Any, **fields: Any) -> str:
        return (await self.create(*args, **fields))["data"]["taskId"]

    async def query(self, task_id: str) -> dict[str, Any]:
        async with self.http.get(self.sandbox.url + QUERY, params={"taskId": task_id}) as answer:
            return await answer.json()

    async def record(self, task_id: str) -> dict[str, Any]:
        return (await self.query(task_id))["data"]

    async def post(self, path: str, body: Any) -> dict[str, Any]:
        async with self.http.post(self.sandbox.url + path, json=body) as answer:
            return await answer.json()

    async def upload(self, content: bytes, **fields: str) -> dict[str, Any]:
        form = aiohttp.FormData()
        form.add_field("file", content, filename=fields.pop("filename", "voice.wav"))
        for name, value in ({"uploadPath": "tests"} | fields).items():
            form.add_field(name, value)
        async with self.http.post(self.sandbox.url + "/api/file-stream-upload", data=form) as answer:
            return await answer.json()


class Receiver:
    """A callback endpoint that keeps what it gets and answers what a test chose."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.serving: set[asyncio.Task[Any] | None] = set()

    async def take(self, request: web.Request) -> web.Response:
        self.serving.add(asyncio.current_task())
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.answers.pop(0) if self.answers else 200)

    async def wait_for(self, count: int) -> list[dict[str, Any]]:
        await eventually(lambda: len(self.got) >= count)
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/kie", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/kie"
    yield receiver
    await runner.cleanup()


class Opened:
    def __init__(self, *, key: str | None = "sandbox-key", **options: Any) -> None:
        self.sandbox = Sandbox(**options)
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    async def __aenter__(self) -> Caller:
        await self.sandbox.start()
        self.http = aiohttp.ClientSession(headers=self.headers)
        return Caller(self.sandbox, self.http)

    async def __aexit__(self, *error: object) -> None:
        await self.http.close()
        await self.sandbox.aclose()


def wav(seconds: float) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as voice:
        voice.setnchannels(1)
        voice.setsampwidth(2)
        voice.setframerate(8000)
        voice.writeframes(b"\x10\x20" * int(8000 * seconds))
    return target.getvalue()


async def ended(caller: Caller, task_id: str) -> dict[str, Any]:
    await eventually(lambda: caller.sandbox.tasks[task_id].end_state is not None)
    return await caller.record(task_id)


# -- createTask ------------------------------------------------------------------------------------


async def test_a_create_answers_with_one_id_under_two_names() -> None:
    async with Opened() as caller:
        answer = await caller.create()
        task_id = answer["data"]["taskId"]
        assert answer == {"code": 200, "msg": "success", "data": {"taskId": task_id, "recordId": task_id}}
        assert len(task_id) == 32
        assert int(task_id, 16)
        assert list(caller.sandbox.tasks) == [task_id]


async def test_task_ids_differ_between_sandboxes_of_the_same_seed() -> None:
    async with Opened(seed=7) as one, Opened(seed=7) as other:
        assert await one.task_id() != await other.task_id()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_documented_curl_request_runs_to_a_file() -> None:
    async with Opened(hmac_key=None) as caller:
        body = {
            "model": "kling/v1-avatar-standard",
            "callBackUrl": caller.sandbox.url + "/callback",
            "input": AVATAR,
        }
        created = json.loads(
            await _curl(
                "--request", "POST", "--url", caller.sandbox.url + CREATE,
                "--header", "Authorization: Bearer sandbox-key",
                "--header", "Content-Type: application/json",
                "--data", json.dumps(body),
            )
        )  # fmt: skip
        record = await ended(caller, created["data"]["taskId"])
        (url,) = json.loads(record["resultJson"])["resultUrls"]
        assert (await _curl(url))[4:8] == b"ftyp"


async def _curl(*arguments: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--max-time", "5", *arguments, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out


async def test_a_missing_key_is_answered_401_without_data_and_counts_against_no_limit() -> None:
    async with Opened(key=None, create_limit=(1, 10.0)) as caller:
        for _ in range(3):
            answer = await caller.create()
            assert answer["code"] == 401
            assert "data" not in answer
            assert answer["msg"].startswith("Unauthorized – Authentication failed.")
        assert caller.sandbox.counts["create.401"] == 3


async def test_any_key_will_do_when_none_is_set_but_not_an_empty_one() -> None:
    async with Opened(key="whatever", api_key=None) as caller:
        assert (await caller.create())["code"] == 200
        async with caller.http.post(
            caller.sandbox.url + CREATE, json={}, headers={"Authorization": "Bearer "}
        ) as answer:
            assert (await answer.json())["code"] == 401


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"model": "kling/v1-avatar-pro", "input": {}}, 422, "model name you specified is not supported"),
        ({"input": {}}, 422, "model name you specified is not supported"),
        ({"model": "a/b/c", "input": {}}, 422, "model format is incorrect"),
        ({"model": "sandbox/echo"}, 500, "This field is required"),
        ({"model": "kling/ai-avatar-pro", "input": {**AVATAR}}, 500, "prompt is required"),
        ({"model": "kling/v1-avatar-standard", "input": {"image_url": "https://x"}}, 500, "audio_url is req"),
        ({"model": "kling/v1-avatar-standard", "input": {**AVATAR, "prompt": "x" * 5001}}, 422, "5000"),
        (
            {"model": "kling/v1-avatar-standard", "input": {**AVATAR, "image_url": "face.png"}},
            500,
            "Server ex",
        ),
        ({"model": "z-image", "input": {"prompt": "a cat"}}, 500, "aspect_ratio is required"),
        ({"model": "sandbox/echo", "input": {}, "callBackUrl": 5}, 422, "callBackUrl"),
        (["not an object"], 400, "not a JSON object"),
    ],
)
async def test_a_bad_request_is_refused_in_a_body_code_and_creates_nothing(
    body: Any, code: int, said: str
) -> None:
    async with Opened() as caller:
        answer = await caller.post(CREATE, body)
        assert (answer["code"], answer["data"]) == (code, None)
        assert said in answer["msg"]
        assert not caller.sandbox.tasks
        assert caller.sandbox.balance == 100_000


async def test_an_empty_prompt_is_taken_by_the_avatars() -> None:
    async with Opened() as caller:
        answer = await caller.create("kling/ai-avatar-standard", input={**AVATAR, "prompt": ""})
        assert answer["code"] == 200


async def test_a_body_without_the_json_content_type_has_no_access() -> None:
    async with Opened() as caller:
        async with caller.http.post(caller.sandbox.url + CREATE, data={"model": "x"}) as answer:
            assert (await answer.json())["code"] == 401


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
async def test_unreadable_json_is_refused(body: bytes) -> None:
    async with Opened() as caller:
        headers = {"Content-Type": "application/json"}
        async with caller.http.post(caller.sandbox.url + CREATE, data=body, headers=headers) as answer:
            assert (await answer.json())["code"] == 400


async def test_the_window_admits_exactly_its_limit_and_queues_nothing() -> None:
    async with Opened(create_limit=(20, 0.4)) as caller:
        codes = [answer["code"] for answer in await asyncio.gather(*(caller.create() for _ in range(25)))]
        assert (codes.count(200), codes.count(429)) == (20, 5)
        assert caller.sandbox.counts["create.429"] == 5
        assert len(caller.sandbox.tasks) == 20
        await asyncio.sleep(0.45)
        assert (await caller.create())["code"] == 200


async def test_queries_have_a_window_of_their_own() -> None:
    async with Opened(query_limit=(3, 5.0)) as caller:
        task_id = await caller.task_id()
        codes = [(await caller.query(task_id))["code"] for _ in range(5)]
        assert codes == [200, 200, 200, 429, 429]


async def test_queries_of_one_task_have_a_window_of_their_own() -> None:
    async with Opened(query_limit=None, task_query_limit=(2, 5.0)) as caller:
        one, other = await caller.task_id(), await caller.task_id()
        codes = [(await caller.query(task_id))["code"] for task_id in (one, one, one, other, other, other)]
        assert codes == [200, 200, 429, 200, 200, 429]


async def test_what_one_limit_of_queries_refuses_does_not_count_for_the_other() -> None:
    async with Opened(query_limit=(3, 5.0), task_query_limit=(2, 5.0)) as caller:
        one, other = await caller.task_id(), await caller.task_id()
        codes = [(await caller.query(task_id))["code"] for task_id in (one, one, one, other, other)]
        assert codes == [200, 200, 429, 200, 429]


@pytest.mark.parametrize(
    ("counted_by", "of_one", "of_two"),
    [("key", 10, 10), ("task", 10, 20), ("both", 10, 10), ("none", 20, 40)],
)
async def test_an_option_says_what_queries_are_counted_by(counted_by: str, of_one: int, of_two: int) -> None:
    options = parse_options(["--port=0", f"--query-limit={counted_by}"])
    for tasks, most in ((1, of_one), (2, of_two)):
        async with (
            options.sandbox() as sandbox,
            aiohttp.ClientSession(headers={"Authorization": "Bearer sandbox-key"}) as http,
        ):
            caller = Caller(sandbox, http)
            ids = [await caller.task_id() for _ in range(tasks)]
            codes = [(await caller.query(task_id))["code"] for task_id in ids * 20]
            assert codes.count(200) == most


# -- credits ---------------------------------------------------------------------------------------


async def test_credits_are_held_at_create_kept_on_success_and_given_back_on_failure() -> None:
    async with Opened(durations=Never(), credits=100) as caller:
        sandbox = caller.sandbox
        good, bad = [await caller.task_id("kling/v1-avatar-standard", input=AVATAR) for _ in range(2)]
        assert sandbox.balance == 20
        assert (await caller.record(good))["creditsConsumed"] == 40.0
        sandbox.finish(good)
        sandbox.finish(bad, "fail")
        assert sandbox.balance == 60
        assert (await caller.record(good))["creditsConsumed"] == 40.0
        assert (await caller.record(bad))["creditsConsumed"] == 0.0
        async with caller.http.get(sandbox.url + "/api/v1/chat/credit") as answer:
            assert await answer.json() == {"code": 200, "msg": "success", "data": 60.0}


async def test_too_few_credits_are_refused_402() -> None:
    async with Opened(credits=39) as caller:
        answer = await caller.create("kling/v1-avatar-standard", input=AVATAR)
        assert answer == {"code": 402, "msg": "Insufficient credits", "data": None}


async def test_an_uploaded_voice_is_priced_by_its_started_seconds() -> None:
    async with Opened(credits_per_s=8.0) as caller:
        voice = (await caller.upload(wav(2.2)))["data"]["downloadUrl"]
        await caller.create("kling/v1-avatar-standard", input={**AVATAR, "audio_url": voice})
        assert caller.sandbox.balance == 100_000 - 24


async def test_a_voice_that_was_never_uploaded_here_cannot_be_fetched() -> None:
    async with Opened() as caller:
        lost = f"{caller.sandbox.url}/files/kieai/sandbox/tests/lost.wav"
        answer = await caller.create("kling/v1-avatar-standard", input={**AVATAR, "audio_url": lost})
        assert (answer["code"], answer["msg"]) == (500, "Server exception, please try again later")


# -- recordInfo ------------------------------------------------------------------------------------


async def test_a_waiting_record_has_the_live_keys_and_nothing_of_a_result() -> None:
    async with Opened(durations=Never()) as caller:
        before_ms = time.time() * 1000
        record = await caller.record(await caller.task_id())
        assert set(record) == {
            "taskId", "model", "state", "param", "resultJson", "failCode", "failMsg", "costTime",
            "completeTime", "createTime", "creditsConsumed", "operationType", "successFlag", "paramJson",
        }  # fmt: skip
        assert (record["state"], record["resultJson"], record["successFlag"]) == ("waiting", "", 0)
        assert record["failCode"] is record["failMsg"] is record["costTime"] is record["completeTime"] is None
        assert before_ms - 5 <= record["createTime"] <= time.time() * 1000


async def test_param_is_json_in_a_string_and_its_input_once_more() -> None:
    async with Opened() as caller:
        sent = {"prompt": "Grüße ☀", "flag": False, "empty": "", "nested": {"a": [1, 2.5, None]}}
        task_id = await caller.task_id(input=sent, callBackUrl="http://127.0.0.1:9/kie?a=b#c")
        record = await caller.record(task_id)
        param = json.loads(record["param"])
        assert list(param) == ["input", "callBackUrl", "model"]
        assert param["callBackUrl"] == "http://127.0.0.1:9/kie?a=b#c"
        assert json.loads(param["input"]) == sent
        assert record["paramJson"] == record["param"]


async def test_param_has_no_callback_url_when_none_was_given() -> None:
    async with Opened() as caller:
        assert list(json.loads((await caller.record(await caller.task_id()))["param"])) == ["input", "model"]


async def test_a_successful_record_mirrors_its_result_and_counts_seconds() -> None:
    async with Opened(durations=Fixed(0.6)) as caller:
        record = await ended(caller, await caller.task_id(input={"result_urls": ["https://r.example/1.mp4"]}))
        assert json.loads(record["resultJson"]) == {"resultUrls": ["https://r.example/1.mp4"]}
        assert record["response"] == {"resultUrls": ["https://r.example/1.mp4"]}
        assert (record["successFlag"], record["failCode"], record["costTime"]) == (1, None, 1)
        assert 580 <= record["completeTime"] - record["createTime"] <= 1500


async def test_a_failed_record_names_its_reason_and_has_no_response() -> None:
    async with Opened(durations=Never()) as caller:
        task_id = await caller.task_id()
        caller.sandbox.finish(task_id, "fail", fail_code="400", fail_msg="Resource exists risk.")
        record = await caller.record(task_id)
        assert (record["state"], record["failCode"], record["failMsg"]) == (
            "fail", "400", "Resource exists risk.",
        )  # fmt: skip
        assert record["resultJson"] == ""
        assert "response" not in record


async def test_echo_returns_an_object_when_asked() -> None:
    async with Opened() as caller:
        record = await ended(caller, await caller.task_id(input={"result_object": {"mask_urls": []}}))
        assert json.loads(record["resultJson"]) == {"resultObject": {"mask_urls": []}}


async def test_states_move_forward_with_the_duration() -> None:
    async with Opened(durations=Fixed(0.5), query_limit=None) as caller:
        task_id = await caller.task_id()
        seen: list[str] = []
        async with asyncio.timeout(3):
            while (state := (await caller.record(task_id))["state"]) != "success":
                seen += [] if seen[-1:] == [state] else [state]
                await asyncio.sleep(0.01)
        assert seen == ["waiting", "queuing", "generating"]


async def test_a_task_that_never_ends_can_be_moved_by_hand() -> None:
    async with Opened(durations=Never()) as caller:
        task_id = await caller.task_id()
        caller.sandbox.start_generating(task_id)
        assert (await caller.record(task_id))["state"] == "generating"
        caller.sandbox.finish(task_id)
        caller.sandbox.finish(task_id, "fail")  # too late
        assert (await caller.record(task_id))["state"] == "success"
        with pytest.raises(ValueError, match="success or fail"):
            caller.sandbox.finish(task_id, "done")  # type: ignore[arg-type]


async def test_an_unknown_task_is_a_null_record() -> None:
    async with Opened() as caller:
        assert await caller.query("nobody") == {"code": 422, "msg": "recordInfo is null", "data": None}
        assert await caller.query("") == {"code": 400, "msg": "taskId parameter is required", "data": None}


async def test_the_key_set_of_2025_says_message_and_encodes_the_input_once() -> None:
    async with Opened(key_set="2025", durations=Never()) as caller:
        created = await caller.create(input={"a": 1})
        assert created == {"code": 200, "message": "success", "data": {"taskId": created["data"]["taskId"]}}
        caller.sandbox.finish(created["data"]["taskId"])
        record = await caller.record(created["data"]["taskId"])
        assert json.loads(record["param"]) == {"model": "sandbox/echo", "input": {"a": 1}}
        assert (record["failCode"], record["consumeCredits"], record["remainedCredits"]) == ("", 1.0, 99_999)
        assert "creditsConsumed" not in record
        assert record["updateTime"] == record["completeTime"]


# -- callbacks -------------------------------------------------------------------------------------


async def test_a_success_calls_back_with_the_documented_envelope(receiver: Receiver) -> None:
    async with Opened() as caller:
        task_id = await caller.task_id(callBackUrl=receiver.url)
        (body,) = await receiver.wait_for(1)
        assert (body["code"], body["msg"]) == (200, "Playground task completed successfully.")
        assert set(body["data"]) == {
            "taskId", "model", "state", "param", "resultJson", "failCode", "failMsg", "costTime",
            "completeTime", "createTime", "updateTime", "creditsConsumed",
        }  # fmt: skip
        assert body["data"]["taskId"] == task_id
        headers, _ = receiver.got[0]
        assert headers["Content-Type"] == "application/json"
        assert not any(name.lower().startswith("x-webhook") for name in headers)


async def test_a_failure_calls_back_with_501_and_neither_result_nor_times(receiver: Receiver) -> None:
    async with Opened(durations=Never()) as caller:
        caller.sandbox.finish(await caller.task_id(callBackUrl=receiver.url), "fail")
        (body,) = await receiver.wait_for(1)
        assert (body["code"], body["msg"]) == (501, "Playground task failed.")
        assert body["data"]["creditsConsumed"] == 0
        assert not {"resultJson", "completeTime", "createTime", "updateTime"} & set(body["data"])


async def test_callbacks_of_2025_tell_the_balance(receiver: Receiver) -> None:
    async with Opened(key_set="2025") as caller:
        await caller.task_id(callBackUrl=receiver.url)
        (body,) = await receiver.wait_for(1)
        assert set(body["data"]) == {
            "completeTime", "consumeCredits", "costTime", "createTime", "model", "param", "remainedCredits",
            "resultJson", "state", "taskId", "updateTime",
        }  # fmt: skip
        assert (body["data"]["consumeCredits"], body["data"]["remainedCredits"]) == (1.0, 99_999)


async def test_signed_callbacks_verify_by_the_documented_recipe(receiver: Receiver) -> None:
    async with Opened(hmac_key="webhook-key") as caller:
        task_id = await caller.task_id(callBackUrl=receiver.url)
        await receiver.wait_for(1)
        headers, _ = receiver.got[0]
        text = f"{task_id}.{headers['X-Webhook-Timestamp']}".encode()
        digest = hmac.new(b"webhook-key", text, hashlib.sha256).digest()
        assert headers["X-Webhook-Signature"] == base64.b64encode(digest).decode()
        assert abs(int(headers["X-Webhook-Timestamp"]) - time.time()) < 5


async def test_no_callback_without_a_url_or_when_they_are_off(receiver: Receiver) -> None:
    async with Opened(durations=Fixed(0)) as caller, Opened(callbacks=False, durations=Fixed(0)) as silent:
        await ended(caller, await caller.task_id())
        await ended(silent, await silent.task_id(callBackUrl=receiver.url))
        await asyncio.sleep(0.05)
        assert receiver.got == []


async def test_a_refused_callback_is_sent_once_unless_retries_are_set(receiver: Receiver) -> None:
    receiver.answers = [500, 503]
    async with Opened(callback_retries_s=(0.02, 0.02)) as caller:
        await caller.task_id(callBackUrl=receiver.url)
        await receiver.wait_for(3)
        await asyncio.sleep(0.06)
        assert [delivery.status for delivery in caller.sandbox.deliveries] == [500, 503, 200]
        assert caller.sandbox.counts["callback.ok"] == 1
    receiver.answers, receiver.got = [500], []
    async with Opened() as caller:
        await caller.task_id(callBackUrl=receiver.url)
        await receiver.wait_for(1)
        await asyncio.sleep(0.06)
        assert len(receiver.got) == 1


async def test_callbacks_can_be_delayed(receiver: Receiver) -> None:
    async with Opened(callback_delay_s=0.15, durations=Fixed(0)) as caller:
        task_id = await caller.task_id(callBackUrl=receiver.url)
        await ended(caller, task_id)
        assert receiver.got == []
        await receiver.wait_for(1)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/kie", "not a url", "ftp://x/y", "http://x.invalid/kie"])
async def test_a_callback_nobody_takes_is_on_record(url: str) -> None:
    async with Opened() as caller:
        await caller.task_id(callBackUrl=url)
        await eventually(lambda: bool(caller.sandbox.deliveries))
        assert caller.sandbox.deliveries[0].status is None
        assert caller.sandbox.counts["callback.sent"] == 1
        assert caller.sandbox.counts["callback.ok"] == 0


async def test_a_callback_can_be_sent_by_hand(receiver: Receiver) -> None:
    async with Opened(durations=Never(), hmac_key="k") as caller:
        task_id = await caller.task_id(callBackUrl=receiver.url)
        receiver.answers = [201, 418]
        assert await caller.sandbox.send_callback(task_id) == 201
        assert await caller.sandbox.send_callback(task_id, body=b"junk", headers={"X-Odd": "1"}) == 418
        assert receiver.got[0][1] == caller.sandbox.callback_body(task_id)
        assert "X-Webhook-Signature" in receiver.got[0][0]
        assert receiver.got[1][1] == b"junk"
        assert "X-Webhook-Signature" not in receiver.got[1][0]
        assert {delivery.kind for delivery in caller.sandbox.deliveries} == {"manual"}


async def test_a_callback_by_hand_without_an_answer_raises() -> None:
    async with Opened(durations=Never()) as caller:
        task_id = await caller.task_id(callBackUrl="http://127.0.0.1:9/kie")
        with pytest.raises(ConnectionError, match="no answer"):
            await caller.sandbox.send_callback(task_id)


# -- files -----------------------------------------------------------------------------------------


async def test_a_streamed_upload_is_described_and_served() -> None:
    async with Opened() as caller:
        answer = await caller.upload(b"sound", uploadPath="voices/today", fileName="hello.wav")
        described = answer["data"]
        assert (answer["success"], answer["code"]) == (True, 200)
        assert described["filePath"] == "kieai/sandbox/voices/today/hello.wav"
        assert (described["fileName"], described["fileSize"]) == ("hello.wav", 5)
        async with aiohttp.ClientSession() as stranger, stranger.get(described["downloadUrl"]) as file:
            assert await file.read() == b"sound"


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
async def test_a_base64_upload_is_decoded(prefix: str) -> None:
    async with Opened() as caller:
        body = {"base64Data": prefix + base64.b64encode(b"pixels").decode(), "uploadPath": "a"}
        described = (await caller.post("/api/file-base64-upload", body))["data"]
        assert described["mimeType"] == ("image/png" if prefix else "application/octet-stream")
        async with caller.http.get(described["downloadUrl"]) as file:
            assert await file.read() == b"pixels"


async def test_a_url_upload_copies_only_what_the_sandbox_itself_serves() -> None:
    async with Opened() as caller:
        source = (await caller.upload(b"sound"))["data"]["downloadUrl"]
        copy = await caller.post("/api/file-url-upload", {"fileUrl": source, "uploadPath": "b"})
        assert copy["data"]["fileSize"] == 5
        asked = {"fileUrl": "http://example.com/a.png", "uploadPath": "b"}
        assert (await caller.post("/api/file-url-upload", asked))["code"] == 500
        asked = {"fileUrl": "file:///etc/hosts", "uploadPath": "b"}
        assert (await caller.post("/api/file-url-upload", asked))["code"] == 400


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("base64", {"base64Data": "AAAA"}, "Missing required parameter: uploadPath"),
        ("base64", {"uploadPath": "a"}, "Missing required parameter: base64Data"),
        ("base64", {"base64Data": "!!", "uploadPath": "a"}, "Base64 decoding failed: Invalid Base64 format"),
        ("url", {"uploadPath": "a"}, "Missing required parameter: fileUrl"),
        ("stream", {}, "Missing required parameter: file"),
    ],
)
async def test_a_bad_upload_says_what_is_missing(path: str, body: Any, said: str) -> None:
    async with Opened() as caller:
        answer = await caller.post(f"/api/file-{path}-upload", body)
        assert answer == {"success": False, "code": 400, "msg": said}


async def test_uploads_need_the_key() -> None:
    async with Opened(key="wrong") as caller:
        answer = await caller.upload(b"sound")
        assert answer == {"success": False, "code": 401, "msg": "Authentication failed: Invalid API Key"}


async def test_a_download_url_is_a_string_and_only_for_files_of_the_sandbox() -> None:
    async with Opened(durations=Fixed(0)) as caller:
        record = await ended(caller, await caller.task_id())
        answer = await caller.post(
            "/api/v1/common/download-url", {"url": record["response"]["resultUrls"][0]}
        )
        async with aiohttp.ClientSession() as stranger, stranger.get(answer["data"]) as file:
            assert (file.status, file.content_type) == (200, "video/mp4")
        foreign = await caller.post("/api/v1/common/download-url", {"url": "https://example.com/a"})
        assert foreign == {"code": 422, "msg": "url is wrong", "data": None}


async def test_result_hosts_refuse_the_default_agent_of_urllib() -> None:
    async with Opened(durations=Fixed(0)) as caller:
        record = await ended(caller, await caller.task_id())
        with pytest.raises(urllib.error.HTTPError) as refused:
            await asyncio.to_thread(urllib.request.urlopen, record["response"]["resultUrls"][0])
        assert refused.value.code == 403
        refused.value.close()


async def test_a_key_sent_to_the_file_host_is_noticed() -> None:
    async with Opened(durations=Fixed(0)) as caller:
        record = await ended(caller, await caller.task_id())
        async with caller.http.get(record["response"]["resultUrls"][0]):
            assert caller.sandbox.counts["file.with_key"] == 1


# -- the sandbox as a thing ------------------------------------------------------------------------


async def test_counts_tell_the_requests_of_every_endpoint() -> None:
    async with Opened(durations=Fixed(0)) as caller:
        await ended(caller, await caller.task_id())
        await caller.upload(b"sound")
        counts = caller.sandbox.counts
        assert (counts["create"], counts["create.bodies"], counts["create.created"]) == (1, 1, 1)
        assert counts["query"] >= 1
        assert counts["upload"] == 1


async def test_nothing_is_left_behind_when_it_closes_in_full_work(receiver: Receiver) -> None:
    before = asyncio.all_tasks()
    sandbox = Sandbox(create_limit=None, durations=Uniform(0.0, 0.2), callback_retries_s=(5.0,))
    async with sandbox, aiohttp.ClientSession(headers={"Authorization": "Bearer sandbox-key"}) as http:
        receiver.answers = [500] * 60
        caller = Caller(sandbox, http)
        await asyncio.gather(*(caller.create(callBackUrl=receiver.url) for _ in range(60)))
        await asyncio.sleep(0.1)
    assert all(task.timer is None for task in sandbox.tasks.values())
    await eventually(lambda: asyncio.all_tasks() - before - receiver.serving == set())
    await sandbox.aclose()


async def test_closing_does_not_wait_for_a_silent_receiver() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/kie"
    async with Opened(durations=Fixed(0)) as caller:
        await caller.create(callBackUrl=url)
        await eventually(lambda: caller.sandbox.counts["callback.sent"] == 1)
        started = time.monotonic()
    assert time.monotonic() - started < 1
    server.close()


async def test_started_again_it_keeps_its_port_and_its_tasks_go_on() -> None:
    sandbox = Sandbox(durations=Fixed(0.2))
    async with sandbox, aiohttp.ClientSession(headers={"Authorization": "Bearer sandbox-key"}) as http:
        task_id = await Caller(sandbox, http).task_id()
        url = sandbox.url
        with pytest.raises(RuntimeError, match="already running"):
            await sandbox.start()
    assert sandbox.tasks[task_id].end_state is None
    async with sandbox, aiohttp.ClientSession(headers={"Authorization": "Bearer sandbox-key"}) as http:
        assert sandbox.url == url
        assert (await ended(Caller(sandbox, http), task_id))["state"] == "success"


async def test_a_taken_port_is_an_os_error_and_leaves_nothing_open() -> None:
    async with Opened() as caller:
        port = int(caller.sandbox.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            await Sandbox(port=port).start()


async def test_it_holds_twenty_thousand_tasks_on_one_timer_each() -> None:
    sandbox = Sandbox(credits=1e9, durations=Fixed(30.0))
    async with sandbox:
        before = len(asyncio.all_tasks())
        started = time.perf_counter()
        for _ in range(20_000):
            sandbox._arm(sandbox._world.create({"model": "sandbox/echo", "input": {"prompt": "x"}}))
        assert time.perf_counter() - started < 5
        assert len(asyncio.all_tasks()) == before
        assert len(sandbox.tasks) == 20_000


async def test_other_processes_may_read_and_finish_without_a_key() -> None:
    async with Opened(durations=Never()) as caller, aiohttp.ClientSession() as stranger:
        task_id, url = await caller.task_id(input={"a": 1}), caller.sandbox.url
        async with stranger.post(
            f"{url}/sandbox/finish", json={"task_id": task_id, "state": "fail"}
        ) as answer:
            assert answer.status == 200
        async with stranger.get(f"{url}/sandbox/state") as answer:
            state = await answer.json()
        assert state["counts"]["create"] == 1
        assert state["balance"] == 100_000
        (task,) = state["tasks"]
        assert (task["task_id"], task["state"], task["credits"]) == (task_id, "fail", 0)
        assert task["input"] == {"a": 1}
        for body, status in (({"task_id": "x"}, 404), ({"task_id": task_id, "state": "odd"}, 400), ([], 400)):
            async with stranger.post(f"{url}/sandbox/finish", json=body) as answer:
                assert answer.status == status


CONTROL = (("GET", "state"), ("POST", "faults"), ("POST", "finish"))


async def control_status(sandbox: Sandbox, method: str, name: str, **headers: str) -> int:
    """Return the status of one request to a control endpoint; underscores in names stand for dashes."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    url = f"{sandbox.url}/sandbox/{name}"
    async with aiohttp.ClientSession() as stranger:
        async with stranger.request(method, url, data=b"{}", headers=named) as answer:
            return answer.status


@pytest.mark.parametrize(("method", "name"), CONTROL)
@pytest.mark.parametrize(
    ("headers", "is_answered"),
    [
        ({}, True),
        ({"Host": "localhost"}, True),
        ({"Host": "LOCALHOST:8800"}, True),
        ({"Host": "127.0.0.9:1"}, True),
        ({"Host": "[::1]:8800"}, True),
        ({"Host": "localhost:8800", "Origin": "http://localhost:8800"}, True),
        ({"Sec_Fetch_Site": "same-origin"}, True),
        ({"Sec_Fetch_Site": "none"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "evil.example:8800", "Origin": "http://evil.example:8800"}, False),
        ({"Host": "localhost.evil.example"}, False),
        ({"Host": "127.0.0.1.nip.example"}, False),
        ({"Host": "localhost@evil.example"}, False),
        ({"Host": "192.168.1.5:8800"}, False),
        ({"Host": "[::1"}, False),
        ({"Host": ""}, False),
        ({"Host": "localhost:8800", "Origin": "http://localhost:3000"}, False),
        ({"Host": "localhost:8800", "Origin": "http://127.0.0.1:8800"}, False),
        ({"Host": "localhost:8800", "Origin": "file://localhost:8800"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Sec_Fetch_Site": "cross-site"}, False),
        ({"Sec_Fetch_Site": "same-site"}, False),
    ],
    ids=str,
)
async def test_control_endpoints_answer_this_machine_and_no_foreign_page(
    method: str, name: str, headers: dict[str, str], is_answered: bool
) -> None:
    async with Sandbox(durations=Never()) as sandbox:
        assert (await control_status(sandbox, method, name, **headers) != 403) == is_answered


@pytest.mark.parametrize("target", ["evil.example", "127.0.0.1"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1"])
async def test_control_endpoints_take_no_target_that_names_a_host_of_its_own(target: str, host: str) -> None:
    async with Sandbox(durations=Never()) as sandbox:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(sandbox.url).port)
        head = f"GET http://{target}/sandbox/state HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        assert (await reader.readline()).split()[1] == b"403"
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(("method", "name"), CONTROL)
async def test_where_others_can_reach_it_control_takes_the_token(method: str, name: str) -> None:
    async with Sandbox(host="0.0.0.0", durations=Never()) as sandbox:  # noqa: S104
        assert sandbox.control_token
        assert await control_status(sandbox, method, name) == 403
        for wrong in ("", "wrong", f"{sandbox.control_token}x", "\u00e4"):
            assert await control_status(sandbox, method, name, X_Sandbox_Token=wrong) == 403
        good = {"X_Sandbox_Token": sandbox.control_token, "Host": "sandbox:8800"}
        assert await control_status(sandbox, method, name, **good) != 403
        assert await control_status(sandbox, method, name, **good, Origin="http://evil.example") == 403


async def test_a_token_of_ones_own_is_wanted_everywhere() -> None:
    assert Sandbox().control_token is None
    assert Sandbox(host="0.0.0.0").control_token != Sandbox(host="0.0.0.0").control_token  # noqa: S104
    async with Sandbox(control_token="t0ken") as sandbox:
        assert await control_status(sandbox, "GET", "state") == 403
        assert await control_status(sandbox, "GET", "state", X_Sandbox_Token="t0ken") == 200


def test_the_control_token_is_an_option_or_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_options([]).control_token is None
    monkeypatch.setenv("KIE_SANDBOX_TOKEN", " of-the-environment ")
    assert parse_options([]).control_token == "of-the-environment"
    options = parse_options(["--control-token=given"])
    assert options.control_token == options.sandbox().control_token == "given"
    assert "given" not in repr(options)


@pytest.mark.parametrize("given", ["", "given"])
async def test_a_token_that_was_made_up_is_printed_at_the_start(
    capsys: pytest.CaptureFixture[str], given: str
) -> None:
    options = ServeOptions(host="0.0.0.0", port=0, control_token=given or None)  # noqa: S104
    serving = asyncio.create_task(serve(options))
    shown = ""
    async with asyncio.timeout(10):
        while shown.count("\n") < 1:
            await asyncio.sleep(0.01)
            shown += capsys.readouterr().out
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert ("X-Sandbox-Token: " in shown) == (not given)


def test_durations_draw_what_they_say() -> None:
    rng = random.Random(1)
    assert Fixed(0.5).draw(rng) == 0.5
    assert Never().draw(rng) is None
    assert all(60 <= Uniform(60, 240).draw(rng) <= 240 for _ in range(100))
    drawn = sorted(Lognormal(120, 0.42).draw(rng) for _ in range(1001))
    assert 100 < drawn[500] < 145


@pytest.mark.parametrize(
    ("text", "durations"),
    [
        ("fixed:0.5", Fixed(0.5)),
        ("uniform:60:240", Uniform(60, 240)),
        ("lognormal:120:0.42", Lognormal(120, 0.42)),
        ("never", Never()),
    ],
)
def test_durations_are_read_from_text(text: str, durations: object) -> None:
    assert parse_durations(text) == durations


@pytest.mark.parametrize(
    "text", ["", "fixed", "fixed:-1", "fixed:nan", "uniform:5:1", "never:1", "lognormal:0:1"]
)
def test_wrong_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_durations(text)


def test_the_sandbox_imports_nothing_else_of_the_package() -> None:
    for path in Path(sandbox_package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, path
                assert node.level == 1 or not (node.module or "").startswith("kie_async"), path
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("kie_async") for alias in node.names), path


def test_a_command_line_without_options_is_the_default_of_each() -> None:
    assert parse_options([]) == ServeOptions()


def test_every_option_is_read_from_the_command_line() -> None:
    given = ["--no-limits", "--render", "--durations=uniform:1:2", "--credits=7", "--port=0", "--seed=3"]
    assert parse_options(given) == ServeOptions(
        limits=False, render=True, durations=Uniform(1, 2), credits=7.0, port=0, seed=3
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [("--durations", "soon"), ("--fail-rate", "2"), ("--port", "70000"), ("--credits", "-1")],
)
def test_a_wrong_option_is_refused(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_options([f"{option}={value}"])
    assert option in capsys.readouterr().err


def test_options_never_show_a_key() -> None:
    assert "s3cret" not in repr(ServeOptions(api_key="s3cret", hmac_key="s3cret"))


def test_it_runs_as_a_process_and_stops_on_a_signal() -> None:
    command = [
        sys.executable,
        "-m",
        "kie_async.sandbox",
        "--port",
        "0",
        "--durations",
        "never",
        "--no-limits",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/sandbox/state", timeout=5) as answer:  # noqa: S310
            assert json.load(answer)["tasks"] == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
        assert process.stderr.read() == ""
