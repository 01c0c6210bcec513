"""What is remembered of creates that came to nothing is small, and only so much of it is."""

from __future__ import annotations

import gc
import json
import tracemalloc

import pytest

from kie_async import KieSession, RequestRejected, Sandbox
from kie_async.engine.pending_creates import REMEMBERED, PendingCreate, PendingCreates, Phase
from kie_async.handle import TaskHandle
from kie_async.journal.intents import Intent

REFUSED = json.dumps({"code": 422, "msg": "the prompt is too long", "data": None}).encode()


async def test_a_refused_request_is_not_kept(sandbox: Sandbox, kie: KieSession) -> None:
    async def be_refused(number: int) -> None:
        sandbox.faults.create_answers_next = [(200, REFUSED)]
        with pytest.raises(RequestRejected):
            await kie.create("sandbox/echo", {"prompt": f"{number}" + "x" * 200_000})

    await be_refused(0)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(20):
            await be_refused(number)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 1_000_000  # and not 4 MB
    finally:
        tracemalloc.stop()


async def test_of_refused_creates_only_the_last_are_remembered() -> None:
    handle = TaskHandle(owner=None, deadline=0.0)  # type: ignore[arg-type]
    table = PendingCreates()
    for number in range(REMEMBERED + 10):
        pending = PendingCreate(Intent(intent_id=f"i{number}", model="m"), handle)
        table.add(pending)
        table.give_up(pending, Phase.REJECTED)
    assert [table.get("i9"), table.count(Phase.REJECTED)] == [None, REMEMBERED]
    assert table.get("i10") is not None
