"""Runs a campaign on the loop asked for: asyncio's, the same with eager tasks, or uvloop."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def _eager() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    eager: Any = vars(asyncio)["eager_task_factory"]  # from Python 3.12 on
    loop.set_task_factory(eager)
    return loop


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "plain": asyncio.new_event_loop,
    "eager": _eager,
    "uvloop": _uvloop,
}


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a campaign be run on another loop."""
    parser.add_argument("--loop", choices=LOOPS, default="plain")


def run_on(name: str, work: Coroutine[Any, Any, _T]) -> _T:
    """Run *work* to its end on the loop of that name."""
    with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
        return runner.run(work)
