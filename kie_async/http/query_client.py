"""Queries records and the balance of the service, all under one rate limit; a query costs nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from .._validation import check_task_id
from ..errors import AnswerUnreadable, ApiError, RateLimited, TransportError
from ..events import Counters
from ..limits.query_speed import QueryPace
from ..models import TaskRecord
from ..wire.codes import name_task
from ..wire.envelope import WireResponse
from ..wire.requests import encode_credits, encode_query
from ..wire.responses import decode_confirmation, decode_credits, decode_query
from .backoff import retry
from .transport import Transport

_BALANCE = "balance"
"""What a query is about that is about no task."""

_SILENCE_S = 15.0
"""A service that does not tell a balance in so long does not answer."""

_T = TypeVar("_T")


class LastAnswer(Protocol):
    """Where whoever polls a task keeps what the last answer said."""

    def find_answer(self, digest: int) -> TaskRecord | None:
        """Return the record of the last answer, if it had this digest."""

    def remember_answer(self, digest: int, record: TaskRecord) -> None:
        """Keep what an answer said."""


class QueryClient:
    """Sends a query once for the poller, which has delays of its own, and with retries for a user."""

    def __init__(
        self, transport: Transport, pace: QueryPace, *, counters: Counters, rng: random.Random
    ) -> None:
        self._transport = transport
        self._pace = pace
        self._counters = counters
        self._rng = rng

    async def read_record(self, task_id: str, *, unless: LastAnswer | None = None) -> TaskRecord:
        """Return a record; the caller holds a permit of the rate limiter.

        A task that goes on mostly says the same again, byte by byte: then the record of the last answer is
        returned again, and nothing is decoded.
        """
        response = await self._answer(task_id)
        if unless is None:
            return self._decoded(decode_query, response, task_id)
        digest = hash(response.body)
        if response.status == 200 and (known := unless.find_answer(digest)) is not None:
            return known
        record = self._decoded(decode_query, response, task_id)
        unless.remember_answer(digest, record)
        return record

    async def confirm(self, task_id: str) -> tuple[TaskRecord, str | None]:
        """Return a record and the callback URL its task was created with."""
        return await self._limited(task_id, lambda: self._read(task_id, decode_confirmation))

    async def query(self, task_id: str) -> TaskRecord:
        """Return a record; see `KieSession.query`."""
        check_task_id(task_id)
        try:
            return await self._retry(task_id, lambda: self.read_record(task_id))
        except ApiError as exc:
            raise name_task(exc, task_id) from None

    async def query_confirmation(self, task_id: str) -> tuple[TaskRecord, str | None]:
        """Return what `confirm` does; transient failures are asked again a few times."""
        check_task_id(task_id)
        return await self._retry(task_id, lambda: self._read(task_id, decode_confirmation))

    async def credits(self) -> float:
        """Return the balance; see `KieSession.credits`."""
        return await self._retry(_BALANCE, self._read_credits)

    async def is_answered(self) -> bool:
        """Tell whether the service answers at all, whatever it says, within some seconds."""
        try:
            async with asyncio.timeout(_SILENCE_S):
                await self._limited(_BALANCE, self._read_credits)
        except (TransportError, TimeoutError) as exc:
            return isinstance(exc, AnswerUnreadable)
        except ApiError:
            pass
        return True

    async def _read(self, task_id: str, decode: Callable[[WireResponse, str], _T]) -> _T:
        return self._decoded(decode, await self._answer(task_id), task_id)

    async def _answer(self, task_id: str) -> WireResponse:
        self._counters.queries += 1
        return await self._transport.send(encode_query(task_id))

    def _decoded(self, decode: Callable[[WireResponse, str], _T], response: WireResponse, task_id: str) -> _T:
        try:
            return decode(response, task_id)
        except RateLimited:
            self._counters.rate_limited += 1
            raise

    async def _read_credits(self) -> float:
        return decode_credits(await self._transport.send(encode_credits()))

    async def _retry(self, about: str, read: Callable[[], Awaitable[_T]]) -> _T:
        # Each attempt waits for its own turn at the limiter: a retry must not jump the queue of the polls.
        return await retry(lambda: self._limited(about, read), rng=self._rng, on_retry=self._count_retry)

    def _count_retry(self) -> None:
        self._counters.retries += 1

    async def _limited(self, about: str, read: Callable[[], Awaitable[_T]]) -> _T:
        """Return what *read* does, when it is its turn; waits and refusals count as those of polls do."""
        pace, now = self._pace, asyncio.get_running_loop().time
        asked_at = now()
        sent_at = await pace.limiter.acquire()
        pace.note_wait(sent_at - asked_at, sent_at)
        try:
            found = await read()
        except RateLimited:
            pace.note_refused(about, sent_at, now())
            raise
        finally:
            pace.limiter.release()
        pace.note_answer()
        return found
