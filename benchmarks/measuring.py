"""Figures with their spread and their bars, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
OUR_CORE, THEIR_CORE = CORES[0], CORES[-1]
"""Where the measured process runs, and where what it talks to."""


@attrs.frozen(kw_only=True)
class Figure:
    """Something measured several times."""

    name: str
    values: Sequence[float]
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        """Return the middle value."""
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        """Tell whether the median is within its bars."""
        low = self.at_least is None or self.median >= self.at_least
        return low and (self.at_most is None or self.median <= self.at_most)

    def row(self) -> tuple[str, str, str, str, str]:
        """Return the figure as text."""
        bar = ""
        if self.at_least is not None or self.at_most is not None:
            word, value = (">=", self.at_least) if self.at_least is not None else ("<=", self.at_most)
            bar = f"{word} {value:g} {'met' if self.is_met else 'MISSED'}"
        spread = f"{shown(min(self.values))} to {shown(max(self.values))}" if len(self.values) > 1 else ""
        return self.name, shown(self.median), self.unit, spread, bar


def shown(value: float) -> str:
    """Return a number with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Return the parser every benchmark starts with."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=about)
    made.add_argument("--check", action="store_true", help="fail when a bar is missed")
    made.add_argument("--json", type=Path, help="write the figures there too")
    return made


def tell(figures: Sequence[Figure], *, check: bool, to: Path | None) -> int:
    """Print the figures, write them, and return the exit status."""
    rows = [("", "median", "", "spread", "bar"), *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for name, *rest in rows:
        cells = [name.ljust(widths[0]), rest[0].rjust(widths[1])]
        cells += [cell.ljust(width) for cell, width in zip(rest[1:], widths[2:], strict=True)]
        print("  ".join(cells).rstrip())
    if to is not None:
        found = [attrs.asdict(figure) | {"median": figure.median} for figure in figures]
        where = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        to.write_text(json.dumps({"where": where, "figures": found}, indent=1))
    missed = [figure.name for figure in figures if not figure.is_met]
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if check and missed else 0


def pin(core: int) -> None:
    """Keep this process on one core, where the system lets it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


async def alternating(
    things: dict[str, Callable[[], Awaitable[float]]], *, rounds: int
) -> dict[str, list[float]]:
    """Measure things in turn, round by round, so that what else the machine does meets them alike."""
    found: dict[str, list[float]] = {name: [] for name in things}
    names = list(things)
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            value = await things[name]()
            if number:  # the first round warms up
                found[name].append(value)
    return found


async def cpu_s(work: Callable[[], Awaitable[object]]) -> float:
    """Return the CPU seconds this process spends while *work* is awaited."""
    began = time.process_time()
    await work()
    return time.process_time() - began


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which *share* of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
