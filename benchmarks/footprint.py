"""Measures the size of an install and the cost of an import, beside aiohttp, in fresh processes on Linux."""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import re
import sys
import tomllib
import zipfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from .measuring import Figure, alternating, parser, ratios, report

ROUNDS = 10
_ROOT = Path(__file__).parent.parent
_IMPORT_SCRIPT = """
import sys, time
began = time.process_time()
for name in sys.argv[1:]:
    __import__(name)
spent = time.process_time() - began
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(spent * 1000, int(status["VmRSS"].split()[0]) / 1024)
"""


async def imported(*names: str) -> tuple[float, float]:
    """Return the CPU milliseconds of an import in a fresh process, and the resident MB after it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _IMPORT_SCRIPT, *names), cwd=_ROOT, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    spent, resident = printed.split()
    return float(spent), float(resident)


async def imports(rounds: int) -> list[Figure]:
    """Return import times and memory of aiohttp and of all of ours."""
    resident: dict[str, list[float]] = {}

    def one(name: str) -> Callable[[], Awaitable[float]]:
        async def work() -> float:
            spent, memory = await imported(name)
            resident.setdefault(name, []).append(memory)
            return spent

        return work

    found = await alternating({name: one(name) for name in ("aiohttp", "kie_async")}, rounds=rounds)
    figures = [Figure(name=f"import {name}", values=values, unit="CPU ms") for name, values in found.items()]
    figures += [
        Figure(name=f"import {name}, resident", values=values, unit="MB") for name, values in resident.items()
    ]
    share = ratios(found["kie_async"], found["aiohttp"])
    more = ratios(resident["kie_async"], resident["aiohttp"])
    return [
        *figures,
        Figure(name="import kie_async / import aiohttp", values=share, unit="of its CPU time"),
        Figure(name="resident, kie_async / aiohttp", values=more, unit="of its memory"),
    ]


def wheel_bytes() -> int:
    """Return the size of the package's files, packed as a wheel packs them."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in sorted((_ROOT / "kie_async").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                wheel.write(path, path.relative_to(_ROOT))
    return len(packed.getvalue())


def with_all_below(names: Iterable[str]) -> set[str]:
    """Return the installed distributions that *names* need, themselves among them; no extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.split(r"[^\w.-]", waiting.pop(), maxsplit=1)[0].lower().replace("_", "-")
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another Python or another system
        found.add(name)
        waiting += [need for need in needs if "extra ==" not in need]
    return found


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; it has no bars."""
    options = parser("footprint", __doc__)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    asked = options.parse_args(argv)
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = project["dependencies"]
    figures = [
        *asyncio.run(imports(asked.rounds)),
        Figure(name="wheel", values=[wheel_bytes() / 1024], unit="KB"),
        Figure(name="dependencies, named", values=[len(named)], unit="distributions"),
        Figure(
            name="dependencies, with all below", values=[len(with_all_below(named))], unit="distributions"
        ),
        Figure(name="of these for aiohttp alone", values=[len(with_all_below(["aiohttp"]))], unit=""),
    ]
    return report(figures, check=asked.check, to=asked.json)
