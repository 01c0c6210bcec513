"""Shows how far a batch has come on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .output import make_printable, print_err


class BatchProgress(Protocol):
    """Shows how many jobs have ended, with a text that changes."""

    interval_s: float
    """How often to call `show`."""

    def show(self, ended: int, total: int, text: str) -> None:
        """Show how many jobs have ended, in place of what was shown before."""

    def print_line(self, line: str) -> None:
        """Print a line that stays."""


@contextmanager
def open_progress() -> Iterator[BatchProgress]:
    """Yield a bar if standard error is a terminal that can draw one, else lines."""
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield _LineProgress()
        return
    columns = BarColumn(bar_width=20), TextColumn("{task.completed} of {task.total}: {task.fields[text]}")
    with Progress(*columns, console=console, transient=True) as progress:
        yield _BarProgress(progress)


class _LineProgress:
    interval_s = 10.0

    def show(self, ended: int, total: int, text: str) -> None:
        print_err(f"{ended} of {total}: {text}")

    def print_line(self, line: str) -> None:
        print_err(line)


class _BarProgress:
    interval_s = 0.5

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar = progress.add_task("", total=None, text="starting")

    def show(self, ended: int, total: int, text: str) -> None:
        self._progress.update(self._bar, completed=ended, total=total, text=text)

    def print_line(self, line: str) -> None:
        # Through rich, which draws the bar again below it; written past rich it would land in the bar.
        self._progress.console.print(make_printable(" ".join(line.split())), soft_wrap=True)
