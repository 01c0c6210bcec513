"""A bot in the manner of Discord's: one long-running aiohttp program.

Events come over a websocket, each is handled in a task of its own, answers leave over REST, and the
program's own web application carries our routes. There are no HMAC keys here: a query
confirms each callback.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import attrs
from aiohttp import web
from conftest import NO_LIMITS
from support.crowd import NOW_AND_THEN, Crowd, Running, input_for, play
from support.delivering import aiohttp_on

from kie_async import CallbackReceiver, KieSession, Sandbox, TaskDetached, TaskHandle


@attrs.define
class Platform:
    """The chat platform: a gateway that sends messages, and channels to write to."""

    crowd: Crowd
    listeners: list[web.WebSocketResponse] = attrs.field(factory=list)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/gateway", self._gateway)
        app.router.add_post("/channels/{channel}/messages", self._write)
        return app

    async def _gateway(self, request: web.Request) -> web.WebSocketResponse:
        line = web.WebSocketResponse()
        await line.prepare(request)
        self.listeners.append(line)
        await line.send_json({"t": "READY"})
        async for _ in line:
            pass
        self.listeners.remove(line)
        return line

    async def _write(self, request: web.Request) -> web.Response:
        self.crowd.note_answer(int(request.match_info["channel"]), (await request.json())["content"])
        return web.json_response({"id": "1"})

    async def ask(self, user: int) -> None:
        for line in self.listeners:
            await line.send_json({"t": "MESSAGE_CREATE", "d": {"channel_id": user, "content": "talk"}})


class Bot:
    """The program; ``on_...`` methods are its event handlers."""

    def __init__(self, kie: KieSession, platform_url: str) -> None:
        self.is_ready = asyncio.Event()
        self._kie = kie
        self._platform_url = platform_url
        self._handling: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(self._platform_url) as self._http:
            async with self._http.ws_connect("/gateway") as line, self._kie:
                listening = asyncio.create_task(self._listen(line))
                await self.is_ready.wait()
                yield
                await line.close()
                await listening
            while self._handling:  # the session is closed: they end now
                await asyncio.wait(self._handling)

    async def _listen(self, line: aiohttp.ClientWebSocketResponse) -> None:
        async for message in line:
            event = message.json()
            handler = getattr(self, f"on_{event['t'].lower()}")
            self._spawn(handler(event.get("d")))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    async def on_ready(self, _: object) -> None:
        for handle in await self._kie.resume():
            self._spawn(self._answer(handle))
        self.is_ready.set()

    async def on_message_create(self, message: dict[str, Any]) -> None:
        channel = message["channel_id"]
        await self._answer(await self._kie.create("sandbox/echo", input_for(channel), ref=str(channel)))

    async def _answer(self, handle: TaskHandle) -> None:
        try:
            result = await handle
        except TaskDetached:
            return
        url = f"/channels/{handle.ref}/messages"
        async with self._http.post(url, json={"content": result.urls[0]}) as answer:
            answer.raise_for_status()


async def healthy(_: web.Request) -> web.Response:
    return web.Response()


async def test_fifty_users_of_a_discord_style_bot_are_answered_once(sandbox: Sandbox, tmp_path: Path) -> None:
    platform = Platform(crowd := Crowd())
    async with aiohttp_on(platform.application()) as platform_port:

        @asynccontextmanager
        async def start() -> AsyncIterator[Running]:
            listening = socket.create_server(("127.0.0.1", 0))
            receiver = CallbackReceiver()
            app = web.Application()
            app.router.add_get("/health", healthy)
            app.router.add_routes(receiver.routes("/hooks/kie"))
            kie = KieSession(
                "sandbox-key",
                base_url=sandbox.url,
                callback_url=f"http://127.0.0.1:{listening.getsockname()[1]}/hooks/kie",
                receiver=receiver,
                journal=tmp_path / "bot.db",
                poll=NOW_AND_THEN,
                limits=NO_LIMITS,
            )
            async with aiohttp_on(app, listening), Bot(kie, f"http://127.0.0.1:{platform_port}").running():
                yield Running(kie=kie, ask=platform.ask)

        await play(sandbox, crowd, start, signed=False)
