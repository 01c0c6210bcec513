"""A worker of the cluster: a session on a shared journal, which takes refs over HTTP and can die or freeze.

Like the worker of ``kill`` it forks for each job that it reads.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from aiohttp import web

from kie_async import (
    CallbackReceiver,
    CreateOutcomeUnknown,
    JournalError,
    KieError,
    KieSession,
    Limits,
    PollSchedule,
    PostgresJournal,
    Rate,
    SessionEvent,
    TaskFailed,
    TaskHandle,
    TaskRequest,
)
from kie_async.journal.postgres_database import Single

from ._kill_worker import CONNECTIONS, HMAC_KEY, Death, report, serve

SECRET = "the secret that all workers make addresses with"
_NO_LIMIT = Rate(10**6, per_s=0.001)
_POLL = PollSchedule(
    learns=False, first_s=1.0, tiers=((math.inf, 1.0),), safety_net_s=2.0, recheck_s=(0.2,), ring_gap_s=0.05
)
NOTES = ("sending", "created", "adopted", "settled", "ended", "claim", "delivery", "taken over")
POINTS = (
    "open.before",
    "open.after",
    *(f"{note}.{when}" for note in NOTES for when in ("before", "inside", "after")),
    *(f"event.{kind}" for kind in ("created", "settled", "unknown", "adopted", "taken over")),
)
"""Where it can die or freeze: around a note, inside its transaction, and when user code is called."""
_AGAIN_S = 0.2

_note: ContextVar[str] = ContextVar("_note", default="")


class DyingJournal(PostgresJournal):
    """The journal, with points to die at around each note and inside its transaction."""

    def __init__(self, dsn: str, lease_s: float, death: Death) -> None:
        super().__init__(dsn, lease_s=lease_s)
        self._death = death
        start = self._db.start

        def dying_start(job: Callable[[Any], Any], **options: Any) -> Any:
            note = _note.get()

            def dying(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
                async def run(db: Any) -> Any:
                    outcome = await step(db)
                    self._death.at(f"{note}.inside")
                    return outcome

                return run

            if isinstance(job, Single):  # whose inside is where it is committed and nobody here knows
                return start(Single(dying(job.statement), dying(job.otherwise)), **options)
            return start(dying(job), **options)

        self._db.start = dying_start  # type: ignore[method-assign]

    async def _dying(self, note: str, work: Callable[[], Any]) -> Any:
        self._death.at(f"{note}.before")
        token = _note.set(note)
        try:
            outcome = await work()
        finally:
            _note.reset(token)
        self._death.at(f"{note}.after")
        return outcome

    async def open(self) -> Any:
        return await self._dying("open", super().open)

    async def mark_sending(self, *args: Any) -> None:
        await self._dying("sending", lambda: PostgresJournal.mark_sending(self, *args))

    async def mark_created(self, *args: Any, **options: Any) -> None:
        note = "adopted" if options.get("adopted_by") else "created"
        await self._dying(note, lambda: PostgresJournal.mark_created(self, *args, **options))

    async def mark_ended(self, *args: Any, **options: Any) -> None:
        await self._dying("ended", lambda: PostgresJournal.mark_ended(self, *args, **options))

    async def mark_settled(self, *args: Any) -> None:
        await self._dying("settled", lambda: PostgresJournal.mark_settled(self, *args))

    async def save_claim(self, *args: Any) -> None:
        await self._dying("claim", lambda: PostgresJournal.save_claim(self, *args))

    async def save_delivery(self, *args: Any) -> None:
        await self._dying("delivery", lambda: PostgresJournal.save_delivery(self, *args))

    async def take_over(self) -> Any:
        return await self._dying("taken over", super().take_over)


class Worker:
    """Creates what it is asked for, however often the database goes away, and remembers what became of it."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._death = Death(job["point"], job["nth"], job["number"])
        self._receiver = CallbackReceiver([HMAC_KEY])
        self._ends: dict[str, dict[str, str]] = {}
        """By ref: what its caller was told."""
        self._callers: set[asyncio.Task[None]] = set()
        self._seen = os.open(job["seen"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._troubles: Counter[str] = Counter()
        self._over = asyncio.Event()
        self._kie: KieSession

    async def run(self) -> None:
        """Work until it is told to end."""
        app = web.Application(client_max_size=2**24)
        app.add_routes(self._receiver.routes("/kie"))
        app.add_routes(
            [
                web.post("/create", self._create),
                web.post("/death", self._set_death),
                web.get("/ends", self._show),
                web.post("/over", self._end),
            ]
        )
        self._kie = await self._open()
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._job["port"]).start()
        listening = asyncio.create_task(self._take_over())
        report(ready=True)
        await self._over.wait()
        await self._kie.aclose()
        await asyncio.gather(listening, *self._callers)
        await runner.cleanup()

    async def _open(self) -> KieSession:
        job = self._job
        while True:
            try:
                return await KieSession(
                    "sandbox-key",
                    base_url=job["url"],
                    journal=DyingJournal(job["dsn"], job["lease_s"], self._death),
                    receiver=self._receiver,
                    callback_url=job["callback_url"],
                    callback_secrets=[SECRET],
                    max_in_flight=10_000,
                    limits=Limits(
                        create=Rate(job["creates"], per_s=job["creates_per_s"]),
                        query=_NO_LIMIT,
                        create_connections=CONNECTIONS,
                    ),
                    poll=_POLL,
                    on_event=self._on_event,
                ).open()
            except JournalError:
                self._troubles["open"] += 1
                await asyncio.sleep(_AGAIN_S)

    def _on_event(self, event: SessionEvent) -> None:
        if event.kind == "created":
            self._note_seen(ref=event.ref, task_id=event.task_id)
        self._death.at(f"event.{event.kind}")

    def _note_seen(self, **fact: Any) -> None:
        os.write(self._seen, json.dumps(fact).encode() + b"\n")

    # --- what it is told -----------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.Response:
        for ref in await request.json():
            if ref not in self._ends:
                self._ends[ref] = {}
                self._spawn(self._call(ref))
        return web.Response()

    def _spawn(self, work: Any) -> None:
        caller = asyncio.create_task(work)
        self._callers.add(caller)
        caller.add_done_callback(self._callers.discard)

    async def _set_death(self, request: web.Request) -> web.Response:
        self._death.set(**await request.json())
        return web.Response()

    async def _show(self, _: web.Request) -> web.Response:
        stats = self._kie.stats()
        counts = {"creates": stats.creates, "unknown": stats.unknown_creates, "429": stats.rate_limited}
        return web.json_response({"ends": self._ends, "counts": counts, "troubles": self._troubles})

    async def _end(self, _: web.Request) -> web.Response:
        self._over.set()
        return web.Response()

    # --- what it does --------------------------------------------------------------------------

    async def _call(self, ref: str) -> None:
        """Create a task and await it, again after everything that is said to have sent nothing."""
        request = TaskRequest(model="sandbox/echo", input={"prompt": ref}, ref=ref)
        while not self._over.is_set():
            try:
                handle = await self._kie.create(request)
            except CreateOutcomeUnknown as exc:
                if exc.handle is None:
                    self._troubles["unknown without a handle"] += 1
                    await asyncio.sleep(_AGAIN_S)
                    continue
                handle = exc.handle
                self._ends[ref] = {"state": "unknown"}
            except KieError as exc:
                self._troubles[type(exc).__name__] += 1
                await asyncio.sleep(_AGAIN_S)
                continue
            if await self._await(handle, ref):
                return

    async def _await(self, handle: TaskHandle, ref: str) -> bool:
        """Wait for the end of a task; tell whether it is one."""
        if handle.task_id:
            self._note_seen(ref=ref, task_id=handle.task_id)
        try:
            await handle
            state = "success"
        except TaskFailed:
            state = "fail"
        except KieError as exc:
            self._troubles[f"{type(exc).__name__} to an awaiter"] += 1
            await asyncio.sleep(_AGAIN_S)
            return False
        self._ends[ref] = {"state": state, "task_id": handle.task_id}
        self._note_seen(ref=ref, task_id=handle.task_id, state=state)
        return True

    async def _take_over(self) -> None:
        async for handle in self._kie.taken_over():
            assert handle.ref is not None
            self._spawn(self._await(handle, handle.ref))


async def work(job: dict[str, Any]) -> None:
    """Be a worker until killed or told to end."""
    await Worker(job).run()


if __name__ == "__main__":
    serve(work)
