"""Keeps what could not be noted while the database was away, and notes it in order when it is back."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any

import attrs

from .._background import BackgroundTasks
from ..errors import JournalAway, JournalError
from .postgres_database import PASSING, Job, PostgresDatabase

_AGAIN_S = 0.5

_LAST_S = 5.0
"""So long the close waits for a database that is away."""

_log = logging.getLogger("kie_async")


@attrs.define(eq=False)
class _LateNote:
    what: str
    job: Job[Any]
    waiter: asyncio.Future[None]


class LateNotes:
    """Notes that are true whether or not the database is there, such as an id or an end."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._late: deque[_LateNote] = deque()
        self._background = BackgroundTasks("kie_async late notes")

    async def note(self, what: str, job: Job[Any], *, patience_s: float) -> None:
        """Run *job*; if the database is away for *patience_s*, it is run as soon as that is back.

        What was noted before goes first: an end must not overtake the id it belongs to.

        Raises:
            JournalAway: It is not noted yet.
            JournalError: It was refused.
        """
        if not self._late:
            noting = self._database.start(job, patience_s=patience_s)
            noting.add_done_callback(partial(self._keep, what, job))  # it is true for who is cancelled, too
            await asyncio.shield(noting)
            return
        waiter = self._add(what, job)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.shield(waiter)
                return
        raise JournalAway(f"{self._database.label} cannot be reached; {what} is noted as soon as it can")

    def _keep(self, what: str, job: Job[Any], noting: asyncio.Task[Any]) -> None:
        """Note later what could not be noted for now."""
        if not noting.cancelled() and isinstance(noting.exception(), PASSING):
            self._add(what, job)

    def _add(self, what: str, job: Job[Any]) -> asyncio.Future[None]:
        waiter = asyncio.get_running_loop().create_future()
        waiter.add_done_callback(_take_error)
        self._late.append(_LateNote(what, job, waiter))
        if not self._background:
            self._background.spawn(self._catch_up())
        return waiter

    async def _catch_up(self) -> None:
        while self._late:
            note = self._late[0]
            try:
                await self._database.run(note.job, is_last=True)
            except PASSING:
                await asyncio.sleep(_AGAIN_S)
                continue
            except JournalError as exc:
                _log.error("%s could not be noted: %s", note.what, exc)
                _end(note, exc)
            else:
                _end(note, None)
            self._late.popleft()

    async def aclose(self) -> None:
        """Note what can be noted, and name what cannot."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_S):
                await self._background.drain()
        await self._background.aclose()
        for note in self._late:
            _log.critical("not noted in %s: %s", self._database.label, note.what)
            note.waiter.cancel()
        self._late.clear()


def _end(note: _LateNote, error: JournalError | None) -> None:
    if note.waiter.done():
        return
    note.waiter.set_exception(error) if error is not None else note.waiter.set_result(None)


def _take_error(waiter: asyncio.Future[None]) -> None:
    """Have nobody complain of an error that whoever waited gave up on: it is logged."""
    if not waiter.cancelled():
        waiter.exception()
