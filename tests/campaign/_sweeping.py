"""What the campaigns share that try one thing at many points: the sweep, and its command."""

from __future__ import annotations

import argparse
import logging
import platform
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
from support.loops import add_option, run_on

_Point = TypeVar("_Point")


class Seen(Protocol):
    """How one point ended, and what was wrong with it."""

    @property
    def word(self) -> str: ...

    @property
    def objection(self) -> str: ...


async def sweep_points(
    points: Iterable[_Point], probe: Callable[[_Point, Path], Awaitable[Seen]]
) -> tuple[Counter[str], list[str]]:
    """Run the points; return how they ended and what was wrong."""
    words: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for point in points:
            seen = await probe(point, Path(folder))
            words[seen.word] += 1
            if seen.objection:
                wrong.append(f"{point}: {seen.objection}")
    return words, wrong


def run_sweep(
    argv: list[str],
    name: str,
    description: str | None,
    sweep: Callable[[int, int], Coroutine[Any, Any, tuple[Counter[str], list[str]]]],
) -> int:
    """Run the command of a sweep; the exit status says whether anything was wrong."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.campaign {name}", description=description)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    add_option(parser)
    asked = parser.parse_args(argv)
    logging.getLogger("kie_async").setLevel(logging.CRITICAL)
    print(f"Python {platform.python_version()}, aiohttp {aiohttp.__version__}, {asked.points} points")
    words, wrong = run_on(asked.loop, sweep(asked.points, asked.seed))
    for word, count in words.most_common():
        print(f"{count:6} {word or 'WRONG'}")
    for complaint in wrong:
        print(f"WRONG {complaint}")
    print(f"{len(wrong)} wrong")
    return 1 if wrong else 0
