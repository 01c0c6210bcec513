"""Sends raw requests to one receiver behind every mount: signature vectors, limits, timeouts, what is logged.

Each mount listens on a real socket; the requests are raw bytes.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import itertools
import json
import logging
import re
import threading
import urllib.request
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web
from conftest import HMAC_KEY, OpenSession
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from support.clock import Clock, eventually, settle
from support.delivering import MOUNTS, PATH, Mounted, aiohttp_on, connect_to, post, request, uvicorn_on

from kie_async import CallbackReceiver, PollSchedule, Sandbox, SessionEvent, TaskRecord
from kie_async.callbacks import server
from kie_async.callbacks.address import callback_mac
from kie_async.callbacks.base import Delivery
from kie_async.callbacks.body import MAX_DROPPED_BODY
from kie_async.wire.redaction import MACS_ONLY, Redactor

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "support" / "signature_vectors.json").read_text()
)["vectors"]
SECRET = b"a callback secret"
INTENT = "0123456789abcdef0123456789abcdef"
MAC = callback_mac(INTENT, secret=SECRET)
RIGHT = f"{PATH}/{INTENT}/{MAC}"
WRONG = f"{PATH}/{INTENT}/{'a' * 26}"
TASK = "task_12345678"
BODY = b'{"code":200,"msg":"ok","data":{"taskId":"task_12345678","state":"success","resultJson":"{}"}}'
MIB = 1024 * 1024
NEVER = PollSchedule.fixed(3600)
"""Nobody polls."""


@attrs.define
class Inbox:
    """A session that only keeps what it is given."""

    callback_secrets: tuple[bytes, ...] = (SECRET,)
    redactor: Redactor = MACS_ONLY
    task_id: str = TASK
    accepted: list[TaskRecord] = attrs.field(factory=list)
    rejected: list[str] = attrs.field(factory=list)
    error: BaseException | None = None

    def owner_of(self, intent_id: str) -> str | None:
        return self.task_id if intent_id == INTENT else None

    async def find_noted(self, intent_id: str) -> str | None:
        return None

    async def accept(self, delivery: Delivery) -> None:
        if self.error is not None:
            raise self.error
        self.accepted.append(delivery.record)

    def note_rejection(self, reason: str) -> None:
        self.rejected.append(reason)


@pytest.fixture
def inbox(doorbell: CallbackReceiver) -> Inbox:
    """Return the only inbox of ``doorbell``."""
    inbox = Inbox()
    doorbell.attach(inbox)
    return inbox


@pytest.fixture(params=MOUNTS)
async def mount(
    request: pytest.FixtureRequest, doorbell: CallbackReceiver, inbox: Inbox, leaks: None
) -> AsyncIterator[Mounted]:
    """Return ``doorbell`` behind each of the mounts."""
    async with MOUNTS[request.param](doorbell) as mounted:
        yield mounted


which_reads = pytest.mark.parametrize("mount", ["routes", "asgi", "serve"], indirect=True)
"""Those that read bodies; ``feed`` is given them."""
served = pytest.mark.parametrize("mount", ["serve"], indirect=True)
"""The server of our own, which bounds what no other mount can."""


# --- the vectors ---------------------------------------------------------------------------------


async def judged(name: str, vectors: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """Return each vector's name, the status it was answered with, and the reason that was counted."""
    inbox, found, now = Inbox(), [], [0.0]
    async with AsyncExitStack() as stack:
        ports: dict[object, int] = {}
        for vector in vectors:
            settings = (tuple(vector["keys"]), vector["tolerance_s"])
            if settings not in ports:
                receiver = CallbackReceiver(*settings, now=lambda: now[0])
                receiver.attach(inbox)
                ports[settings] = (await stack.enter_async_context(MOUNTS[name](receiver))).port
            now[0], inbox.task_id = vector["now"], vector["task_id"]
            inbox.accepted, inbox.rejected = [], []
            body = vector["body"].encode("utf-8", "surrogatepass")
            answer = await post(ports[settings], RIGHT, vector["headers"], body)
            assert len(inbox.accepted) == (answer.status == 200)
            found.append((vector["name"], answer.status, "".join(inbox.rejected)))
    return found


@pytest.mark.parametrize("name", MOUNTS)
async def test_every_delivery_of_the_vectors_is_judged_as_the_file_says(name: str, leaks: None) -> None:
    vectors = [vector for vector in VECTORS if vector["kind"] == "delivery"]
    assert len(vectors) >= 64
    expected = [(vector["name"], vector["status"], vector["reason"]) for vector in vectors]
    assert await judged(name, vectors) == expected


def as_delivery(vector: dict[str, Any]) -> dict[str, Any]:
    headers = [("X-Webhook-Timestamp", vector["timestamp"]), ("X-Webhook-Signature", vector["signature"])]
    body = json.dumps({"code": 200, "data": {"taskId": vector["task_id"], "state": "waiting"}})
    return vector | {"headers": headers, "body": body}


def can_travel(vector: dict[str, Any]) -> bool:
    """Tell whether a receiver can be set up so, and HTTP carries the values as they stand."""
    values = (vector["timestamp"], vector["signature"])
    is_carried = all(re.fullmatch("|[!-~]|[!-~][ -~]*[!-~]", value) for value in values)
    return bool(vector["keys"] and vector["tolerance_s"] and is_carried)


@pytest.mark.parametrize("name", MOUNTS)
async def test_every_signature_of_the_vectors_is_judged_as_the_file_says(name: str, leaks: None) -> None:
    vectors = [vector for vector in VECTORS if vector["kind"] == "signature" and can_travel(vector)]
    assert len(vectors) >= 64
    for vector, (_, status, reason) in zip(
        vectors, await judged(name, [*map(as_delivery, vectors)]), strict=True
    ):
        if vector["expect"] == "accept":
            assert (status, reason) == (200, ""), vector["name"]
        else:  # a bad id may be seen before the signature is, and a header too long by the server
            assert status in (400, 401), vector["name"]
            assert reason in (vector["expect"], "malformed task id", ""), vector["name"]


# --- what the sandbox sends ----------------------------------------------------------------------


def recipe(key: str, headers: dict[str, str], body: bytes) -> bool:
    """Verify as the service's documentation says, with nothing of ours.

    Source: https://docs.kie.ai/common-api/webhook-verification
    """
    task_id = json.loads(body)["data"]["taskId"]
    message = task_id + "." + headers["X-Webhook-Timestamp"]
    expected = base64.b64encode(hmac.new(key.encode(), message.encode(), hashlib.sha256).digest()).decode()
    return hmac.compare_digest(expected, headers["X-Webhook-Signature"])


@pytest.mark.parametrize("name", MOUNTS)
async def test_a_genuine_callback_settles_its_handle(
    name: str, sandbox: Sandbox, receiver: CallbackReceiver, open_session: OpenSession
) -> None:
    async with MOUNTS[name](receiver) as mounted:
        kie = await open_session(callback_url=mounted.url, receiver=receiver, poll=NEVER)
        handle = await kie.create("sandbox/echo", {"result_urls": ["https://example.org/a.mp4"]})
        sandbox.finish(handle.task_id)
        assert (await handle).urls == ("https://example.org/a.mp4",)
        assert kie.stats().settled_by_callback == 1
        await eventually(lambda: [delivery.status for delivery in sandbox.deliveries] == [200])
        assert recipe(HMAC_KEY, dict(sandbox.deliveries[0].headers), sandbox.deliveries[0].body)
        await kie.aclose()
        assert await sandbox.send_callback(handle.task_id) == 503  # no session is open: come again


def flips(text: str) -> list[str]:
    """Return *text* with each of its bits flipped, one at a time."""
    found = []
    for at, bit in itertools.product(range(len(text)), range(7)):
        found.append(text[:at] + chr(ord(text[at]) ^ (1 << bit)) + text[at + 1 :])
    return found


async def test_one_flipped_bit_in_id_time_signature_or_address_is_refused(
    sandbox: Sandbox, receiver: CallbackReceiver, open_session: OpenSession
) -> None:
    kie = await open_session(callback_url="http://127.0.0.1:1/kie", receiver=receiver)
    handle = await kie.create("sandbox/echo", {})
    task_id = handle.task_id
    task = sandbox.tasks[task_id]
    task.end_state = "success"
    body, headers = sandbox.callback_body(task_id), sandbox.callback_headers(task_id)
    tail = str(task.callback_url).removeprefix("http://127.0.0.1:1/kie/")
    tried = 0
    for flipped in flips(tail):
        assert (await receiver.feed(flipped, headers, body)).status == 404
        tried += 1
    for name, value in headers.items():
        for flipped in flips(value):
            assert (await receiver.feed(tail, headers | {name: flipped}, body)).status == 401
            tried += 1
    for flipped in flips(task_id):
        other = body.replace(f'"taskId":"{task_id}"'.encode(), f'"taskId":"{flipped}"'.encode())
        assert other != body
        assert (await receiver.feed(tail, headers, other)).status in (400, 401)
        tried += 1
    assert tried == 7 * (len(tail) + 10 + 44 + len(task_id))
    assert sum(kie.stats().callbacks_rejected.values()) == tried
    assert not handle.is_done
    assert handle.record is None or not handle.record.state.is_terminal
    assert (await receiver.feed(tail, headers, body)).status == 200
    assert handle.is_done


async def test_headers_may_be_read_only_once() -> None:
    receiver = CallbackReceiver(["kie_test_hmac_key_0001"], now=lambda: 1_700_000_000.0)
    receiver.attach(inbox := Inbox())
    vector = next(vector for vector in VECTORS if vector["kind"] == "delivery" and vector["status"] == 200)
    headers = ((name, value) for name, value in vector["headers"])
    verdict = await receiver.feed(f"{INTENT}/{MAC}", headers, vector["body"].encode())
    assert (verdict.status, len(inbox.accepted)) == (200, 1)


# --- what a stranger learns ----------------------------------------------------------------------


@which_reads
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_other_methods_learn_nothing(mount: Mounted, method: str, inbox: Inbox) -> None:
    for path in (RIGHT, WRONG):
        async with connect_to(mount.port) as connection:
            await connection.send(request(path, method=method))
            answer = await (connection.read_head() if method == "HEAD" else connection.read_answer())
        assert answer.status == 405
        assert answer.header("Allow") == "POST"
        assert answer.body in (b"", b"405: Method Not Allowed")
    assert not inbox.accepted


@which_reads
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_callback_url_itself_can_be_probed(mount: Mounted, method: str) -> None:
    async with connect_to(mount.port) as connection:
        await connection.send(request(PATH, method=method))
        assert (await connection.read_head()).status == 405


async def test_a_wrong_address_is_404_without_a_word(mount: Mounted, inbox: Inbox) -> None:
    for path in (WRONG, f"{PATH}/a/b", f"{PATH}/{INTENT[::-1]}/{MAC}", f"{PATH}/%2e%2e/{MAC}"):
        answer = await post(mount.port, path, body=BODY)
        assert (answer.status, answer.body) == (404, b"")
    assert inbox.rejected == ["wrong address"] * 4


@pytest.mark.parametrize("mount", ["asgi", "serve"], indirect=True)
async def test_a_path_elsewhere_is_404(mount: Mounted, inbox: Inbox) -> None:
    for path in ("/", "/elsewhere", "//", f"{PATH}x{RIGHT[4:]}x", "/%00", "/" + "a" * 1000):
        assert (await post(mount.port, path, body=BODY)).status == 404
    assert not inbox.accepted


@which_reads
async def test_a_wrong_address_is_answered_before_the_body(mount: Mounted) -> None:
    async with connect_to(mount.port) as connection:
        await connection.send(request(WRONG, [("Content-Length", "200000")]))
        assert (await connection.read_answer()).status == 404
        connection.write(bytes(200_000))


@which_reads
async def test_no_open_session_is_503_before_the_body(
    mount: Mounted, doorbell: CallbackReceiver, inbox: Inbox
) -> None:
    doorbell.detach(inbox)
    async with connect_to(mount.port) as connection:
        await connection.send(request(RIGHT, [("Content-Length", "200000")]))
        assert (await connection.read_answer()).status == 503
        connection.write(bytes(200_000))


@pytest.mark.parametrize("mount", ["asgi", "serve"], indirect=True)
async def test_no_answer_names_the_server_of_ours(mount: Mounted) -> None:
    for answer in (await post(mount.port, WRONG), await post(mount.port, RIGHT, body=BODY)):
        assert answer.header("Server") in (None, "", "uvicorn")


@pytest.mark.parametrize("name", MOUNTS)
async def test_an_unknown_mac_does_not_touch_the_journal(
    name: str,
    receiver: CallbackReceiver,
    open_session: OpenSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with MOUNTS[name](receiver) as mounted:
        kie = await open_session(callback_url=mounted.url, receiver=receiver, journal=tmp_path / "run.db")
        asked: list[str] = []
        with monkeypatch.context() as patch:
            for part in (kie._engine.tracker, kie._engine.reconciler, kie._engine.recovery):
                patch.setattr(part, "_journal", _Watched(asked))
            for _ in range(20):
                assert (await post(mounted.port, WRONG, body=BODY)).status == 404
        assert not asked
        assert kie.stats().callbacks_rejected == {"wrong address": 20}


class _Watched:
    """A journal that notes every attempt to reach it."""

    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        self._asked.append(name)
        raise AttributeError(name)


# --- bodies --------------------------------------------------------------------------------------


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


CHUNKED = [("Transfer-Encoding", "chunked")]


@which_reads
async def test_a_chunked_body_is_read(mount: Mounted, inbox: Inbox) -> None:
    body = chunked(BODY[:10], BODY[10:]) + b"0\r\n\r\n"
    assert (await post(mount.port, RIGHT, CHUNKED, body)).status == 200
    assert [record.task_id for record in inbox.accepted] == [TASK]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "identity"])
async def test_a_compressed_body_is_read(mount: Mounted, inbox: Inbox, encoding: str) -> None:
    pack = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[encoding.lower()]
    answer = await post(mount.port, RIGHT, [("Content-Encoding", encoding)], pack(BODY))
    assert answer.status == 200
    assert [record.task_id for record in inbox.accepted] == [TASK]


@which_reads
async def test_a_body_at_the_limit_is_read_and_of_a_larger_one_only_that_it_came(
    mount: Mounted, inbox: Inbox
) -> None:
    assert (await post(mount.port, RIGHT, body=BODY.ljust(262_144))).status == 200
    assert (await post(mount.port, RIGHT, body=BODY.ljust(262_145))).status == 200
    compressed = [("Content-Encoding", "gzip")]
    assert (await post(mount.port, RIGHT, compressed, gzip.compress(BODY.ljust(262_144)))).status == 200
    assert (await post(mount.port, RIGHT, compressed, gzip.compress(BODY.ljust(262_145)))).status == 200
    assert [record.state for record in inbox.accepted] == ["success", "unknown"] * 2


@which_reads
async def test_a_body_of_more_than_8_mib_is_refused(mount: Mounted, inbox: Inbox) -> None:
    whole, more = BODY.ljust(MAX_DROPPED_BODY), BODY.ljust(MAX_DROPPED_BODY + 1)
    compressed = [("Content-Encoding", "gzip")]
    assert (await post(mount.port, RIGHT, body=whole)).status == 200
    assert (await post(mount.port, RIGHT, compressed, gzip.compress(whole))).status == 200
    assert (await post(mount.port, RIGHT, compressed, gzip.compress(more))).status == 413
    async with connect_to(mount.port) as connection:
        connection.write(request(RIGHT, body=more))
        assert (await connection.read_answer()).status == 413
    assert [record.state for record in inbox.accepted] == ["unknown"] * 2
    assert inbox.rejected == ["body too large"] * 2


@which_reads
async def test_a_chunked_body_without_end_is_cut_off(mount: Mounted, inbox: Inbox) -> None:
    async with connect_to(mount.port) as connection:
        connection.write(request(RIGHT, CHUNKED) + chunked(b" " * 65_536) * 129)
        assert (await connection.read_answer()).status == 413
        connection.write(b"0\r\n\r\n")
    assert inbox.rejected == ["body too large"]


@which_reads
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_bomb_is_cut_off_within_little_memory(mount: Mounted, encoding: str) -> None:
    packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(16)) + packer.flush()
    before = _peak_mib()
    for path, status in ((RIGHT, 413), (WRONG, 404)) * 2:
        async with connect_to(mount.port) as connection:
            await connection.send(request(path, [("Content-Encoding", encoding)], bomb))
            assert (await connection.read_answer()).status == status
    assert _peak_mib() - before < 4


def _peak_mib() -> float:
    """Return the most memory this process had since this was last asked."""
    proc = Path("/proc/self")
    if not (proc / "clear_refs").exists():
        return 0.0
    peak = re.search(r"VmHWM:\s+(\d+) kB", (proc / "status").read_text())
    (proc / "clear_refs").write_text("5")
    assert peak
    return int(peak[1]) / 1024


@pytest.mark.parametrize("mount", ["asgi", "serve"], indirect=True)
@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("br", BODY, 415),
        ("gzip, gzip", BODY, 415),
        ("gzip", BODY, 400),
        ("deflate", gzip.compress(BODY)[:40], 400),
    ],
    ids=["unknown", "twice", "not compressed", "cut off"],
)
async def test_a_body_that_cannot_be_decompressed_is_refused(
    mount: Mounted, inbox: Inbox, encoding: str, body: bytes, status: int
) -> None:
    assert (await post(mount.port, RIGHT, [("Content-Encoding", encoding)], body)).status == status
    assert not inbox.accepted
    assert len(inbox.rejected) == 1


@pytest.mark.parametrize("mount", ["asgi", "serve", "feed"], indirect=True)
async def test_a_compressed_body_that_is_cut_off_behind_the_id_says_only_that_it_came(
    mount: Mounted, inbox: Inbox
) -> None:
    body = gzip.compress(BODY)[:-12]
    assert (await post(mount.port, RIGHT, [("Content-Encoding", "gzip")], body)).status == 200
    assert [record.state for record in inbox.accepted] == ["unknown"]


@which_reads
async def test_a_body_that_breaks_off_changes_nothing(mount: Mounted, inbox: Inbox) -> None:
    async with connect_to(mount.port) as connection:
        await connection.send(request(RIGHT, [("Content-Length", "1000")], BODY))
    await eventually(lambda: inbox.rejected == ["unreadable body"])
    assert (await post(mount.port, RIGHT, body=BODY)).status == 200


@pytest.mark.parametrize("mount", ["routes", "serve"], indirect=True)
async def test_a_sender_that_asks_first_may_continue_if_the_address_is_right(mount: Mounted) -> None:
    asks = [("Expect", "100-continue"), ("Content-Length", str(len(BODY)))]
    async with connect_to(mount.port) as connection:
        await connection.send(request(RIGHT, asks))
        assert (await connection.read_answer()).status == 100
        await connection.send(BODY)
        assert (await connection.read_answer()).status == 200
    async with connect_to(mount.port) as connection:
        await connection.send(request(WRONG, asks))
        assert (await connection.read_answer()).status == 404
        connection.write(BODY)


# --- time ----------------------------------------------------------------------------------------


@which_reads
async def test_a_slow_body_is_answered_within_the_patience_of_the_service(
    clock: Clock, mount: Mounted, inbox: Inbox
) -> None:
    async with connect_to(mount.port) as connection:
        await connection.send(request(RIGHT, [("Content-Length", "1000")], BODY[:10]))
        for _ in range(9):
            await clock.advance(1)
            await connection.send(b" ")
        assert not inbox.rejected
        await clock.advance(1.5)
        assert (await connection.read_answer()).status == 408
        await clock.advance(15)
        assert await connection.is_closed()
    assert inbox.rejected == ["body too slow"]


HALF_A_HEAD = request(RIGHT)[:40]


@served
@pytest.mark.parametrize("sent", [b"", HALF_A_HEAD], ids=["nothing", "half a head"])
async def test_a_connection_without_a_request_is_closed(clock: Clock, mount: Mounted, sent: bytes) -> None:
    async with connect_to(mount.port) as connection:
        await connection.send(sent)
        await clock.advance(server.HEADER_TIMEOUT_S - 1)
        assert not connection.is_at_end
        await clock.advance(2.1)
        assert await connection.is_closed()


@served
async def test_headers_that_trickle_are_cut_off(clock: Clock, mount: Mounted) -> None:
    async with connect_to(mount.port) as connection:
        for at in range(7):
            assert not connection.is_at_end
            await connection.send(HALF_A_HEAD[at : at + 1])
            await clock.advance(1)
        assert await connection.is_closed()


@served
@pytest.mark.parametrize("then", [b"", HALF_A_HEAD], ids=["nothing", "half a head"])
async def test_a_kept_connection_is_closed_when_idle(clock: Clock, mount: Mounted, then: bytes) -> None:
    async with connect_to(mount.port) as connection:
        for _ in range(3):
            await connection.send(request(RIGHT, body=BODY))
            assert (await connection.read_answer()).status == 200
            await clock.advance(server.IDLE_TIMEOUT_S - 2)
        assert not connection.is_at_end
        await connection.send(then)
        await clock.advance(4)
        assert await connection.is_closed()


# --- many ----------------------------------------------------------------------------------------


@served
async def test_one_connection_too_many_is_sent_away_at_once(
    mount: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    async with connect_to(mount.port) as first, connect_to(mount.port) as second:
        for connection in (first, second):
            await connection.send(request(RIGHT, body=BODY))
            assert (await connection.read_answer()).status == 200
        async with connect_to(mount.port) as third:
            await third.send(request(RIGHT, body=BODY))
            assert (await third.read_answer()).status == 200
            refused = await asyncio.gather(*[post(mount.port, RIGHT, body=BODY) for _ in range(20)])
            assert {answer.status for answer in refused} == {503}
        await settle()  # the third is on its way out
        assert (await post(mount.port, RIGHT, body=BODY)).status == 200
        await first.send(request(RIGHT, body=BODY))
        assert (await first.read_answer()).status == 200


def test_the_limits_hold_on_uvloop_too(
    doorbell: CallbackReceiver, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(server, "HEADER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server, "SWEEP_EVERY_S", 0.05)

    async def play() -> None:
        async with doorbell.serve("127.0.0.1", 0) as served:
            assert (await post(served.port, RIGHT, body=BODY)).status == 200
            async with connect_to(served.port) as first, connect_to(served.port) as second:
                assert (await post(served.port, RIGHT, body=BODY)).status == 503
                assert await first.is_closed()
                assert await second.is_closed()
            assert (await post(served.port, RIGHT, body=BODY)).status == 200

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(play())


@served
async def test_requests_in_one_packet_are_answered_in_order(mount: Mounted, inbox: Inbox) -> None:
    async with connect_to(mount.port) as connection:
        await connection.send(*[request(RIGHT, body=BODY) + request(WRONG, body=BODY)] * 100)
        assert [(await connection.read_answer()).status for _ in range(200)] == [200, 404] * 100
    assert len(inbox.accepted) == 100


# --- starting and stopping -----------------------------------------------------------------------


async def test_a_server_that_stops_answers_what_is_under_way(
    doorbell: CallbackReceiver, inbox: Inbox, leaks: None
) -> None:
    async with AsyncExitStack() as serving, AsyncExitStack() as connections:
        served = await serving.enter_async_context(doorbell.serve("127.0.0.1", 0))
        idle, busy = [await connections.enter_async_context(connect_to(served.port)) for _ in range(2)]
        await idle.send(request(RIGHT, body=BODY))
        assert (await idle.read_answer()).status == 200
        await busy.send(request(RIGHT, [("Expect", "100-continue"), ("Content-Length", str(len(BODY)))]))
        assert (await busy.read_answer()).status == 100  # it is being read
        stopping = asyncio.create_task(serving.aclose())
        assert await idle.is_closed()
        with pytest.raises(OSError, match="onnect"):
            await asyncio.open_connection("127.0.0.1", served.port)
        assert not stopping.done()
        await busy.send(BODY)
        assert (await busy.read_answer()).status == 200
        await stopping
        assert await busy.is_closed()
    assert len(inbox.accepted) == 2


async def test_a_server_that_stops_does_not_wait_for_ever(
    clock: Clock, doorbell: CallbackReceiver, inbox: Inbox
) -> None:
    async with AsyncExitStack() as serving:
        served = await serving.enter_async_context(doorbell.serve("127.0.0.1", 0))
        async with connect_to(served.port) as connection:
            await connection.send(request(RIGHT, [("Expect", "100-continue"), ("Content-Length", "9")]))
            await connection.read_answer()
            stopping = asyncio.create_task(serving.aclose())
            await clock.advance(5)
            assert stopping.done()
            assert await connection.is_closed()


async def test_a_block_that_is_cancelled_stops_the_server(doorbell: CallbackReceiver, leaks: None) -> None:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with doorbell.serve("127.0.0.1", 0) as served:
            port.set_result(served.port)
            await asyncio.sleep(60)

    serving = asyncio.create_task(serve())
    async with connect_to(await port) as connection:
        serving.cancel()
        assert await connection.is_closed()
    with pytest.raises(asyncio.CancelledError):
        await serving


@pytest.mark.parametrize("path", ["/kie", "/kie/", "kie", "kie/"])
async def test_a_path_may_be_spelled_with_and_without_slashes(
    doorbell: CallbackReceiver, inbox: Inbox, path: str, leaks: None
) -> None:
    async with doorbell.serve("127.0.0.1", 0, path) as served:
        assert served.url == f"http://127.0.0.1:{served.port}/kie"
        assert (await post(served.port, RIGHT, body=BODY)).status == 200
    app = web.Application()
    app.router.add_routes(doorbell.routes(path))
    async with aiohttp_on(app) as port:
        assert (await post(port, RIGHT, body=BODY)).status == 200


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ("/kie/{i}/{m}", 200),
        ("/kie/{i}/{m}/", 200),
        ("/kie/{i}/{m}//", 200),
        ("/kie//{i}/{m}", 200),
        ("/kie/{i}//{m}", 200),
        ("//kie///{i}//{m}///", 200),
        ("/kie/{i}/{m}?taskId=1", 200),
        ("/kie/{i}/{m}/?taskId=1", 200),
        ("/kie/{i}{m}", 404),
        ("/kie/{m}/{i}", 404),
        ("/kie/{i}", 404),
        ("/kie/", 404),
    ],
)
@which_reads
async def test_slashes_at_the_end_and_doubled_ones_change_nothing(
    mount: Mounted, inbox: Inbox, form: str, status: int
) -> None:
    path = form.format(i=INTENT, m=MAC)
    assert (await post(mount.port, path, body=BODY)).status in (status, 405 if status == 404 else status)
    assert len(inbox.accepted) == (status == 200)


@pytest.mark.parametrize("path", ["/a/b", "a//b/", "//a/b//"])
@pytest.mark.parametrize("called", ["/a/b/", "/a//b/", "//a/b//"])
async def test_a_path_of_several_parts_is_found_with_any_slashes(
    doorbell: CallbackReceiver, inbox: Inbox, path: str, called: str, leaks: None
) -> None:
    app = web.Application()
    app.router.add_routes(doorbell.routes(path))
    async with aiohttp_on(app) as routes, doorbell.serve("127.0.0.1", 0, path) as served:
        for port in (routes, served.port):
            assert (await post(port, f"{called}{INTENT}/{MAC}", body=BODY)).status == 200


@pytest.mark.parametrize("path", ["/", ""])
async def test_the_root_is_a_path_too(
    doorbell: CallbackReceiver, inbox: Inbox, path: str, leaks: None
) -> None:
    async with doorbell.serve("127.0.0.1", 0, path) as served:
        assert served.url == f"http://127.0.0.1:{served.port}/"
        assert (await post(served.port, f"/{INTENT}/{MAC}", body=BODY)).status == 200
    app = web.Application()
    app.router.add_routes(doorbell.routes(path))
    async with aiohttp_on(app) as port:
        assert (await post(port, f"/{INTENT}/{MAC}", body=BODY)).status == 200


async def test_a_server_listens_on_ipv6(doorbell: CallbackReceiver, inbox: Inbox, leaks: None) -> None:
    try:
        async with doorbell.serve("::1", 0) as served:
            assert served.url == f"http://[::1]:{served.port}/kie"
            async with connect_to(served.port, "::1") as connection:
                await connection.send(request(RIGHT, body=BODY))
                assert (await connection.read_answer()).status == 200
    except OSError as exc:
        pytest.skip(f"no IPv6 here: {exc}")


async def test_a_port_that_is_taken_is_an_os_error(doorbell: CallbackReceiver, leaks: None) -> None:
    async with doorbell.serve("127.0.0.1", 0) as served:
        with pytest.raises(OSError, match="in use"):
            async with doorbell.serve("127.0.0.1", served.port):
                pass


# --- ASGI ----------------------------------------------------------------------------------------


def below_fastapi(receiver: CallbackReceiver) -> Any:
    app = FastAPI()
    app.mount("/kie", receiver.asgi)
    return app


def deep_below_starlette(receiver: CallbackReceiver) -> Any:
    return Starlette(routes=[Mount("/a", routes=[Mount("/b/kie", receiver.asgi)])])


def behind_a_plain_switch(receiver: CallbackReceiver) -> Any:
    """As one puts it beside Django's own ASGI application."""
    mount = receiver.asgi

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan" or scope["path"].startswith("/kie/")
        await mount(scope, receive, send)

    return app


@pytest.mark.parametrize(
    ("app", "prefix", "config"),
    [
        (lambda receiver: receiver.asgi, "", {}),
        (lambda receiver: receiver.asgi, "/any/where", {}),
        (lambda receiver: receiver.asgi, "", {"root_path": "/behind/a/proxy"}),
        (lambda receiver: receiver.asgi, "", {"lifespan": "off"}),
        (below_fastapi, "/kie", {}),
        (below_fastapi, "/kie", {"root_path": "/behind"}),
        (deep_below_starlette, "/a/b/kie", {}),
        (behind_a_plain_switch, "/kie", {}),
    ],
)
async def test_the_asgi_mount_answers_under_any_prefix(
    doorbell: CallbackReceiver, inbox: Inbox, app: Any, prefix: str, config: dict[str, Any], leaks: None
) -> None:
    async with uvicorn_on(app(doorbell), **config) as port:
        assert (await post(port, f"{prefix}/{INTENT}/{MAC}", body=BODY)).status == 200
        assert (await post(port, f"{prefix}/{INTENT}/{MAC}/", body=BODY)).status == 200
        assert (await post(port, f"{prefix}/{INTENT}/{'a' * 26}", body=BODY)).status == 404
        assert (await post(port, f"{prefix}/{INTENT}/{MAC}", method="GET")).status == 405
    assert len(inbox.accepted) == 2


async def sent_by(mount: Any, scope: dict[str, Any], *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what an ASGI application sends when it receives these messages."""
    sent: list[dict[str, Any]] = []
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(waiting)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await mount(scope, receive, send)
    return sent


async def test_the_asgi_mount_acknowledges_the_lifespan(doorbell: CallbackReceiver) -> None:
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = await sent_by(doorbell.asgi, {"type": "lifespan"}, *events)
    assert sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


async def test_the_asgi_mount_refuses_a_websocket(doorbell: CallbackReceiver) -> None:
    sent = await sent_by(doorbell.asgi, {"type": "websocket", "path": "/"}, {"type": "websocket.connect"})
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_the_asgi_mount_reads_bodies_in_any_pieces(doorbell: CallbackReceiver, inbox: Inbox) -> None:
    scope = {"type": "http", "method": "POST", "path": RIGHT, "headers": []}
    pieces = [b"", BODY[:1], b"", BODY[1:], b""]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    sent = await sent_by(doorbell.asgi, scope, *messages, {"type": "http.request"})
    assert sent[0]["status"] == 200
    assert len(inbox.accepted) == 1


# --- what may go wrong inside --------------------------------------------------------------------


@which_reads
async def test_a_mistake_of_ours_is_500_so_that_the_service_tries_again(
    mount: Mounted, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.error = RuntimeError("a bug")
    answer = await post(mount.port, RIGHT, body=BODY)
    assert (answer.status, answer.body) == (500, b"")
    assert "a bug" in caplog.text
    assert MAC not in caplog.text
    inbox.error = None
    assert (await post(mount.port, RIGHT, body=BODY)).status == 200


async def test_a_mistake_in_the_server_itself_is_logged_by_its_type_alone(
    leaks: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: web.BaseRequest) -> web.StreamResponse:
        raise RuntimeError(MAC)

    lone = server._Server(fail)
    async with await asyncio.get_running_loop().create_server(
        lone.new_connection, "127.0.0.1", 0
    ) as listening:
        answer = await post(listening.sockets[0].getsockname()[1], RIGHT, body=BODY)
        await lone.stop()
    assert (answer.status, answer.body) == (500, b"")
    assert caplog.messages == ["a callback was answered with 500: RuntimeError"]


async def test_a_connection_that_ends_before_it_begins_gives_its_place_back(clock: Clock) -> None:
    async def never(_: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    lone = server._Server(never)
    sweeping = asyncio.create_task(lone.sweep())
    lone.new_connection()
    assert len(lone._deadlines) == 1
    await clock.advance(server.HEADER_TIMEOUT_S + 2)
    assert not lone._deadlines
    sweeping.cancel()


@pytest.mark.parametrize("error", [None, RuntimeError("the hook's own"), asyncio.CancelledError()])
@pytest.mark.parametrize("name", MOUNTS)
async def test_a_hook_that_blocks_or_raises_comes_after_the_answer(
    name: str,
    sandbox: Sandbox,
    receiver: CallbackReceiver,
    open_session: OpenSession,
    error: BaseException | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answered, was_answered = threading.Event(), []
    asyncio.get_running_loop().set_exception_handler(None)

    def hook(event: SessionEvent) -> None:
        if event.kind == "settled":
            was_answered.append(answered.wait(10))  # blocks the loop until the answer has arrived
            if error is not None:
                raise error

    def post(url: str, headers: dict[str, str], body: bytes) -> int:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=15) as answer:  # noqa: S310
            answered.set()
            return int(answer.status)

    async with MOUNTS[name](receiver) as mounted:
        kie = await open_session(callback_url=mounted.url, receiver=receiver, on_event=hook, poll=NEVER)
        handle = await kie.create("sandbox/echo", {})
        task = sandbox.tasks[handle.task_id]
        task.end_state = "success"
        body, headers = sandbox.callback_body(task.task_id), sandbox.callback_headers(task.task_id)
        assert await asyncio.to_thread(post, str(task.callback_url), headers, body) == 200
        assert was_answered == [True]
        assert handle.is_done
        assert ("the hook's own" in caplog.text) == isinstance(error, RuntimeError)


# --- logs ----------------------------------------------------------------------------------------

EVIL = "\x1b[31m\n[FATAL] paid twice\r\x00\u2028"


async def test_logs_hold_no_secret_and_no_line_of_a_stranger_and_do_not_grow(
    sandbox: Sandbox,
    receiver: CallbackReceiver,
    open_session: OpenSession,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    async with receiver.serve("127.0.0.1", 0) as served:
        kie = await open_session(callback_url=served.url, receiver=receiver)
        handle = await kie.create("sandbox/echo", {"prompt": EVIL})
        url = str(sandbox.tasks[handle.task_id].callback_url)
        path, mac = url.removeprefix(f"http://127.0.0.1:{served.port}"), url.rpartition("/")[2]
        evil = json.dumps(
            {"code": 200, "msg": EVIL, "data": {"taskId": handle.task_id, "state": EVIL}}
        ).encode()
        for _ in range(8):
            for headers in (
                (),
                sandbox.callback_headers(handle.task_id).items(),
                [("X-Webhook-Signature", "\x1b[31m")],
            ):
                await post(served.port, path, headers, evil)
            await post(served.port, path + "\x1b[31m", body=evil)
            await post(served.port, path.replace(mac, "a" * 26), body=evil)
            for junk in (
                f"POST {path} HTTP/9.9\r\n\r\n",
                f"POST {path} HTTP/1.1\r\nHost: x\r\n\x1b: {EVIL}\r\n\r\n",
            ):
                async with connect_to(served.port) as connection:
                    await connection.send(junk.encode())
                    assert (await connection.read_answer()).status == 400
        sandbox.finish(handle.task_id)
        await handle
    texts = [logging.Formatter().format(record) for record in caplog.records]
    ours = [text for text, record in zip(texts, caplog.records, strict=True) if record.name == "kie_async"]
    assert ours
    assert len(ours) < 12
    assert not [text for text in ours if not text.isprintable()]
    for canary in (mac, "sandbox-key", HMAC_KEY):
        assert not [text for text in texts if canary in text]
    loud = [record for record in caplog.records if record.levelno > logging.INFO]
    assert {record.name for record in loud} <= {"kie_async", "asyncio"}  # asyncio itself warns of slowness
    said = [record.getMessage() for record in loud if record.name == "kie_async"]
    refused = [text for text in said if text.startswith("callback refused: ")]
    assert len(said) == len(refused)  # of an unknown state only the service's own record is warned of
    assert sorted(text.split(";")[0] for text in refused) == [
        "callback refused: missing signature",
        "callback refused: wrong address",
    ]
