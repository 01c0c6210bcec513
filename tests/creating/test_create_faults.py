"""Whatever happens to a create, its verdict is right and no body that may be paid for is read twice."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, TypeVar
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from campaign.faults import table
from conftest import NO_LIMITS, eventually
from support.create_faults import (
    BODY,
    KEY,
    Fault,
    Notes,
    Word,
    creating,
    creation,
    judge,
    objection,
    rows,
    word_for,
)
from support.create_situations import Situation, protest, see, situations
from support.misbehaving import (
    TASK_ID,
    Behaviour,
    Misbehaving,
    Peer,
    answer,
    black_hole,
    bomb,
    breaks_off,
    certified,
    closes_on_accept,
    created,
    html,
    nobody,
    refused,
    says,
    trickles,
)
from support.tables import each

from kie_async import (
    CreateOutcomeUnknown,
    CreatesHalted,
    InsufficientCredits,
    KieSession,
    RateLimited,
    SessionMisuse,
    TransportError,
)
from kie_async._secrets import Secret
from kie_async.config import Rate
from kie_async.creating.create_transport import CreateTransport, _check_aiohttp
from kie_async.creating.kept_connection import KeptConnection
from kie_async.creating.send_gate import GateClosed, OneShotBody, SendGate
from kie_async.events import Counters
from kie_async.journal.intents import Intent
from kie_async.journal.memory import MemoryJournal
from kie_async.limits.circuit_breaker import CircuitBreaker
from kie_async.limits.rate_limiter import RateLimiter

OK = answer(created())
Row = TypeVar("Row", Fault, Situation)
pytestmark = pytest.mark.usefixtures("leaks")


def by_number(chosen: list[Row]) -> list[Any]:
    """Return the rows that can wait side by side, those of one number for each test."""
    numbers = dict.fromkeys(row.id for row in chosen)
    return [pytest.param([row for row in chosen if row.id == number], id=number) for number in numbers]


@pytest.mark.parametrize("chosen", by_number(rows()))
async def test_the_table(chosen: list[Fault]) -> None:
    async def check(row: tuple[Fault, str]) -> None:
        assert not objection(row[0], await judge(*row), way=row[1])

    await each([(fault, way) for fault in chosen for way in fault.ways], check, at_once=4)


@pytest.mark.parametrize("chosen", by_number(situations()))
async def test_the_situations(chosen: list[Situation]) -> None:
    async def check(row: tuple[Situation, str]) -> None:
        assert not protest(row[0], await see(*row), row[1])

    at_once = 8 if all(situation.may_share for situation in chosen) else 1
    await each([(situation, way) for situation in chosen for way in situation.ways], check, at_once=at_once)


def test_the_table_has_every_row_from_a1_to_a30() -> None:
    assert {row.id for row in table()} == {f"A{number}" for number in range(1, 31)}


# --- again, and not again ------------------------------------------------------------------------


async def test_a_refused_connection_is_tried_again_until_somebody_listens() -> None:
    counters, notes = Counters(), Notes()
    with nobody() as port:
        async with creating(f"http://127.0.0.1:{port}") as transport:
            create = creation(transport, counters=counters, journal=notes, patience_s=5)
            running = asyncio.create_task(create.run())
            await eventually(lambda: counters.retries)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(running), 1.0)
            assert not notes.notes  # nothing was about to leave
            assert 1 <= counters.retries <= 3  # backs off, no hot loop
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running


async def test_what_was_not_sent_is_sent_once_it_can_be() -> None:
    counters = Counters()

    class FailsTwice(Notes):
        async def mark_sending(self, intent: Intent) -> None:
            await super().mark_sending(intent)
            if self.notes.count("sending") < 3:
                raise OSError(5, "Input/output error")

    notes = FailsTwice()
    async with Misbehaving(says(OK)) as server, creating(server.url) as transport:
        assert await creation(transport, journal=notes, counters=counters, patience_s=10).run() == TASK_ID
    assert len(server.bodies) == 1
    assert notes.notes == ["sending", "unsent", "sending", "unsent", "sending"]
    assert counters.retries == 2


async def test_an_unknown_outcome_is_never_sent_again_however_much_time_there_is() -> None:
    async with Misbehaving(breaks_off(b"", "close")) as server, creating(server.url) as transport:
        with pytest.raises(CreateOutcomeUnknown, match="not be sent again"):
            await creation(transport, patience_s=1000).run()
    assert len(server.bodies) == server.connections == 1


async def test_without_a_context_of_ones_own_only_the_public_authorities_are_trusted() -> None:
    async with Misbehaving(says(OK), tls=certified()) as server:
        transport = CreateTransport(server.url, Secret(KEY), connections=1)
        with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
            await creation(transport, patience_s=1000).run()
        await transport.aclose()
    assert not server.bodies


# --- the service says: not now --------------------------------------------------------------------

TOO_MANY = {
    "HTTP": answer(refused(429), 429, "Retry-After: 0.3\r\n"),
    "body": answer(refused(429), headers="Retry-After: 0.3\r\n"),
    "maintenance": answer(refused(455), headers="Retry-After: 0.3\r\n"),
    "HTML": html(429).replace(b"\r\n\r\n", b"\r\nRetry-After: 0.3\r\n\r\n", 1),
}


@pytest.mark.parametrize("raw", TOO_MANY.values(), ids=TOO_MANY)
async def test_a_create_held_back_is_sent_again_when_the_service_asks_for_it(raw: bytes) -> None:
    counters, notes = Counters(), Notes()
    async with Misbehaving(says(raw, OK)) as server, creating(server.url) as transport:
        assert await creation(transport, counters=counters, journal=notes, patience_s=5).run() == TASK_ID
    first, second = server.read_at
    assert 0.3 <= second - first < 0.6
    assert (counters.rate_limited, counters.retries) == (1, 1)
    assert notes.notes == ["sending", "unsent", "sending"]


@pytest.mark.parametrize(
    "header", ["", "Retry-After: 0\r\n", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n"]
)
async def test_without_a_usable_header_the_first_wait_is_half_a_second_at_most(header: str) -> None:
    no = answer(refused(429), 429, header)
    async with Misbehaving(says(no, OK)) as server, creating(server.url) as transport:
        assert await creation(transport, patience_s=5).run() == TASK_ID
    first, second = server.read_at
    assert 0.25 <= second - first <= 0.7


async def test_a_limit_holds_back_the_whole_line_at_once() -> None:
    no = answer(refused(429), 429, "Retry-After: 0.3\r\n")
    now = asyncio.get_running_loop().time

    async def refuses_the_first(peer: Peer) -> None:
        await peer.request()
        await peer.send(no if len(server.bodies) == 1 else answer(created(f"task_{peer.number}")))

    class SlowToForget(MemoryJournal):
        async def mark_unsent(self, intent_id: str) -> None:
            await asyncio.sleep(0.1)  # the next in line must not slip through meanwhile

    limiter = RateLimiter(Rate(100, per_s=0.001), now=now)
    async with Misbehaving(refuses_the_first) as server, creating(server.url, connections=1) as transport:
        creates = [
            creation(transport, limiter=limiter, journal=SlowToForget(), patience_s=5).run() for _ in range(8)
        ]
        ids = await asyncio.gather(*creates)
    assert len(set(ids)) == 8
    assert server.read_at[1] - server.read_at[0] >= 0.3
    assert len(server.bodies) == 9


async def test_a_limit_that_lasts_beyond_the_deadline_is_the_callers_to_know() -> None:
    no = answer(refused(429, "slow down"), 429, "Retry-After: 30\r\n")
    async with Misbehaving(says(no)) as server, creating(server.url) as transport:
        with pytest.raises(RateLimited, match="slow down") as caught:
            await creation(transport, patience_s=10).run()
    assert caught.value.retry_after_s == 30
    assert len(server.bodies) == 1


# --- the connection -------------------------------------------------------------------------------


async def test_no_create_keeps_a_cookie_and_a_kept_connection_is_enough() -> None:
    async def bakes(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer(created(), headers="Set-Cookie: session=abc; Path=/\r\n"))

    async with Misbehaving(bakes) as server, creating(server.url, connections=1) as transport:
        for _ in range(3):
            await creation(transport).run()
    assert server.connections == 1
    assert not any("cookie" in head.lower() for head in server.heads)


async def test_a_create_whose_connection_ended_keeps_its_place_in_the_line() -> None:
    begun: list[str] = []

    async def closes_the_first_after_its_answer(peer: Peer) -> None:
        while True:
            begun.append((await peer.request()).decode())
            await peer.send(answer(created(f"task_{len(begun)}")))
            if peer.number == 1:
                await asyncio.sleep(0.02)
                return

    async def slow() -> None:
        await asyncio.sleep(0.05)  # the end comes meanwhile

    server_ = Misbehaving(closes_the_first_after_its_answer)
    async with server_ as server, creating(server.url, connections=1) as transport:
        await creation(transport).run()
        bodies = [b'{"input":%d}' % number for number in range(4)]
        notes = [Notes(slow), *(Notes() for _ in bodies[1:])]
        creates = [
            creation(transport, body=body, journal=journal)
            for body, journal in zip(bodies, notes, strict=True)
        ]
        await asyncio.gather(*(create.run() for create in creates))
    assert [body.encode() for body in begun[1:]] == bodies
    assert notes[0].notes == ["sending", "unsent", "sending"]
    assert server.connections == 2


async def test_giving_up_before_it_begins_sends_nothing() -> None:
    async with Misbehaving(says(OK)) as server, creating(server.url) as transport:
        create = creation(transport, patience_s=10)
        assert create.stop()
        with pytest.raises(TransportError, match="not sent"):
            await create.run()
    assert not server.bodies


async def test_giving_up_between_two_connections_sends_nothing() -> None:
    class Slow(Notes):
        async def mark_unsent(self, intent_id: str) -> None:
            await super().mark_unsent(intent_id)
            assert create.stop()

    async def slow() -> None:
        await asyncio.sleep(0.05)

    async def closes(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await asyncio.sleep(0.02)

    notes = Slow(slow)
    async with Misbehaving(closes) as server, creating(server.url, connections=1) as transport:
        await creation(transport).run()
        create = creation(transport, journal=notes, patience_s=10)
        with pytest.raises(TransportError, match="not sent"):
            await create.run()
    assert len(server.bodies) == 1
    assert notes.notes == ["sending", "unsent"]


def _closes_the_first_of_two(listening: socket.socket, tls: ssl.SSLContext | None, read: list[int]) -> None:
    """Answer a create and end its connection; answer the next one, in a thread of its own."""
    for number in range(2):
        plain, _ = listening.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or TLS's tickets hold the answer back
        with tls.wrap_socket(plain, server_side=True) if tls else plain as connection:
            received = b""
            while BODY not in received and (more := connection.recv(65536)):
                received += more
            read.append(received.count(BODY))
            connection.sendall(OK)
            time.sleep(0.03 * (1 - number))
            if isinstance(connection, ssl.SSLSocket):
                with suppress(OSError):
                    connection.settimeout(0.01)
                    connection.unwrap()  # sends the alert


@pytest.mark.parametrize("over", ["plain", "TLS"])
@pytest.mark.parametrize("asks", [True, False], ids=["asks the socket", "would not ask"])
async def test_the_gate_sees_an_end_that_the_loop_has_not_read(
    over: str, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not asks:  # what the test is good for
        monkeypatch.setattr(KeptConnection, "_shows_nothing", lambda _: True)
    read: list[int] = []
    notes = Notes(lambda: time.sleep(0.1))  # it blocks the loop: the end is in the socket and nowhere else
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(2)
        tls = certified() if over == "TLS" else None
        serving = asyncio.create_task(asyncio.to_thread(_closes_the_first_of_two, listening, tls, read))
        url = f"http{'s' if tls else ''}://127.0.0.1:{listening.getsockname()[1]}"
        async with creating(url, connections=1) as transport:
            assert await creation(transport).run() == TASK_ID
            if asks:
                assert await creation(transport, journal=notes).run() == TASK_ID
                assert notes.notes == ["sending", "unsent", "sending"]
            else:
                with pytest.raises(CreateOutcomeUnknown):
                    await creation(transport, journal=notes).run()
                assert await creation(transport).run() == TASK_ID
        await serving
    assert read == [1, 1]


async def test_a_connection_that_does_not_note_what_comes_is_not_kept() -> None:
    async def keeps(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK)

    async with Misbehaving(keeps) as server, creating(server.url, connections=1) as transport:
        connector: Any = transport._http.connector
        connector._factory = partial(ResponseHandler, loop=asyncio.get_running_loop())
        for _ in range(3):
            assert await creation(transport).run() == TASK_ID
    assert server.connections == 3


async def test_where_no_socket_can_be_asked_each_create_has_a_connection_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kie_async.creating.create_transport.CAN_PEEK", False)
    async with Misbehaving(says(OK)) as server, creating(server.url, connections=1) as transport:
        for _ in range(3):
            await creation(transport).run()
    assert server.connections == 3
    assert all("connection: close" in head.lower() for head in server.heads)


async def test_a_connection_is_not_kept_over_a_sleep_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def keeps(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK)

    async with Misbehaving(keeps) as server, creating(server.url, connections=1) as transport:
        await creation(transport).run()
        an_hour_later = time.time() + 3600
        monkeypatch.setattr("kie_async.creating.kept_connection.time.time", lambda: an_hour_later)
        await creation(transport).run()
    assert server.connections == 2


async def test_a_head_says_what_it_must() -> None:
    async with Misbehaving(says(OK)) as server, creating(server.url) as transport:
        await creation(transport).run()
    [head], [body] = server.heads, server.bodies
    assert head.startswith("POST /api/v1/jobs/createTask HTTP/1.1\r\n")
    assert f"\r\nAuthorization: Bearer {KEY}\r\n" in head
    assert "\r\nContent-Type: application/json\r\n" in head
    assert "\r\nAccept-Encoding: identity\r\n" in head
    assert body == BODY


@pytest.mark.parametrize(
    "broken",
    [
        OK + b"bytes behind it",
        OK.replace(b"Content-Type:", b"no header\r\nContent-Type:"),
        OK.replace(b"Content-Length:", b"Content-Length: 7\r\nContent-Length:"),
        OK.replace(b"HTTP/1.1", b"ICY"),
        OK.replace(b"Content-Type:", b"X-Policy: " + b"x" * 300_000 + b"\r\nContent-Type:"),
        OK.replace(b"Content-Type:", b"Content-Encoding: gzip\r\nContent-Type:"),
    ],
    ids=["bytes behind", "a line that is no header", "two lengths", "not HTTP", "a long header", "no gzip"],
)
async def test_an_id_in_an_answer_that_http_refuses_is_kept(broken: bytes) -> None:
    async with Misbehaving(says(broken)) as server, creating(server.url) as transport:
        with pytest.raises(CreateOutcomeUnknown, match=f"named task {TASK_ID}") as caught:
            await creation(transport).run()
    assert caught.value.candidate_task_id == TASK_ID
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_by_nobody(status: int) -> None:
    async with Misbehaving(says(OK)) as other:
        away = answer(b"", status, f"Location: {other.url}/api/v1/jobs/createTask\r\n")
        async with Misbehaving(says(away)) as server, creating(server.url) as transport:
            with pytest.raises(Exception, match=str(status)) as caught:
                await creation(transport, patience_s=10).run()
    assert word_for(caught.value) == Word.REFUSED
    assert len(server.bodies) == 1
    assert not other.connections


async def test_an_answer_that_came_while_the_loop_was_blocked_counts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while BODY not in connection.recv(65536):
                    pass
                connection.sendall(OK)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with creating(url, timeout_s=0.2) as transport:
            create = creation(transport)
            running = asyncio.create_task(create.run())
            await eventually(lambda: create.may_have_left)
            await asyncio.sleep(0)
            time.sleep(0.5)  # noqa: ASYNC251  what a careless user does
            assert await running == TASK_ID
        thread.join()


async def test_a_create_that_finds_no_connection_in_time_says_so() -> None:
    with black_hole() as port:
        async with creating(f"http://127.0.0.1:{port}", connect_timeout_s=0.05) as transport:
            with pytest.raises(TransportError, match=r"not sent: no connection in time\Z"):
                await creation(transport).run()


async def test_an_answer_may_take_longer_than_a_connection_may() -> None:
    async with (
        Misbehaving(trickles(OK, 0.002)) as server,
        creating(server.url, connect_timeout_s=0.1) as transport,
    ):
        began = time.monotonic()
        assert await creation(transport).run() == TASK_ID
        assert time.monotonic() > began + 0.1


async def test_a_bomb_is_not_unpacked() -> None:
    async with Misbehaving(says(bomb(size=64 * 2**20))) as server, creating(server.url) as transport:
        tracemalloc.start()
        try:
            with pytest.raises(CreateOutcomeUnknown):
                await creation(transport).run()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 8 * 2**20 or aiohttp.__version__ == "3.14.0"  # it unpacks half a bomb at a time


# --- the gate, and what must never happen --------------------------------------------------------


async def nothing() -> None:
    """Note nothing."""


async def test_an_open_gate_lets_one_body_pass() -> None:
    gate = SendGate(nothing)
    await gate.pass_through()
    assert gate.sent


async def test_a_closed_gate_lets_nothing_pass_and_notes_nothing() -> None:
    notes = Notes()
    gate = SendGate(lambda: notes.mark_sending(Intent(intent_id="x", model="m")))
    gate.close()
    with pytest.raises(GateClosed):
        await gate.pass_through()
    assert not gate.sent
    assert not notes.notes


async def test_a_gate_closed_while_noting_lets_nothing_pass() -> None:
    gate = SendGate(lambda: asyncio.sleep(0.01))
    passing = asyncio.create_task(gate.pass_through())
    await asyncio.sleep(0)
    gate.close()
    with pytest.raises(GateClosed):
        await passing
    assert not gate.sent


async def test_closing_a_gate_behind_a_body_does_not_call_it_back() -> None:
    gate = SendGate(nothing)
    await gate.pass_through()
    gate.close()
    assert gate.sent


class Writer:
    """Where aiohttp would have a socket."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def write(self, chunk: bytes) -> None:
        self.written.append(chunk)


async def test_a_body_leaves_once_and_no_second_time() -> None:
    writer: Any = Writer()
    gate = SendGate(nothing)
    body = OneShotBody(b"{}", gate)
    await body.write(writer)
    with pytest.raises(GateClosed):
        await body.write_with_length(writer, None)
    assert writer.written == [b"{}"]
    assert gate.sent
    assert gate.failure is None


async def test_a_body_behind_a_closed_gate_stays() -> None:
    writer: Any = Writer()
    gate = SendGate(nothing)
    gate.close()
    with pytest.raises(GateClosed):
        await OneShotBody(b"{}", gate).write(writer)
    assert not writer.written


async def test_nobody_gets_at_the_bytes_but_through_the_gate() -> None:
    body = OneShotBody(b"{}", SendGate(nothing))
    with pytest.raises(GateClosed):
        await body.as_bytes()
    with pytest.raises(GateClosed):
        body.decode()


async def test_an_aiohttp_that_sends_a_body_in_another_way_sends_none() -> None:
    class Other(aiohttp.ClientRequest):
        async def send(self, conn: Any) -> Any:
            conn.protocol.transport.write(await self.body.as_bytes())

    async with Misbehaving(breaks_off(b"", "close")) as server, creating(server.url) as transport:
        transport._http._request_class = Other
        with pytest.raises(TransportError, match="not sent"):
            await creation(transport, patience_s=0.01).run()
    assert not server.bodies


class MockedAnswer:
    """What a mocked aiohttp gives: ready, and the answer to no request."""

    status = 200
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.content = aiohttp.StreamReader(Mock(), 2**16, loop=asyncio.get_running_loop())
        self.content.feed_data(json.dumps(created()).encode())
        self.content.feed_eof()

    def release(self) -> None:
        pass

    async def wait_for_close(self) -> None:
        pass


def _raises(error: Exception) -> Callable[[], Any]:
    def mock() -> Any:
        raise error

    return mock


MOCKS: dict[str, Callable[[], Any]] = {
    "an answer": MockedAnswer,
    "nothing usable": lambda: None,
    "no route": _raises(aiohttp.ClientConnectionError("Connection refused: POST /")),
    "a timeout": _raises(TimeoutError()),
    "an answer of an older aiohttp": _raises(TypeError("missing 'stream_writer'")),
}


@pytest.mark.parametrize("mock", MOCKS.values(), ids=MOCKS)
async def test_a_mocked_aiohttp_is_named_at_once(
    mock: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def request(*_: object, **__: object) -> Any:
        return mock()

    monkeypatch.setattr(aiohttp.ClientSession, "_request", request)
    async with asyncio.timeout(1):
        async with creating("http://127.0.0.1:1") as transport:
            named = r"nothing asked for the body; test with kie_async\.Sandbox"
            with pytest.raises(TransportError, match=named):
                await creation(transport, patience_s=1000).run()


@pytest.mark.parametrize("version", ["3.13.9", "3.9.5", "4.0.0a1", "2.0"])
def test_an_aiohttp_that_was_never_measured_is_refused(version: str) -> None:
    with pytest.raises(SessionMisuse, match=r"aiohttp>=3\.14,<4"):
        _check_aiohttp(version)


@pytest.mark.parametrize("version", ["3.14.0", "3.14.5", "3.15.0.dev0", "3.20.1"])
def test_an_aiohttp_that_is_known_is_taken(version: str) -> None:
    _check_aiohttp(version)


def test_the_breaker_opens_after_three_unknowns_and_lets_one_try_after_a_minute() -> None:
    now = 0.0
    breaker = CircuitBreaker(now=lambda: now)
    for _ in range(3):
        breaker.check()
        breaker.record_unknown()
    with pytest.raises(CreatesHalted, match="nothing was sent"):
        breaker.check()
    now = 60.0
    breaker.check()
    with pytest.raises(CreatesHalted):
        breaker.check()
    breaker.record_answer()
    breaker.check()


async def test_an_outage_costs_three_unknowns_and_those_on_the_wire() -> None:
    async with Misbehaving(breaks_off(b"", "close")) as server:
        async with KieSession(KEY, base_url=server.url, limits=NO_LIMITS) as kie:
            creates = [kie.create("test/echo", {"prompt": "x"}) for _ in range(200)]
            outcomes = await asyncio.gather(*creates, return_exceptions=True)
    unknown = [outcome for outcome in outcomes if isinstance(outcome, CreateOutcomeUnknown)]
    halted = [outcome for outcome in outcomes if isinstance(outcome, CreatesHalted)]
    assert len(unknown) + len(halted) == 200
    assert len(unknown) == len(server.bodies) <= 3 + NO_LIMITS.create_connections


# --- what the session says ------------------------------------------------------------------------

SAYINGS: list[tuple[str, Behaviour, type[Exception]]] = [
    ("unknown", breaks_off(b"", "close"), CreateOutcomeUnknown),
    ("refused", says(answer(refused(402))), InsufficientCredits),
    ("held back", says(answer(refused(429), 429, "Retry-After: 0.3\r\n")), RateLimited),
]


@pytest.mark.parametrize(("word", "behave", "error"), SAYINGS, ids=[saying[0] for saying in SAYINGS])
async def test_the_session_raises_the_verdict_and_gives_the_slot_back(
    word: str, behave: Behaviour, error: type[Exception]
) -> None:
    async with Misbehaving(behave) as server:
        async with KieSession(KEY, base_url=server.url, max_in_flight=1, task_timeout_s=0.2) as kie:
            for _ in range(2):  # the second would wait for ever if the first kept the only slot
                async with asyncio.timeout(5):
                    with pytest.raises(error) as caught:
                        await kie.create("test/echo", {"prompt": "a lighthouse"})
                assert word_for(caught.value) == word
            assert kie.stats().creates == kie.stats().in_flight == 0
            assert kie.stats().unknown_creates == (2 if word == "unknown" else 0)


async def test_an_error_tells_what_to_know_and_no_more() -> None:
    async with Misbehaving(closes_on_accept) as server, KieSession(KEY, base_url=server.url) as kie:
        with pytest.raises(CreateOutcomeUnknown) as caught:
            await kie.create("test/echo", {"prompt": "a lighthouse"})
    assert "may be running and paid for" in str(caught.value)
    assert caught.value.intent_id in str(caught.value)
    assert not caught.value.__cause__
    assert not caught.value.__context__
