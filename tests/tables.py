"""Tables whose rows share one test: what fails is named row by row, and rows may wait side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

_T = TypeVar("_T")


async def each(rows: Collection[_T], check: Callable[[_T], Awaitable[None]], *, at_once: int = 1) -> None:
    """Check every row, *at_once* of them at a time; raise all that failed together, each with its name."""
    place, failed = asyncio.Semaphore(at_once), list[tuple[_T, Exception]]()

    async def check_one(row: _T) -> None:
        async with place:
            try:
                await check(row)
            except Exception as exc:
                failed.append((row, exc))

    assert rows, "a table without rows checks nothing"
    await asyncio.gather(*map(check_one, rows))
    if failed:
        names = "".join(f"\n  {row}" for row, _ in failed)
        raise ExceptionGroup(f"{len(failed)} of {len(rows)} rows failed:{names}", [exc for _, exc in failed])
