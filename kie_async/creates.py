"""The paid path: from a request to a task id, with at most one body on the wire.

What the trace hook of the create's own HTTP session proves decides whether money may be gone; an
exception's class never does. https://docs.aiohttp.org/en/stable/tracing_reference.html
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace

import aiohttp
import attrs
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from .codes import Verdict
from .errors import (
    CreateOutcomeUnknown,
    CreatesHalted,
    JournalError,
    KieError,
    RateLimited,
    SessionMisuse,
    TransportError,
)
from .journal import Journal
from .limiter import Limiter
from .models import Counters
from .transport import (
    CONNECT_TIMEOUT_S,
    Secret,
    client_session,
    delays,
    describe,
    headers_for,
    let_go,
    read_bounded,
    read_retry_after,
)
from .wire import CreateAnswer, WireRequest, WireResponse, decode_create

CREATE_TIMEOUT_S = 60.0
UNKNOWN_IN_A_ROW = 3
HALT_S = 60.0
_LATE_ANSWER_S = 0.05


class Gate:
    """The line of one attempt between "surely not sent" and "may have been paid".

    aiohttp awaits its hook before the body is handed to the socket: what is set here before that
    hook returns is true of the bytes. Closing the gate first and asking `sent` after is safe against
    a hook still on its way.
    """

    def __init__(self, before_first_byte: Callable[[], Awaitable[None]]) -> None:
        self.sent = False
        self.is_recorded = False
        """Whether the record before the first byte was made."""
        self.failure: BaseException | None = None
        self.is_hook_missing = False
        self._is_closed = False
        self._is_hooked = False
        self._before_first_byte = before_first_byte

    def close(self) -> None:
        """Let nothing through that has not passed yet."""
        self._is_closed = True

    async def passing(self) -> None:
        """Be the hook: record, then open; only the first call counts."""
        if self._is_hooked:
            return
        self._is_hooked = True
        try:
            self._refuse_if_closed()
            await self._before_first_byte()
            self.is_recorded = True
            self._refuse_if_closed()
        except BaseException as exc:
            self.failure = exc
            raise
        self.sent = True  # no await since the check above

    def passed(self) -> None:
        """Be told that the body was written: without a hook before it, the worst is assumed."""
        if not self._is_hooked:
            self.sent = self.is_hook_missing = True

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise GateClosed


class GateClosed(Exception):
    """The attempt was given up before its first byte."""


class _GuardedBody(aiohttp.Payload):
    """A body of any size that tells the gate when it was written: a missing hook cannot go unseen."""

    def __init__(self, body: bytes, gate: Gate) -> None:
        super().__init__(body, content_type="application/json")
        self._size = len(body)
        self._gate = gate

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return str(self._value, encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it at once."""
        try:
            await writer.write(self._value)
        finally:
            self._gate.passed()


@attrs.frozen(kw_only=True)
class Attempt:
    """One attempt to create: what it proved, and what broke if something did."""

    answer: CreateAnswer
    reason: str = ""
    is_final: bool = False
    """Whether trying again is useless although nothing was created: a certificate that does not fit."""


_CUT_OFF = Attempt(answer=CreateAnswer(verdict=Verdict.UNKNOWN), reason="closed before an answer came")


class CreateTransport:
    """Sends creates, and only creates.

    A connection of its own for each, since a reused one may die unseen; no redirects, no cookies, no
    proxies, no user's middleware: nothing can send a body a second time.
    """

    def __init__(
        self,
        base_url: str,
        key: Secret,
        *,
        connections: int,
        timeout_s: float = CREATE_TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._base_url = base_url
        self._key = key
        self._timeout_s = timeout_s
        self.place = asyncio.Semaphore(connections)
        """Held from before the turn at the limiter until the answer: who waits can still be held back."""
        trace = aiohttp.TraceConfig()
        trace.on_request_chunk_sent.append(_before_chunk)
        self._http = client_session(
            aiohttp.TCPConnector(limit=connections, force_close=True, ssl=ssl_context or True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            trace_configs=[trace],
        )

    async def post(self, request: WireRequest, gate: Gate) -> Attempt:
        """Send *request* once and judge what happened. Cancelling it keeps back what has not left.

        Raises:
            SessionMisuse: This aiohttp is not one whose hook is known.
        """
        _check_aiohttp(aiohttp.__version__)
        exchange = asyncio.create_task(self._exchange(request, gate))
        try:
            # Not aiohttp's own timeout: after a blocked loop it would throw away an answer
            # that already lies in the socket.
            await asyncio.wait({exchange}, timeout=self._timeout_s)
            if not exchange.done():
                gate.close()  # what leaves now would have no time to be answered
                await asyncio.wait({exchange}, timeout=_LATE_ANSWER_S)
        except asyncio.CancelledError:
            attempt = await _end(exchange, gate)
            if attempt.answer.verdict is Verdict.NOT_SENT:
                raise
            return attrs.evolve(attempt, is_final=True)  # an id that is here is not thrown away
        return await _end(exchange, gate)

    async def _exchange(self, request: WireRequest, gate: Gate) -> Attempt:
        body = bytearray()
        response: WireResponse | None = None
        reason, is_final = "", False
        try:
            async with self._http.post(
                URL(self._base_url + request.path, encoded=True),
                data=_GuardedBody(request.body or b"", gate),
                headers=headers_for(self._key, json=True),
                allow_redirects=False,
                trace_request_ctx=gate,
            ) as answer:
                gate.close()  # who answers before the body has left does not get it any more
                # Of an answer really received; an exception's status may be invented by aiohttp.
                retry_after_s = read_retry_after(answer.headers)
                response = WireResponse(status=answer.status, body=b"", retry_after_s=retry_after_s)
                await read_bounded(answer, body)
        except asyncio.CancelledError:  # only `post` cancels this, when the time is over
            pass
        except Exception as exc:  # whatever it is: the gate and the bytes decide, not its class
            reason = describe(exc)
            is_final = isinstance(exc, aiohttp.ClientSSLError | aiohttp.InvalidURL)
        gate.close()
        return Attempt(
            answer=decode_create(response, sent=gate.sent, partial=bytes(body)),
            reason=_missing_hook(gate) or reason or _unread(response),
            is_final=is_final,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.close()

    def let_go(self) -> None:
        """Close without an event loop."""
        let_go(self._http)


async def _end(exchange: asyncio.Task[Attempt], gate: Gate) -> Attempt:
    """Close the gate first, so that the judgement holds, and return what came until now."""
    gate.close()
    if exchange.cancel():  # it was not over yet
        await asyncio.wait({exchange})
    return exchange.result()


async def _before_chunk(
    _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceRequestChunkSentParams
) -> None:
    await context.trace_request_ctx.passing()


def _unread(response: WireResponse | None) -> str:
    return "no answer in time" if response is None else f"unreadable answer, HTTP {response.status}"


def _missing_hook(gate: Gate) -> str:
    return "this aiohttp did not call the hook that proves what was sent" if gate.is_hook_missing else ""


def _check_aiohttp(version: str) -> None:
    """Refuse an aiohttp whose hook was never measured.

    Raises:
        SessionMisuse: With what to install.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    if major != 3 or minor < 14:
        raise SessionMisuse(
            f"aiohttp {version} is not known to be safe for paid creates; use aiohttp>=3.14,<4"
        )


class Breaker:
    """Stops creates after several unknown outcomes in a row: an outage must not cost a whole batch.

    After a pause one create may try whether the service answers again; any answer closes the breaker.
    """

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self._unknown_in_a_row = 0
        self._halted_until = 0.0

    def check(self) -> None:
        """Let a create pass.

        Raises:
            CreatesHalted: Nothing was sent.
        """
        if self._unknown_in_a_row < UNKNOWN_IN_A_ROW:
            return
        if self._now() < self._halted_until:
            raise CreatesHalted(
                f"{self._unknown_in_a_row} creates in a row had unknown outcomes; nothing was sent; "
                "one more may try in a minute"
            )
        self._halted_until = self._now() + HALT_S

    def answered(self) -> None:
        """Note that the service answered."""
        self._unknown_in_a_row = 0

    def unknown(self) -> None:
        """Note that nobody knows what became of a create."""
        self._unknown_in_a_row += 1
        self._halted_until = self._now() + HALT_S


class Creation:
    """One create on its way: sent again only while it is proven that nothing was created.

    It belongs to the session, not to the caller: a cancelled caller stops it only before the first
    byte. What each verdict leads to is in the table of `codes.create_verdict`.
    """

    def __init__(
        self,
        *,
        intent_id: str,
        ref: str | None,
        request: WireRequest,
        transport: CreateTransport,
        limiter: Limiter,
        breaker: Breaker,
        journal: Journal,
        counters: Counters,
        rng: random.Random,
        deadline: float,
    ) -> None:
        self.is_orphan = False
        """Whether the caller was cancelled after the body had left."""
        self._intent_id = intent_id
        self._ref = ref
        self._request = request
        self._transport = transport
        self._limiter = limiter
        self._breaker = breaker
        self._journal = journal
        self._counters = counters
        self._waits = delays(rng)
        self._deadline = deadline
        self._gate: Gate | None = None
        self._is_stopped = False

    @property
    def may_have_left(self) -> bool:
        """Tell whether a body has crossed the line and no answer proved that it created nothing."""
        return self._gate is not None and self._gate.sent

    def stop(self) -> bool:
        """Send nothing from now on; tell whether nothing has left."""
        self._is_stopped = True
        if self._gate is not None:
            self._gate.close()
        return not self.may_have_left

    async def run(self) -> str:
        """Return the id of the created task.

        Raises:
            ApiError: The service refused; nothing was created, says its answer.
            CreatesHalted: Nothing was sent, since too many creates before it had unknown outcomes.
            TransportError: Nothing was sent, and there is no time or no sense in trying again.
            CreateOutcomeUnknown: The body left and no answer proved what happened.
            JournalError: Nothing was sent, since it could not be recorded.
        """
        while True:
            attempt = await self._attempt()
            answer = attempt.answer
            if answer.verdict is Verdict.UNKNOWN:
                self._breaker.unknown()
                raise self._unknown(attempt.reason)
            if answer.verdict is not Verdict.NOT_SENT:
                self._breaker.answered()
            if answer.verdict is Verdict.CREATED:
                return answer.task_id
            if answer.verdict is Verdict.REFUSED and answer.error is not None:
                raise answer.error
            self._gate = None  # that body made no task: a caller who gives up now stops the next one
            error = answer.error or TransportError(f"create was not sent: {attempt.reason}")
            wait_s = self._hold_back(error)  # before anything is awaited: the next in line is awake
            await self._journal.unsent(self._intent_id)
            if attempt.is_final or self._is_stopped or self._is_too_late(wait_s):
                raise error
            self._counters.retries += 1
            if not isinstance(error, RateLimited):
                await asyncio.sleep(wait_s)

    async def _attempt(self) -> Attempt:
        async with self._transport.place:
            await self._limiter.acquire()
            try:
                self._breaker.check()
            except CreatesHalted:
                self._limiter.unused()
                raise
            return await self._send_once()

    async def _send_once(self) -> Attempt:
        gate = self._gate = Gate(partial(self._journal.sending, self._intent_id))
        attempt = _CUT_OFF
        try:
            attempt = await self._transport.post(self._request, gate)
        except asyncio.CancelledError:
            if not gate.sent:
                raise
        finally:
            self._limiter.answered() if gate.sent else self._limiter.unused()
        if isinstance(gate.failure, JournalError):
            raise gate.failure.with_traceback(None)  # its traceback leads through aiohttp's headers
        return attempt

    def _hold_back(self, error: KieError) -> float:
        """Return the wait before the next attempt; a limit of the service holds back every create."""
        wait_s = next(self._waits)
        if isinstance(error, RateLimited):
            self._counters.rate_limited += 1
            wait_s = error.retry_after_s or wait_s
            self._limiter.pause(wait_s)
        return wait_s

    def _is_too_late(self, wait_s: float) -> bool:
        return asyncio.get_running_loop().time() + wait_s > self._deadline

    def _unknown(self, reason: str) -> CreateOutcomeUnknown:
        return CreateOutcomeUnknown(self._intent_id, reason, datetime.now(UTC), self._ref)
