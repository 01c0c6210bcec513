"""Says, once for all who wait, that what is limited has kept somebody waiting for long."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from types import TracebackType

from .weather import Condition

LONG_S = 10.0

GAP_S = 60.0
"""Queues come and go with every task: a line is not repeated sooner."""

_log = logging.getLogger("kie_async")


class LongWait:
    """Those who wait in one queue, in its order; *message* is said when the first has waited for long.

    Where the reason may be one or the other, *message* is what says which.
    """

    def __init__(
        self,
        message: str | Callable[[], str],
        *,
        long_s: float = LONG_S,
        condition: Condition | None = None,
    ) -> None:
        self._message = message
        self._long_s = long_s
        self._condition = condition
        """What it is a case of, if it is a matter for a warning; whoever made that says when it is over."""
        self._begun_at: dict[object, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._said_at = -math.inf
        self._is_said = False

    def waiting(self) -> _Wait:
        """Return a context manager: the body of the ``with`` counts as a wait."""
        return _Wait(self)

    def begin(self, waiter: object) -> None:
        """Take in that somebody waits from now on."""
        loop = asyncio.get_running_loop()
        self._begun_at[waiter] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._long_s, self._check, loop)

    def end(self, waiter: object) -> None:
        """Take in that he waits no more."""
        del self._begun_at[waiter]
        # A timer that is set is left alone: most waits are short, and the next one has a use for it.
        if not self._begun_at and self._is_said:
            self._is_said, self._timer = False, None

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say it if the first in line has waited for long; else come again when it will have."""
        if not self._begun_at:
            self._timer = None
            return
        now, first_at = loop.time(), next(iter(self._begun_at.values()))
        due_at = max(first_at + self._long_s, self._said_at + GAP_S)
        if now < due_at:
            self._timer = loop.call_at(due_at, self._check, loop)
            return
        # The timer counts as set from here: while anybody waits nothing more is said.
        self._said_at, self._is_said = now, True
        why = self._message if isinstance(self._message, str) else self._message()
        text = f"{why} ({len(self._begun_at)} waiting, the first for {now - first_at:.0f} s)"
        if self._condition is None:
            _log.info("%s", text)
        elif not self._condition.is_said:
            self._condition.say(text, for_s=now - first_at)


class _Wait:
    """One wait. A class, since each create has several, and a generator takes twice the time."""

    __slots__ = ("_queue",)

    def __init__(self, queue: LongWait) -> None:
        self._queue = queue

    def __enter__(self) -> None:
        self._queue.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.end(self)
