"""Compares our client with others: the same tasks, each client on its own protocol, one service for all.

A task takes 2 to 8 seconds; polls come every 3 seconds, unless a row says otherwise. Every client
runs in a fresh process on one core, the service on another. Nothing is installed by this: the SDKs come
with ``pip install 'kie_async[bench]'``, and what is missing is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import attrs

from . import tls
from .clients import HMAC_KEY
from .emulator import Emulator
from .measuring import Figure, parser, quantile, report

ROOT = Path(__file__).parent.parent
DURATIONS = ("uniform", 2.0, 8.0)
EVERY_S, LIMIT_S = 3.0, 60.0
SIZES = {200: 20.0, 1000: 100.0}
"""So many tasks, paced at so many a second."""
BARS = {
    "at once": {"httpx": 0.03},
    "paced": {"httpx": 0.5, "replicate": 0.5, "runwayml": 0.35, "fal": 0.35},
}
JUDGED = 1000
"""Goals are for so many tasks and more."""


@attrs.frozen(kw_only=True)
class Entrant:
    """A client, and how the table calls it."""

    client: str
    name: str
    package: str = ""
    """What must be installed."""
    habit: str = ""
    """How often it polls by default, if that is worth a row."""

    @property
    def version(self) -> str | None:
        """Return the installed version, None if it is not installed."""
        try:
            return version(self.package or "kie_async")
        except PackageNotFoundError:
            return None

    @property
    def title(self) -> str:
        """Return the name as the table shows it."""
        return f"{self.name} {self.version}" if self.package else self.name


ENTRANTS = [
    Entrant(client="callbacks", name="**kie_async**, callbacks"),
    Entrant(client="polling", name="**kie_async**, polling", habit="schedule"),
    Entrant(client="aiohttp", name="loop by hand, aiohttp", package="aiohttp"),
    Entrant(client="httpx", name="loop by hand, httpx", package="httpx"),
    Entrant(client="replicate", name="replicate", package="replicate", habit="0.5 s"),
    Entrant(client="runwayml", name="runwayml", package="runwayml", habit="6 s"),
    Entrant(client="openai", name="openai", package="openai", habit="1 s"),
    Entrant(client="fal", name="fal-client", package="fal-client", habit="0.1 s"),
]


@attrs.frozen(kw_only=True)
class Workload:
    """What all clients are given."""

    tasks: int
    per_s: float = 0.0
    """Zero: all at once."""
    durations: tuple[str, float, float] = DURATIONS
    every_s: float | None = EVERY_S
    """None: every client polls as it does by default."""

    @property
    def kind(self) -> str:
        """Return the key of its goals."""
        return "paced" if self.per_s else "at once"

    def __str__(self) -> str:
        return f"{self.tasks:,}, {f'{self.per_s:g} a second' if self.per_s else 'all at once'}"


@attrs.frozen(kw_only=True)
class Outcome:
    """What one run of one client came to."""

    finished: int
    is_over: bool
    wall_s: float
    cpu_s: float
    memory_mib: float
    requests: float
    """For each task."""
    late_mean_s: float
    late_p95_s: float
    failures: dict[str, int]


async def run(service: Emulator, entrant: Entrant, load: Workload, limit_s: float) -> Outcome:
    """Run one client in a process of its own."""
    await service.set(durations=load.durations, hmac_key=HMAC_KEY)
    options = ["--url", service.url, "--tasks", str(load.tasks), "--limit", str(limit_s)]
    options += ["--per-s", str(load.per_s)] if load.per_s else []
    options += [] if load.every_s is None else ["--every", str(load.every_s)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-m", "benchmarks.clients", entrant.client, *options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    answered, ended, stats = json.loads(printed), (await service.finished())["ended"], await service.stats()
    lags = [seen - ended[task] for task, seen in answered["seen"].items()] or [float("nan")]
    asked = sum(count for name, count in stats.items() if "_" in name and name != "cpu_s")  # as routes have
    return Outcome(
        finished=len(answered["seen"]),
        is_over=answered["is_over"],
        wall_s=answered["wall_s"],
        cpu_s=answered["cpu_s"],
        memory_mib=answered["memory"] / 2**20,
        requests=asked / load.tasks,
        late_mean_s=statistics.fmean(lags),
        late_p95_s=quantile(lags, 0.95),
        failures=answered["failures"],
    )


@attrs.frozen(kw_only=True)
class Row:
    """All runs of one client under one load."""

    load: Workload
    entrant: Entrant
    runs: Sequence[Outcome]
    cpu_of_ours: Sequence[float]
    """Of the polling one of ours, in the same round."""

    @property
    def ratios(self) -> list[float]:
        """Return its CPU time as a multiple of ours; at least so much, where it did not come to an end."""
        return [run.cpu_s / ours for run, ours in zip(self.runs, self.cpu_of_ours, strict=True)]

    def cells(self) -> list[str]:
        """Return the row as the table shows it."""
        is_over = all(run.is_over for run in self.runs)
        least = "" if is_over else "> "

        def median(field: str) -> float:
            return statistics.median(getattr(run, field) for run in self.runs)

        finished = min(run.finished for run in self.runs)
        count = "all" if finished == self.load.tasks else f"**{finished:,}** of {self.load.tasks:,}"
        wall = f"{median('wall_s'):.1f}" if is_over else f"not in {median('wall_s'):.0f}"
        return [
            str(self.load),
            self.entrant.title + (f", its own {self.entrant.habit}" if self.load.every_s is None else ""),
            count,
            wall,
            f"{least}{median('cpu_s'):.2f}",
            f"{least}{_times(statistics.median(self.ratios))}",
            f"{median('memory_mib'):.0f}",
            f"{median('requests'):.1f}",
            *[f"{median(field):.3f}" if finished else "" for field in ("late_mean_s", "late_p95_s")],
        ]


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


HEADINGS = (
    *("tasks", "client", "finished", "took, s", "CPU, s", "CPU, ours polling = 1", "memory added, MiB"),
    *("requests a task", "end known after, s: mean", "95 % within"),
)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table, as Markdown."""
    cells = [list(HEADINGS), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    for number, line in enumerate(cells):
        padded = [
            text.ljust(width) if column < 3 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield f"| {' | '.join(padded)} |"
        if not number:
            rules = ["-" * (width + 1) + (":" if column >= 3 else "-") for column, width in enumerate(widths)]
            yield f"|{'|'.join(rules)}|"


def machine() -> str:
    """Return where and when this was measured."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.machine()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, CPython {platform.python_version()}, {platform.system()}, "
        f"{os.cpu_count()} cores of {cpu}: one for the client, one for the service, "
        f"{'over TLS' if tls.is_on() else 'plain HTTP'}"
    )


def workloads(tasks: int | None) -> list[Workload]:
    """Return the loads: all at once, paced, and paced with the SDKs left as they come."""
    sizes = SIZES if tasks is None else {tasks: tasks / 10}
    found = [Workload(tasks=count, per_s=pace) for count, per_s in sizes.items() for pace in (0.0, per_s)]
    few, per_s = min(sizes.items())
    return [*found, Workload(tasks=few, per_s=per_s, every_s=None)]


async def measured(
    entrants: Sequence[Entrant], loads: Sequence[Workload], *, rounds: int, limit_s: float
) -> list[Row]:
    """Run all clients under all loads, in turn; who did not come to an end is not asked again."""
    async with Emulator() as service:
        rows = []
        for load in loads:
            running = [entrant for entrant in entrants if entrant.habit or load.every_s is not None]
            rows += await compared(service, running, load, rounds=rounds, limit_s=limit_s)
        return rows


async def compared(
    service: Emulator, entrants: Sequence[Entrant], load: Workload, *, rounds: int, limit_s: float
) -> list[Row]:
    """Run all clients under one load, in turn."""
    found: dict[str, list[Outcome]] = {entrant.client: [] for entrant in entrants}
    for number in range(rounds):
        for entrant in entrants if number % 2 == 0 else reversed(entrants):
            runs = found[entrant.client]
            if all(run.is_over for run in runs):
                runs.append(await run(service, entrant, load, limit_s))
                print(f"{load}, {entrant.client}: {runs[-1]}", file=sys.stderr, flush=True)
    ours = [run.cpu_s for run in found["polling"]]
    return [
        Row(
            load=load,
            entrant=entrant,
            runs=found[entrant.client],
            cpu_of_ours=ours[: len(found[entrant.client])],
        )
        for entrant in entrants
    ]


def judged(rows: Sequence[Row]) -> list[Figure]:
    """Return the ratios that have a goal."""
    figures = []
    for row in rows:
        bar = BARS[row.load.kind].get(row.entrant.client)
        if bar is not None and row.load.every_s is not None:
            figures.append(
                Figure(
                    name=f"{row.load}: ours polling / {row.entrant.name}",
                    values=[1 / ratio for ratio in row.ratios],
                    unit="of its CPU time",
                    at_most=bar if row.load.tasks >= JUDGED else None,
                    goal="P1" if row.load.tasks >= JUDGED else "",
                )
            )
    ours = [row for row in rows if not row.entrant.package]
    lost = sum(row.load.tasks - run.finished for row in ours for run in row.runs)
    return [
        *figures,
        Figure(name="tasks of ours that did not finish", values=[lost], unit="", at_most=0, goal="P1"),
    ]


def main(argv: Sequence[str]) -> int:
    """Run the comparison; with ``--check`` the exit status says whether the goals were met."""
    options = parser("peers", __doc__)
    options.add_argument("--only", action="append", choices=[e.client for e in ENTRANTS], help="beside ours")
    options.add_argument("--tasks", type=int, help="instead of 200 and 1,000")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--limit-s", type=float, default=LIMIT_S, help="for each client")
    tls.add_option(options)
    asked = options.parse_args(argv)
    tls.begin(plain=asked.plain)
    wanted = [e for e in ENTRANTS if not asked.only or e.client in {"polling", *asked.only}]
    missing = [entrant.package for entrant in wanted if entrant.version is None]
    entrants = [entrant for entrant in wanted if entrant.version is not None]
    rows = asyncio.run(measured(entrants, workloads(asked.tasks), rounds=asked.rounds, limit_s=asked.limit_s))
    status = report(judged(rows), check=asked.check, to=asked.json)
    if missing:
        print(
            f"Not installed and left out: {', '.join(missing)}; pip install 'kie_async[bench]' brings them."
        )
    print(f"\n{machine()}.\nEach task takes 2 to 8 s. Polls come every 3 s, unless a row says otherwise.\n")
    print("\n".join(table(rows)))
    return 1 if asked.check and missing else status
