"""Sends one create, again only while it is proven that no attempt before has left or created anything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime

import attrs

from ..errors import CreateOutcomeUnknown, KieError, RateLimited, TransportError
from ..events import Counters
from ..http.backoff import delays
from ..journal.base import Intent, Journal
from ..limits.circuit_breaker import CircuitBreaker
from ..limits.rate_limiter import RateLimiter
from ..wire.codes import CreateVerdict
from ..wire.requests import WireRequest
from .create_transport import Attempt, CreateTransport
from .send_gate import SendGate


@attrs.define(kw_only=True, eq=False)
class CreateCalls:
    """What the creates of a session share."""

    transport: CreateTransport
    rate_limiter: RateLimiter
    breaker: CircuitBreaker
    journal: Journal
    counters: Counters
    rng: random.Random

    def new(
        self, intent: Intent, request: WireRequest, deadline: float, guard: Callable[[], None] | None = None
    ) -> CreateCall:
        """Return the call for an intent; nothing is sent before it runs, nor when *guard* raises."""
        return CreateCall(self, intent, request, deadline, guard)


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
        guard: Callable[[], None] | None = None,
    ) -> None:
        self._calls = calls
        self.intent = intent
        self._request = request
        self._deadline = deadline
        self._guard = guard
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
            attempt = await self._attempt()
            answer = attempt.answer
            if answer.verdict is CreateVerdict.UNKNOWN:
                calls.breaker.record_unknown()
                self.claimed_task_id = answer.task_id
                raise self._unknown(attempt.reason)
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
            if attempt.is_final or self._is_stopped or self._is_too_late(wait_s):
                raise error
            calls.counters.retries += 1
            # After a limit it waits at the rate limiter, as all do; its own pause would come on top of it.
            if not isinstance(error, RateLimited):
                await asyncio.sleep(wait_s)

    async def _attempt(self) -> Attempt:
        """Send once, when it is its turn."""
        calls = self._calls
        gate = self._new_gate()
        # The connection first: who has passed the rate limiter cannot be held back by a throttle any more.
        async with calls.transport.connection_slots:
            await calls.rate_limiter.acquire()
            try:
                # Asked last: it may have been opened while this create waited for its turn.
                calls.breaker.check()
                attempt = await calls.transport.post(self._request, gate)
                while attempt.needs_new_connection and not self._is_stopped:
                    ended, gate = gate, self._new_gate()
                    if ended.may_be_noted:
                        await calls.journal.mark_unsent(self.intent.intent_id)
                    attempt = await calls.transport.post(self._request, gate)
            finally:
                # The service counts what reached it, whatever it answered; what stayed here is not counted.
                calls.rate_limiter.release() if gate.sent else calls.rate_limiter.release_unused()
        if isinstance(gate.failure, KieError):
            raise gate.failure.with_traceback(None)  # its traceback leads through aiohttp's headers
        return attempt

    def _new_gate(self) -> SendGate:
        gate = self._gate = SendGate(self._note_sending)
        return gate

    async def _note_sending(self) -> None:
        """Do what must be done before the first byte, or raise what keeps it from leaving."""
        if self._guard is not None:
            self._guard()
        await self._calls.journal.mark_sending(self.intent)

    def _hold_back(self, error: KieError) -> float:
        """Return the wait before the next attempt; a limit of the service holds back every create."""
        wait_s = next(self._waits)
        if isinstance(error, RateLimited):
            self._calls.counters.rate_limited += 1
            wait_s = error.retry_after_s or wait_s
            self._calls.rate_limiter.throttle(wait_s)
        return wait_s

    def _is_too_late(self, wait_s: float) -> bool:
        return asyncio.get_running_loop().time() + wait_s > self._deadline

    def _unknown(self, reason: str) -> CreateOutcomeUnknown:
        return CreateOutcomeUnknown(self.intent.intent_id, reason, datetime.now(UTC), self.intent.ref)
