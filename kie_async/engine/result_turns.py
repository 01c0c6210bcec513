"""Settles which worker of a shared journal fetches a result, so that each is fetched once."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs

from ..errors import JournalError
from ..journal.notes import log_failed_note
from ..journal.shared import SharedJournal

_FETCH_WITHIN_S = 900.0
"""So long nobody else fetches what a worker fetches; if it dies, no longer than until that is known."""

_ASK_AGAIN_S = 1.0

_log = logging.getLogger("kie_async")


@attrs.frozen
class Saved:
    """Where the files of a result are: here, or at another host."""

    files: tuple[Path, ...] = ()
    by: str = ""
    """The other host that saved them, and its folder; empty if they are here."""


class ResultTurns:
    """Lets one worker fetch a result, and tells the others that it did.

    Whoever fetches into the folder that has the files, of the same host, finds them there.
    """

    def __init__(self, journal: SharedJournal, folder: Path) -> None:
        self._journal = journal
        self._place = f"{socket.gethostname()}:{os.path.abspath(folder)}"

    async def fetch(self, task_id: str, fetch: Callable[[], Awaitable[tuple[Path, ...]]]) -> Saved:
        """Return what *fetch* returns, or who else has fetched the result of a task.

        While the database is away everybody fetches: the other way round a result might be lost.

        Raises:
            DownloadFailed: From *fetch*; then others may try.
        """
        try:
            by = await self._begin(task_id)
        except JournalError as exc:
            _log.info("another host may fetch the result of task %s too: %s", task_id, exc)
            return Saved(await fetch())
        if by:
            return Saved(by=by)
        try:
            files = await fetch()
            with log_failed_note(f"where the result of task {task_id} is"):
                await self._journal.mark_saved(task_id, self._place)
            return Saved(files)
        finally:
            with log_failed_note(f"that the result of task {task_id} is not being fetched any more"):
                await self._journal.end_turn(_key_of(task_id))

    async def _begin(self, task_id: str) -> str:
        """Return who else has saved a result; "" when it is this worker's turn to fetch it."""
        while True:
            by = await self._other_saver(task_id)
            if by or await self._journal.take_turn(_key_of(task_id), _FETCH_WITHIN_S):
                break
            await asyncio.sleep(_ASK_AGAIN_S)
        # Whoever had the turn before may just have saved it.
        if not by and (by := await self._other_saver(task_id)):
            await self._journal.end_turn(_key_of(task_id))
        return by

    async def _other_saver(self, task_id: str) -> str:
        by = await self._journal.find_saver(task_id)
        return "" if by == self._place else by


def _key_of(task_id: str) -> str:
    return f"result:{task_id}"
