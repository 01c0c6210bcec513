"""The process that is killed: a batch with refs, a journal and a receiver, that can die at named points.

It reads one job per line, forks for each, so that a restart costs no import, and says how it ended.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from support.loops import run_on

from kie_async import (
    CallbackReceiver,
    CreateOutcomeUnknown,
    KieError,
    KieSession,
    Limits,
    PollSchedule,
    Rate,
    SessionEvent,
    SqliteJournal,
    TaskRequest,
)

HMAC_KEY = "hmac-key-of-the-campaign"
_NO_LIMIT = Rate(10**6, per_s=0.001)
CONNECTIONS = 4
_LIMITS = Limits(create=_NO_LIMIT, query=_NO_LIMIT, create_connections=CONNECTIONS)
_POLL = PollSchedule(
    learns=False, first_s=0.1, tiers=((math.inf, 0.2),), safety_net_s=0.4, recheck_s=(0.05,), ring_gap_s=0.05
)
NOTES = ("sending", "created", "settled", "ended", "adopted", "claim")
POINTS = (
    "open.before",
    "open.after",
    *(f"{note}.{when}" for note in NOTES for when in ("before", "inside", "after")),
    "event.created",
    "event.settled",
    "event.unknown",
    "event.adopted",
)
"""Where it can die: around a note, inside its transaction, and when user code is called."""


def report(**news: Any) -> None:
    """Say something to the campaign, at once and in one piece."""
    os.write(1, json.dumps(news).encode() + b"\n")


class Death:
    """Comes when a point was reached so many times; *number* may also be the signal that freezes."""

    def __init__(self, point: str = "", nth: int = 0, number: int = signal.SIGKILL) -> None:
        self.set(point, nth, number)

    def set(self, point: str, nth: int, number: int = signal.SIGKILL) -> None:
        """Let it come there from now on."""
        self._point, self._left, self._number = point, nth, number

    def at(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if not self._left:
                report(died=point)
                os.kill(os.getpid(), self._number)


class DyingJournal(SqliteJournal):
    """The journal, with points to die at around each note and inside its transaction."""

    def __init__(self, path: str, death: Death) -> None:
        super().__init__(path)
        self._death = death
        self._note = ""

    async def _dying(self, note: str, work: Callable[[], Any]) -> Any:
        self._death.at(f"{note}.before")
        self._note = note  # read by `_do`, before anything is awaited
        outcome = await work()
        self._death.at(f"{note}.after")
        return outcome

    async def _do(self, job: Callable[[sqlite3.Connection], Any], **options: Any) -> Any:
        note, self._note = self._note, ""

        def dying(db: sqlite3.Connection) -> Any:
            outcome = job(db)
            self._death.at(f"{note}.inside")
            return outcome

        return await super()._do(dying, **options)

    async def open(self) -> Any:
        return await self._dying("open", super().open)

    async def mark_sending(self, *args: Any) -> None:
        await self._dying("sending", lambda: SqliteJournal.mark_sending(self, *args))

    async def mark_created(self, *args: Any, **options: Any) -> None:
        note = "adopted" if options.get("adopted_by") else "created"
        await self._dying(note, lambda: SqliteJournal.mark_created(self, *args, **options))

    async def mark_ended(self, *args: Any, **options: Any) -> None:
        await self._dying("ended", lambda: SqliteJournal.mark_ended(self, *args, **options))

    async def save_claim(self, *args: Any) -> None:
        await self._dying("claim", lambda: SqliteJournal.save_claim(self, *args))

    async def mark_settled(self, *args: Any) -> None:
        await self._dying("settled", lambda: SqliteJournal.mark_settled(self, *args))


async def work(job: dict[str, Any]) -> None:
    """Run the batch once, to its end if nothing kills it."""
    death = Death(job["point"], job["nth"])
    seen = os.open(job["seen"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def note_seen(**fact: Any) -> None:
        os.write(seen, json.dumps(fact).encode() + b"\n")

    def on_event(event: SessionEvent) -> None:
        if event.kind == "created":
            note_seen(ref=event.ref, task_id=event.task_id)
        death.at(f"event.{event.kind}")

    receiver = CallbackReceiver([HMAC_KEY])
    requests = [TaskRequest(model="sandbox/echo", input={"prompt": ref}, ref=ref) for ref in job["refs"]]
    unknown: list[str | None] = []
    async with receiver.serve("127.0.0.1", job["port"]) as served:
        async with KieSession(
            "sandbox-key",
            base_url=job["url"],
            journal=DyingJournal(job["journal"], death),
            receiver=receiver,
            callback_url=served.url,
            limits=_LIMITS,
            poll=_POLL,
            on_event=on_event,
        ) as kie:
            report(ready=True)
            try:
                async for outcome in kie.batch(requests):
                    if outcome.task_id:
                        state = outcome.result.record.state.value if outcome.result else "fail"
                        note_seen(ref=outcome.ref, task_id=outcome.task_id, state=state)
                    if isinstance(outcome.error, CreateOutcomeUnknown):
                        unknown.append(outcome.ref)
            except KieError as exc:
                report(stopped=str(exc))
            report(unknown=unknown, ghosts=kie.stats().ghost_creates)


def serve(work: Callable[[dict[str, Any]], Coroutine[Any, Any, None]]) -> None:
    """Fork for each job read. The child is reaped when the next line comes: until then its id is its own."""
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                logging.basicConfig(filename=job["log"], level=logging.WARNING)
                run_on(job["loop"], work(job))
                status = 0
            except BaseException:
                logging.exception("the worker failed")
                raise
            finally:
                os._exit(status)
        report(pid=child)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        report(over=True)
        sys.stdin.readline()
        _, status = os.waitpid(child, 0)
        report(exit=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    serve(work)
