"""``python -m benchmarks [NAME ...] [--check] [--json PATH]``: a module each; without NAME all but the slow.

Several run in a process of their own each. The summary says of every goal whether all its bars were met.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HELPERS = {
    "clients",
    "cluster_worker",
    "deliveries",
    "dialects",
    "emulated",
    "emulator",
    "estimated",
    "floor",
    "load",
    "measuring",
    "simulated",
    "tls",
}
SLOW = {"peers", "plot"}
TOGETHER = {"estimate", "limiter", "makespan", "memory", "query_speed", "schedule_sim"}
"""They count bytes or run in virtual time, and so do not disturb each other."""
GOALS = [f"P{number}" for number in range(1, 14)]


def names() -> list[str]:
    """Return the benchmarks there are."""
    found = {module.name for module in pkgutil.iter_modules([str(HERE)])}
    return sorted(name for name in found - HELPERS if name[0] != "_")


def run_apart(name: str) -> dict[str, Any] | None:
    """Run one benchmark in a process of its own; return what it wrote, None if it broke."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        wrote = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks", name, "--json", str(wrote)]
        printed = subprocess.run(
            command, cwd=HERE.parent, check=False, stdout=subprocess.PIPE, text=True
        ).stdout
        found: dict[str, Any] | None = json.loads(wrote.read_text()) if wrote.exists() else None
    took = f"{time.monotonic() - began:.0f} s{'' if found else ', it broke'}"
    print(f"--- {name}, {took}\n{printed}", flush=True)
    return found


def run_each(wanted: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """Run benchmarks one after the other, then those side by side that may be."""
    found = {name: run_apart(name) for name in wanted if name not in TOGETHER}
    together = [name for name in wanted if name in TOGETHER]
    with ThreadPoolExecutor(2) as pool:
        found |= zip(together, pool.map(run_apart, together), strict=True)
    return dict(sorted(found.items()))


def judged(found: dict[str, dict[str, Any] | None]) -> dict[str, list[str]]:
    """Return which bars were missed of each goal; a bar of no goal stands under the name of its benchmark."""
    missed: dict[str, list[str]] = {}
    for name, written in found.items():
        if written is None:
            missed[name] = ["it broke"]
            continue
        for figure in written["figures"]:
            if figure["at_least"] is not None or figure["at_most"] is not None:
                of_goal = missed.setdefault(figure["goal"] or name, [])
                if not figure["is_met"]:
                    of_goal.append(f"{name}: {figure['name']}, {figure['median']:.4g}")
    return missed


def summary(missed: dict[str, list[str]], goals: Sequence[str] = GOALS) -> str:
    """Return a line for every goal, and one for each benchmark that has bars of its own."""
    lines = []
    for goal in [*goals, *sorted(set(missed) - set(goals))]:
        if goal not in missed:
            lines.append(f"{goal:<10} not measured")
        else:
            lines.append(f"{goal:<10} {'MISSED  ' + '; '.join(missed[goal]) if missed[goal] else 'met'}")
    return "\n".join(lines)


def run_several(argv: Sequence[str]) -> int:
    """Run those that are named, by default all but the slow ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *names()], help=", ".join(names()))
    parser.add_argument("--check", action="store_true", help="fail when a bar is missed")
    parser.add_argument("--json", type=Path, help="write all figures there")
    asked = parser.parse_args(argv)
    found = run_each(asked.names or [name for name in names() if name not in SLOW])
    missed = judged(found)
    print(summary(missed, [] if asked.names else GOALS))
    if not asked.names:
        print(f"{'not run':<10} {', '.join(sorted(SLOW & set(names())))}: python -m benchmarks NAME")
    if asked.json is not None:
        whole = {"at": datetime.now(UTC).isoformat(), "benchmarks": found, "missed": missed}
        asked.json.write_text(json.dumps(whole, indent=1))
    return 1 if asked.check and any(missed.values()) else 0


def main(argv: list[str]) -> int:
    """Run one benchmark with the rest of the arguments, or several."""
    if argv and argv[0] in names() and not set(argv[1:]) & set(names()):
        status: int = importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:])
        return status
    if argv and not argv[0].startswith("-") and argv[0] not in names():
        print(f"there is no benchmark {argv[0]}; there are: {', '.join(names())}")
        return 2
    return run_several(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
