"""A FastAPI application under uvicorn: ``.asgi`` mounted in it, the session held by its lifespan."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from conftest import HMAC_KEY, NO_LIMITS
from fastapi import FastAPI
from support.crowd import NOW_AND_THEN, Crowd, Running, input_for, play
from support.delivering import aiohttp_on, uvicorn_on

from kie_async import CallbackReceiver, KieSession, Sandbox, TaskDetached, TaskHandle


def mail_server(crowd: Crowd) -> web.Application:
    """Return where the application sends the answers to its users."""

    async def deliver(request: web.Request) -> web.Response:
        crowd.note_answer(int(request.match_info["user"]), await request.text())
        return web.Response()

    app = web.Application()
    app.router.add_post("/users/{user}", deliver)
    return app


def application(kie: KieSession, receiver: CallbackReceiver, mail_url: str) -> FastAPI:
    """Return the application as one would write it."""
    answering: set[asyncio.Task[None]] = set()

    async def answer(handle: TaskHandle) -> None:
        try:
            result = await handle
        except TaskDetached:
            return
        async with aiohttp.ClientSession(mail_url) as http:
            async with http.post(f"/users/{handle.ref}", data=result.urls[0]) as answered:
                answered.raise_for_status()

    def answer_later(handle: TaskHandle) -> None:
        task = asyncio.create_task(answer(handle))
        answering.add(task)
        task.add_done_callback(answering.discard)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with kie:
            for handle in await kie.resume():
                answer_later(handle)
            yield
        await asyncio.gather(*answering)

    app = FastAPI(lifespan=lifespan)
    app.mount("/kie", receiver.asgi)

    @app.post("/asks/{user}", status_code=202)
    async def ask(user: int) -> dict[str, Any]:
        handle = await kie.create("sandbox/echo", input_for(user), ref=str(user))
        answer_later(handle)
        return {"task_id": handle.task_id}

    return app


async def test_fifty_users_of_a_fastapi_application_are_answered_once(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    crowd = Crowd()
    async with aiohttp_on(mail_server(crowd)) as mail_port, aiohttp.ClientSession() as http:

        @asynccontextmanager
        async def start() -> AsyncIterator[Running]:
            listening = socket.create_server(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            receiver = CallbackReceiver([HMAC_KEY])
            kie = KieSession(
                "sandbox-key",
                base_url=sandbox.url,
                callback_url=f"{url}/kie",
                receiver=receiver,
                journal=tmp_path / "app.db",
                poll=NOW_AND_THEN,
                limits=NO_LIMITS,
            )

            async def ask(user: int) -> None:
                async with http.post(f"{url}/asks/{user}") as answer:
                    assert answer.status == 202

            async with uvicorn_on(application(kie, receiver, f"http://127.0.0.1:{mail_port}"), listening):
                yield Running(kie=kie, ask=ask)

        await play(sandbox, crowd, start, signed=True)
