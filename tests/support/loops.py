"""The event loops that the suite and the campaigns run on: asyncio's, the same with eager tasks, uvloop."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

_T = TypeVar("_T")
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def _eager(new_loop: LoopFactory) -> asyncio.AbstractEventLoop:
    loop = new_loop()
    loop.set_task_factory(vars(asyncio)["eager_task_factory"])  # from Python 3.12 on
    return loop


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    loop = uvloop.new_event_loop()
    loop.run_until_complete(_listen())  # from its first server on it keeps a descriptor in reserve: no leak
    return loop


async def _listen() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    server.close()
    await server.wait_closed()


def eager(new_loop: LoopFactory) -> LoopFactory:
    """Return what makes the same loop with tasks that begin at once."""
    return partial(_eager, new_loop)


def as_asked(new_loop: LoopFactory) -> LoopFactory:
    """Return what makes a loop of a test's own, with eager tasks if those were asked for."""
    return eager(new_loop) if ASKED_FOR == "eager" else new_loop


LOOPS: dict[str, LoopFactory] = {
    "plain": asyncio.new_event_loop,
    "eager": eager(asyncio.new_event_loop),
    "uvloop": _uvloop,
}
ASKED_FOR = os.environ.get("KIE_TESTS_LOOP", "plain")
"""One of `LOOPS`, for the suite, and for a campaign that is not told another."""


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a campaign be run on another loop."""
    parser.add_argument("--loop", choices=LOOPS, default=ASKED_FOR)


def run_on(name: str, work: Coroutine[Any, Any, _T]) -> _T:
    """Run *work* to its end on the loop of that name."""
    with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
        return runner.run(work)
