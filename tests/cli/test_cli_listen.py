"""``kie-async listen``: a real process that shows what arrives, and tries its own address."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from support.delivering import post
from support.ports import free_port

from kie_async import KieSession, Sandbox

KEY = "kie-key-0123456789"
Listening = tuple[asyncio.subprocess.Process, int]
Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[asyncio.subprocess.Process] = []

    async def run(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "kie_async", "listen", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=clean | environment,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 40)).decode()


async def url_of(process: asyncio.subprocess.Process) -> str:
    found = re.match(r"listening at (http://127\.0\.0\.1:\d+/\S+);", await line_of(process))
    assert found
    return found[1]


@pytest.mark.parametrize("form", ["{}", '"{}"\n'])
async def test_it_shows_what_arrives_and_no_secret(start: Start, form: str) -> None:
    process = await start("--port", "0", KIE_API_KEY=form.format(KEY), KIE_HMAC_KEY=form.format("right key"))
    url = await url_of(process)
    async with Sandbox(api_key=KEY, hmac_key="right key") as sandbox:
        async with KieSession(KEY, base_url=sandbox.url, callback_url=url) as kie:
            handle = await kie.create("sandbox/echo", {"result_urls": ["https://example.org/a.mp4"]})
            sandbox.finish(handle.task_id)
            shown = await line_of(process)
            assert re.match(r"\d\d:\d\d:\d\d  200  ", shown)
            for word in (handle.task_id, "success", "signature right", "https://example.org/a.mp4"):
                assert word in shown
            path = "/" + str(sandbox.tasks[handle.task_id].callback_url).partition("/kie/")[2]
    port, mac = int(url.split(":")[2].split("/")[0]), path.rpartition("/")[2]
    body = json.dumps({"code": 200, "data": {"taskId": handle.task_id, "x": f"/kie{path}\x1b[31m"}}).encode()
    for target, words in ((f"/kie{path}", "401  missing signature"), ("/kie/a/b", "404  wrong address")):
        await post(port, target, body=body)
        shown = await line_of(process)
        assert words in shown
        assert mac not in shown
        assert shown.rstrip("\n").isprintable()
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_the_check_tries_the_way_and_ends(start: Start) -> None:
    port = free_port()
    process = await start("--port", str(port), "--check", f"http://127.0.0.1:{port}/kie", KIE_API_KEY=KEY)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"callbacks arrive as they were sent" in out


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("http://127.0.0.1:{free}/kie", 1, "error at the connection"),
        ("http://127.0.0.1:{port}/other", 1, "error at the path"),
        ("bot.example.org/kie", 2, "must be an absolute http(s) URL"),
    ],
)
async def test_the_check_says_what_failed(start: Start, url: str, code: int, words: str) -> None:
    port = free_port()
    where = url.format(port=port, free=free_port())
    process = await start("--port", str(port), "--check", where, KIE_API_KEY=KEY)
    _, err = await process.communicate()
    assert (process.returncode, err.count(b"\n")) == (code, 1)
    assert words in err.decode()


async def test_a_port_that_is_taken_is_said(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = await start("--port", str(taken.getsockname()[1]), KIE_API_KEY=KEY)
        _, err = await process.communicate()
    assert process.returncode == 2
    assert b"cannot listen on 127.0.0.1:" in err
