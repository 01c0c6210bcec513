"""Shows the demo: progress bars where the terminal can draw them, else plain lines, and the report."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .demo_report import Job, Report
from .output import escape_marks, format_number

_FILE_WIDTH = 120


class DemoProgress(Protocol):
    """Shows how far the jobs of a demo have come."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, job: Job) -> None:
        """Show that *job* has come further."""


def make_console() -> Console:
    """Return the console of standard output: without colours and at a fixed width if it is a file."""
    if sys.stdout.isatty():
        return Console(markup=False, highlight=False, emoji=False)
    # FORCE_COLOR and COLUMNS must not put escape codes or narrow lines into a file.
    return Console(
        markup=False, highlight=False, emoji=False, force_terminal=False, no_color=True, width=_FILE_WIDTH
    )


def make_progress(console: Console, jobs: Sequence[Job]) -> DemoProgress:
    """Return bars for a terminal that can draw, lines for everything else."""
    if console.is_terminal and not console.is_dumb_terminal:
        return BarProgress(console, jobs)
    return LineProgress(console, jobs)


class LineProgress:
    """One line for each job that is over."""

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self._console = console
        self._jobs = jobs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, job: Job) -> None:
        """Show *job* if it is over."""
        if not job.is_over:
            return
        over = sum(one.is_over for one in self._jobs)
        by = f", told by {job.source}" if job.source else ""
        self._print(f"{over:>3} of {len(self._jobs)}: job {job.number} {job.outcome}{_after(job)}{by}")

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)
        self._console.file.flush()


class BarProgress:
    """Three bars: created, settled, saved."""

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._created, self._settled, self._saved = (
            self._progress.add_task(name, total=len(jobs), note="")
            for name in ("created", "settled", "saved")
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, job: Job) -> None:
        """Move the bars to the counts of all jobs."""
        settled = [one for one in self._jobs if one.settled_at is not None]
        by = Counter(one.source for one in settled if one.source)
        note = ", ".join(f"{count} by {source}" for source, count in sorted(by.items()))
        created = sum(one.created_at is not None for one in self._jobs)
        self._progress.update(self._created, completed=created)
        self._progress.update(self._settled, completed=len(settled), note=note)
        self._progress.update(self._saved, completed=sum(one.file is not None for one in self._jobs))


def show_report(console: Console, report: Report) -> None:
    """Print the table of the jobs, and the summary."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("job", "state", "took", "told by", "credits"):
        is_number = name in {"job", "took", "credits"}
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    table.add_column("file", overflow="fold")
    for job in report.jobs:
        table.add_row(*_cells(job), style=None if job.file else "red")
    console.print(table)
    style = "bold" if report.is_complete else "bold red"
    console.print(report.summary(), soft_wrap=not console.is_terminal, style=style)


def _cells(job: Job) -> tuple[str, ...]:
    took = "" if job.seconds is None else f"{job.seconds:.1f} s"
    last = job.file.name if job.file else job.error
    return str(job.number), job.outcome, took, job.source, format_number(job.credits), escape_marks(last)


def _after(job: Job) -> str:
    return "" if job.seconds is None else f" after {job.seconds:.1f} s"
