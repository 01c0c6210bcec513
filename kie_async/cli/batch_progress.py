"""Shows how far a batch has come on standard error: a board on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from operator import attrgetter
from typing import Protocol

import attrs
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..events import Weather
from .output import format_duration, format_spent, make_printable, print_err

_WIDEST_BAR, _NARROWEST_BAR = 40, 10

_GAP = "  "

_SHORT_WORDS = {
    "unreachable": "no connection",
    "held back": "held back by the service",
    "no answer": "no answer",
    "unanswered": "no answer",
    "uploads": "uploads fail",
    "downloads": "downloads fail",
    "disk": "the disk is full",
    "journal": "the database is away",
}
"""What the weather is called on a board; the log has the whole of it."""


@attrs.frozen(kw_only=True)
class Board:
    """What there is to show of a batch at one moment."""

    total: int
    done: int
    failed: int
    """Failed or refused."""
    perhaps_paid: int
    running: int
    waiting: int
    """Not sent yet."""
    waits_for: str
    """Empty if nothing more is sent."""
    credits: float
    left_s: float | None = None
    """How long it may still take; None while that is not known."""
    weather: tuple[Weather, ...] = ()

    def parts(self, now: datetime) -> list[str]:
        """Return what is to be said, the most important first."""
        over = f"{self.done} done"
        over += f", {self.failed} failed" if self.failed else ""
        over += f", {self.perhaps_paid} perhaps paid" if self.perhaps_paid else ""
        parts = [f"{over} of {self.total}"]
        waiting = [f"{self.running} running"] if self.running else []
        if self.waiting:
            waiting.append(
                f"{self.waiting} " + (f"waiting for {self.waits_for}" if self.waits_for else "not sent")
            )
        waiting += _show_all(self.weather, now)
        parts += [", ".join(waiting)] if waiting else []
        parts.append(format_spent(self.credits))
        # How long it may take is anybody's guess while nothing gets on.
        if self.left_s is not None and not self.weather:
            parts.append(f"{format_duration(self.left_s)} left")
        return parts

    def bar(self, width: int) -> Text:
        """Return a bar that tells done from failed also without colour."""
        done, failed = (int(width * count / self.total) for count in (self.done, self.failed))
        failed = min(max(failed, self.failed > 0), width - done)
        bar = Text("[")
        bar.append("#" * done, style="green").append("x" * failed, style="red")
        return bar.append("." * (width - done - failed), style="dim").append("]")


def _show_all(weather: Iterable[Weather], now: datetime) -> list[str]:
    """Return what there is to say of the weather; of two with the same words the one that lasts longer."""
    shown: dict[str, str] = {}
    for each in sorted(weather, key=attrgetter("since")):
        shown.setdefault(_SHORT_WORDS.get(each.kind, each.kind), show_weather(each, now))
    return list(shown.values())


def show_weather(weather: Weather, now: datetime) -> str:
    """Return what keeps a batch from getting on, and for how long already, in a few words."""
    if weather.kind == "halted":
        until = "" if weather.until is None else f", next try at {weather.until.astimezone():%H:%M}"
        return f"creates halted{until}"
    lasts = format_duration(max(0.0, (now - weather.since).total_seconds()))
    return f"{_SHORT_WORDS.get(weather.kind, weather.kind)} for {lasts}"


def lay_out(board: Board, width: int, now: datetime) -> Text:
    """Return the board in as many lines as it takes at this width."""
    parts = board.parts(now)
    bar_width = max(_NARROWEST_BAR, min(_WIDEST_BAR, width - len(parts[0]) - len(_GAP) - 2))
    text, used = board.bar(bar_width), bar_width + 2
    for part in parts:
        if used + len(_GAP) + len(part) <= width:
            text.append(_GAP + part)
            used += len(_GAP) + len(part)
        else:
            lines = textwrap.wrap(part, width)
            text.append("".join(f"\n{line}" for line in lines))
            used = len(lines[-1])
    return text


class BatchProgress(Protocol):
    """Shows the board of a batch, and lines that stay."""

    interval_s: float
    """How often to call `show`."""

    def show(self, board: Board) -> None:
        """Show how it stands, in place of what was shown before."""

    def print_line(self, line: str) -> None:
        """Print a line that stays."""


@contextmanager
def open_progress(*, is_quiet: bool = False) -> Iterator[BatchProgress]:
    """Yield a board if standard error is a terminal that can draw one, else lines; nothing if *is_quiet*."""
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    if is_quiet:
        yield _NoProgress()
    elif not sys.stderr.isatty() or console.is_dumb_terminal:
        yield LineProgress()
    else:
        live = Live(console=console, auto_refresh=False, transient=True)
        try:
            yield _LiveBoard(live)
        finally:
            live.stop()


class _NoProgress:
    interval_s = 3600.0

    def show(self, board: Board) -> None:
        """Show nothing."""

    def print_line(self, line: str) -> None:
        """Print nothing; what matters is said at the end."""


def _now() -> datetime:
    return datetime.now().astimezone()


class LineProgress:
    """Prints a line with the time, each ten seconds and at each change of the weather."""

    interval_s = 10.0

    def __init__(self, now: Callable[[], datetime] = _now) -> None:
        self._now = now

    def show(self, board: Board) -> None:
        """Print how it stands."""
        self.print_line("; ".join(board.parts(self._now())))

    def print_line(self, line: str) -> None:
        """Print a line with the time."""
        print_err(f"{self._now():%H:%M:%S} {line}")


class _LiveBoard:
    interval_s = 0.5

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, board: Board) -> None:
        self._live.start()  # only now: before it, a question may have been asked
        text = lay_out(board, self._live.console.width, _now())
        self._live.update(text, refresh=True)

    def print_line(self, line: str) -> None:
        # Through rich, which draws the board again below it; written past rich it would land in the board.
        self._live.console.print(make_printable(" ".join(line.split())), soft_wrap=True)
