"""HTTP endpoints, without a key, by which other processes read the state, set faults and end tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
from aiohttp import web

from .tasks import SandboxTask
from .world import World


@attrs.define(kw_only=True, eq=False)
class Inspection:
    """The three endpoints under ``/sandbox``; they are ours, the service has nothing like them."""

    world: World
    finish: Callable[..., None]

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/sandbox/state", self._state),
            web.post("/sandbox/faults", self._change_faults),
            web.post("/sandbox/finish", self._finish),
        ]

    async def _state(self, request: web.Request) -> web.Response:
        tasks = [_shown(task) for task in self.world.tasks.values()]
        return web.json_response(
            {"counts": dict(self.world.counts), "balance": self.world.balance, "tasks": tasks}
        )

    async def _change_faults(self, request: web.Request) -> web.Response:
        try:
            self.world.faults.change(_object_in(await request.read()))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(self.world.faults.shown())

    async def _finish(self, request: web.Request) -> web.Response:
        try:
            asked = _object_in(await request.read())
            options = {name: asked[name] for name in ("fail_code", "fail_msg") if name in asked}
            self.finish(asked.get("task_id"), asked.get("state", "success"), **options)
        except (KeyError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=404 if type(error) is KeyError else 400)
        return web.json_response({"ok": True})


def _object_in(body: bytes) -> dict[str, Any]:
    asked = json.loads(body)
    if not isinstance(asked, dict):
        raise ValueError("a JSON object is wanted")  # noqa: TRY004  the sender's value, not our type
    return asked


def _shown(task: SandboxTask) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "model": task.model,
        "state": task.state,
        "callback_url": task.callback_url,
        "created_ms": task.created_ms,
        "credits": task.credits,
        "input": task.input,
    }
