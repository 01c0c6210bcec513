"""Permits of creates as rows of the database: all workers of an account together keep to its limit."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable
from contextlib import suppress

import attrs

from .._background import BackgroundTasks
from ..config import Rate
from ..errors import JournalError
from .postgres_connections import Connection
from .postgres_database import UNFLUSHED, PostgresDatabase, Single, fetching

MAX_PERMITS = 10_000
"""Each is a row."""

_LONGEST_USE_S = 75.0
"""So long a create may be on its way: after that, and a window, the permit of a dead worker comes back."""

_SHORTEST_SLEEP_S = 0.005

_LONGEST_SLEEP_S = 1.0
"""Another worker may give a permit back unused at any time."""

_MAKE = """
INSERT INTO permit(kind, slot) SELECT $1, slot FROM generate_series(0, $2 - 1) AS slot ON CONFLICT DO NOTHING
"""

# On the disk with the note of the create that it is for, which is waited for before anything leaves. The wait
# is that of who gets none.
_TAKE = f"""
WITH taken AS (
  UPDATE permit SET worker = $2, back_at = clock_timestamp() + make_interval(secs => $4)
  WHERE kind = $1 AND slot = (
    SELECT slot FROM permit WHERE kind = $1 AND slot < $3 AND back_at <= clock_timestamp()
      AND NOT EXISTS (SELECT 1 FROM pause WHERE kind = $1 AND until > clock_timestamp())
    ORDER BY back_at LIMIT 1 FOR UPDATE SKIP LOCKED
  )
  RETURNING slot, {UNFLUSHED}
)
SELECT (SELECT slot FROM taken) AS slot, extract(epoch FROM greatest(
  (SELECT min(back_at) FROM permit WHERE kind = $1 AND slot < $3),
  (SELECT until FROM pause WHERE kind = $1)
) - clock_timestamp())::float8 AS wait_s
"""  # noqa: S608  (made of constants)

# If the server forgets it, the permit comes back later.
_GIVE_BACK = f"""
UPDATE permit SET worker = '', back_at = clock_timestamp() + make_interval(secs => $4)
WHERE kind = $1 AND slot = $2 AND worker = $3 RETURNING {UNFLUSHED}
"""  # noqa: S608  (made of constants)

_PAUSE = """
INSERT INTO pause AS p(kind, until) VALUES ($1, clock_timestamp() + make_interval(secs => $2))
ON CONFLICT (kind) DO UPDATE SET until = greatest(p.until, excluded.until)
"""

_log = logging.getLogger("kie_async")


@attrs.frozen
class _Permit:
    """One that is held: its place among all, and the name under which it was taken."""

    slot: int
    name: str


class SharedPermits:
    """Permits that come back ``per_s`` after the answer they were used for, by the database's clock.

    It is the `Permits` of creates; of one worker one at a time asks, so that none overtakes another there.
    """

    def __init__(self, database: PostgresDatabase, kind: str, rate: Rate) -> None:
        self._database = database
        self._kind = kind
        self._rate = rate
        self._held: list[_Permit] = []
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._now = asyncio.get_running_loop().time
        self._background = BackgroundTasks("kie_async permits")
        self._is_made = False
        self._on_release: Callable[[], object] | None = None

    def start(self, on_release: Callable[[], object]) -> None:
        """Call *on_release* whenever one of this worker may ask for a permit again."""
        self._on_release = on_release

    @property
    def free_count(self) -> int:
        """Return 1 if nobody of this worker asks: he who does waits for a permit in the database."""
        return 0 if self._turn.locked() else 1

    @property
    def free_in_s(self) -> float:
        """Return infinity: only the database knows."""
        return math.inf

    async def acquire(self) -> float:
        """Wait for a permit, in the order of the calls, and return when it came.

        Raises:
            JournalError: The database cannot be asked; no permit was taken.
        """
        try:
            return await self._acquire_in_turn()
        finally:
            if self._on_release is not None:
                self._on_release()

    async def _acquire_in_turn(self) -> float:
        async with self._turn:
            while True:
                self._changed.clear()
                permit, wait_s = await self._ask_once()
                if permit is not None:
                    self._held.append(permit)
                    return self._now()
                longest_s = min(_LONGEST_SLEEP_S, self._rate.per_s)
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(max(wait_s, _SHORTEST_SLEEP_S), longest_s)):
                        await self._changed.wait()

    async def _ask_once(self) -> tuple[_Permit | None, float]:
        """Take a permit, or tell how long to wait; what comes after a cancel goes back."""
        asking = self._database.start(Single(self._ask, self._ask) if self._is_made else self._make_and_ask)
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._background.spawn(self._give_back_late(asking))
            raise
        self._is_made = True  # not before the commit
        return answer

    async def _give_back_late(self, asking: asyncio.Task[tuple[_Permit | None, float]]) -> None:
        """Give back what comes for somebody who has left."""
        with suppress(JournalError):
            permit, _ = await asking
            if permit is not None:
                self._held.append(permit)
                self.release_unused()

    async def _make_and_ask(self, db: Connection) -> tuple[_Permit | None, float]:
        await db.execute(_MAKE, self._kind, self._rate.count)
        return await self._ask(db)

    async def _ask(self, db: Connection) -> tuple[_Permit | None, float]:
        """Take a permit, or tell how long to wait for one."""
        # A new name each time: what was given up, and is run late, must give back no permit but its own.
        name = secrets.token_hex(8)
        longest_s = _LONGEST_USE_S + self._rate.per_s
        (row,) = await db.fetch(_TAKE, self._kind, name, self._rate.count, longest_s)
        permit = None if row["slot"] is None else _Permit(row["slot"], name)
        return permit, row["wait_s"] or 0.0

    def release(self) -> float:
        """Give a permit back, to be used again ``per_s`` from now: its answer is here. Return now."""
        self._give_back(self._rate.per_s)
        return self._now()

    def release_unused(self) -> None:
        """Give a permit back at once: no request was sent with it."""
        self._give_back(0.0)

    def _give_back(self, after_s: float) -> None:
        # Which of them does not matter: all that are held were taken before this answer.
        permit = self._held.pop(0)
        self._background.spawn(self._do(_GIVE_BACK, self._kind, permit.slot, permit.name, after_s))

    def throttle(self, pause_s: float) -> None:
        """Let nobody through for so many seconds, in all workers; the longest of several pauses counts."""
        self._background.spawn(self._do(_PAUSE, self._kind, pause_s))

    def list_back_s(self) -> list[float]:
        """Return nothing: only the database knows what others use."""
        return []

    async def _do(self, statement: str, *values: object) -> None:
        try:
            await self._database.run(fetching(statement, *values), patience_s=_LONGEST_USE_S)
        except JournalError as exc:  # it comes back by itself, later
            _log.info("a permit could not be given back: %s", exc)
        self._changed.set()

    async def aclose(self) -> None:
        """Give back what is on its way back."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_SLEEP_S):
                await self._background.drain()
        await self._background.aclose()
