"""The clients that are compared, each in a process of its own: ours, two written by hand, and others' SDKs.

``python -m benchmarks.clients NAME`` runs one and prints what it took, as JSON. A client is opened with
the URL of the service and the seconds between two polls (None: what the SDK does by itself), and yields
what runs one task to its end and returns its result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from kie_async import CallbackReceiver, PollSchedule

from .emulator import AVATAR, AVATAR_INPUT
from .floor import Everyday, free_session
from .load import paced
from .measuring import OUR_CORE, pin, resident

HMAC_KEY = "hmac-key-of-the-benchmarks"
FOR_EVER_S = 3600.0
_ID = re.compile(r"[0-9a-f]{32}")

Run = Callable[[], Awaitable[object]]


@asynccontextmanager
async def polling(url: str, every_s: float | None) -> AsyncIterator[Run]:
    poll = PollSchedule() if every_s is None else PollSchedule.fixed(every_s)
    async with free_session(url, poll=poll) as kie:

        async def run() -> object:
            return (await kie.run(AVATAR, AVATAR_INPUT)).urls

        yield run


@asynccontextmanager
async def callbacks(url: str, _: float | None) -> AsyncIterator[Run]:
    receiver = CallbackReceiver([HMAC_KEY])
    async with (
        receiver.serve("127.0.0.1", 0) as served,
        free_session(url, callback_url=served.url, receiver=receiver) as kie,
    ):

        async def run() -> object:
            return (await kie.run(AVATAR, AVATAR_INPUT)).urls

        yield run


@asynccontextmanager
async def by_hand_aiohttp(url: str, every_s: float | None) -> AsyncIterator[Run]:
    async with Everyday(url, every_s=every_s or 3.0) as everyday:
        yield everyday.run


@asynccontextmanager
async def by_hand_httpx(url: str, every_s: float | None) -> AsyncIterator[Run]:
    import httpx

    async with httpx.AsyncClient(
        base_url=f"{url}/api/v1/jobs", headers={"Authorization": "Bearer a-key"}, timeout=60
    ) as http:

        async def run() -> object:
            answer = await http.post("/createTask", json={"model": AVATAR, "input": AVATAR_INPUT})
            asked = {"taskId": answer.json()["data"]["taskId"]}
            while True:
                await asyncio.sleep(every_s or 3.0)
                record = (await http.get("/recordInfo", params=asked)).json()["data"]
                if record["state"] in ("success", "fail"):
                    return json.loads(record["resultJson"])["resultUrls"]

        yield run


@asynccontextmanager
async def replicate(url: str, every_s: float | None) -> AsyncIterator[Run]:
    if every_s is not None:
        os.environ["REPLICATE_POLL_INTERVAL"] = str(every_s)
    from replicate.client import Client

    client = Client(api_token="a-key", base_url=url)

    async def run() -> object:
        prediction = await client.predictions.async_create(version="a" * 64, input=AVATAR_INPUT)
        await prediction.async_wait()
        return prediction.output

    yield run


@asynccontextmanager
async def fal(url: str, every_s: float | None) -> AsyncIterator[Run]:
    from fal_client import client as module

    module.QUEUE_URL_FORMAT = f"{url}/"  # the SDK knows https only, and would pay for it here
    client = module.AsyncClient(key="a-key")
    options = {} if every_s is None else {"interval": every_s}

    async def run() -> object:
        return await client.subscribe("fal-ai/kling-avatar", AVATAR_INPUT, **options)

    yield run


@asynccontextmanager
async def runwayml(url: str, every_s: float | None) -> AsyncIterator[Run]:
    from runwayml import AsyncRunwayML
    from runwayml.lib import polling as module

    if every_s is not None:
        module.POLL_TIME, module.POLL_JITTER = every_s, every_s / 5  # no option, but a number in a module
    async with AsyncRunwayML(api_key="a-key", base_url=url) as client:

        async def run() -> object:
            task = await client.text_to_video.create(
                model="veo3.1", prompt_text=AVATAR_INPUT["prompt"], ratio="1280:720"
            )
            return (await task.wait_for_task_output()).output

        yield run


@asynccontextmanager
async def openai(url: str, every_s: float | None) -> AsyncIterator[Run]:
    from openai import AsyncOpenAI

    options: dict[str, Any] = {} if every_s is None else {"poll_interval_ms": int(every_s * 1000)}
    async with AsyncOpenAI(api_key="a-key", base_url=f"{url}/v1") as client:

        async def run() -> object:
            video = await client.videos.create_and_poll(prompt=AVATAR_INPUT["prompt"], **options)
            assert video.status == "completed", video
            return video.id

        yield run


Client = Callable[[str, float | None], AbstractAsyncContextManager[Run]]
CLIENTS: dict[str, Client] = {
    "polling": polling,
    "callbacks": callbacks,
    "aiohttp": by_hand_aiohttp,
    "httpx": by_hand_httpx,
    "replicate": replicate,
    "fal": fal,
    "runwayml": runwayml,
    "openai": openai,
}


async def race(client: Client, options: argparse.Namespace) -> dict[str, Any]:
    """Run tasks, paced or all at once, and return what that took and when each end was known here."""
    seen: dict[str, float] = {}
    failures: Counter[str] = Counter()
    async with client(options.url, options.every) as run:

        async def one(_: int) -> None:
            try:
                found = _ID.search(str(await run()))
                assert found is not None
                seen[found[0]] = time.monotonic()
            except Exception as exc:
                failures[type(exc).__name__] += 1

        before, wall, cpu = resident(), time.perf_counter(), time.process_time()
        if options.per_s:
            work = asyncio.ensure_future(paced(options.tasks, options.per_s, one))
        else:
            work = asyncio.ensure_future(asyncio.gather(*[one(turn) for turn in range(options.tasks)]))
        _, unfinished = await asyncio.wait({work}, timeout=options.limit)
        found = {
            "is_over": not unfinished,
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "memory": max(0, resident(at_its_peak=True) - before),
            "seen": seen,
            "failures": failures,
        }
        if unfinished:  # to end it in good order may take minutes
            print(json.dumps(found), flush=True)
            os._exit(0)
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("name", choices=CLIENTS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--every", type=float, help="seconds between two polls of a task")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--per-s", type=float, default=0, help="tasks begun in a second; all at once without")
    parser.add_argument("--limit", type=float, default=FOR_EVER_S, help="seconds after which it is given up")
    options = parser.parse_args(argv)
    pin(OUR_CORE)
    print(json.dumps(asyncio.run(race(CLIENTS[options.name], options))))


if __name__ == "__main__":
    main(sys.argv[1:])
