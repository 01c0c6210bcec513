"""Every row of the create fault table, plain and over TLS: one line each, and how many were misjudged."""

from __future__ import annotations

import argparse
import asyncio
import platform

import aiohttp
from create_faults import Fault, judge, objection, rows


def main(argv: list[str]) -> int:
    """Run the table; the exit status tells whether every verdict was right."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign faults", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--times", type=int, default=1, help="how often each row is run")
    asked = parser.parse_args(argv)
    chosen = [fault for fault in rows() if asked.only in str(fault)]
    print(f"Python {platform.python_version()}, aiohttp {aiohttp.__version__}, {len(chosen)} rows")
    wrong = asyncio.run(_run(chosen, asked.times))
    print(f"{wrong} misclassified")
    return 1 if wrong else 0


async def _run(chosen: list[Fault], times: int) -> int:
    wrong = 0
    for fault in chosen:
        columns = []
        for over in fault.over:
            for _ in range(times):
                found = await judge(fault, over)
                if complaint := objection(fault, found):
                    wrong += 1
                    print(f"MISCLASSIFIED {fault}, {over}: {complaint}")
            columns.append(f"{over:5} {found.word:18} {found.bodies}")
        print(f"{fault.id:4} {fault.what:48} {'   '.join(columns)}")
    return wrong
