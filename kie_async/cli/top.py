"""``kie-async top``: shows how a batch stands by its journal, also while it runs elsewhere."""

from __future__ import annotations

import asyncio
import heapq
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated

import attrs
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..journal.intents import Intent
from ..models import JobState
from .journal_place import JournalArgument, JournalPlace, check_there
from .output import count_of, format_duration, format_spent, make_printable, print_out
from .report_sums import STATES_IN_ORDER
from .runtime import DONE, run_command
from .sessions import CannotRunNow, open_journal

_MOST_RUNNING, _MOST_FAILURES = 10, 5

REFRESH_S = 2.0

Every = Annotated[float, typer.Option("--every", min=0.2, metavar="S", help="Read it again each S seconds.")]


def top(
    *,
    place: JournalArgument,
    every: Every = REFRESH_S,
    once: Annotated[bool, typer.Option("--once", help="Show it once, and leave.")] = False,
) -> None:
    """Show how the jobs of a journal stand: by state, what runs for how long, the last failures, credits.

    Sends nothing, needs no key, and disturbs nobody who uses the journal. Ctrl-C ends it. Where standard
    output is no terminal it is shown once.
    """
    check_there(place, "JOURNAL")
    is_live = sys.stdout.isatty() and not once
    run_command(show_live(lambda: read_overview(place), every) if is_live else _show_once(place))


@attrs.define
class Overview:
    """What a journal says at one moment."""

    counts: Counter[JobState] = attrs.field(factory=Counter)
    credits: float = 0.0
    oldest: list[tuple[int, str, str]] = attrs.field(factory=list)
    """Of those that run: when they were planned, ref, task id."""
    failures: deque[tuple[int, JobState, str, str]] = attrs.field(
        factory=lambda: deque(maxlen=_MOST_FAILURES)
    )
    """The last ones: when they ended, failed or refused, ref, reason."""

    def lines(self, now_s: float) -> Iterator[str]:
        """Yield what there is to say."""
        kinds = "; ".join(f"{self.counts[state]} {state}" for state in STATES_IN_ORDER if self.counts[state])
        yield f"{count_of(self.counts.total(), 'job')}{': ' if kinds else ''}{kinds}"
        yield format_spent(self.credits)
        for place, (planned_ms, ref, task_id) in enumerate(self.oldest, start=1):
            age_s = max(0.0, now_s - planned_ms / 1000)
            yield f"running  {place:>3}  {format_duration(age_s):>7}  {ref}  {task_id}"
        if (more := self.counts[JobState.RUNNING] - len(self.oldest)) > 0:
            yield f"running  and {more} more, younger"
        for ended_ms, state, ref, reason in reversed(self.failures):
            ago_s = max(0.0, now_s - ended_ms / 1000)
            yield f"{state:<7}  {format_duration(ago_s):>7} ago  {ref}  {reason}"


async def read_overview(place: JournalPlace) -> Overview:
    """Return what a journal says now.

    Raises:
        CannotRun: It is no journal, or cannot be read.
    """
    overview = Overview()
    running: list[tuple[int, str, str]] = []
    failed: list[tuple[int, str, Intent]] = []
    async with open_journal(place) as source:
        async for intent in source.iterate_intents():
            overview.credits += intent.credits or 0.0
            if intent.is_superseded:  # a later attempt is how its job stands
                continue
            overview.counts[intent.job_state] += 1
            if intent.job_state is JobState.RUNNING:
                running.append((intent.planned_ms, _name(intent), intent.task_id))
            elif intent.job_state in {JobState.FAILED, JobState.REFUSED}:
                _keep_last(failed, (intent.terminal_ms or intent.planned_ms, intent.intent_id, intent))
        for ended_ms, _, intent in sorted(failed):
            # The rows of an iteration come without their records, which may be large.
            whole = await source.find_by_task(intent.task_id) if intent.task_id else None
            overview.failures.append((ended_ms, intent.job_state, _name(intent), _reason(whole or intent)))
    overview.oldest = heapq.nsmallest(_MOST_RUNNING, running)
    return overview


def _keep_last(kept: list[tuple[int, str, Intent]], item: tuple[int, str, Intent]) -> None:
    add = heapq.heappush if len(kept) < _MOST_FAILURES else heapq.heappushpop
    add(kept, item)


def _name(intent: Intent) -> str:
    return intent.ref or intent.intent_id


def _reason(intent: Intent) -> str:
    record = intent.read_end()
    said = (record.fail_code, record.fail_message) if record else (str(intent.code or ""), intent.reason)
    return " ".join(" ".join(said).split())


async def _show_once(place: JournalPlace) -> int:
    for line in (await read_overview(place)).lines(time.time()):
        print_out(line)
    return DONE


async def show_live(read: Callable[[], Awaitable[Overview]], every_s: float) -> int:
    """Show an overview in place, again and again, until cancelled by Ctrl-C, which is the ordinary end.

    A database that goes away after it was seen once is waited for.
    """
    console = Console(markup=False, highlight=False, emoji=False)
    with Live(console=console, auto_refresh=False) as live:
        overview: Overview | None = None
        while True:
            problem = []
            try:
                try:
                    overview = await read()
                except CannotRunNow as exc:
                    if overview is None:
                        raise
                    problem = [str(exc)]
                lines = [*overview.lines(time.time()), *problem]
                text = "\n".join(make_printable(line) for line in lines)
                live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
                await asyncio.sleep(every_s)
            except asyncio.CancelledError:
                return DONE
