"""An event loop whose time stands still until a test lets it pass; sockets work on it as always.

Nothing is patched: the loop's clock is the only one the package asks for intervals. A test that wants
it asks for the fixture ``clock``.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable


class SteeredLoop(asyncio.SelectorEventLoop):
    """A loop that starts at second 1000 and stays there, but while `Clock.advance` is awaited."""

    patience_s = 0.001
    """How long sockets may speak up before time jumps; 0 where all of them belong to this loop."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.advancing = 0
        self.threads = 0
        """How many threads are at work that will speak up: until then no time passes."""
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


class _Selector(selectors.DefaultSelector):
    """Jumps to the next timer instead of waiting for it, once no socket has anything to say."""

    def __init__(self, loop: SteeredLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._loop.threads:
            return super().select(None if timeout is None or timeout > 0 else timeout)
        if not self._loop.advancing or timeout is None or timeout <= 0:
            return super().select(timeout)
        has_sockets = len(self.get_map()) > 1  # the loop's own pipe is always there
        if events := super().select(self._loop.patience_s if has_sockets else 0):
            return events
        self._loop.now += timeout
        return []


class Clock:
    """What a test steers the time with."""

    def __init__(self, loop: SteeredLoop) -> None:
        self._loop = loop

    @property
    def now(self) -> float:
        return self._loop.now

    async def advance(self, seconds: float) -> None:
        """Let so much time pass; all timers on the way fire in their order."""
        self._loop.advancing += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._loop.advancing -= 1

    def jump(self, seconds: float) -> None:
        """Wake up so much later, as after a suspend: nothing ran in between."""
        self._loop.now += seconds


async def settle(rounds: int = 20) -> None:
    """Let everything run that is ready to."""
    for _ in range(rounds):
        await asyncio.sleep(0)


async def eventually(holds: Callable[[], object], *, rounds: int = 200_000) -> None:
    """Wait until *holds*, by turns of the loop: also where time stands still."""
    for _ in range(rounds):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never happened")
