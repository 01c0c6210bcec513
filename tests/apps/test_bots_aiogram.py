"""An aiogram 3 webhook bot: its own aiohttp application carries our routes, its Bot API is a stand-in.

Importing aiogram takes seconds, so only the process that runs the test does.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from conftest import HMAC_KEY, NO_LIMITS
from support.crowd import NOW_AND_THEN, Crowd, Running, input_for, play
from support.delivering import aiohttp_on
from support.telegram import telegram, update

from kie_async import CallbackReceiver, KieSession, Sandbox, TaskDetached, TaskHandle

if TYPE_CHECKING:
    from aiogram.types import Message


def bot_application(kie: KieSession, receiver: CallbackReceiver, telegram_url: str) -> web.Application:
    """Return the bot as one would write it: what is to be answered is known by its ref."""
    from aiogram import Bot, Dispatcher
    from aiogram.client.session.aiohttp import AiohttpSession
    from aiogram.client.telegram import TelegramAPIServer
    from aiogram.webhook.aiohttp_server import SimpleRequestHandler, setup_application

    bot = Bot("42:TOKEN", session=AiohttpSession(api=TelegramAPIServer.from_base(telegram_url)))
    dispatcher = Dispatcher()
    answering: set[asyncio.Task[None]] = set()

    async def answer(handle: TaskHandle) -> None:
        try:
            result = await handle
        except TaskDetached:
            return  # we are closing; the next start answers
        await bot.send_message(int(handle.ref or 0), result.urls[0])

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        answering.add(task)
        task.add_done_callback(answering.discard)

    @dispatcher.message()
    async def on_message(message: Message) -> None:
        await answer(await kie.create("sandbox/echo", input_for(message.chat.id), ref=str(message.chat.id)))

    @dispatcher.startup()
    async def on_startup() -> None:
        await kie.open()
        for handle in await kie.resume():
            spawn(answer(handle))

    @dispatcher.shutdown()
    async def on_shutdown() -> None:
        await kie.aclose()
        await asyncio.gather(*answering)

    app = web.Application()
    app.router.add_routes(receiver.routes("/kie"))
    setup_application(app, dispatcher, bot=bot)  # before the handler: our session closes before the bot's
    SimpleRequestHandler(dispatcher, bot).register(app, "/telegram")
    return app


async def test_fifty_users_of_an_aiogram_bot_are_answered_once(sandbox: Sandbox, tmp_path: Path) -> None:
    crowd = Crowd()
    async with aiohttp_on(telegram(crowd)) as api_port, aiohttp.ClientSession() as http:

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
                journal=tmp_path / "bot.db",
                poll=NOW_AND_THEN,
                limits=NO_LIMITS,
            )

            async def ask(user: int) -> None:
                async with http.post(f"{url}/telegram", json=update(user)) as answer:
                    assert answer.status == 200

            app = bot_application(kie, receiver, f"http://127.0.0.1:{api_port}")
            async with aiohttp_on(app, listening):
                yield Running(kie=kie, ask=ask)

        await play(sandbox, crowd, start, signed=True)
