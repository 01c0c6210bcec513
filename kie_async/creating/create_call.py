"""Sends one create, again only while it is proven that no attempt before has left or created anything."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime

import attrs

from ..errors import CreateOutcomeUnknown, CreatesHalted, KieError, RateLimited, TransportError
from ..events import Counters
from ..http.backoff import delays
from ..http.query_client import QueryClient
from ..journal.base import Journal
from ..journal.intents import Intent
from ..limits.circuit_breaker import CircuitBreaker
from ..limits.rate_limiter import Permits
from ..wire.codes import CreateVerdict
from ..wire.requests import WireRequest
from .create_transport import Attempt, CreateTransport
from .create_weather import CreateWeather
from .send_gate import SendGate

_LONG_S = 1.0
"""So long a wait for the rate limit is worth a line."""

_log = logging.getLogger("kie_async")


@attrs.define(kw_only=True, eq=False)
class CreateCalls:
    """What the creates of a session share."""

    transport: CreateTransport
    rate_limiter: Permits
    breaker: CircuitBreaker
    journal: Journal
    counters: Counters
    rng: random.Random
    weather: CreateWeather
    timeout_s: float | None = None
    """How long a create tries to reach the service; None is until its deadline."""
    queries: QueryClient | None = None
    """What asks whether the service answers, for nothing, before a create is risked on it."""

    def may_leave(self, in_line: int) -> bool:
        """Tell whether one more create would leave at once, behind so many that have no permit yet."""
        has_connection = in_line < self.transport.connections and not self.transport.connection_slots.locked()
        return has_connection and in_line < self.rate_limiter.free_count

    async def is_answered(self) -> bool:
        """Tell whether the service answers a query; a probe that costs money is not sent into silence."""
        return self.queries is None or await self.queries.is_answered()

    def new(
        self,
        intent: Intent,
        request: WireRequest,
        deadline: float,
        guard: Callable[[Intent], Intent] | None = None,
        *,
        begun_at: float = math.inf,
        keeps_trying: bool = False,
        on_permit: Callable[[], None] | None = None,
    ) -> CreateCall:
        """Return the call for an intent; nothing is sent before it runs, nor when *guard* raises.

        *guard* is called in the step in which the body leaves, and returns the intent as it is to be noted.
        *begun_at* is when it was asked for, if that was before now. One that *keeps_trying* waits for an
        unreachable service and for a halt of creates, however long. *on_permit* is called when it has passed
        the rate limit, each time.
        """
        begun_at = min(begun_at, asyncio.get_running_loop().time())
        return CreateCall(
            self,
            intent,
            request,
            deadline,
            guard,
            begun_at,
            keeps_trying=keeps_trying,
            on_permit=on_permit,
        )


class CreateCall:
    """One create on its way: sent again only while it is proven that nothing was created.

    It belongs to the session, not to the caller: a cancelled caller stops it only before the first
    byte. What each verdict leads to is in the table of `codes.create_verdict`.
    """

    def __init__(
        self,
        calls: CreateCalls,
        intent: Intent,
        request: WireRequest,
        deadline: float,
        guard: Callable[[Intent], Intent] | None,
        begun_at: float,
        *,
        keeps_trying: bool = False,
        on_permit: Callable[[], None] | None = None,
    ) -> None:
        self._calls = calls
        self.intent = intent
        self._request = request
        self._deadline = math.inf if keeps_trying else deadline
        self._keeps_trying = keeps_trying
        self._guard = guard
        self._on_permit = on_permit
        self._now = asyncio.get_running_loop().time
        self._begun_at = begun_at
        self._waits = delays(calls.rng)
        self._gate: SendGate | None = None
        self._is_stopped = False
        self.claimed_task_id = ""
        """What an answer named in which something else was wrong."""

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
        calls = self._calls
        while True:
            attempt = await self._attempt_unless_halted()
            answer = attempt.answer
            if answer.verdict is CreateVerdict.UNKNOWN:
                calls.breaker.record_unknown()
                self.claimed_task_id = answer.task_id or answer.candidate_task_id
                raise self._unknown(attempt)
            # A refusal is an answer too: the service is up. What was not sent says nothing of it.
            if answer.verdict is not CreateVerdict.NOT_SENT:
                calls.breaker.record_answer()
            if answer.verdict is CreateVerdict.CREATED:
                return answer.task_id
            if answer.verdict is CreateVerdict.REFUSED and answer.error is not None:
                raise answer.error
            gate, self._gate = self._gate, None  # that body made no task: who gives up now stops the next one
            error = answer.error or TransportError(f"create was not sent: {attempt.reason}")
            wait_s = self._hold_back(error)  # before anything is awaited: the next in line is awake
            # SENDING was committed and nothing came of it. It is taken back before the pause: a crash in
            # the pause would leave an unknown create, which no restart may send again.
            if gate is not None and gate.may_be_noted:
                await calls.journal.mark_unsent(self.intent.intent_id)
            is_final = attempt.is_final or (attempt.is_untrusted and not self._keeps_trying)
            if is_final or self._is_stopped or self._now() + wait_s > self._deadline:
                raise error
            calls.counters.retries += 1
            # After a limit it waits at the rate limiter, as all do; its own pause would come on top of it.
            if not isinstance(error, RateLimited):
                await asyncio.sleep(max(0.0, min(wait_s, self._gives_up_at - self._now())))

    async def _attempt_unless_halted(self) -> Attempt:
        """Send once, when it is its turn; one that keeps trying waits for the end of a halt."""
        while True:
            try:
                return await self._attempt()
            except CreatesHalted:
                if not self._keeps_trying:
                    raise
            await self._calls.breaker.wait()

    async def _attempt(self) -> Attempt:
        """Send once, when it is its turn."""
        calls = self._calls
        gate = self._new_gate()
        with calls.weather.turn_wait.waiting():
            # The connection first: who has passed the limiter cannot be held back by a throttle any more.
            await calls.transport.connection_slots.acquire()
            try:
                await self._wait_for_limit()
            except BaseException:
                calls.transport.connection_slots.release()
                raise
        if self._on_permit is not None:
            self._on_permit()
        try:
            # Asked last: it may have been opened while this create waited for its turn.
            if calls.breaker.check() and not await calls.is_answered():
                raise calls.breaker.put_off()
            attempt = await self._post(gate)
            while attempt.needs_new_connection and not self._is_stopped:
                ended, gate = gate, self._new_gate()
                if ended.may_be_noted:
                    await calls.journal.mark_unsent(self.intent.intent_id)
                attempt = await self._post(gate)
        finally:
            # The service counts what reached it, whatever it answered; what stayed here is not counted.
            calls.rate_limiter.release() if gate.sent else calls.rate_limiter.release_unused()
            calls.transport.connection_slots.release()
        if isinstance(gate.failure, KieError):
            raise gate.failure.with_traceback(None)  # its traceback leads through aiohttp's headers
        return attempt

    async def _wait_for_limit(self) -> None:
        asked_at = self._now()
        waited_s = await self._calls.rate_limiter.acquire() - asked_at
        if waited_s >= _LONG_S:
            _log.debug("a create waited %.1f s for the limit", waited_s)

    async def _post(self, gate: SendGate) -> Attempt:
        """Send through *gate*, as long as there is time to reach the service, and say what the weather is.

        Raises:
            TransportError: The service could not be reached for too long.
        """
        calls, begun_at = self._calls, self._now()
        left_s, outage = self._gives_up_at - begun_at, calls.weather.unreachable
        if left_s <= 0 and outage.failed_lately:
            lasted_s = begun_at - (outage.since or begun_at)
            raise TransportError(
                f"nothing was sent: the service could not be reached for {lasted_s:.0f} s "
                f"(create_timeout_s is {calls.timeout_s:g}): {outage.reason}"
            )
        if left_s <= 0:
            left_s = math.inf
        with calls.weather.answer_wait.waiting():
            attempt = await calls.transport.post(self._request, gate, connect_within_s=left_s)
        # What was kept back for a reason of ours, or on a kept connection, says nothing of the way there.
        if not (self._is_stopped or attempt.needs_new_connection or isinstance(gate.failure, KieError)):
            answer = attempt.answer
            calls.weather.record(answer.verdict, answer.error, attempt.reason, begun_at)
        return attempt

    @property
    def _gives_up_at(self) -> float:
        """Return when the service will have been out of reach for too long.

        Counted for all creates together: one that waited for its turn need not find out by itself.
        """
        timeout_s = self._calls.timeout_s
        if timeout_s is None or self._keeps_trying:
            return math.inf
        since = self._calls.weather.unreachable.since
        return max(self._now() if since is None else since, self._begun_at) + timeout_s

    def _new_gate(self) -> SendGate:
        gate = self._gate = SendGate(self._note_sending)
        if self._is_stopped:  # before it began: whoever stopped it was told that nothing has left
            gate.close()
        return gate

    async def _note_sending(self) -> None:
        """Do what must be done before the first byte, or raise what keeps it from leaving."""
        if self._guard is not None:
            self.intent = self._guard(self.intent)
        await self._calls.journal.mark_sending(self.intent)

    def _hold_back(self, error: KieError) -> float:
        """Return the wait before the next attempt; a limit of the service holds back every create."""
        wait_s = next(self._waits)
        if isinstance(error, RateLimited):
            self._calls.counters.rate_limited += 1
            wait_s = error.retry_after_s or wait_s
            self._calls.rate_limiter.throttle(wait_s)
        _log.debug("a create was not taken: %s; trying again in %.1f s", error, wait_s)
        return wait_s

    def _unknown(self, attempt: Attempt) -> CreateOutcomeUnknown:
        intent, candidate = self.intent, attempt.answer.candidate_task_id
        return CreateOutcomeUnknown(
            intent.intent_id, attempt.reason, datetime.now(UTC), intent.ref, candidate
        )
