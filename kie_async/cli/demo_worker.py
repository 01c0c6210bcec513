"""One worker of ``kie-async demo --workers``: a process that says in lines of JSON what happens in it.

Its standard input is a line with what it needs, one that lets it begin, and an end that lets it leave.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import attrs

from ..callbacks.receiver import CallbackReceiver
from ..errors import CreateOutcomeUnknown, KieError
from ..events import SessionEvent
from ..inputs.kling import KlingAvatar
from ..journal.postgres import PostgresJournal
from ..session import KieSession
from .demo_service import POLL_SCHEDULE, TASK_TIMEOUT_S

LEASE_S = 3.0
"""Short, so that the audience need not wait for the dead to be missed."""

_ADOPTED_WITHIN_S = 20.0


@attrs.frozen(kw_only=True)
class WorkerOrder:
    """What a worker needs to know."""

    dsn: str = attrs.field(repr=False)
    key: str = attrs.field(repr=False)
    hmac_key: str = attrs.field(repr=False)
    base_url: str
    callback_url: str
    jobs: int
    seed: int


async def work(order: WorkerOrder) -> None:
    """Ask for every job, in an order of its own, and wait for all results."""
    receiver = CallbackReceiver(hmac_keys=[order.hmac_key])
    rng = random.Random(order.seed)
    async with (
        receiver.serve("127.0.0.1", 0) as served,
        KieSession(
            order.key,
            base_url=order.base_url,
            callback_url=f"{order.callback_url}{served.path}",
            receiver=receiver,
            journal=PostgresJournal(order.dsn, lease_s=LEASE_S),
            poll=POLL_SCHEDULE,
            task_timeout_s=TASK_TIMEOUT_S,
            on_event=_note_event,
            rng=rng,
        ) as kie,
    ):
        _say(event="ready", port=served.port)
        await _next_line()
        numbers = rng.sample(range(1, order.jobs + 1), order.jobs)
        making = asyncio.create_task(_make_all(kie, numbers))
        await _next_line()  # its end also comes when whoever started this is gone
        making.cancel()


async def _make_all(kie: KieSession, numbers: Sequence[int]) -> None:
    await asyncio.gather(*(_make(kie, number) for number in numbers))
    _say(event="done")


async def _make(kie: KieSession, number: int) -> None:
    avatar = KlingAvatar(
        image_url="https://example.org/face.png",
        audio_url="https://example.org/voice.mp3",
        prompt=f"order {number}",
    )
    ref = f"order-{number}"
    try:
        try:
            handle = await kie.create(avatar, ref=ref)
            result = await handle
        except CreateOutcomeUnknown as unknown:  # of the worker that was killed: its callback may adopt it
            if unknown.handle is None:
                raise
            result = await unknown.handle.result(timeout_s=_ADOPTED_WITHIN_S)
        _say(event="result", ref=ref, task_id=result.task_id)
    except KieError as exc:
        _say(event="error", ref=ref, error=str(exc))


def _note_event(event: SessionEvent) -> None:
    if event.kind != "weather":
        _say(event=event.kind, ref=event.ref, task_id=event.task_id, source=event.source)


def _say(**fields: object) -> None:
    sys.stdout.write(f"{json.dumps(fields)}\n")
    sys.stdout.flush()


async def _next_line() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


def main() -> None:
    """Work as the first line of standard input says."""
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    asyncio.run(work(WorkerOrder(**order)))


if __name__ == "__main__":
    main()
