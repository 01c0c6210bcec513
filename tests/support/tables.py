"""Tables whose rows share one test: what fails is named row by row, and rows may wait side by side."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")
_LONGEST_NAME = 200


async def each(rows: Collection[_T], check: Callable[[_T], Awaitable[None]], *, at_once: int = 1) -> None:
    """Check every row, *at_once* of them at a time; raise all that failed together, each with its name."""
    place, failed = asyncio.Semaphore(at_once), list[tuple[_T, Exception]]()

    async def check_one(row: _T) -> None:
        async with place:
            try:
                await check(row)
            except Exception as exc:
                failed.append((row, exc))

    await asyncio.gather(*map(check_one, rows))
    _raise(failed, len(rows))


def together(names: str | tuple[str, ...], rows: Iterable[Any], *, at_once: int = 1) -> Callable[[Any], Any]:
    """Stand in for ``pytest.mark.parametrize`` where no row needs anything of its own: they are one test."""
    arguments = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    table = list(rows)

    def given(row: Any) -> dict[str, Any]:
        return dict(zip(arguments, row if len(arguments) > 1 else (row,), strict=True))

    def decorate(check: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(check)
        async def wait(*args: Any, **fixtures: Any) -> None:
            await each(table, lambda row: check(*args, **fixtures, **given(row)), at_once=at_once)

        @functools.wraps(check)
        def run(*args: Any, **fixtures: Any) -> None:
            failed = []
            for row in table:
                try:
                    check(*args, **fixtures, **given(row))
                except Exception as exc:
                    failed.append((row, exc))
            _raise(failed, len(table))

        test = wait if inspect.iscoroutinefunction(check) else run
        signature = inspect.signature(check)
        left = [value for name, value in signature.parameters.items() if name not in arguments]
        test.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return test

    return decorate


def _raise(failed: list[tuple[Any, Exception]], count: int) -> None:
    assert count, "a table without rows checks nothing"
    if failed:
        names = "".join(f"\n  {str(row)[:_LONGEST_NAME]}" for row, _ in failed)
        raise ExceptionGroup(f"{len(failed)} of {count} rows failed:{names}", [exc for _, exc in failed])
