"""Reads what no public name shows of an open session: its handles, its creates on the way, its free slots.

Tests and campaigns reach into the engine here and nowhere else. And which HTTP sessions the package has.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from kie_async import KieSession, TaskHandle
from kie_async.creating.create_transport import CreateTransport
from kie_async.engine.pending_creates import Phase
from kie_async.http import transport as _transport


def _engine_of(kie: KieSession) -> Any:
    return kie._opened  # unlike the property, also while the session closes


def task_ids(kie: KieSession) -> set[str]:
    """Return the ids of the tasks in flight."""
    return {handle.task_id for handle in _engine_of(kie).tracker.registry.handles}


def unknown_handles(kie: KieSession) -> list[TaskHandle]:
    """Return the handles of creates whose outcome is unknown."""
    return list(_engine_of(kie).tracker.pending.unknown_handles)


def creating_count(kie: KieSession) -> int:
    """Return how many creates have no answer yet."""
    count: int = _engine_of(kie).tracker.pending.count(Phase.CREATING)
    return count


def has_free_slot(kie: KieSession) -> bool:
    """Return whether a create would get a slot at once."""
    return bool(_engine_of(kie).admission.has_room)


async def until_nothing_is_sent(kie: KieSession) -> None:
    """Wait until no create is on its way, those whose caller is gone included."""
    async with asyncio.timeout(5):
        while len(_engine_of(kie).creator.runner):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def drain(kie: KieSession) -> None:
    """Let creates end as the close does, and leave everything else as it is."""
    await _engine_of(kie).creator.drain()


def transport_of(kie: KieSession) -> CreateTransport:
    """Return what sends the session's creates."""
    transport: CreateTransport = _engine_of(kie).calls.transport
    return transport


def open_http_sessions() -> set[aiohttp.ClientSession]:
    """Return the HTTP sessions of all that is open in this process."""
    return set(_transport._open_sessions)
