"""Runs the create fault table A1 to A30, plain and over TLS: prints each row, and how many were misjudged."""

from __future__ import annotations

import argparse
import platform

import aiohttp
from support.create_faults import Fault, judge, objection, rows
from support.create_situations import Situation, protest, see, situations
from support.loops import add_option, run_on


def main(argv: list[str]) -> int:
    """Run the table; the exit status says whether every verdict was right."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign faults", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--times", type=int, default=1, help="how often each row is run")
    add_option(parser)
    asked = parser.parse_args(argv)
    chosen = [row for row in table() if asked.only in str(row)]
    print(f"Python {platform.python_version()}, aiohttp {aiohttp.__version__}, {len(chosen)} rows")
    wrong = run_on(asked.loop, _run(chosen, asked.times))
    print(f"{wrong} misclassified")
    return 1 if wrong else 0


def table() -> list[Fault | Situation]:
    """Return every row, by its number."""
    return sorted([*rows(), *situations()], key=lambda row: int(row.id[1:]))


async def _run(chosen: list[Fault | Situation], times: int) -> int:
    wrong = 0
    for row in chosen:
        columns = []
        for way in row.ways:
            for _ in range(times):
                word, bodies, complaint = await _run_row(row, way)
                if complaint:
                    wrong += 1
                    print(f"MISCLASSIFIED {row}, {way}: {complaint}")
            columns.append(f"{way:11} {word:18} {bodies}")
        print(f"{row.id:4} {row.what:48} {'   '.join(columns)}")
    return wrong


async def _run_row(row: Fault | Situation, way: str) -> tuple[str, int, str]:
    """Return a row's verdict, the bodies seen, and what is wrong with them."""
    if isinstance(row, Situation):
        seen = await see(row, way)
        return seen.word, seen.bodies, protest(row, seen, way)
    found = await judge(row, way)
    return found.word, found.bodies, objection(row, found, way=way)
