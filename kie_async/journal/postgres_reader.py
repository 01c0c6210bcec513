"""Reads a journal on PostgreSQL: of all workers, as their last commits have it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from .._validation import check_count
from ..limits.prices import TakenPrices
from . import postgres_queries as sql
from .intents import Claim, ClaimSource, Intent, Totals
from .notes import decode_note
from .postgres_database import PostgresDatabase
from .shared import SharedJournal

_SETTLED_CHUNK = 100
"""How many are read at once; their records are whole."""


class PostgresReader(SharedJournal):
    """The half of a journal on PostgreSQL that changes nothing."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._db = database

    async def _select(self, where: str, *values: object) -> list[Intent]:
        return await self._db.run(lambda db: sql.select_intents(db, where, *values))

    async def _fetch(self, query: str, *values: object) -> list[Any]:
        return await self._db.run(lambda db: db.fetch(query, *values))

    async def find_by_ref(self, ref: str) -> Intent | None:
        """Return the intent that has a ref, unless the ref may be used again."""
        found = await self._select("i.ref = $1", ref)
        return found[0] if found and not found[0].frees_its_ref else None

    async def list_unsettled(self) -> list[Intent]:
        """Return the intents with a task that was not seen to end, of all workers."""
        return await self._select("i.state = 'CREATED'")

    async def list_intents(self) -> list[Intent]:
        """Return all intents in the order they were planned."""
        return await self._select("true")

    async def iterate_intents(self, *, chunk: int = 500) -> AsyncIterator[Intent]:
        """Yield all intents in the order they were planned, in bounded memory: without body and record.

        Raises:
            JournalError: It cannot be read any more.
        """
        check_count("chunk", chunk)
        last = 0
        while rows := await self._fetch(sql.SELECT_CHUNK, last, chunk):
            for row in rows:
                yield sql.intent_of(row)
            last = rows[-1]["seq"]

    async def iterate_settled(self, *, since_ms: int = 0, ref_prefix: str = "") -> AsyncIterator[Intent]:
        """Yield the intents whose task ended since then, the oldest end first, in bounded memory.

        Raises:
            JournalError: It cannot be read any more.
        """
        last = (since_ms, 0)  # no seq is 0, so what ended in that millisecond comes too
        while rows := await self._fetch(sql.SELECT_SETTLED, *last, ref_prefix, _SETTLED_CHUNK):
            for row in rows:
                yield sql.intent_of(row)
            last = (rows[-1]["terminal_ms"], rows[-1]["seq"])

    async def find_by_task(self, task_id: str) -> Intent | None:
        """Return the intent that became a task."""
        found = await self._select("i.task_id = $1", task_id)
        return found[0] if found else None

    async def list_last_results(self, count: int) -> list[Intent]:
        """Return the last *count* intents whose task succeeded."""
        last = "SELECT seq FROM intent WHERE state = 'SUCCEEDED' ORDER BY seq DESC LIMIT $1"
        return await self._select(f"i.seq IN ({last})", count)

    async def find_by_intent(self, intent_id: str) -> Intent | None:
        """Return an intent."""
        found = await self.read_intents([intent_id])
        return found[0] if found else None

    async def read_intents(self, intent_ids: Sequence[str]) -> list[Intent]:
        """Return these intents as they stand now; those that are not there are left out."""
        return await self._select("i.intent_id = ANY($1)", list(intent_ids))

    async def list_claims(self) -> list[Claim]:
        """Return what is claimed of intents that have no task, in the order it was noted."""
        rows = await self._fetch("SELECT intent_id, task_id, source FROM claim ORDER BY number")
        return [
            Claim(intent_id=row["intent_id"], task_id=row["task_id"], source=ClaimSource(row["source"]))
            for row in rows
        ]

    async def load_totals(self) -> Totals:
        """Return what was spent by all workers."""
        return Totals(*(await self._fetch(sql.TOTALS))[0])

    async def load_prices(self) -> Mapping[str, TakenPrices]:
        """Return what the tasks of each model took, of all workers."""
        rows = await self._fetch(sql.SELECT_PRICES)
        return {model: TakenPrices(*(price or 0.0 for price in prices)) for model, *prices in rows}

    async def load_durations(self) -> Mapping[str, object]:
        """Return what former sessions learned of each model; what cannot be read is left out."""
        rows = await self._fetch("SELECT model, durations FROM learned")
        learned = {model: decode_note(durations) for model, durations in rows}
        return {model: durations for model, durations in learned.items() if durations is not None}
