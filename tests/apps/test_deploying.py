"""The recipes of the README's section on deploying, with the real things: uvicorn, nginx, procrastinate."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from conftest import HMAC_KEY, OpenSession
from support.job_queue import make_tables
from support.ports import free_port
from support.readme import fences

from kie_async import CallbackReceiver, Sandbox, TaskHandle
from kie_async.cli.demo_media import read_portrait, read_voice
from kie_async.sandbox import Fixed, Never

PATIENCE_S = 60.0
KEY = "the key from kie.ai/settings"
DATABASE = "postgresql://kie@db/app"

pytestmark = pytest.mark.timeout(180)


def recipe(word: str, language: str = "python") -> str:
    """Return the one snippet of the README's section on deploying with this word in it."""
    (found,) = [fence for fence in fences(language) if word in fence]
    return found


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():  # noqa: ASYNC110  what is waited for happens in other processes
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    folder: Path, service: Sandbox, *arguments: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Python in *folder*, and end it and what it started with the block."""
    (folder / "face.png").write_bytes(read_portrait())
    (folder / "voice.wav").write_bytes(read_voice())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=folder,
        env=os.environ | {"KIE_API_KEY": "sandbox-key", "KIE_BASE_URL": service.url},
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(20):
                await process.communicate()
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()


# --- two workers of one application ----------------------------------------------------------------


async def test_two_uvicorn_workers_make_each_order_once_and_take_each_others_callbacks(
    postgres_dsn: str, tmp_path: Path
) -> None:
    port = free_port()
    app = recipe("workers=2").replace("https://bot.example.org", f"http://127.0.0.1:{port}")
    (tmp_path / "app.py").write_text(app.replace(DATABASE, postgres_dsn).replace("8080", str(port)))
    database = await asyncpg.connect(postgres_dsn)

    async def count(query: str) -> int:
        try:
            return int(await database.fetchval(query))
        except asyncpg.UndefinedTableError:
            return 0

    async def both_are_there() -> bool:
        return await count("SELECT count(*) FROM kie_async_main.worker") == 2

    async def order(number: int) -> tuple[str, ...]:
        # A connection for each: the kernel gives them to both workers.
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            async with http.post(f"/orders/{number}", params={"text": "hello"}) as answer:
                assert answer.ok, await answer.text()
                return tuple(await answer.json())

    async with (
        Sandbox(durations=Fixed(0.5), hmac_key=KEY, create_limit=None) as service,
        running(tmp_path, service, "app.py"),
    ):
        await until(both_are_there)
        numbers = [number for number in range(12) for _ in range(4)]
        urls = await asyncio.gather(*map(order, numbers))
        assert len(service.tasks) == len(set(urls)) == 12
        assert Counter(zip(numbers, urls, strict=True)) == {(n, urls[4 * n]): 4 for n in range(12)}
        assert {delivery.status for delivery in service.deliveries} == {200}
        assert await count("SELECT count(DISTINCT worker) FROM kie_async_main.intent") == 2
    await database.close()


# --- nginx -----------------------------------------------------------------------------------------


@asynccontextmanager
async def nginx(folder: Path, ports: tuple[int, int], port: int) -> AsyncIterator[None]:
    """Run nginx with the README's configuration before two workers; its logs are in *folder*."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        pytest.skip("nginx is not here: install the Debian package nginx")
    configured = recipe("upstream", "nginx").replace("8080", f"127.0.0.1:{port}")
    for named, at in zip(("8081", "8082"), ports, strict=True):
        configured = configured.replace(named, str(at))
    paths = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid; error_log {folder}/error.log info; events {{}}\n"
        f"http {{ {paths} access_log {folder}/access.log;\n{configured}}}\n"
    )
    command = (program, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "error.log"))
    process = await asyncio.create_subprocess_exec(*command, "-g", "daemon off; master_process off;")
    try:

        async def listens() -> bool:
            assert process.returncode is None
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        await until(listens)
        yield
    finally:
        process.terminate()
        await process.wait()


async def test_behind_nginx_a_callback_finds_its_worker_among_journals_that_are_not_shared(
    open_session: OpenSession, sandbox: Sandbox, tmp_path: Path
) -> None:
    port, receivers = free_port(), [CallbackReceiver([HMAC_KEY]), CallbackReceiver([HMAC_KEY])]
    async with receivers[0].serve("127.0.0.1", 0) as one, receivers[1].serve("127.0.0.1", 0) as two:
        async with nginx(tmp_path, (one.port, two.port), port):
            workers = [
                await open_session(
                    callback_url=f"http://127.0.0.1:{port}/kie",
                    receiver=receiver,
                    journal=tmp_path / f"{number}.db",
                )
                for number, receiver in enumerate(receivers)
            ]
            handles = [await kie.create("sandbox/echo", {}) for kie in workers for _ in range(6)]
            await finish_and_be_told(sandbox, handles)
            assert sum(kie.stats().callbacks_accepted for kie in workers) + sum(
                kie.stats().callbacks_duplicate for kie in workers
            ) == len(handles)
    assert_no_secret_in_logs(tmp_path, sandbox)


async def finish_and_be_told(sandbox: Sandbox, handles: Sequence[TaskHandle]) -> None:
    """Let tasks end; each delivery must be taken."""
    for handle in handles:
        sandbox.finish(handle.task_id)

    async def all_are_told() -> bool:
        return len(sandbox.deliveries) == len(handles)

    async with asyncio.timeout(PATIENCE_S):
        for handle in handles:
            await handle
        await until(all_are_told)
    assert {delivery.status for delivery in sandbox.deliveries} == {200}


async def test_behind_nginx_a_shared_journal_needs_one_living_worker(
    open_session: OpenSession, sandbox: Sandbox, postgres_dsn: str, tmp_path: Path
) -> None:
    port, gone = free_port(), free_port()
    receivers = [CallbackReceiver([HMAC_KEY]), CallbackReceiver([HMAC_KEY])]
    async with receivers[0].serve("127.0.0.1", 0) as one:
        async with nginx(tmp_path, (one.port, gone), port):
            workers = [
                await open_session(
                    callback_url=f"http://127.0.0.1:{port}/kie", receiver=receiver, journal=postgres_dsn
                )
                for receiver in receivers
            ]
            handles = [await kie.create("sandbox/echo", {}) for kie in workers for _ in range(4)]
            await finish_and_be_told(sandbox, handles)
            for kie in workers:
                await kie.aclose()
    assert_no_secret_in_logs(tmp_path, sandbox)


def assert_no_secret_in_logs(folder: Path, sandbox: Sandbox) -> None:
    """Fail if nginx has written down the last part of any callback's path."""
    logs = "".join((folder / name).read_text() for name in ("access.log", "error.log"))
    macs = {delivery.url.rpartition("/")[2] for delivery in sandbox.deliveries}
    assert macs
    assert not [mac for mac in macs if mac in logs]


# --- a job queue -----------------------------------------------------------------------------------

FIRST_TRY = """
async def main():
    async with app.open_async(), kie:
        await make_video.defer_async(text="hello")
        await app.run_worker_async(wait=False, update_heartbeat_interval=0.2)
"""
SECOND_TRY = """
async def main():
    async with app.open_async(), kie:
        while not (stalled := await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=1)):
            await asyncio.sleep(0.1)
        for job in stalled:
            await app.job_manager.retry_job(job)
        await app.run_worker_async(wait=False)
"""


async def test_a_job_whose_worker_was_killed_is_tried_again_and_gets_the_same_task(
    postgres_dsn: str, tmp_path: Path
) -> None:
    await make_tables(postgres_dsn)
    jobs, _ = recipe("procrastinate").replace(DATABASE, postgres_dsn).split("async def main():")
    impatient = "KieSession(journal=PostgresJournal(DATABASE, lease_s=2))"
    jobs = jobs.replace("KieSession(journal=DATABASE)", impatient)
    jobs = jobs.replace("import KieSession,", "import PostgresJournal, KieSession,")
    (tmp_path / "videos.py").write_text(jobs)
    for name, main in (("first", FIRST_TRY), ("second", SECOND_TRY)):
        (tmp_path / f"{name}.py").write_text(f"from videos import *\n{main}\nasyncio.run(main())\n")

    async with Sandbox(durations=Never()) as service:

        async def there_is_a_task() -> bool:
            return len(service.tasks) == 1

        async with running(tmp_path, service, "-c", "import first") as first:
            await until(there_is_a_task)
            await asyncio.sleep(0.5)  # so that its id is noted
            first.kill()
            await first.wait()

        (task_id,) = service.tasks
        async with running(tmp_path, service, "-c", "import second") as second:
            assert second.stdout is not None
            saying = asyncio.create_task(second.stdout.readline())
            await asyncio.sleep(2.0)
            assert not saying.done()
            service.finish(task_id)
            async with asyncio.timeout(PATIENCE_S):
                said = (await saying).decode()
        assert re.match(rf"\d+ {task_id} ", said)
        assert list(service.tasks) == [task_id]
