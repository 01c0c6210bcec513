"""The creates that wait for a slot, a connection and a permit of the rate limit, lane by lane."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Hashable
from typing import Protocol

import attrs

from ..creating.create_call import CreateCall, CreateCalls
from ..errors import SESSION_CLOSED, QueueFull, SessionMisuse
from ..handle import TaskHandle
from ..limits.admission import Admission
from ..limits.lanes import Lanes
from ..limits.rate_limiter import SHORTEST_SLEEP_S

AHEAD = 16
"""So many that go next are made ready, as by uploads, while they wait; a few more if others passed them."""

NOTIFY_S = 0.25
"""So often those who follow a queued handle learn that others have gone."""


_log = logging.getLogger("kie_async")


@attrs.define(eq=False)
class QueuedCreate:
    """A create until it has a task. That of a handle given out at once hangs on it, and goes with it."""

    lane: Hashable = None
    handle: TaskHandle | None = None
    """The one that was given out at once; None if somebody waits for the create instead."""
    timeout_s: float = 0.0
    is_begun: bool = True
    """Whether an asyncio task makes it ready; most that wait have none."""
    is_queued: bool = False
    turn: asyncio.Future[None] | None = None
    """What waits for the turn, once it is ready."""
    driver: asyncio.Task[None] | None = None
    call: CreateCall | None = None
    waiters: tuple[asyncio.Future[None], ...] = ()
    """Of `TaskHandle.created`."""

    @property
    def is_ready(self) -> bool:
        """Tell whether it could go now."""
        return self.turn is not None and not self.turn.done()

    @property
    def may_have_left(self) -> bool:
        """Tell whether money may have been spent on it."""
        return self.call is not None and self.call.may_have_left

    def stop(self) -> None:
        """Send nothing from now on."""
        if self.call is not None:
            self.call.stop()
        if self.driver is not None:
            self.driver.cancel()


class QueueSink(Protocol):
    """Makes ready what was handed out at once."""

    def begin(self, entry: QueuedCreate) -> None:
        """Begin to make it ready; it waits for its turn when it is."""

    def keep_back(self, entry: QueuedCreate) -> None:
        """End one that was not begun: the session closes."""


class CreateQueue:
    """Lets a create go when it could leave at once: there are a slot, a connection and a permit for it.

    So who goes next is decided as late as it can be, and one of another lane is passed by a single create.
    In line is who has had its turn and has not taken its permit yet.
    """

    def __init__(self, admission: Admission, calls: CreateCalls, max_queued: int | None) -> None:
        self.admission = admission
        self._calls = calls
        self._wait = calls.weather.turn_wait
        self._max_queued = max_queued
        self._sink: QueueSink | None = None
        self._lanes: Lanes[QueuedCreate] = Lanes()
        self._in_line: set[QueuedCreate] = set()
        self._not_begun = 0
        self._turns = 0
        """How many wait that were ready."""
        self._is_advancing = False
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._permit_timer: asyncio.TimerHandle | None = None
        admission.start(self)
        calls.rate_limiter.start(self._note_release)

    def start(self, sink: QueueSink) -> None:
        """Hand to *sink* what is to be made ready."""
        self._sink = sink

    def __len__(self) -> int:
        return len(self._lanes)

    def check_room(self) -> None:
        """Refuse one more.

        Raises:
            QueueFull: So many wait already as may.
        """
        if self._max_queued is not None and len(self._lanes) >= self._max_queued:
            raise QueueFull(self._max_queued)

    def place_of(self, entry: QueuedCreate) -> int | None:
        """Return how many go before it; None if it does not wait any more."""
        return self._lanes.place_of(entry) if entry.is_queued else None

    # --- in and out ----------------------------------------------------------------------------

    def add(self, entry: QueuedCreate) -> None:
        """Put a create at the end of its lane."""
        entry.is_queued = True
        self._lanes.add(entry)
        self._not_begun += not entry.is_begun
        self._wait.begin(entry)

    def remove(self, entry: QueuedCreate) -> None:
        """Let one go that waits no more; who has left is left alone."""
        if entry.is_queued:
            self._lanes.remove(entry)
            self._note_gone(entry)
            self.advance()

    def _note_gone(self, entry: QueuedCreate) -> None:
        entry.is_queued = False
        self._not_begun -= not entry.is_begun
        self._turns -= entry.turn is not None
        self._wait.end(entry)
        if self._timer is None and self._lanes:
            self._timer = asyncio.get_running_loop().call_later(NOTIFY_S, self._notify)

    def _notify(self) -> None:
        self._timer = None
        for entry in self._lanes:
            if entry.handle is not None:
                entry.handle.note_progress()

    async def wait_for_turn(self, entry: QueuedCreate) -> None:
        """Wait until it could leave at once, and take a slot; a wait that was cancelled has taken none.

        Raises:
            SessionMisuse: The session closed.
        """
        self.admission.check_open()
        entry.turn = turn = asyncio.get_running_loop().create_future()
        if not entry.is_queued:
            self.add(entry)
        self._turns += 1
        self.advance()
        try:
            await turn
        except BaseException:
            if entry in self._in_line:
                self.leave_line(entry)
                self.admission.put_back()
            self.remove(entry)
            raise

    def leave_line(self, entry: QueuedCreate) -> None:
        """Leave its permit to another: it has taken one, or needs none now."""
        if entry in self._in_line:
            self._in_line.remove(entry)
            self.advance()

    # --- who is next ---------------------------------------------------------------------------

    def note_room(self) -> None:
        """Take in that a slot came back."""
        self.advance()

    def _note_release(self) -> None:
        # A little later: its connection is about to be given back too.
        if self._lanes:
            self.advance_soon()

    def _await_permit(self) -> None:
        """Come back when a permit will be there; if nobody knows when, its release says so."""
        wait_s = self._calls.rate_limiter.free_in_s
        # Where one is free already it is a connection that is awaited, or those who ask before: they say so.
        if self._permit_timer is None and 0 < wait_s < math.inf:
            timer = asyncio.get_running_loop().call_later(max(wait_s, SHORTEST_SLEEP_S), self._note_permit)
            self._permit_timer = timer

    def _note_permit(self) -> None:
        self._permit_timer = None
        self.advance()

    def advance_soon(self) -> None:
        """Do so in the next turn of the loop, with all that is added in this one."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._advance_now)

    def _advance_now(self) -> None:
        self._soon = None
        self.advance()

    def advance(self) -> None:
        """Let go whose turn it is, and have the next ones made ready."""
        # What is begun here may run at once, and come back here: one round at a time.
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self._lanes and (self._let_one_go() or self._begin_one()):
                pass
        finally:
            self._is_advancing = False

    def _let_one_go(self) -> bool:
        if not self._turns or not self.admission.has_room or self.admission.is_closing:
            return False
        if not self._calls.may_leave(len(self._in_line)):
            self._await_permit()
            return False
        entry = self._lanes.take()
        if entry is None or entry.turn is None:
            return False
        self._note_gone(entry)
        self._in_line.add(entry)
        self.admission.take()
        entry.turn.set_result(None)
        return True

    def _begin_one(self) -> bool:
        if self._sink is None or not self._not_begun or self.admission.is_closing:
            return False
        entry = self._lanes.next_to_begin(AHEAD)
        if entry is None:
            return False
        entry.is_begun = True
        self._not_begun -= 1
        self._sink.begin(entry)
        return True

    def close(self) -> None:
        """Let nobody go any more: who waits is told, and nothing is sent for him."""
        self.admission.close()
        waiting = list(self._lanes)
        for entry in waiting:
            self.remove(entry)
            if entry.turn is not None and not entry.turn.done():
                entry.turn.set_exception(SessionMisuse(SESSION_CLOSED))
            elif not entry.is_begun and self._sink is not None:
                self._sink.keep_back(entry)
        for timer in (self._soon, self._timer, self._permit_timer):
            if timer is not None:
                timer.cancel()
        if count := sum(entry.handle is not None for entry in waiting):
            _log.warning("the session closed with %d handles queued; nothing was sent for them", count)
