"""How far a batch has come, for people: a bar where the terminal can draw one, else a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .runtime import say, without_key


class Board(Protocol):
    """Shows a number that grows, and words that change."""

    every_s: float
    """How often it wants to be told."""

    def show(self, over: int, total: int, words: str) -> None:
        """Show how far the batch has come."""

    def tell(self, line: str) -> None:
        """Show a line that stays."""


@contextmanager
def open_board() -> Iterator[Board]:
    """Return a board on standard error."""
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield _Lines()
        return
    columns = BarColumn(bar_width=20), TextColumn("{task.completed} of {task.total}: {task.fields[words]}")
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress)


class _Lines:
    every_s = 10.0

    def show(self, over: int, total: int, words: str) -> None:
        say(f"{over} of {total}: {words}")

    def tell(self, line: str) -> None:
        say(line)


class _Bar:
    every_s = 0.5

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar = progress.add_task("", total=None, words="starting")

    def show(self, over: int, total: int, words: str) -> None:
        self._progress.update(self._bar, completed=over, total=total, words=words)

    def tell(self, line: str) -> None:
        self._progress.console.print(without_key(" ".join(line.split())), soft_wrap=True)
