"""Keeps in the journal which speed of queries was refused, for the next session not to try it at once."""

from __future__ import annotations

from .._background import BackgroundTasks
from .._secrets import Secret
from ..config import Limits
from ..journal.account import account_digest
from ..journal.base import Journal
from ..limits.query_speed import QuerySpeed

_FOR_S = 86_400.0


class KeptQuerySpeed(QuerySpeed):
    """A speed that begins where the last session of the account was taken back to, within a day.

    The service's origin and the account's secret are in the key of the note, which shows neither.
    """

    def __init__(self, limits: Limits, journal: Journal, *, account: Secret, origin: str) -> None:
        super().__init__(limits.query, limits.query_ceiling)
        self._journal = journal
        self._name = f"query_speed:{account_digest(account, 'query_speed', origin).hex()}"
        self._known: object = None
        self._saving = BackgroundTasks("kie_async speed")

    async def recall(self, now: float) -> None:
        """Take in what the journal knows, if another session has noted it."""
        if (note := await self._journal.recall(self._name)) != self._known:
            self._known = note
            self.restore(note, now)

    def note_refused(self, task_id: str, sent_at: float, now: float) -> bool:
        """Take in a 429, and note what it has changed."""
        is_of_all = super().note_refused(task_id, sent_at, now)
        self._save()
        return is_of_all

    async def drain(self) -> None:
        """Wait until all is noted."""
        self._save()
        await self._saving.drain()

    def _save(self) -> None:
        if (note := self.take_note()) is not None:
            self._known = dict(note)
            self._saving.spawn(self._journal.remember(self._name, dict(note), for_s=_FOR_S))
