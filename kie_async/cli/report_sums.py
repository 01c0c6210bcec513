"""Sums up the rows of a report: by state, by reason and over time, in credits and in USD."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from statistics import median

import attrs

from .report_data import STATES, Row, Spent

USD_PER_CREDIT = 0.005

_NEEDS_CARE = ("perhaps paid", "failed", "refused", "done, not saved", "not sent")
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

    state: str
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


def sum_up(rows: Sequence[Row], *, began: float | None = None, spent: Spent | None = None) -> Sums:
    """Return the sums; *began* is when this run did, *spent* what the journal knows of all runs."""
    states = Counter(row.state for row in rows)
    in_run = [row for row in rows if began is None or (row.ended_at or 0.0) >= began]
    took = sorted(row.took_s for row in rows if row.took_s is not None)
    spent_here = math.fsum(row.credits or 0.0 for row in rows)
    reasons = _reasons(rows)
    return Sums(
        total=len(rows),
        states={state: states[state] for state in STATES if states[state]},
        sources=dict(Counter(row.source for row in rows if row.source)),
        run_ended=sum(row.ended_at is not None for row in in_run),
        run_credits=math.fsum(row.credits or 0.0 for row in in_run if row.ended_at is not None),
        all_credits=max(spent_here, spent.credits) if spent else spent_here,
        all_tasks=spent.tasks if spent else sum(bool(row.task_id) for row in rows),
        median_s=median(took) if took else None,
        slowest_s=took[math.ceil(0.9 * len(took)) - 1] if took else None,
        reasons=reasons[:_MOST_REASONS],
        more_reasons=max(0, len(reasons) - _MOST_REASONS),
        series=_series([row for row in rows if row.ended_at is not None]),
    )


def _reasons(rows: Iterable[Row]) -> list[Reason]:
    refs: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.state in _NEEDS_CARE:
            refs.setdefault((row.state, plain_reason(row)), []).append(row.ref)
    reasons = [
        Reason(state=state, text=text, count=len(found), refs=found[:_MOST_REFS])
        for (state, text), found in refs.items()
    ]
    return sorted(reasons, key=lambda reason: (_NEEDS_CARE.index(reason.state), -reason.count))


def plain_reason(row: Row) -> str:
    """Return why a job is not done in words that are the same for all jobs of that kind."""
    text = row.reason
    if row.task_id:
        text = text.replace(f"task {row.task_id}", "the task").replace(row.task_id, "the task")
    if row.ref:
        text = text.replace(repr(row.ref), "the row")
    text = _FILE_NAME.sub("the file", _PARTICULARS.sub("…", text))
    return " ".join(text.split()).removeprefix("the task failed: ").removeprefix("the file: ")


def _series(ended: Sequence[Row]) -> Series | None:
    times = [row.ended_at or 0.0 for row in ended]
    if not times:
        return None
    length = max(times) - min(times)
    step_s = _STEPS_S[min(bisect_right(_STEPS_S, length / _MOST_STEPS), len(_STEPS_S) - 1)]
    begin = min(times) // step_s * step_s
    count = min(int((max(times) - begin) // step_s) + 1, 10 * _MOST_STEPS)
    done, failed, prices = [0] * count, [0] * count, [0.0] * count
    for row, at in zip(ended, times, strict=True):
        step = min(int((at - begin) // step_s), count - 1)
        (done if row.state.startswith("done") else failed)[step] += 1
        prices[step] += row.credits or 0.0
    sums = [round(spent, 3) for spent in accumulate(prices)]
    return Series(begin=begin, step_s=step_s, done=done, failed=failed, credits=sums)
