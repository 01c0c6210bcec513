"""Sums up the rows of a report: by state, by reason and over time, in credits and in USD."""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from statistics import median

import attrs

from ..inputs.prices import USD_PER_CREDIT as USD_PER_CREDIT
from ..journal.intents import Totals
from ..models import JobState
from .report_data import Row

STATES_IN_ORDER = (
    *(JobState.DONE, JobState.NOT_SAVED, JobState.FAILED, JobState.REFUSED, JobState.PERHAPS_PAID),
    *(JobState.RUNNING, JobState.SENDING, JobState.QUEUED, JobState.NOT_SENT),
)
"""In the order in which they are shown."""

_NEEDS_CARE = (
    *(JobState.PERHAPS_PAID, JobState.FAILED, JobState.REFUSED, JobState.NOT_SAVED, JobState.NOT_SENT),
)
"""The states that a reason belongs to, the dearest first."""

_MOST_REFS = 5000
"""Of one reason; nobody copies more by hand, and the page must stay light."""

_MOST_REASONS = 200

_MOST_STEPS = 60

_STEPS_S = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800),
    *(86_400, 172_800, 604_800, 2_592_000, 31_536_000),
)

_PARTICULARS = re.compile(
    r"https?://\S+|\b(?=[\w-]*\d)[\w-]{16,}\b|\b\d{5,}\b"  # addresses, ids, large numbers
)
"""What differs from one job to the next in the same message."""


_FILE_NAME = re.compile(r"the task-\d+(\.\w{1,5})?\b")


@attrs.frozen(kw_only=True)
class Reason:
    """Why jobs are not done, and which."""

    state: JobState
    text: str
    count: int
    refs: Sequence[str]
    """The first of them."""


@attrs.frozen(kw_only=True)
class Series:
    """What ended over time, in steps of equal length."""

    begin: float
    """Unix time."""
    step_s: float
    done: Sequence[int]
    failed: Sequence[int]
    credits: Sequence[float]
    """Spent up to the end of each step."""


@attrs.frozen(kw_only=True)
class Sums:
    """All that a report says of the rows together."""

    total: int
    states: dict[str, int]
    """Of the states that there are."""
    sources: dict[str, int]
    run_ended: int
    """Jobs that ended in this run."""
    run_credits: float
    all_credits: float
    """Of all runs."""
    all_tasks: int
    median_s: float | None
    slowest_s: float | None
    """Nine of ten took no longer."""
    reasons: Sequence[Reason]
    more_reasons: int
    series: Series | None


class Tally:
    """Sums up rows one by one, in little memory for each; *began* is when this run did."""

    def __init__(self, began: float | None = None) -> None:
        self._began = began or 0.0
        self._states: Counter[JobState] = Counter()
        self._sources: Counter[str] = Counter()
        self._reasons: dict[tuple[JobState, str], _Refs] = {}
        self._took = array("d")
        self._ends = array("d")
        """Of each row that ended: when, whether it is done, and its credits."""
        self._credits = 0.0
        self._tasks = 0

    def add(self, row: Row) -> None:
        """Count a row."""
        self._states[row.state] += 1
        self._sources.update([row.source] if row.source else ())
        self._credits += row.credits or 0.0
        self._tasks += bool(row.task_id)
        if row.took_s is not None:
            self._took.append(row.took_s)
        if row.ended_at is not None:
            self._ends.extend(
                (row.ended_at, row.state in {JobState.DONE, JobState.NOT_SAVED}, row.credits or 0.0)
            )
        if row.state in _NEEDS_CARE:
            self._reasons.setdefault((row.state, plain_reason(row)), _Refs()).add(row.ref)

    def sums(self, totals: Totals | None = None) -> Sums:
        """Return the sums; *totals* is what the journal knows of all runs."""
        took, reasons = sorted(self._took), self._sorted_reasons()
        ends = list(zip(*[iter(self._ends)] * 3, strict=True))
        in_run = [spent for ended_at, _, spent in ends if ended_at >= self._began]
        return Sums(
            total=self._states.total(),
            states={state.value: self._states[state] for state in STATES_IN_ORDER if self._states[state]},
            sources=dict(self._sources),
            run_ended=len(in_run),
            run_credits=_rounded(math.fsum(in_run)),
            all_credits=_rounded(max(self._credits, totals.credits if totals else 0.0)),
            all_tasks=totals.tasks if totals else self._tasks,
            median_s=median(took) if took else None,
            slowest_s=took[math.ceil(0.9 * len(took)) - 1] if took else None,
            reasons=reasons[:_MOST_REASONS],
            more_reasons=max(0, len(reasons) - _MOST_REASONS),
            series=_series(ends) if ends else None,
        )

    def _sorted_reasons(self) -> list[Reason]:
        reasons = [
            Reason(state=state, text=text, count=refs.count, refs=refs.first)
            for (state, text), refs in self._reasons.items()
        ]
        return sorted(reasons, key=lambda reason: (_NEEDS_CARE.index(reason.state), -reason.count))


class _Refs:
    """The first refs of many, and their number."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, ref: str) -> None:
        self.count += 1
        if len(self.first) < _MOST_REFS:
            self.first.append(ref)


def _rounded(spent: float) -> float:
    return round(spent, 3)


def plain_reason(row: Row) -> str:
    """Return why a job is not done in words that are the same for all jobs of that kind."""
    text = row.reason
    if row.task_id:
        text = text.replace(f"task {row.task_id}", "the task").replace(row.task_id, "the task")
    if row.ref:
        text = text.replace(f"row {row.ref!r}", "the row").replace(repr(row.ref), "the row")
    text = _FILE_NAME.sub("the file", _PARTICULARS.sub("…", text))
    plain = " ".join(text.split()).removeprefix("the task failed: ").removeprefix("the file: ")
    return plain.removesuffix("; intent …")


def _series(ends: Sequence[tuple[float, ...]]) -> Series:
    first, last = min(ends)[0], max(ends)[0]
    step_s = _STEPS_S[min(bisect_right(_STEPS_S, (last - first) / _MOST_STEPS), len(_STEPS_S) - 1)]
    begin = first // step_s * step_s
    count = min(int((last - begin) // step_s) + 1, 10 * _MOST_STEPS)
    done, failed, prices = [0] * count, [0] * count, [0.0] * count
    for ended_at, is_done, price in ends:
        step = min(int((ended_at - begin) // step_s), count - 1)
        (done if is_done else failed)[step] += 1
        prices[step] += price
    sums = [_rounded(spent) for spent in accumulate(prices)]
    return Series(begin=begin, step_s=step_s, done=done, failed=failed, credits=sums)
