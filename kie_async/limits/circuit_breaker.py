"""Stops creates after several unknown outcomes in a row."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from ..errors import CreatesHalted
from .weather import NO_SINK, Condition, WeatherSink, ago, show_duration, show_time

UNKNOWN_IN_A_ROW = 3

HALT_S = 60.0

_VERDICT_S = 2.0

_log = logging.getLogger("kie_async.weather")


class CircuitBreaker:
    """Refuses creates while the service seems to be out: an outage must not cost a whole batch.

    After a pause one create may probe whether the service answers again; any answer closes the breaker.
    """

    def __init__(self, *, now: Callable[[], float], sink: WeatherSink = NO_SINK) -> None:
        self._now = now
        self._unknown_in_a_row = 0
        self._halted_at = 0.0
        self._halted_until = 0.0
        self._is_probing = False
        self._condition = Condition("halted", sink)
        self._answered = asyncio.Event()

    @property
    def _is_closed(self) -> bool:
        return self._unknown_in_a_row < UNKNOWN_IN_A_ROW

    @property
    def _until(self) -> datetime:
        return ago(self._now() - self._halted_until)

    def check(self) -> bool:
        """Let a create pass; tell whether it is a probe: whether the service answers is not known.

        Raises:
            CreatesHalted: Nothing was sent.
        """
        if self._is_closed:
            return False
        if self._now() < self._halted_until:
            raise CreatesHalted(self._unknown_in_a_row, self._until)
        self._halted_until = self._now() + HALT_S
        self._is_probing = True
        return True

    def put_off(self) -> CreatesHalted:
        """Halt for another pause, since the service answers nothing at all; return the error that says so."""
        self._is_probing = False
        self._halted_until = self._now() + HALT_S
        _log.info(
            "creates are halted: the service answers nothing; trying again at %s", show_time(self._until)
        )
        return CreatesHalted(self._unknown_in_a_row, self._until)

    async def wait(self) -> None:
        """Wait until the next create may pass, or one was answered; `check` says who it is."""
        while not self._is_closed and (left_s := self._halted_until - self._now()) > 0:
            self._answered.clear()
            if self._is_probing:  # its time for an answer ends just then, and its verdict comes a bit later
                left_s += _VERDICT_S
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._answered.wait()

    def record_answer(self) -> None:
        """Note that the service answered."""
        self._is_probing = False
        if not self._is_closed:
            lasted = show_duration(self._now() - self._halted_at)
            self._condition.end(f"creates are answered again and go on, after {lasted}")
            self._answered.set()
        self._unknown_in_a_row = 0

    def record_unknown(self) -> None:
        """Note that nobody knows what became of a create."""
        was_closed, self._is_probing = self._is_closed, False
        self._unknown_in_a_row += 1
        self._halted_until = self._now() + HALT_S
        if self._is_closed:
            return
        if was_closed:
            self._halted_at = self._now()
        self._condition.say(
            f"{self._unknown_in_a_row} creates in a row had unknown outcomes, so none is sent; "
            f"trying again with one at {show_time(self._until)}",
            until=self._until,
            level=logging.WARNING if was_closed else logging.INFO,
        )
