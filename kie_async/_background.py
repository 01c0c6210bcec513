"""Holds the background asyncio tasks of one owner; marks objects that live on one event loop only."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, NoReturn, TypeVar

_T = TypeVar("_T")


class BackgroundTasks:
    """The running tasks of one owner; *name* is what each is called in asyncio's own messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(list(self._running))  # a copy: those that end meanwhile leave the set

    def spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run *work* until it ends or the owner closes."""
        task = asyncio.get_running_loop().create_task(work, name=self._name)
        # The event loop holds a task only weakly: without this it could be collected while it runs.
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def drain(self) -> None:
        """Wait until none runs any more, those begun meanwhile included."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def aclose(self) -> None:
        """Cancel all that run and wait for their ends."""
        for task in self:
            task.cancel()
        await asyncio.gather(*self, return_exceptions=True)


class BoundToLoop:
    """An object of one event loop: a copy of it, or one made again from a pickle, could not work."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} belongs to one event loop and is neither copied nor pickled; "
            "what outlives it is a task id, for KieSession.attach"
        )
