"""Says that this worker lives, and who else does: a row of each, a heartbeat, a lease."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from ..errors import JournalAway, JournalError
from .postgres_connections import Connection
from .postgres_database import UNFLUSHED, PostgresDatabase
from .postgres_queries import OPEN_STATES
from .shared import NewsSink

HEARTBEATS_A_LEASE = 3.3
"""So that a lease of 10 s outlives two heartbeats that are lost."""

_BEAT_WITHIN_S = 3.0

_JUST_AFTER_S = 0.02

_REGISTER = "INSERT INTO worker(id, host, pid) VALUES ($1, $2, $3)"

# max(seq) shows a server that forgot commits, after a failover. One that forgets a heartbeat has just
# started, and then nobody is taken for dead.
_BEAT = f"""
UPDATE worker SET seen_at = clock_timestamp() WHERE id = $1
RETURNING
  (SELECT count(*) FROM worker WHERE seen_at > clock_timestamp() - make_interval(secs => $2)) AS alive,
  (SELECT coalesce(max(seq), 0) FROM intent) AS highest, (SELECT accepted_at FROM meta) AS accepted_at,
  (SELECT extract(epoch FROM min(seen_at) - clock_timestamp())::float8 + $2
   FROM worker WHERE id <> $1) AS quietest_left_s,
  clock_timestamp() AS told_at, {UNFLUSHED}
"""  # noqa: S608  (made of constants)

_KEEP_MINE = f"UPDATE intent SET worker = $1 WHERE worker = $2 AND state IN {OPEN_STATES}"  # noqa: S608

_IS_UP_LONG = "SELECT clock_timestamp() - pg_postmaster_start_time() > make_interval(secs => $1)"

_DISTRUST = "UPDATE meta SET distrust = $1 WHERE distrust = ''"

_log = logging.getLogger("kie_async")


def uptime() -> float:
    """Return seconds on a clock that goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Membership:
    """This worker among the others: its id, its lease, and what makes it stop creating.

    Its id is new with each start, and when it was silent for so long that others took its tasks over.
    """

    def __init__(self, database: PostgresDatabase, lease_s: float, channel: str) -> None:
        self._database = database
        self.lease_s = lease_s
        self._channel = channel
        self.alive = 1
        """Workers that were alive at the last heartbeat, this one included."""
        self.is_listening = False
        self._beat_at = -math.inf
        self._steady_since = math.inf
        self._highest = 0
        self._trusted_at: datetime | None = None
        """When the server was last seen to know all that this worker does, by its clock."""
        self._sink: NewsSink | None = None
        self._pulse: asyncio.Task[None] | None = None

    @property
    def worker_id(self) -> str:
        """Return who this worker is now; empty while it takes no part."""
        return self._database.worker_id

    # --- open and close ------------------------------------------------------------------------

    async def register(self, db: Connection) -> None:
        """Take part, under a new id."""
        self._database.act_as(secrets.token_hex(12))
        self._beat_at, self._steady_since = uptime(), math.inf
        host = socket.gethostname().encode("ascii", "replace").decode()[:64]
        await db.execute(_REGISTER, self.worker_id, host, os.getpid())

    def listen(self, sink: NewsSink) -> None:
        """Tell *sink* from now on what others note; what they noted before, it has missed."""
        self._sink = sink
        sink.note_missed()

    def start(self) -> None:
        """Begin to say that it lives."""
        self._pulse = asyncio.get_running_loop().create_task(self._beat_on(), name="kie_async heartbeat")

    async def aclose(self) -> None:
        """Leave at once, so that others take over without waiting for the lease."""
        if self._pulse is not None:
            self._pulse.cancel()
            with suppress(asyncio.CancelledError):
                await self._pulse
        if self.worker_id and self._database.is_open:
            worker_id = self.worker_id

            async def leave(db: Connection) -> None:
                await db.execute("DELETE FROM worker WHERE id = $1", worker_id)
                await db.execute("SELECT pg_notify($1, 'gone')", self._channel)

            with suppress(JournalError):
                await self._database.run(leave, is_last=True)
            self._database.act_as("")

    # --- may it send ---------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """Tell whether no other worker can have taken this one for dead."""
        return uptime() - self._beat_at < self.lease_s

    def check_alive(self, worker_id: str) -> None:
        """Refuse to go on with what was begun under *worker_id* once that may be taken for dead.

        Raises:
            JournalAway: It may.
        """
        if worker_id != self.worker_id or not self.is_alive:
            # It passes: the next heartbeat that is answered makes it a new worker.
            raise JournalAway(
                f"this worker was silent for longer than its lease of {self.lease_s:g} s, so another one may "
                "have taken its tasks over; what it was about to send was not sent"
            )

    @property
    def highest(self) -> int:
        """Return the number of the latest intent that this worker knows to be committed."""
        return self._highest

    def check_trust(self, known: int, highest: int, distrust: str) -> None:
        """Refuse a database that has forgotten what was committed; *known* is `highest` before it was asked.

        Raises:
            JournalError: It has.
        """
        if distrust or highest < known:
            raise JournalError(
                f"{self._database.label} has lost what was committed ({distrust or _lost(known, highest)}): "
                "nothing is sent; find out which tasks are missing, then say: kie-async journal accept URL"
            )

    def note_seq(self, seq: int) -> None:
        """Take in that an intent of this number was committed."""
        self._highest = max(self._highest, seq)

    @property
    def may_sweep(self) -> bool:
        """Tell whether a silence of others is theirs: this one has had answers for a whole lease."""
        return self.is_alive and uptime() - self._steady_since >= self.lease_s

    async def is_server_steady(self, db: Connection) -> bool:
        """Tell whether the server is up for a lease: else all workers were silent, and none is dead."""
        return bool(await db.fetchval(_IS_UP_LONG, self.lease_s))

    # --- the pulse -----------------------------------------------------------------------------

    async def _beat_on(self) -> None:
        while True:
            try:
                connection = await self._database.connect()
            except JournalError:
                self._steady_since = math.inf
                await self._pause()
                continue
            has_beaten = False
            try:
                await self._beat_with(connection)
            except JournalError as exc:
                has_beaten = self._steady_since < math.inf
                _log.info("the connection that listens was lost: %s", exc)
            finally:
                self.is_listening, self._steady_since = False, math.inf
                await self._database.disconnect(connection)
            if not has_beaten:
                await self._pause()  # the next one may be refused as fast

    async def _pause(self) -> None:
        await asyncio.sleep(min(1.0, self.lease_s / HEARTBEATS_A_LEASE))

    async def _beat_with(self, connection: Connection) -> None:
        """Beat on one connection, and listen on it, until it is lost."""
        await self._database.listen(connection, self._channel, self._on_notification)
        self.is_listening = True
        if self._sink is not None:
            self._sink.note_missed()  # nobody knows what was told while no one listened
        while True:
            begun_at, known = uptime(), self._highest
            values = (self.worker_id, self.lease_s)
            beat = await self._database.fetch_row(connection, _BEAT, *values, within_s=_BEAT_WITHIN_S)
            if beat is None:
                await self._join_again()
            else:
                self._beat_at, self._steady_since = begun_at, min(self._steady_since, begun_at)
                self.alive = max(1, beat["alive"])
                await self._compare(known, beat)
            await asyncio.sleep(self._pause_after(beat))

    def _pause_after(self, beat: Mapping[str, Any] | None) -> float:
        """Return how long to wait: another one's lease may end before the next heartbeat is due."""
        pause_s = self.lease_s / HEARTBEATS_A_LEASE
        left_s: float | None = None if beat is None else beat["quietest_left_s"]
        if left_s is None:
            return pause_s
        if left_s > 0:
            return min(pause_s, left_s + _JUST_AFTER_S)
        if self._sink is not None:
            self._sink.note_gone()
        return pause_s

    async def _join_again(self) -> None:
        """Go on as a new worker: this one was taken for dead."""
        former, silent_s = self.worker_id, uptime() - self._beat_at
        _log.warning(
            "this worker was silent for %.0f s, longer than its lease of %g s: others have taken its tasks "
            "over; what it was about to send is not sent",
            silent_s,
            self.lease_s,
        )

        async def job(db: Connection) -> None:
            await self.register(db)
            await db.execute(_KEEP_MINE, self.worker_id, former)

        await self._database.run(job)
        if self._sink is not None:
            self._sink.note_missed()

    async def _compare(self, known: int, beat: Mapping[str, Any]) -> None:
        """Find out whether the server has forgotten what this worker saw."""
        highest, accepted_at = beat["highest"], beat["accepted_at"]
        is_accepted = accepted_at and self._trusted_at and accepted_at > self._trusted_at
        if highest < known and not is_accepted:
            why = _lost(known, highest)
            _log.critical("%s has lost what was committed: %s; nothing is sent", self._database.label, why)
            await self._database.run(lambda db: db.execute(_DISTRUST, why))
            return
        # A create of this worker may be committed since the server was asked.
        self._highest = highest if is_accepted else max(self._highest, highest)
        self._trusted_at = beat["told_at"]

    def _on_notification(self, _: object, __: int, ___: str, payload: object) -> None:
        if self._sink is None:
            return
        kind, _, rest = str(payload).partition(" ")
        if kind == "intent":
            self._sink.note_news(rest)
        elif kind == "delivery" and rest == self.worker_id:
            self._sink.note_deliveries()
        elif kind == "gone":
            self._sink.note_missed()


def _lost(known: int, highest: int) -> str:
    return f"it had {known} creates and has {highest}"
