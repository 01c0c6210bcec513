"""Figures with their spread and their bars, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
OUR_CORE, THEIR_CORE = CORES[0], CORES[-1]
"""Where the measured process runs, and where what it talks to."""
DISTURBED = 0.1
"""The share of the wanted time on a core that strangers may take from a round that counts."""


@attrs.frozen(kw_only=True)
class Figure:
    """Something measured several times."""

    name: str
    values: Sequence[float]
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    aims_at: float | None = None
    """What its bar is on the way to."""
    goal: str = ""
    """The goal its bar belongs to: P1 and so on."""

    @property
    def median(self) -> float:
        """Return the middle value."""
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        """Return whether the median is within its bars."""
        low = self.at_least is None or self.median >= self.at_least
        return low and (self.at_most is None or self.median <= self.at_most)

    @property
    def is_reached(self) -> bool:
        """Tell whether the median is where its bar is on the way to."""
        if self.aims_at is None:
            return self.is_met
        return self.median >= self.aims_at if self.at_least is not None else self.median <= self.aims_at

    def row(self) -> tuple[str, str, str, str, str]:
        """Return the figure as text."""
        bar = ""
        if self.at_least is not None or self.at_most is not None:
            bars = (
                ("<=" if value == self.at_most else ">=", value) for value in (self.at_least, self.at_most)
            )
            words = " ".join(f"{word} {value:g}" for word, value in bars if value is not None)
            bar = f"{self.goal} {words} {'met' if self.is_met else 'MISSED'}".strip()
            bar += "" if self.is_reached or self.aims_at is None else f", goal {self.aims_at:g} not reached"
        return self.name, shown(self.median), self.unit, self._spread(), bar

    def _spread(self) -> str:
        """Return the quartiles, or the ends of a few values."""
        if len(self.values) < 2:
            return ""
        few = len(self.values) < 4
        ends = (min(self.values), max(self.values)) if few else statistics.quantiles(self.values, n=4)
        return f"{shown(ends[0])} to {shown(ends[-1])}"


def shown(value: float) -> str:
    """Return a number with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Return the parser every benchmark starts with."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=about)
    made.add_argument("--check", action="store_true", help="fail when a bar is missed")
    made.add_argument("--json", type=Path, help="write the figures there too")
    return made


def report(figures: Sequence[Figure], *, check: bool, to: Path | None) -> int:
    """Print the figures, write them, and return the exit status."""
    rows = [("", "median", "", "spread", "bar"), *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for name, *rest in rows:
        cells = [name.ljust(widths[0]), rest[0].rjust(widths[1])]
        cells += [cell.ljust(width) for cell, width in zip(rest[1:], widths[2:], strict=True)]
        print("  ".join(cells).rstrip())
    if to is not None:
        found = [
            attrs.asdict(figure) | {"median": figure.median, "is_met": figure.is_met} for figure in figures
        ]
        where = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        to.write_text(json.dumps({"where": where, "figures": found}, indent=1))
    missed = [figure.name for figure in figures if not figure.is_met]
    if missed:
        print(f"missed: {', '.join(missed)}")
    if short := [figure.name for figure in figures if figure.is_met and not figure.is_reached]:
        print(f"goal not reached: {', '.join(short)}")
    return 1 if check and missed else 0


def pin(core: int) -> None:
    """Keep this process on one core, where the system lets it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def resident(*, at_its_peak: bool = False) -> int:
    """Return the bytes of memory this process has, or the most it ever had."""
    wanted = "VmHWM:" if at_its_peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted))


def _scheduled_s(pids: Sequence[int | str]) -> tuple[float, float]:
    """Return for how long processes had a core, and for how long they were ready and had none."""
    ran = waited = 0
    for pid in pids:
        with suppress(OSError):
            on_core_ns, ready_ns, _ = Path(f"/proc/{pid}/schedstat").read_text("ascii").split()
            ran, waited = ran + int(on_core_ns), waited + int(ready_ns)
    return ran / 1e9, waited / 1e9


async def alternating(
    things: Mapping[str, Callable[[], Awaitable[float]]],
    *,
    rounds: int,
    beside: Sequence[int] = (),
    warms_up: bool = True,
) -> dict[str, list[float]]:
    """Measure things in turn, round by round, so that what else the machine does meets them alike.

    A round in which strangers took the core from this process, or from those *beside* it, is measured
    again; after a third as many rounds more the quietest count.
    """
    names, pids = list(things), ["self", *beside]
    taken: list[tuple[float, dict[str, float]]] = []
    quiet = 0
    for number in range(0 if warms_up else 1, rounds + rounds // 3 + 1):
        ran, waited = _scheduled_s(pids)
        values = {name: await things[name]() for name in (names if number % 2 else reversed(names))}
        ran_then, waited_then = _scheduled_s(pids)
        if not number:
            continue  # the first round warms up
        share = (waited_then - waited) / max(ran_then - ran + waited_then - waited, 1e-9)
        taken.append((share, values))
        quiet += share <= DISTURBED
        if quiet >= rounds:
            break
    taken.sort(key=lambda found: found[0])
    return {name: [values[name] for _, values in taken[:rounds]] for name in names}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


async def cpu_s(work: Callable[[], Awaitable[object]]) -> float:
    """Return the CPU seconds this process spends while *work* is awaited."""
    began = time.process_time()
    await work()
    return time.process_time() - began


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which *share* of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
