"""The servers that other tests stand on: they come quickly, do as they are told, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from support.postgres import OwnPostgres
from support.postgres_janitor import running_in


async def ask(dsn: str, question: str = "SELECT 1", timeout: float = 10) -> object:
    connection = await asyncpg.connect(dsn, timeout=timeout)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_an_empty_database(postgres_dsn: str, turn: int) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute("CREATE TABLE mine(n int)")  # left connected: the database goes all the same
    assert await connection.fetchval("SHOW fsync") == "on"
    connection.terminate()


async def test_a_server_that_is_killed_keeps_what_was_committed(own_postgres: OwnPostgres) -> None:
    server = own_postgres()
    connection = await asyncpg.connect(server.dsn)
    await connection.execute("CREATE TABLE kept(n int)")
    server.kill()
    with pytest.raises(OSError):
        await ask(server.dsn)
    server.start()
    connection.terminate()
    assert await ask(server.dsn, "SELECT count(*) FROM kept") == 0
    server.stop()
    server.start()
    assert await ask(server.dsn, "SELECT count(*) FROM kept") == 0


async def test_a_frozen_server_answers_nobody_until_it_thaws(own_postgres: OwnPostgres) -> None:
    server = own_postgres(fsync="off")
    connection = await asyncpg.connect(server.dsn)
    server.freeze()
    asking = asyncio.create_task(connection.fetchval("SHOW fsync"))
    with pytest.raises(TimeoutError):
        await ask(server.dsn, timeout=0.2)
    assert not asking.done()
    server.thaw()
    assert await asking == "off"
    await connection.close()


async def test_a_frozen_server_can_be_closed(own_postgres: OwnPostgres) -> None:
    server = own_postgres()
    folder = server._folder
    server.freeze()
    server.close()
    assert not folder.exists()
    assert not running_in(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_who_is_killed_leaves_no_server_behind(
    postgres_template: Path, tmp_path: Path, number: signal.Signals
) -> None:
    script = f"""
import pathlib, time
from support.postgres import PostgresServer
server = PostgresServer(pathlib.Path({str(postgres_template)!r}))
print(server._folder, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as run:
        assert run.stdout is not None
        folder = Path(run.stdout.readline().decode().strip())
        assert running_in(folder)
        run.send_signal(number)
    for _ in range(1000):
        if not folder.exists():
            break
        time.sleep(0.02)
    assert not running_in(folder)
    assert not folder.exists()
