"""Sends forged callbacks by the hundred thousand to handles that wait: none of them may change.

``python -m tests.campaign forge --count 200000``. One session whose receiver has an HMAC key and two
whose callbacks are confirmed by a query, each with live tasks, ended ones, creates whose answer is on
its way and one whose answer was lost. Deliveries come through ``feed``, ASGI, the aiohttp routes and
``serve``, the last two over real sockets. At the end the true callbacks come, and every handle must
settle rightly.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import gzip
import json
import logging
import random
import re
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
from aiohttp import web
from support.loops import add_option, run_on

from kie_async import (
    CallbackReceiver,
    CreateOutcomeUnknown,
    KieSession,
    Limits,
    PollSchedule,
    Rate,
    Sandbox,
    TaskHandle,
)
from kie_async.engine.reconciler import Reconciler
from kie_async.http.transport import Transport
from kie_async.sandbox import Never, bodies
from kie_async.wire.envelope import WireResponse
from kie_async.wire.requests import WireRequest

HMAC_KEY = "hmac-key-of-the-campaign"
SIDES = {"signed": (20, 0.5), "confirmed": (10, 0.25), "confirmed, few": (5, 0.25)}
"""Live tasks and share of the deliveries; few reach the bound of one handle, many the one of all."""
ENDED, CREATING = 10, 3
MAX_GROWTH_MIB = 32
LINES = 8
"""Connections to each server at once."""
EVIL_URL = b"attacker.invalid"
_reads_for: ContextVar[object] = ContextVar("_reads_for", default=None)


@attrs.frozen
class Delivery:
    """A delivery and how it may be answered."""

    kind: str
    tail: str
    headers: dict[str, str]
    body: bytes
    statuses: frozenset[int]
    raw: bytes = b""
    """What is sent instead over a socket: broken HTTP."""


@attrs.define(eq=False)
class Side:
    """A session under fire."""

    name: str
    sandbox: Sandbox
    receiver: CallbackReceiver
    kie: KieSession
    live: list[TaskHandle] = attrs.field(factory=list)
    ended: list[TaskHandle] = attrs.field(factory=list)
    creating: list[asyncio.Task[TaskHandle]] = attrs.field(factory=list)
    unknown: list[CreateOutcomeUnknown] = attrs.field(factory=list)
    genuine: dict[str, tuple[bytes, dict[str, str]]] = attrs.field(factory=dict)
    """The true callbacks of the ended tasks, as anyone on the way could have kept them."""
    reads: list[tuple[float, object]] = attrs.field(factory=list)

    @property
    def is_signed(self) -> bool:
        return self.name == "signed"

    def tail(self, task_id: str) -> str:
        return "/".join(str(self.sandbox.tasks[task_id].callback_url).rsplit("/", 2)[-2:])


# --- the two sessions ----------------------------------------------------------------------------


@asynccontextmanager
async def under_fire(name: str) -> AsyncIterator[Side]:
    """Open a session with tasks in every state a delivery can meet."""
    live, _ = SIDES[name]
    receiver = CallbackReceiver([HMAC_KEY] if name == "signed" else ())
    many = Rate(1_000_000, per_s=0.001)
    async with (
        Sandbox(durations=Never(), create_limit=None, query_limit=None, hmac_key=HMAC_KEY) as sandbox,
        KieSession(
            "sandbox-key",
            base_url=sandbox.url,
            callback_url="http://127.0.0.1:9/kie",
            receiver=receiver,
            # Queries as published, 10 a second, and no faster: the bound is what is judged.
            limits=Limits(create=many, create_connections=16, query_ceiling=None),
            poll=PollSchedule(
                learns=False, first_s=3600, safety_net_s=3600, longest_gap_s=3600
            ),  # whatever is read was asked for by a callback
            rng=random.Random(1),
        ) as kie,
    ):
        side = Side(name, sandbox, receiver, kie)
        for number in range(live):
            urls = [f"https://example.org/{number}.mp4"]
            side.live.append(await kie.create("sandbox/echo", {"result_urls": urls}))
        await _end_some(side)
        sandbox.faults.lose_answers_next = 1
        try:
            await kie.create("sandbox/echo", {})
        except CreateOutcomeUnknown as unknown:
            side.unknown.append(unknown)
        sandbox.faults.create_answer_gate = gate = asyncio.Event()
        creates = [kie.create("sandbox/echo", {"prompt": str(number)}) for number in range(CREATING)]
        side.creating = [asyncio.create_task(create) for create in creates]
        while len(sandbox.tasks) < live + ENDED + 1 + CREATING:  # noqa: ASYNC110  (there is no event for it)
            await asyncio.sleep(0.005)
        with _reads_noted(side):
            yield side
        gate.set()
        await _let_the_truth_in(side)


async def _end_some(side: Side) -> None:
    for number in range(ENDED):
        urls = [f"https://example.org/e{number}.mp4"]
        handle = await side.kie.create("sandbox/echo", {"result_urls": urls})
        side.sandbox.tasks[handle.task_id].end_state = "success"
        body, headers = side.sandbox.callback_body(handle.task_id), signed(handle.task_id)
        side.genuine[handle.task_id] = body, headers
        assert (await side.receiver.feed(side.tail(handle.task_id), headers, body)).status == 200
        await handle
        side.ended.append(handle)


@contextmanager
def _reads_noted(side: Side) -> Iterator[None]:
    """Note when a record is read, and for whom: a task, or a pending create that might become one."""
    send, consider = Transport.send, Reconciler.consider

    async def noted(transport: Transport, request: WireRequest, **options: Any) -> WireResponse:
        side.reads.append((time.monotonic(), _reads_for.get() or request.query))
        return await send(transport, request, **options)

    def considered(reconciler: Reconciler, pending: Any) -> None:
        # What it spawns to read the record inherits this context.
        token = _reads_for.set(pending)
        try:
            consider(reconciler, pending)
        finally:
            _reads_for.reset(token)

    with patch.object(Transport, "send", noted), patch.object(Reconciler, "consider", considered):
        yield


async def _deliver_until_accepted(side: Side, task_id: str, body: bytes) -> None:
    """Deliver as the service does, again after a 503: forged claims of the same create may be in the way."""
    async with asyncio.timeout(60):
        while (  # noqa: ASYNC110  (the service, too, waits and asks)
            await side.receiver.feed(side.tail(task_id), signed(task_id), body)
        ).status == 503:
            await asyncio.sleep(0.5)
    verdict = await side.receiver.feed(side.tail(task_id), signed(task_id), body)
    assert verdict.status == 200, verdict


async def _let_the_truth_in(side: Side) -> None:
    """Let every task end and its true callback come; what was forged must not stand in its way."""
    created = [await _created(creating) for creating in side.creating]
    waiting = [_with_its_task(side, one) for one in (*side.live, *created, *side.unknown)]
    for _, task_id in waiting:
        side.sandbox.tasks[task_id].end_state = "success"
        body = side.sandbox.callback_body(task_id)
        await _deliver_until_accepted(side, task_id, body)
    async with asyncio.timeout(120):
        results = await asyncio.gather(*(handle for handle, _ in waiting))
    expected = [(f"https://example.org/{number}.mp4",) for number in range(len(side.live))]
    wrong = [(r, e) for r, e in zip(results, expected, strict=False) if r.urls != e]
    assert not wrong, f"{side.name}: {wrong}"
    assert not [result for result in results if EVIL_URL in repr(result).encode()]


async def _created(creating: asyncio.Task[TaskHandle]) -> TaskHandle | CreateOutcomeUnknown:
    """Return what a create became; in a long campaign its answer comes too late."""
    try:
        return await creating
    except CreateOutcomeUnknown as unknown:
        return unknown


def _with_its_task(side: Side, created: TaskHandle | CreateOutcomeUnknown) -> tuple[TaskHandle, str]:
    """Return a handle and the id of its task, which the handle does not know if the answer was lost."""
    if isinstance(created, TaskHandle):
        return created, created.task_id
    tasks = side.sandbox.tasks.values()
    task_id = next(task.task_id for task in tasks if f"/{created.intent_id}/" in str(task.callback_url))
    return created.handle, task_id


def signed(task_id: str, *, skew_s: float = 0, key: str = HMAC_KEY) -> dict[str, str]:
    return bodies.signature_headers(task_id, int(time.time() + skew_s), hmac_key=key)


# --- what is thrown ------------------------------------------------------------------------------

_ABC = "abcdefghijklmnopqrstuvwxyz234567"
Kind = Callable[[random.Random, Side], Delivery]
KINDS: list[Kind] = []


def _kind(make: Kind) -> Kind:
    KINDS.append(make)
    return make


def _only(*statuses: int) -> frozenset[int]:
    return frozenset(statuses)


def _forged(rng: random.Random, side: Side, handle: TaskHandle) -> bytes:
    return bodies.forged_callback(side.sandbox.tasks[handle.task_id], as_success=rng.random() < 0.8)


@_kind
def guessed_mac(rng: random.Random, side: Side) -> Delivery:
    handle = rng.choice(side.live)
    intent = side.tail(handle.task_id).partition("/")[0]
    tail = f"{intent}/{''.join(rng.choices(_ABC, k=26))}"
    body = _forged(rng, side, handle)
    return Delivery("guessed mac", tail, signed(handle.task_id), body, _only(404))


@_kind
def swapped_mac(rng: random.Random, side: Side) -> Delivery:
    one, other = rng.sample(side.live, 2)
    tail = side.tail(one.task_id).partition("/")[0] + "/" + side.tail(other.task_id).partition("/")[2]
    return Delivery("swapped mac", tail, signed(one.task_id), _forged(rng, side, one), _only(404))


@_kind
def spelled_mac(rng: random.Random, side: Side) -> Delivery:
    handle = rng.choice(side.live)
    tail = side.tail(handle.task_id)
    changed = rng.choice([tail.upper(), tail + "x", tail[:-1], tail.replace("/", "."), tail * 2])
    return Delivery("misspelled mac", changed, signed(handle.task_id), _forged(rng, side, handle), _only(404))


@_kind
def junk_path(rng: random.Random, side: Side) -> Delivery:
    tail = "".join(rng.choices("abcdef0123456789/%.~", k=rng.randrange(1, 80)))
    return Delivery("junk path", tail, {}, rng.randbytes(20), _only(404, 405))


def _at_its_address(
    kind: str, rng: random.Random, side: Side, handle: TaskHandle, headers: dict[str, str]
) -> Delivery:
    """Return a forged body at its true address: refused for its headers, or, without keys, confirmed."""
    body, statuses = _forged(rng, side, handle), _only(401 if side.is_signed else 200)
    return Delivery(kind, side.tail(handle.task_id), headers, body, statuses)


@_kind
def unsigned(rng: random.Random, side: Side) -> Delivery:
    return _at_its_address("forged, unsigned", rng, side, rng.choice(side.live), {})


@_kind
def wrongly_signed(rng: random.Random, side: Side) -> Delivery:
    handle = rng.choice(side.live)
    headers = signed(handle.task_id, key="a guess")
    return _at_its_address("forged, wrong key", rng, side, handle, headers)


@_kind
def flipped_signature(rng: random.Random, side: Side) -> Delivery:
    handle = rng.choice(side.live)
    headers = signed(handle.task_id)
    name = rng.choice(list(headers))
    at, value = rng.randrange(len(headers[name])), headers[name]
    headers[name] = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
    return _at_its_address("forged, a bit flipped", rng, side, handle, headers)


@_kind
def stale(rng: random.Random, side: Side) -> Delivery:
    handle = rng.choice(side.live)
    headers = signed(handle.task_id, skew_s=rng.choice([-1, 1]) * rng.uniform(310, 1e6))
    return _at_its_address("replayed too late", rng, side, handle, headers)


@_kind
def replayed(rng: random.Random, side: Side) -> Delivery:
    handle = rng.choice(side.ended)
    body, headers = side.genuine[handle.task_id]
    return Delivery("replayed in time", side.tail(handle.task_id), headers, body, _only(200, 401))


@_kind
def replayed_elsewhere(rng: random.Random, side: Side) -> Delivery:
    body, headers = side.genuine[rng.choice(side.ended).task_id]
    tail = side.tail(rng.choice(side.live).task_id)
    return Delivery("replayed elsewhere", tail, headers, body, _only(400, 401))


@_kind
def at_a_create(rng: random.Random, side: Side) -> Delivery:
    """Name another task at the address of a create that has no id yet."""
    known = {handle.task_id for handle in side.live + side.ended}
    target = rng.choice([task_id for task_id in side.sandbox.tasks if task_id not in known])
    handle = rng.choice(side.live)
    body = _forged(rng, side, handle)
    # 503 while other claims of this create are being checked: the service would deliver again.
    expected = _only(200, 503)
    return Delivery("other task at a create", side.tail(target), signed(handle.task_id), body, expected)


@_kind
def other_signature(rng: random.Random, side: Side) -> Delivery:
    one, other = rng.sample(side.live, 2)
    return _at_its_address("another's signature", rng, side, one, signed(other.task_id))


@_kind
def two_ids(rng: random.Random, side: Side) -> Delivery:
    one, other = rng.sample(side.live, 2)
    body = json.loads(_forged(rng, side, one))
    rng.choice([body, body["data"]])["task_id"] = other.task_id
    tail, headers = side.tail(one.task_id), signed(rng.choice([one, other]).task_id)
    return Delivery("two ids", tail, headers, json.dumps(body).encode(), _only(400))


@_kind
def truncated(rng: random.Random, side: Side) -> Delivery:
    handle = rng.choice(side.live)
    whole = _forged(rng, side, handle)
    body = whole[: rng.randrange(len(whole))]
    # Cut off behind the id it asks for a poll, as any word from a right address does.
    return Delivery("cut off", side.tail(handle.task_id), signed(handle.task_id), body, _only(200, 400))


@_kind
def damaged(rng: random.Random, side: Side) -> Delivery:
    """Flip bits in a body whose id is left alone; unsigned, since the service does not sign bodies."""
    handle = rng.choice(side.live)
    body = bytearray(_forged(rng, side, handle))
    for _ in range(rng.randrange(1, 10)):
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return Delivery("damaged", side.tail(handle.task_id), {}, bytes(body), _only(200, 400, 401))


@_kind
def junk(rng: random.Random, side: Side) -> Delivery:
    handle = rng.choice(side.live)
    words = [
        b"null",
        b"[]",
        b'"x"',
        b"1e999",
        b"NaN",
        b'{"code":' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b"a=b&c=d",
    ]
    body = rng.choice([*words, rng.randbytes(rng.randrange(2000))])
    return Delivery("junk", side.tail(handle.task_id), signed(handle.task_id), body, _only(400))


@_kind
def bomb(rng: random.Random, side: Side) -> Delivery:
    if rng.random() < 0.8:
        return junk(rng, side)  # bombs cost the thrower too
    tail = side.tail(rng.choice(side.live).task_id)
    shape = rng.choice(["deep", "wide", "large", "long keys"])
    if shape == "deep":
        body = b'{"code":200,"data":' + b"[" * 100_000
    elif shape == "wide":
        body = b'{"code":200,"data":[' + b"[]," * 80_000 + b"[]]}"
    elif shape == "large":
        body = b'{"code":200,"data":"' + b"x" * rng.randrange(262_144, 1_000_000) + b'"}'
    else:
        body = json.dumps({"code": 200, "data": {f"{n:x}" * 8: n for n in range(6000)}}).encode()
    statuses = _only(401 if side.is_signed else 200) if len(body) > 262_144 else _only(400)
    return Delivery(f"bomb, {shape}", tail, {}, body, statuses)


_PACKED_BOMB = gzip.compress(bytes(16 * 1024 * 1024), 9)
_PACKED_BOMB = b"Content-Length: %d\r\n\r\n" % len(_PACKED_BOMB) + _PACKED_BOMB


@_kind
def broken_http(rng: random.Random, side: Side) -> Delivery:
    path = "/kie/" + side.tail(rng.choice(side.live).task_id)
    start = f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
    raws = {
        "no end": start + b"Content-Length: 1000\r\n\r\n{",
        "bad chunks": start + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "bad head": start + b"\x1b[31m: \x00\r\n\r\n",
        "not http": rng.randbytes(200) + b"\r\n\r\n",
        "long head": start + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
        "two lengths": start + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        "half a head": start[: rng.randrange(1, len(start))],
        "endless": start + b"Transfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + b" " * 65_535 + b"\r\n",
        "packed bomb": start + b"Content-Encoding: gzip\r\n" + _PACKED_BOMB,
    }
    names = list(raws)
    name = rng.choices(names, [10] * (len(names) - 1) + [1])[0]
    return Delivery(f"http, {name}", "", {}, b"", _only(400, 404, 413, 415, 0), raws[name])


# --- the ways in ---------------------------------------------------------------------------------

Way = Callable[[Delivery], Any]


def as_request(delivery: Delivery) -> bytes:
    if delivery.raw:
        return delivery.raw
    tail = re.sub(r"[^!-~]", "_", delivery.tail)
    lines = [f"POST /kie/{tail} HTTP/1.1", "Host: x", f"Content-Length: {len(delivery.body)}"]
    lines += [f"{name}: {value}" for name, value in delivery.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + delivery.body


class Lines:
    """A few kept connections to one port; a delivery takes one, a broken one is replaced."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def send(self, delivery: Delivery) -> int:
        """Return the status answered; 0 when the connection closed without an answer."""
        reader, writer = (
            self._free.popleft() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        )
        status, keeps = 0, False
        with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            writer.write(as_request(delivery))
            async with asyncio.timeout(0.02 if delivery.raw else 30):
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
            status, keeps = int(head.split(b" ", 2)[1]), not delivery.raw and b"close" not in head
        if keeps:
            self._free.append((reader, writer))
        else:
            writer.close()
        return status

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def by_asgi(receiver: CallbackReceiver, delivery: Delivery) -> int:
    """Call the ASGI application as a server would, the body in pieces."""
    half = len(delivery.body) // 2
    pieces = iter([(delivery.body[:half], True), (delivery.body[half:], False)])
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        body, more = next(pieces)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in delivery.headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/kie/" + delivery.tail, "headers": headers}
    await receiver.asgi(scope, receive, send)  # type: ignore[arg-type]
    return statuses[0]


@asynccontextmanager
async def ways_in(side: Side) -> AsyncIterator[list[Way]]:
    """Return the ways in: of twenty deliveries two come through each server, three by ASGI."""

    async def by_feed(delivery: Delivery) -> int:
        return (await side.receiver.feed(delivery.tail, delivery.headers, delivery.body)).status

    app = web.Application()
    app.router.add_routes(side.receiver.routes("/kie"))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with side.receiver.serve("127.0.0.1", 0) as served:
            routes, alone = Lines(runner.addresses[0][1]), Lines(served.port)
            asgi: Way = lambda delivery: by_asgi(side.receiver, delivery)  # noqa: E731
            yield [*[by_feed] * 13, *[asgi] * 3, *[routes.send] * 2, *[alone.send] * 2]
            routes.close()
            alone.close()
    finally:
        await runner.cleanup()


# --- the campaign --------------------------------------------------------------------------------


class _Loud(logging.Handler):
    """Keeps what the package, or asyncio, logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@attrs.define(kw_only=True)
class Report:
    """What came of it."""

    statuses: dict[str, Counter[int]] = attrs.field(factory=dict)
    complaints: list[str] = attrs.field(factory=list)
    growth_mib: float = 0.0
    seconds: float = 0.0
    reads: dict[str, str] = attrs.field(factory=dict)

    def lines(self) -> Iterator[str]:
        for kind, statuses in sorted(self.statuses.items()):
            counted = ", ".join(
                f"{status or 'closed'}: {count}" for status, count in sorted(statuses.items())
            )
            yield f"{kind:24} {statuses.total():8}   {counted}"
        count = sum(statuses.total() for statuses in self.statuses.values())
        yield f"{count} deliveries in {self.seconds:.1f} s, {count / self.seconds:.0f} a second"
        yield from (f"{side}: {summary}" for side, summary in self.reads.items())
        yield f"peak memory grew by {self.growth_mib:.1f} MiB, allowed {MAX_GROWTH_MIB}"
        yield f"{len(self.complaints)} complaints"
        yield from self.complaints[:20]


async def run(count: int, seed: int = 1) -> Report:
    """Throw so many deliveries and return what came of it."""
    report, rng, loud = Report(), random.Random(seed), _Loud()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: report.complaints.append(f"unhandled: {context}"))
    loggers = [logging.getLogger(name) for name in ("kie_async", "asyncio")]
    stranger = logging.getLogger("aiohttp.server")  # of the routes' application; its words are aiohttp's
    was_silent, stranger.disabled = stranger.disabled, True
    for logger in loggers:
        logger.addHandler(loud)
    try:
        for name, (_, share) in SIDES.items():
            async with under_fire(name) as side:
                async with ways_in(side) as ways:
                    await _throw(side, ways, int(count * share), rng, report)
                _check(side, report)
    finally:
        for logger in loggers:
            logger.removeHandler(loud)
        stranger.disabled = was_silent
        loop.set_exception_handler(None)
    report.complaints += [f"logged: {text}" for text in loud.messages]
    return report


async def _throw(side: Side, ways: Sequence[Way], count: int, rng: random.Random, report: Report) -> None:
    turns = iter(range(count))
    began = time.monotonic()
    warm = max(count // 20, 200)

    async def throw() -> None:
        for turn in turns:
            if turn == warm:
                gc.collect()
                base.append(peak_mib())
            delivery, way = rng.choice(KINDS)(rng, side), rng.choice(ways)
            if delivery.raw:
                way = rng.choice(ways[-4:])
            try:
                status = await way(delivery)
            except Exception as exc:
                report.complaints.append(f"{side.name}, {delivery.kind}: {exc!r}")
                continue
            report.statuses.setdefault(delivery.kind, Counter())[status] += 1
            if status not in delivery.statuses:
                report.complaints.append(f"{side.name}, {delivery.kind}: answered with {status}")

    base: list[float] = []
    before = len(side.reads), time.monotonic()
    await asyncio.gather(*[throw() for _ in range(LINES)])
    report.seconds += time.monotonic() - began
    report.growth_mib = max(report.growth_mib, peak_mib() - base[0] if base else 0.0)
    _judge_reads(side, before, report)


def _judge_reads(side: Side, before: tuple[int, float], report: Report) -> None:
    """Hold the reads against the bounds: one a second of a handle, ten a second in all."""
    reads = side.reads[before[0] :]
    spent_s = time.monotonic() - before[1]
    by_handle: dict[object, list[float]] = {}
    for at, reader in reads:
        by_handle.setdefault(reader, []).append(at)
    gaps = [later - at for times in by_handle.values() for at, later in pairwise(times)]
    times = [at for at, _ in reads]
    busiest = max((sum(at <= other < at + 1.0 for other in times) for at in times), default=0)
    report.reads[side.name] = (
        f"{len(reads)} reads in {spent_s:.1f} s, shortest gap between two of one handle "
        f"{min(gaps, default=0):.3f} s, busiest second {busiest}; {side.kie.stats().callbacks_rejected}"
    )
    if gaps and min(gaps) < 0.99:
        report.complaints.append(f"{side.name}: a handle read again after {min(gaps):.3f} s")
    if busiest > 10:
        report.complaints.append(f"{side.name}: {busiest} reads within a second")


def _check(side: Side, report: Report) -> None:
    """Report every handle that changed."""
    late = [task.exception() for task in side.creating if task.done()]
    if not all(isinstance(error, CreateOutcomeUnknown) for error in late):
        report.complaints.append(f"{side.name}: a create ended before its answer: {late}")
    unknown = [error.handle for error in (*side.unknown, *late) if isinstance(error, CreateOutcomeUnknown)]
    for handle in [*side.live, *unknown]:
        if handle.is_done or handle.state.is_terminal:
            report.complaints.append(f"{side.name}: {handle!r} changed")
    for number, handle in enumerate(side.ended):
        if handle.record is None or handle.record.urls != (f"https://example.org/e{number}.mp4",):
            report.complaints.append(f"{side.name}: the result of {handle!r} changed")
    if side.kie.stats().settled_by_poll or side.kie.stats().settled_by_callback != ENDED:
        report.complaints.append(f"{side.name}: {side.kie.stats()}")


def peak_mib() -> float:
    """Return the most memory this process had since this was last asked; 0 where that cannot be read."""
    proc = Path("/proc/self")
    if not (proc / "clear_refs").exists():
        return 0.0
    peak = re.search(r"VmHWM:\s+(\d+) kB", (proc / "status").read_text())
    (proc / "clear_refs").write_text("5")
    assert peak
    return int(peak[1]) / 1024


def main(argv: Sequence[str]) -> int:
    """Run the campaign; the exit status says whether anything changed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign forge", description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    add_option(parser)
    asked = parser.parse_args(argv)
    report = run_on(asked.loop, run(asked.count, asked.seed))
    for line in report.lines():
        print(line)
    return 1 if report.complaints or report.growth_mib > MAX_GROWTH_MIB else 0
