"""Stands in for Telegram: its Bot API as far as a bot asks it, and the updates it posts."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from .crowd import Crowd


def telegram(crowd: Crowd) -> web.Application:
    """Return the Bot API, as far as it is asked here."""

    async def call(request: web.Request) -> web.Response:
        form = await request.post()
        user, text = int(str(form["chat_id"])), str(form["text"])
        if request.match_info["method"] == "editMessageText":
            crowd.edits.append((user, text))
        else:
            assert request.match_info["method"] == "sendMessage"
            crowd.note_answer(user, text)
        chat = {"id": user, "type": "private"}
        return web.json_response({"ok": True, "result": {"message_id": 1, "date": 0, "chat": chat}})

    app = web.Application()
    app.router.add_post("/bot42:TOKEN/{method}", call)
    return app


def update(user: int) -> dict[str, Any]:
    """Return what Telegram posts when a user writes."""
    sender = {"id": user, "is_bot": False, "first_name": "Ada"}
    chat = {"id": user, "type": "private"}
    message = {"message_id": 7, "date": 0, "chat": chat, "from": sender, "text": "make me talk"}
    return {"update_id": user, "message": message}
