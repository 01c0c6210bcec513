"""Checks that the peak memory of a batch does not grow with its length, journal on disk.

``python -m tests.campaign memory 1000 100000`` prints the peak of each run, and their ratio. Each run is
a process of its own, against a stub in another one that answers at once and remembers nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kie_async import KieSession, Limits, PollSchedule, Rate, TaskRequest

ROOT = Path(__file__).parent.parent.parent
MAX_RATIO = 1.10


async def run(url: str, rows: int, *, with_refs: bool) -> dict[str, float]:
    """Run a batch of so many rows; return its peak memory in MiB and what it took."""

    def requests() -> Iterator[TaskRequest]:
        for row in range(rows):
            ref = f"row-{row}" if with_refs else None
            yield TaskRequest(model="sandbox/echo", input={"prompt": f"{row}: {'x' * 500}"}, ref=ref)

    limits = Limits(create=Rate(10**6, per_s=0.001), query=Rate(10**6, per_s=0.001), create_connections=16)
    poll = PollSchedule(learns=False, first_s=0.01, tiers=((math.inf, 0.05),), jitter=0.0)
    began, good = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        async with KieSession(
            "key", base_url=url, journal=f"{folder}/run.db", max_in_flight=300, limits=limits, poll=poll
        ) as kie:
            async for outcome in kie.batch(requests()):
                good += outcome.ok
            creates = kie.stats().creates
    assert good == creates == rows, (good, creates)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "peak_mib": round(peak_mib, 2), "seconds": round(time.perf_counter() - began, 1)}


def measure(rows: int, *, with_refs: bool = False) -> dict[str, float]:
    """Return what `run` in a fresh process returns."""
    here = [sys.executable, "-m", "tests.campaign"]
    with subprocess.Popen([*here, "stub"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as stub:
        try:
            assert stub.stdout is not None
            url = stub.stdout.readline().strip()
            refs = ["--refs"] if with_refs else []
            command = [*here, "memory", "--url", url, *refs, str(rows)]
            printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        finally:
            stub.kill()
    found: dict[str, float] = json.loads(printed)
    return found


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign memory", description=__doc__)
    parser.add_argument("rows", type=int, nargs="*", default=[1000, 100_000])
    parser.add_argument("--refs", action="store_true", help="rows with refs of their own")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.url:
        print(json.dumps(asyncio.run(run(options.url, options.rows[0], with_refs=options.refs))))
        return 0
    found = []
    for rows in options.rows:
        found.append(measure(rows, with_refs=options.refs))
        print(found[-1], flush=True)
    ratio = found[-1]["peak_mib"] / found[0]["peak_mib"]
    print(f"ratio {ratio:.3f}, allowed {MAX_RATIO}")
    return 0 if ratio <= MAX_RATIO else 1
