"""The fault table of creates, row by row, and the judge that runs one row.

Two laws hold for every row, whatever it expects: a server that is not proven to have created nothing
reads one body at most, and what is called "not sent" was never read by anybody.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from enum import StrEnum
from functools import partial

import attrs

from kie_async._secrets import Secret
from kie_async.config import Network, Rate
from kie_async.creating.create_call import CreateCall, CreateCalls
from kie_async.creating.create_transport import CreateTransport
from kie_async.creating.create_weather import CreateWeather
from kie_async.errors import (
    ApiError,
    CreateOutcomeUnknown,
    JournalError,
    KieError,
    RateLimited,
    TransportError,
)
from kie_async.events import Counters
from kie_async.journal.base import Journal
from kie_async.journal.intents import Intent
from kie_async.journal.memory import MemoryJournal
from kie_async.limits.circuit_breaker import CircuitBreaker
from kie_async.limits.rate_limiter import RateLimiter
from kie_async.wire.requests import WireRequest
from support.misbehaving import (
    TASK_ID,
    Behaviour,
    Misbehaving,
    Peer,
    answer,
    answers_early,
    answers_unasked,
    black_hole,
    bomb,
    breaks_off,
    certified,
    closes_on_accept,
    created,
    html,
    never_reads,
    nobody,
    refused,
    resets_after_head,
    resets_on_accept,
    says,
    trickles,
    trusting,
)

KEY = "kie-canary-key-5ecret"
BODY = b'{"model":"test/echo","input":{"prompt":"a lighthouse"}}'


class Word(StrEnum):
    """How a create ended."""

    CREATED = "created"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    HELD_BACK = "held back"
    """Not created; would be sent again if there were time."""
    NOT_SENT = "not sent"
    """Would be sent again if there were time."""
    HOPELESS = "not sent, hopeless"
    """Nothing was sent and there was time to try again, but no sense in it."""
    NOT_NOTED = "not noted"
    """Nothing was sent, since the journal could not note it."""


class Notes(MemoryJournal):
    """A journal that remembers its calls; *commit* runs where a durable one would wait."""

    def __init__(self, commit: Callable[[], object] | None = None) -> None:
        super().__init__()
        self.notes: list[str] = []
        self._commit = commit

    async def mark_sending(self, intent: Intent) -> None:
        self.notes.append("sending")
        if self._commit is not None:
            waiting = self._commit()
            if asyncio.iscoroutine(waiting):
                await waiting

    async def mark_unsent(self, intent_id: str) -> None:
        self.notes.append("unsent")


@attrs.frozen(kw_only=True)
class Fault:
    """One row: what goes wrong, how the create must end, and how many bodies may have been read."""

    id: str
    what: str
    ends: Word | frozenset[Word]
    server: Behaviour = never_reads
    place: Callable[[], AbstractContextManager[int]] | None = None
    """Makes a port where no server of ours is."""
    host: str = "127.0.0.1"
    certificate: str = "good"
    """The server's, over TLS; empty if it does not speak TLS."""
    over: tuple[str, ...] = ("plain", "TLS")
    bodies: int = 1
    body: bytes = attrs.field(default=BODY, repr=False)
    commit: Callable[[], object] | None = None
    timeout_s: float = 5.0
    connect_timeout_s: float = 5.0

    @property
    def ways(self) -> tuple[str, ...]:
        """Return how it is run: on a fresh connection, and on a kept one where there can be one."""
        is_reached = self.place is None and self.certificate in {"good", "old"}
        return self.over + (tuple(f"{over}, kept" for over in self.over) if is_reached else ())

    @property
    def may_end(self) -> frozenset[Word]:
        return frozenset({self.ends}) if isinstance(self.ends, Word) else self.ends

    def __str__(self) -> str:
        return f"{self.id} {self.what}"


@attrs.frozen(kw_only=True)
class Finding:
    """What a row led to."""

    word: str
    bodies: int
    connections: int
    notes: list[str]
    task_id: str = ""
    error: BaseException | None = None
    heads: list[str] = attrs.field(factory=list, repr=False)


def creation(
    transport: CreateTransport,
    *,
    journal: Journal | None = None,
    limiter: RateLimiter | None = None,
    counters: Counters | None = None,
    body: bytes = BODY,
    patience_s: float = 0.1,
) -> CreateCall:
    """Return a create that tries again as long as *patience_s* allows: at 0.1 s not at all."""
    now = asyncio.get_running_loop().time
    calls = CreateCalls(
        transport=transport,
        rate_limiter=limiter or RateLimiter(Rate(1000, per_s=0.01), now=now),
        breaker=CircuitBreaker(now=now),
        journal=journal or MemoryJournal(),
        counters=counters or Counters(),
        rng=random.Random(1),
        weather=CreateWeather(now=now),
    )
    request = WireRequest(method="POST", path="/api/v1/jobs/createTask", body=body)
    return calls.new(Intent(intent_id="0" * 32, model="test/echo"), request, now() + patience_s)


@asynccontextmanager
async def creating(
    url: str,
    *,
    connections: int = 4,
    timeout_s: float = 5.0,
    connect_timeout_s: float = 5.0,
    network: Network | None = None,
) -> AsyncIterator[CreateTransport]:
    """Open and close a transport for creates."""
    transport = CreateTransport(
        url,
        Secret(KEY),
        connections=connections,
        timeout_s=timeout_s,
        connect_timeout_s=connect_timeout_s,
        network=network or Network(ssl=trusting()),
    )
    try:
        yield transport
    finally:
        await transport.aclose()


async def judge(fault: Fault, way: str, network: Network | None = None) -> Finding:
    """Run one row, ``plain`` or over ``TLS``, on a fresh or a ``kept`` connection, perhaps by a proxy."""
    over, _, kept = way.partition(", ")
    tls = certified(fault.certificate) if over == "TLS" and fault.certificate else None
    scheme = "https" if over == "TLS" else "http"
    behave = after_a_create(fault.server) if kept else fault.server
    async with Misbehaving(behave, tls=tls) as server:
        with fault.place() if fault.place else nullcontext(server.port) as port:
            url = f"{scheme}://{fault.host}:{port}"
            timeouts = {"timeout_s": fault.timeout_s, "connect_timeout_s": fault.connect_timeout_s}
            async with creating(url, network=network, **({} if kept else timeouts)) as transport:
                if kept:
                    await warm_up(transport, server)
                    transport._timeout_s, transport._connect_timeout_s = timeouts.values()
                return await _create(fault, transport, server)


def after_a_create(behave: Behaviour) -> Behaviour:
    """Return the behaviour of a server that makes one task as it should, then treats the connection so."""

    async def answers_once(peer: Peer) -> None:
        if peer.number == 1:
            await peer.request()
            await peer.send(answer(created("task_before")))
        await behave(peer)

    return answers_once


async def warm_up(transport: CreateTransport, server: Misbehaving) -> None:
    """Let the transport have a connection that carried a create; the server forgets that it did."""
    assert await creation(transport, patience_s=5).run() == "task_before"
    for noted in (server.heads, server.bodies, server.read_at):
        noted.clear()


async def _create(fault: Fault, transport: CreateTransport, server: Misbehaving) -> Finding:
    notes = Notes(fault.commit)
    patience_s = 30.0 if fault.ends is Word.HOPELESS else 0.1
    task_id, error = "", None
    try:
        async with asyncio.timeout(10):
            task_id = await creation(transport, journal=notes, body=fault.body, patience_s=patience_s).run()
    except Exception as exc:  # the judge must see whatever escapes
        error = exc
    if error is not None:
        await asyncio.sleep(0.01)  # what left late would arrive now
    return Finding(
        word=word_for(error, patience_s=patience_s),
        bodies=len(server.bodies),
        connections=server.connections,
        notes=notes.notes,
        task_id=task_id,
        error=error,
        heads=server.heads,
    )


def word_for(error: BaseException | None, *, patience_s: float = 0.1) -> str:
    """Return the word for how a create ended."""
    words: tuple[tuple[type[KieError], Word], ...] = (
        (CreateOutcomeUnknown, Word.UNKNOWN),
        (RateLimited, Word.HELD_BACK),
        (ApiError, Word.REFUSED),
        (TransportError, Word.HOPELESS if patience_s > 1 else Word.NOT_SENT),
        (JournalError, Word.NOT_NOTED),
    )
    if error is None:
        return Word.CREATED
    return next((word for kind, word in words if isinstance(error, kind)), f"ESCAPED {error!r}")


def objection(fault: Fault, found: Finding, *, way: str = "") -> str:
    """Return what is wrong with a finding, or nothing."""
    if found.word not in fault.may_end:
        return f"{found.word}, not {' or '.join(sorted(fault.may_end))} ({found.error})"
    if found.bodies > 1:
        return f"{found.bodies} bodies were read"
    if found.word in {Word.NOT_SENT, Word.HOPELESS, Word.NOT_NOTED} and found.bodies:
        return "called not sent, but a body was read"
    if found.bodies != fault.bodies:
        return f"{found.bodies} bodies read, not {fault.bodies}: the row does not test what it says"
    if way.endswith("kept") and fault.bodies and not fault.commit and found.connections != 1:
        return f"{found.connections} connections: the row does not test a kept one"
    if found.word == Word.CREATED and found.task_id != TASK_ID:
        return f"another id: {found.task_id}"
    if found.error is not None and (found.error.__cause__ or found.error.__context__):
        return "a foreign exception hangs on the error"
    return _objection_to_notes(found)


def _objection_to_notes(found: Finding) -> str:
    """The journal must hold the same story after a crash."""
    may_be_paid = found.word in {Word.CREATED, Word.UNKNOWN, Word.REFUSED}
    if may_be_paid and found.notes[-1:] != ["sending"]:
        return f"the body left, and the journal holds {found.notes}"
    if found.word in {Word.NOT_SENT, Word.HELD_BACK} and found.notes[-1:] == ["sending"]:
        return f"nothing was created, and the journal holds {found.notes}"
    return ""


# --- the rows ------------------------------------------------------------------------------------

_OK = answer(created())
_ENVELOPE = json.dumps(created()).encode()
LONG_HEADERS = {
    "a header of 64 kB": f"Content-Security-Policy: {'x' * 2**16}\r\n",
    "a cookie of 64 kB": f"Set-Cookie: a={'x' * 2**16}; path=/\r\n",
    "200 cookies": "".join(f"Set-Cookie: c{number}=d; path=/\r\n" for number in range(200)),
    "1,000 headers of 500 B": "".join(f"X-H{number}: {'y' * 500}\r\n" for number in range(1000)),
    "a header's name of 64 kB": f"{'X' * 2**16}: a\r\n",
}
SHORT_S = 0.15  # nothing comes in it, however long it is
ENOUGH_S = 0.4  # what comes over loopback came by then, on a busy machine too
_EITHER = frozenset({Word.CREATED, Word.UNKNOWN})


async def _fails() -> None:
    raise JournalError("the disk is full")


async def _breaks() -> None:
    raise OSError(5, "Input/output error")


async def _hangs() -> None:
    await asyncio.sleep(30)


async def _dawdles() -> None:
    await asyncio.sleep(0.12)  # while rows beside this one shake hands over TLS


async def _greets_in_plain_http(peer: Peer) -> None:
    await peer._reader.read(1)  # once TLS has begun: a proxy could deliver it together with its own answer
    await peer.send(answer(refused(400), 400))
    await peer.hang()


def rows() -> list[Fault]:
    """Return the whole table."""
    return [
        *_unreachable(),
        *_not_noted(),
        *_no_answer(),
        *_unparsable(),
        *_cut_short(),
        *_strange_bodies(),
        *_strange_ids(),
        *_refusals(),
        *_limits(),
        *_gateways(),
        *_oddities(),
    ]


def _unreachable() -> list[Fault]:
    """Nothing leaves: A1 to A7, A29."""
    soon = partial(Fault, bodies=0, connect_timeout_s=SHORT_S)
    late = partial(Fault, bodies=0, timeout_s=SHORT_S)
    shake = partial(soon, over=("TLS",), certificate="")
    return [
        soon(id="A1", what="unknown host", ends=Word.NOT_SENT, place=nobody, host="nowhere.invalid"),
        soon(id="A2", what="connection refused", ends=Word.NOT_SENT, place=nobody),
        soon(id="A3", what="black hole, connect timeout", ends=Word.NOT_SENT, place=black_hole),
        late(id="A3", what="black hole, whole timeout", ends=Word.NOT_SENT, place=black_hole),
        soon(id="A4", what="untrusted", ends=Word.HOPELESS, certificate="untrusted", over=("TLS",)),
        soon(id="A4", what="of another host", ends=Word.HOPELESS, certificate="other host", over=("TLS",)),
        soon(id="A4", what="expired", ends=Word.HOPELESS, certificate="expired", over=("TLS",)),
        shake(id="A5", what="handshake hangs, connect timeout", ends=Word.NOT_SENT, server=never_reads),
        late(
            id="A5",
            what="handshake hangs, whole timeout",
            ends=Word.NOT_SENT,
            server=never_reads,
            over=("TLS",),
            certificate="",
        ),
        shake(id="A5", what="handshake closed", ends=Word.NOT_SENT, server=closes_on_accept),
        shake(id="A5", what="handshake reset", ends=Word.NOT_SENT, server=resets_on_accept),
        shake(id="A5", what="plain HTTP where TLS is due", ends=Word.HOPELESS, server=_greets_in_plain_http),
        soon(
            id="A29",
            what="TLS 1.2 refuses us for want of a certificate",
            ends=Word.NOT_SENT,
            certificate="asks 1.2",
            over=("TLS",),
        ),
    ]


def _not_noted() -> list[Fault]:
    """The note before the first byte fails or hangs: A27."""
    row = partial(Fault, id="A27", bodies=0, server=says(_OK))
    return [
        row(what="the journal cannot write", ends=Word.NOT_NOTED, commit=_fails),
        row(what="the journal breaks", ends=Word.NOT_SENT, commit=_breaks),
        row(what="the journal hangs", ends=Word.NOT_SENT, commit=_hangs, timeout_s=SHORT_S),
        row(
            what="a no that comes while we still note",
            ends=Word.NOT_SENT,
            commit=_dawdles,
            server=answers_unasked(answer(refused(429), 429)),
        ),
        row(
            what="a no that begins while we still note",
            ends=Word.NOT_SENT,
            commit=_dawdles,
            timeout_s=0.4,
            server=answers_unasked(answer(refused(429), 429)[:-10]),
        ),
        row(what="a close while we still note", ends=Word.NOT_SENT, commit=_dawdles, server=closes_on_accept),
        row(what="a reset while we still note", ends=Word.NOT_SENT, commit=_dawdles, server=resets_on_accept),
        row(what="the journal is slow", ends=Word.CREATED, commit=_dawdles, bodies=1),
    ]


def _no_answer() -> list[Fault]:
    """The body left and nothing readable came back: A8 to A11, A29."""
    row = partial(Fault, ends=Word.UNKNOWN)
    halves = [b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Type: appl", b"HTTP/1.1 200 OK\r\n"]
    return [
        row(id="A8", what="closes on accept", server=closes_on_accept, bodies=0),
        row(id="A8", what="resets on accept", server=resets_on_accept, bodies=0),
        row(id="A8", what="resets after the head", server=resets_after_head, bodies=0),
        row(id="A8", what="never reads", server=never_reads, bodies=0, timeout_s=SHORT_S),
        row(id="A9", what="closes after the body", server=breaks_off(b"", "close")),
        row(id="A9", what="resets after the body", server=breaks_off(b"", "reset")),
        row(id="A10", what="hangs after the body", server=breaks_off(b"", "hang"), timeout_s=ENOUGH_S),
        row(id="A11", what="half a status line, close", server=breaks_off(halves[0], "close")),
        row(id="A11", what="half a header, close", server=breaks_off(halves[1], "close")),
        row(id="A11", what="half the headers, reset", server=breaks_off(halves[2], "reset")),
        row(
            id="A11", what="half the headers, hang", server=breaks_off(halves[2], "hang"), timeout_s=ENOUGH_S
        ),
        row(id="A11", what="a trickle of headers", server=trickles(_OK, 0.05), timeout_s=ENOUGH_S),
        row(
            id="A29",
            what="TLS 1.3 refuses us for want of a certificate",
            certificate="asks",
            over=("TLS",),
            bodies=0,
        ),
    ]


def _unparsable() -> list[Fault]:
    """Answers aiohttp reports as a status 400 that nobody sent: A12."""
    ok, length = b"HTTP/1.1 200 OK\r\n", b"Content-Length: %d\r\n" % len(_ENVELOPE)
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(3000))
    answers = {
        "not HTTP at all": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "a status that is no number": b"HTTP/1.1 OK 200\r\n\r\n",
        "an unknown transfer encoding": ok + b"Transfer-Encoding: banana\r\n" + length + b"\r\n" + _ENVELOPE,
        "chunks and a length": ok + b"Transfer-Encoding: chunked\r\n" + length + b"\r\n" + _ENVELOPE,
        "two lengths": ok + length + b"Content-Length: 3\r\n\r\n" + _ENVELOPE,
        "a length that is no number": ok + b"Content-Length: -1\r\n\r\n" + _ENVELOPE,
        "a header of 1 MB": ok + b"X-Long: " + b"x" * 2**20 + b"\r\n" + length + b"\r\n" + _ENVELOPE,
        "3,000 headers": ok + many + length + b"\r\n" + _ENVELOPE,
        "a chunk size that is no number": ok + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n" + _ENVELOPE,
        "NUL in a header": ok + b"X-Nul: a\x00b\r\n" + length + b"\r\n" + _ENVELOPE,
    }
    return [Fault(id="A12", what=what, ends=Word.UNKNOWN, server=says(raw)) for what, raw in answers.items()]


def _cut_short() -> list[Fault]:
    """The body of the answer broke off, before or after the id: A13."""
    whole = len(_ENVELOPE) + 50
    short = {"close": 5.0, "reset": 5.0, "hang": ENOUGH_S}
    cuts = {
        "before the id": (answer(_ENVELOPE[:30], length=whole), Word.UNKNOWN),
        "within the id": (answer(_ENVELOPE[:-8], length=whole), Word.UNKNOWN),
        "after the id": (answer(_ENVELOPE[:-1], length=whole), Word.CREATED),
    }
    chunk = b"%x\r\n%s\r\n" % (len(_ENVELOPE), _ENVELOPE)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
    packed = gzip.compress(_ENVELOPE)[:-6]
    zipped = answer(packed, headers="Content-Encoding: gzip\r\n", length=len(packed) + 50)
    return [
        *(
            Fault(
                id="A13",
                what=f"cut {where}, {end}",
                ends=ends,
                server=breaks_off(raw, end),
                timeout_s=timeout_s,
            )
            for where, (raw, ends) in cuts.items()
            for end, timeout_s in short.items()
        ),
        Fault(id="A13", what="no last chunk, close", ends=Word.CREATED, server=breaks_off(chunked, "close")),
        Fault(
            id="A13",
            what="no last chunk, hang",
            ends=Word.CREATED,
            server=breaks_off(chunked, "hang"),
            timeout_s=ENOUGH_S,
        ),
        Fault(id="A13", what="a bad chunk after a good one", ends=_EITHER, server=says(chunked + b"ZZ\r\n")),
        Fault(id="A13", what="gzip cut after the id", ends=_EITHER, server=breaks_off(zipped, "close")),
        Fault(
            id="A13",
            what="the headers, then a trickle",
            ends=Word.UNKNOWN,
            server=breaks_off(answer(b"", length=whole), "hang"),
            timeout_s=ENOUGH_S,
        ),
        Fault(
            id="A13",
            what="a no cut short",
            ends=Word.UNKNOWN,
            server=breaks_off(answer(b'{"code":422,"msg":"asp', length=whole), "close"),
        ),
    ]


def _strange_bodies() -> list[Fault]:
    """HTTP 200 and a body that proves nothing: A14, A16 of the bounds."""
    bodies: dict[str, bytes] = {
        "nothing": answer(b""),
        "HTML": html(200),
        "broken JSON": answer(b'{"code":200,"data":{'),
        "a JSON list": answer(b"[1,2,3]"),
        "NaN for a code": answer(b'{"code":NaN,"data":{"taskId":"' + TASK_ID.encode() + b'"}}'),
        "100,000 brackets": answer(b"[" * 100_000),
        "half a surrogate": answer(b'{"code":200,"data":null,"msg":"\\ud800"}'),
        "latin-1": answer('{"code":200,"msg":"é"}'.encode("latin-1")),
        "UTF-16": answer(json.dumps(created()).encode("utf-16")),
        "no code": answer({"data": {"taskId": TASK_ID}}),
        "a code that is a word": answer({"code": "ok", "data": {"taskId": TASK_ID}}),
        "data null": answer({"code": 200, "msg": "success", "data": None}),
        "data a list": answer({"code": 200, "data": [{"taskId": TASK_ID}]}),
        "gzip that is none": answer(_ENVELOPE, headers="Content-Encoding: gzip\r\n"),
        "deflate that is none": answer(b"\xff" * 40, headers="Content-Encoding: deflate\r\n"),
        "an unknown packing": answer(b"\x00" * 40, headers="Content-Encoding: br\r\n"),
        "a bomb": bomb(),
        "two megabytes": answer(b'{"code":200,"msg":"' + b"x" * 2**21 + b'"}'),
    }
    return [
        *(Fault(id="A14", what=what, ends=Word.UNKNOWN, server=says(raw)) for what, raw in bodies.items()),
        Fault(
            id="A14",
            what="a bomb behind the id",
            ends=Word.CREATED,
            server=says(bomb(_ENVELOPE[:-1] + b',"pad":"')),
        ),
        Fault(id="A14", what="a BOM", ends=Word.CREATED, server=says(answer(b"\xef\xbb\xbf" + _ENVELOPE))),
        Fault(
            id="A14",
            what="two ids",
            ends=Word.UNKNOWN,
            server=says(answer(_ENVELOPE + _ENVELOPE.replace(b"cdef", b"beef"))),
        ),
    ]


def _strange_ids() -> list[Fault]:
    """An id that cannot be one: A14."""
    ids: dict[str, object] = {
        "a number": 12345,
        "empty": "",
        "null": None,
        "a list": [TASK_ID],
        "an object": {"taskId": TASK_ID},
        "129 long": "x" * 129,
        "100 kB": "x" * 100_000,
        "a path": "../../x?y",
        "with a newline": TASK_ID + "\n",
        "not ASCII": "задача",
    }
    return [
        Fault(id="A14", what=f"id: {what}", ends=Word.UNKNOWN, server=says(answer(created(strange))))
        for what, strange in ids.items()
    ]


def _refusals() -> list[Fault]:
    """The service, or what stands before it, says no: A16, A18, A19, A22."""
    by_code = dict.fromkeys([400, 401, 402, 403, 404, 422, 433, 505], "A18") | {500: "A19", 501: "A19"}
    by_status = [401, 402, 403, 404, 405, 413, 415, 422, 431]
    aside = "Location: /elsewhere\r\n"
    big = b'{"model":"test/echo","input":{"prompt":"' + b"x" * 10 * 2**20 + b'"}}'
    return [
        *(
            Fault(id=number, what=f"body code {code}", ends=Word.REFUSED, server=says(answer(refused(code))))
            for code, number in by_code.items()
        ),
        *(
            Fault(id="A18", what=f"HTTP {status}, HTML", ends=Word.REFUSED, server=says(html(status)))
            for status in by_status
        ),
        Fault(
            id="A18",
            what="HTTP 400 and body code 400",
            ends=Word.REFUSED,
            server=says(answer(refused(400), 400)),
        ),
        Fault(id="A18", what="HTTP 400, HTML", ends=Word.UNKNOWN, server=says(html(400))),
        *(
            Fault(
                id="A16",
                what=f"redirect {status}",
                ends=Word.REFUSED,
                server=says(answer(b"", status, aside)),
            )
            for status in (301, 302, 303, 307, 308)
        ),
        *(
            Fault(id="A18", what=f"body code {code}", ends=Word.UNKNOWN, server=says(answer(refused(code))))
            for code in (408, 409, 425)
        ),
        *(
            Fault(id="A18", what=f"HTTP {status}, HTML", ends=Word.UNKNOWN, server=says(html(status)))
            for status in (408, 409, 425, 418)
        ),
        Fault(
            id="A22",
            what="413 while 10 MB go up",
            ends=Word.REFUSED,
            server=answers_early(answer(refused(413), 413)),
            body=big,
            bodies=0,
        ),
        Fault(
            id="A22",
            what="413 and a reset while 10 MB go up",
            ends=frozenset({Word.REFUSED, Word.UNKNOWN}),
            server=_answers_and_resets,
            body=big,
            bodies=0,
        ),
        Fault(id="A22", what="10 MB that are taken", ends=Word.CREATED, server=says(_OK), body=big),
    ]


async def _answers_and_resets(peer: Peer) -> None:
    await peer.head()
    await peer.send(answer(refused(413), 413))
    peer.reset()


def _limits() -> list[Fault]:
    """Not now: A17, A20."""
    nows = {
        "HTTP 429, HTML": html(429),
        "HTTP 429, body code 429": answer(refused(429), 429, "Retry-After: 7\r\n"),
        "HTTP 429, no body": answer(b"", 429),
        "HTTP 429, cut short": answer(b'{"code":', 429, length=99),
        "body code 429": answer(refused(429)),
        "body code 430": answer(refused(430)),
        "body code 455": answer(refused(455)),
        "HTTP 503, body code 455": answer(refused(455), 503),
    }
    doubtful = {
        "body code 429 beside an id": answer({"code": 429, "data": {"taskId": TASK_ID}}),
        "HTTP 429 around a yes": answer(created(), 429),
        "HTTP 429 around a yes without id": answer({"code": 200, "data": None}, 429),
        "HTTP 503, body code 429": answer(refused(429), 503),
        "HTTP 401 around a yes": answer(created(), 401),
    }
    return [
        *(
            Fault(id="A20" if "455" in what else "A17", what=what, ends=Word.HELD_BACK, server=says(raw))
            for what, raw in nows.items()
        ),
        *(Fault(id="A17", what=what, ends=Word.UNKNOWN, server=says(raw)) for what, raw in doubtful.items()),
    ]


def _gateways() -> list[Fault]:
    """Something between us and the service failed, before or after it passed the body on: A21."""
    statuses = (500, 501, 502, 503, 504, 505, 520, 522, 524, 529, 599)
    return [
        *(
            Fault(id="A21", what=f"HTTP {status}, HTML", ends=Word.UNKNOWN, server=says(html(status)))
            for status in statuses
        ),
        Fault(
            id="A21",
            what="HTTP 500, body code 500",
            ends=Word.UNKNOWN,
            server=says(answer(refused(500), 500)),
        ),
        Fault(id="A21", what="HTTP 502 around a yes", ends=Word.UNKNOWN, server=says(answer(created(), 502))),
    ]


def _oddities() -> list[Fault]:
    """Unusual and no fault: the id counts. And what only looks like an answer: A24."""
    bare = b"HTTP/1.1 200 OK\r\n\r\n" + _ENVELOPE
    cookie = "Set-Cookie: a=b; Domain=;;; =x; Path=\r\nSet-Cookie: \t@[]={}\r\n"
    yes = {
        **{what: answer(created(), headers=headers) for what, headers in LONG_HEADERS.items()},
        "two answers": _OK + answer(created("another")),
        "103, then the answer": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + _OK,
        "100, then the answer": b"HTTP/1.1 100 Continue\r\n\r\n" + _OK,
        "HTTP 201": answer(created(), 201),
        "no length, closed at the end": bare,
        "HTTP/1.0": bare.replace(b"1.1", b"1.0"),
        "task_id for taskId": answer({"code": 200, "data": {"task_id": TASK_ID}}),
        "cookies that are none": answer(created(), headers=cookie),
        "text/html around JSON": _OK.replace(b"application/json", b"text/html"),
        "a charset that is none": _OK.replace(b"application/json", b"application/json; charset=klingon"),
    }
    no = {
        "HTTP 204": b"HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP 101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP 202 without an id": answer(b"", 202),
        "only a 100": b"HTTP/1.1 100 Continue\r\n\r\n",
    }
    return [
        *(Fault(id="A24", what=what, ends=Word.CREATED, server=says(raw)) for what, raw in yes.items()),
        *(Fault(id="A24", what=what, ends=Word.UNKNOWN, server=says(raw)) for what, raw in no.items()),
        Fault(
            id="A24",
            what="bytes after the answer",
            ends=_EITHER,
            server=says(_OK + b"\x00garbage" * 100),
        ),
        Fault(id="A24", what="a trickle that gets there", ends=Word.CREATED, server=trickles(_OK, 0.0)),
        Fault(id="A24", what="nothing wrong", ends=Word.CREATED, server=says(_OK)),
        Fault(
            id="A24", what="nothing wrong, TLS 1.2", ends=Word.CREATED, server=says(_OK), certificate="old"
        ),
    ]
