"""Decides what polls that bring no record mean: poll later, poll everything later, or give up."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from enum import Enum

from ..errors import ApiError, KieError, RateLimited
from ..http.backoff import MAX_RETRY_AFTER_S, delays
from ..limits.query_speed import QueryPace
from ..limits.weather import NO_SINK, Condition, WeatherSink
from ..models import TaskRecord, TaskState
from ..wire.codes import Subject, is_invisible, subject_of
from ..wire.records import read_state_word
from .entry import PollEntry, PollFailures, Streak

KEY_DENIED_S = 60.0
"""So long the service must refuse the key before every wait is given up: keys are refused in passing too."""

TASK_DENIED_S = 300.0
"""So long the service must say that it knows no such task, once it is too old to be not visible yet."""

UNANSWERED_S = 600.0
"""Code 408 of recordInfo speaks of so long without a result; said for as long, it means that none comes."""

MIN_ANSWERS = 5
"""Fewer answers end no wait, however long they are apart."""

FOREIGN_ANSWERS = 2
"""So often the service must say after the grace that it knows no task of an id that came from elsewhere."""

LASTING_S = 30.0
"""Polls of a task that fail for so long are worth a warning."""

STATE_WARNING_GAP_S = 600.0

_NOT_VISIBLE_CODES = (404, 422)
_MAX_WORDS, _MAX_WORD = 100, 64
_log = logging.getLogger("kie_async")


class Decision(Enum):
    """What follows from a poll without a record."""

    POLL_LATER = "poll later"
    FAIL = "the task has failed"
    GIVE_UP = "give up this task"
    GIVE_UP_ALL = "give up every task"


class FailurePolicy:
    """Judges failed polls: a paid task is given up only when the service itself says no, and keeps saying it.

    Pages, gateways and broken answers say nothing of a task: it is asked again, until its deadline.
    """

    def __init__(
        self,
        pace: QueryPace,
        *,
        grace_s: float,
        rng: random.Random,
        weather: WeatherSink = NO_SINK,
    ) -> None:
        self._pace = pace
        self._grace_s = grace_s
        self._rng = rng
        self._key_denied = Streak()
        self._pauses: Iterator[float] | None = None
        self._throttled_at = -math.inf
        self._condition = Condition("unanswered", weather)
        self._warned_of: PollEntry | None = None
        """The task named in the last warning, until it is answered again: the others fail with it."""
        self._foreign: set[PollEntry] = set()
        """Whose id came from elsewhere and the journal does not know it, so that it may be mistyped."""

    def mark_foreign(self, entry: PollEntry) -> None:
        """Take in that the id may be mistyped, until a record comes."""
        self._foreign.add(entry)

    def forget(self, entry: PollEntry) -> None:
        """Take in that this is polled no more."""
        self._foreign.discard(entry)

    def record_success(self, entry: PollEntry, now: float) -> None:
        """Take in that a record came."""
        self._foreign.discard(entry)
        if self._key_denied.count:
            self._key_denied = Streak()
        self._note_answer()
        self._note_end_of_failures(entry, now)
        if (failures := entry.failures) is None:
            return
        failures.failed, failures.denied, failures.unanswered = Streak(), Streak(), Streak()
        failures.refused, failures.pauses = 0, None

    def record_failure(self, entry: PollEntry, error: Exception, now: float) -> Decision:
        """Take in a poll without a record and decide what follows."""
        decision = self._judge(entry, error, now)
        if entry.is_closed:  # it settled while the answer was on its way
            return decision if decision is Decision.GIVE_UP_ALL else Decision.POLL_LATER
        if not self._may_be_invisible(entry, error, now):
            self._note_failure(entry, error, now)
        return decision

    def retry_delay_s(self, entry: PollEntry) -> float | None:
        """Return the delay to the next poll if the last was refused for the rate; None after any other."""
        failures = entry.failures
        return failures.pause_s if failures is not None and failures.refused else None

    def _judge(self, entry: PollEntry, error: Exception, now: float) -> Decision:
        failures = entry.need_failures()
        failures.refused = failures.refused + 1 if isinstance(error, RateLimited) else 0
        if isinstance(error, RateLimited):
            failures.pause_s = self._throttle(entry, failures, error, now)
            return Decision.POLL_LATER
        self._note_answer()
        subject = subject_of(error)
        if subject is Subject.KEY:
            return self._judge_key(now)
        if subject is Subject.CALL:
            return Decision.POLL_LATER
        self._key_denied = Streak()  # whoever speaks of a task has taken the key
        if subject is Subject.PROVIDER:
            return _judge_streak(failures.unanswered, now, UNANSWERED_S, Decision.FAIL)
        if self._may_be_invisible(entry, error, now):
            return Decision.POLL_LATER
        decision = _judge_streak(failures.denied, now, TASK_DENIED_S, Decision.GIVE_UP)
        # No create was paid for here that could be lost: who mistyped an id need not wait for minutes.
        is_mistyped = entry in self._foreign and _knows_no_task(error)
        return Decision.GIVE_UP if is_mistyped and failures.denied.count >= FOREIGN_ANSWERS else decision

    def _judge_key(self, now: float) -> Decision:
        decision = _judge_streak(self._key_denied, now, KEY_DENIED_S, Decision.GIVE_UP_ALL)
        if decision is Decision.GIVE_UP_ALL:
            self._key_denied = Streak()  # what is tracked from now on has its own time
        return decision

    def _throttle(self, entry: PollEntry, failures: PollFailures, error: RateLimited, now: float) -> float:
        """Hold all polls back, or return how long to hold back those of this task alone.

        Refusals of polls that left before this was last done are the same news.
        """
        is_news = entry.last_polled_at >= self._throttled_at
        # While nobody gets through, the pauses grow.
        is_first = is_news and self._pauses is None
        if is_first and not self._pace.note_refused(entry.key, entry.last_polled_at, now):
            failures.pauses = failures.pauses or self._growing()
            return _pause_s(error, failures.pauses)
        if is_news or error.retry_after_s is not None:
            self._pauses = self._pauses or self._growing()
            self._throttled_at = now
            pause_s = _pause_s(error, self._pauses)
            self._pace.limiter.throttle(pause_s)
            if failures.refused > 1:  # it may be the only one that is refused: others show that first
                return pause_s
        return 0.0  # its turn comes again before others have theirs

    def _note_answer(self) -> None:
        self._pauses = None
        self._pace.note_answer()

    def _growing(self) -> Iterator[float]:
        return delays(self._rng, first_s=1.0, ceiling_s=MAX_RETRY_AFTER_S)

    def _may_be_invisible(self, entry: PollEntry, error: Exception, now: float) -> bool:
        """Tell whether a task is so young that no words of the service mean more than "not yet"."""
        is_not_visible = isinstance(error, ApiError) and error.code in _NOT_VISIBLE_CODES
        return is_not_visible and now - entry.begun_at < self._grace_s

    # --- what is logged ------------------------------------------------------------------------

    def _note_failure(self, entry: PollEntry, error: Exception, now: float) -> None:
        """Log a failure, and warn once when failures last: in an outage one task stands for all."""
        failed = entry.need_failures().failed
        # From when the first of them was sent: one that waits for its answer in vain has failed for as long.
        failed.add(min(now, max(entry.last_polled_at, entry.begun_at)) if not failed.count else now)
        surprise = None if isinstance(error, KieError) else error
        # Refusals for the rate are counted, and common where many poll.
        level = logging.DEBUG if isinstance(error, RateLimited) else logging.INFO
        _log.log(level, "poll %d of task %s failed: %s", failed.count, entry.key, error, exc_info=surprise)
        is_said = self._warned_of is not None and not self._warned_of.is_closed
        if not is_said and failed.lasts(now, at_least_s=LASTING_S):
            self._warned_of = entry
            lasted_s = now - failed.since
            self._condition.say(
                f"polls of task {entry.key} have failed for {lasted_s:.0f} s: {error}; "
                "it goes on at the service and is asked again",
                for_s=lasted_s,
                surprise=surprise,
            )

    def _note_end_of_failures(self, entry: PollEntry, now: float) -> None:
        warned_of = self._warned_of
        if warned_of is entry and entry.failures is not None:
            lasted_s = now - entry.failures.failed.since
            self._condition.end(f"task {entry.key} is answered again, after {lasted_s:.0f} s")
        elif warned_of is not None and warned_of.is_closed:  # it settled otherwise: this one speaks for it
            self._condition.end("polls are answered again")
        else:
            return
        self._warned_of = None


def _knows_no_task(error: Exception) -> bool:
    return isinstance(error, ApiError) and is_invisible(error.code, error.message)


def _pause_s(error: RateLimited, growing: Iterator[float]) -> float:
    pause_s = next(growing) if error.retry_after_s is None else error.retry_after_s
    return min(pause_s, MAX_RETRY_AFTER_S)


def _judge_streak(streak: Streak, now: float, at_least_s: float, decision: Decision) -> Decision:
    streak.add(now)
    is_over = streak.lasts(now, at_least_s=at_least_s, answers=MIN_ANSWERS)
    return decision if is_over else Decision.POLL_LATER


class StateWarnings:
    """Warns of words for a state that are not known: the task counts as running, which may be wrong."""

    def __init__(self) -> None:
        self._warned_at: dict[str, float] = {}

    def note(self, record: TaskRecord, now: float) -> None:
        """Warn of the word in a record, each word once in ten minutes."""
        if record.state is not TaskState.UNKNOWN:
            return
        word = read_state_word(record.raw)[:_MAX_WORD]
        if word in ("", TaskState.UNKNOWN):
            return
        is_new = word not in self._warned_at
        if is_new and len(self._warned_at) == _MAX_WORDS:  # endless new words must not fill log and memory
            return
        if is_new or now - self._warned_at[word] >= STATE_WARNING_GAP_S:
            self._warned_at[word] = now
            _log.warning(
                "task %s is in a state that is not known, %r: it counts as running", record.task_id, word
            )
