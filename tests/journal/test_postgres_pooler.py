"""Workers behind PgBouncer in transaction mode: nothing is notified, and all else is as it was."""

from __future__ import annotations

import asyncio
import logging

import asyncpg
import pytest
from conftest import OpenSession
from support.pooler import pooler

from kie_async import PostgresJournal, Sandbox


async def test_workers_behind_a_pooler_share_and_follow(
    sandbox: Sandbox, open_session: OpenSession, postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kie_async")
    async with pooler(postgres_dsn) as url:
        workers = [await open_session(journal=PostgresJournal(url, lease_s=2.0)) for _ in range(3)]
        creating = (kie.create("sandbox/echo", {"n": n}, ref=f"r{n}") for n in range(10) for kie in workers)
        handles = await asyncio.gather(*creating)
        assert len(sandbox.tasks) == 10
        await asyncio.sleep(3.0)  # longer than a lease: they say that they live
        for task_id in list(sandbox.tasks):
            sandbox.finish(task_id)
        async with asyncio.timeout(20):
            assert {(await handle).task_id for handle in handles} == set(sandbox.tasks)
        for kie in workers:
            await kie.aclose()
    said = [record.getMessage() for record in caplog.records if record.name == "kie_async"]
    assert not [text for text in said if "lost" in text or "silent" in text or "reached" in text]


async def test_nothing_of_a_worker_stays_in_connections_that_others_get(
    open_session: OpenSession, postgres_dsn: str
) -> None:
    async with pooler(postgres_dsn) as url:
        kie = await open_session(journal=url)
        await asyncio.sleep(0.2)
        await kie.aclose()
        other = await asyncpg.connect(url, statement_cache_size=0)
        assert {await other.fetchval("SHOW search_path") for _ in range(10)} == {'"$user", public'}
        await other.close()
