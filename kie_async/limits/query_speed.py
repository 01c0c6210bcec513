"""Finds how many queries in a window the service takes: more while polls are late, fewer on a 429."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import attrs

from ..config import Rate
from .rate_limiter import RateLimiter

RISE, RISE_S = 1.25, 10.0
"""While polls are late the speed grows so much in so many seconds, a query at a time."""

LATE_S = 0.5
"""Polls that wait longer for a permit are late."""

STRETCH_S = 5.0
"""Late polls that are no further apart are one stretch of time, in which the speed grows."""

PATIENCE_S, LONGEST_PATIENCE_S = 120.0, 7680.0
"""What was refused is tried again so much later; each time it is refused again, twice as much, up to that."""

AGAIN_S = 60.0
"""Refusals that follow each other sooner belong together."""

SUSPECT_S = 300.0
"""So long it is remembered which task was refused."""

_log = logging.getLogger("kie_async")

_MOST = 1e6
"""No number in a note is larger."""

_SLOWEST = 10
"""No refusal makes queries slower than this part of the speed they began with."""


@attrs.frozen
class _Lid:
    """The last count that held, not to be passed for a while."""

    count: int
    until: float
    patience_s: float


class QuerySpeed:
    """Decides how many queries may leave in one window; instants (*now*) are on one clock of the caller's.

    The service may count queries by key or by task, or not at all; it says so by its refusals only. A speed
    that is refused is one query too fast, or little more, since it grows that slowly: it goes back to where
    it was before, and stays below for minutes. A task that is refused again while others get through is asked
    too often by somebody else: then the speed is what it was.

    All times are shorter where the window is below a second.
    """

    def __init__(self, start: Rate, ceiling: Rate | None) -> None:
        self._per_s = start.per_s
        self._speed = float(start.count)
        most = start.count if ceiling is None else int(ceiling.count * start.per_s / ceiling.per_s)
        self._ceiling = max(start.count, most)
        self._is_fixed = self._ceiling == start.count
        self._floor = start.count if self._is_fixed else max(1, start.count // _SLOWEST)
        self._scale = min(1.0, start.per_s)
        self._late_at = self._fell_at = -math.inf
        self._lid: _Lid | None = None
        self._refused_at: dict[str, float] = {}
        self._suspects: set[str] = set()
        """Tasks whose first refusal made queries slower: if each is refused again, no key is limited."""
        self._before_suspects: tuple[float, _Lid | None] = self._speed, None
        self._is_changed = False

    @property
    def count(self) -> int:
        """How many queries may leave in one window."""
        return int(self._speed)

    def note_wait(self, waited_s: float, now: float) -> None:
        """Take in how long a poll waited that took the last permit there was."""
        if waited_s <= LATE_S * self._scale:
            return
        gap_s, self._late_at = now - self._late_at, now
        if gap_s > max(STRETCH_S * self._scale, 2 * self._per_s):
            return
        lid = self._lid
        top = self._ceiling if lid is None or now >= lid.until else lid.count
        self._speed = max(self._speed, min(self._speed * self._growth(gap_s), top))
        if lid is not None and self._is_passed(lid, now):
            self._lid, self._is_changed = None, True

    def _is_passed(self, lid: _Lid, now: float) -> bool:
        """Tell whether what was refused holds by now."""
        is_for_long = now >= lid.until + PATIENCE_S * self._scale and self.count > lid.count
        return is_for_long or self._speed > lid.count * RISE

    def note_refused(self, task_id: str, sent_at: float, now: float) -> bool:
        """Take in a 429 while other queries get through; return whether it is news of all, not of its task.

        Queries that had left before a refusal came are no news after it.
        """
        recent = {other: at for other, at in self._refused_at.items() if now - at < SUSPECT_S * self._scale}
        self._refused_at = {**recent, task_id: now}
        if task_id in recent:
            self._acquit(task_id)
        elif not self._is_fixed:
            if not self._suspects or not self._suspects <= recent.keys():
                self._suspects, self._before_suspects = set(), (self._speed, self._lid)
            self._suspects.add(task_id)
            self._fall_back(sent_at, now)
        return task_id not in recent

    def _fall_back(self, sent_at: float, now: float) -> None:
        lid, count = self._lid, self.count
        # A speed holds once a window has passed at it, and one more for queries that were slow to arrive.
        held = int(self._speed / self._growth(now - sent_at + 2 * self._per_s))
        held = max(self._floor, min(held, count - 1))
        patience_s = PATIENCE_S * self._scale if lid is None else lid.patience_s
        if lid is not None and count > lid.count:
            patience_s = min(2 * patience_s, LONGEST_PATIENCE_S * self._scale)
        is_again = now - self._fell_at < AGAIN_S * self._scale
        self._lid = _Lid(held, now + patience_s, patience_s)
        # What was thought to hold does not: somebody else may have come who asks with the same key.
        self._speed = float(max(self._floor, held // 2) if is_again else held)
        self._fell_at, self._is_changed = now, True

    def _acquit(self, task_id: str) -> None:
        """Undo what first refusals have changed, once every task of theirs was refused again."""
        if task_id not in self._suspects:
            return
        self._suspects.discard(task_id)
        if not self._suspects:
            self._speed, self._lid = self._before_suspects
            self._fell_at, self._is_changed = -math.inf, True

    def _growth(self, for_s: float) -> float:
        return float(RISE ** (for_s / (RISE_S * self._scale)))

    # --- from one session to the next ----------------------------------------------------------

    def take_note(self) -> Mapping[str, float] | None:
        """Return what refusals have taught, fit for JSON, if that has changed since; it may be nothing."""
        if not self._is_changed:
            return None
        self._is_changed = False
        if self._lid is None:
            return {}
        return {"a_second": self._lid.count / self._per_s, "patience_s": self._lid.patience_s}

    def restore(self, note: object, now: float) -> None:
        """Begin with what another session was taught; what cannot be read is left out."""
        if not isinstance(note, Mapping) or self._is_fixed:
            return
        a_second, patience_s = _read_number(note, "a_second"), _read_number(note, "patience_s")
        count = max(self._floor, round(a_second * self._per_s))
        if a_second and patience_s and count < self._ceiling:
            self._lid, self._speed = _Lid(count, now + patience_s, patience_s), float(count)


def _read_number(note: Mapping[str, object], name: str) -> float:
    value = note.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _MOST:
        return 0.0
    return float(value)


@attrs.define
class QueryPace:
    """The rate limiter of all queries, and what finds the speed it is set to."""

    limiter: RateLimiter
    speed: QuerySpeed
    _refused_at: float = attrs.field(default=-math.inf, init=False)
    _is_getting_through: bool = attrs.field(default=True, init=False)
    _workers: int = attrs.field(default=1, init=False)

    def share_with(self, workers: int) -> None:
        """Take one part of the speed: so many workers of the account ask, this one included."""
        if workers != self._workers:
            self._workers = workers
            self.adjust()

    def note_wait(self, waited_s: float, now: float) -> None:
        """Take in how late a query gets its permit; it is the speed's fault only if none is left."""
        if self.limiter.is_used_up:
            self.speed.note_wait(waited_s, now)
            self.adjust()

    def note_answer(self) -> None:
        """Take in that a query was answered otherwise than by 429."""
        self._is_getting_through = True

    def note_refused(self, task_id: str, sent_at: float, now: float) -> bool:
        """Take in a 429 and slow down; return whether it is news of all, and not of its task alone.

        While nobody gets through there is no more to learn: a speed made slower each time would outlast that.
        """
        if not self._is_getting_through or sent_at < self._refused_at:
            return True
        self._is_getting_through, self._refused_at = False, now
        is_of_all = self.speed.note_refused(task_id, sent_at, now)
        self.adjust()
        _log.debug("the limit of queries was met: %d in a window from now on", self.speed.count)
        return is_of_all

    def adjust(self) -> None:
        """Set the limiter to the speed that is right now."""
        self.limiter.set_count(max(1, self.speed.count // self._workers))
