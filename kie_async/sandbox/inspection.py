"""HTTP endpoints, without a key, by which other processes read the state, set faults and end tasks."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import attrs
from aiohttp import web

from .tasks import SandboxTask
from .world import World

TOKEN_HEADER = "X-Sandbox-Token"  # noqa: S105  (its name)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.frozen(kw_only=True)
class ControlGuard:
    """Decides who may use the control endpoints.

    A browser reaches this machine's ports for every page it shows, so that the address of the caller
    proves nothing: a page of another origin says so itself, and one whose name was made to resolve to
    this machine (DNS rebinding) still sends that name.
    """

    token: str | None = attrs.field(default=None, repr=False)
    """If there is one it must come along; then the name in Host does not matter."""

    def reason_to_refuse(self, request: web.Request) -> str:
        """Return why this request is not answered; nothing if it may be."""
        hosts = request.headers.getall("Host", [])
        origins = request.headers.getall("Origin", [])
        if any(not _is_same_origin(origin, hosts) for origin in origins):
            return "the request comes from a page of another origin"
        if request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
            return "the request comes from a page of another site"
        if not request.raw_path.startswith("/"):  # it names a host of its own, beside that in Host
            return "the request must name a path, not a URL"
        if self.token is not None:
            given = request.headers.get(TOKEN_HEADER, "")
            is_right = hmac.compare_digest(given.encode(errors="replace"), self.token.encode())
            return "" if is_right else f"send the sandbox's token in the header {TOKEN_HEADER}"
        if not hosts or not all(is_loopback_name(_name_in(host)) for host in hosts):
            return "only localhost and loopback addresses may stand in Host"
        return ""

    def protect(self, handler: _Handler) -> _Handler:
        """Return *handler* for those who may use it; all others are answered 403."""

        async def protected(request: web.Request) -> web.StreamResponse:
            if reason := self.reason_to_refuse(request):
                return web.json_response({"error": reason}, status=403)
            return await handler(request)

        return protected


@attrs.define(kw_only=True, eq=False)
class Inspection:
    """The three endpoints under ``/sandbox``; they are ours, the service has nothing like them."""

    world: World
    finish: Callable[..., None]
    guard: ControlGuard

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/sandbox/state", self.guard.protect(self._state)),
            web.post("/sandbox/faults", self.guard.protect(self._change_faults)),
            web.post("/sandbox/finish", self.guard.protect(self._finish)),
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


def is_loopback_name(name: str) -> bool:
    """Tell whether a host name or an address can mean this machine only."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _name_in(host: str) -> str:
    """Return the name in a Host header, without its port; nothing if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or "" if "@" not in host else ""
    except ValueError:
        return ""


def _is_same_origin(origin: str, hosts: list[str]) -> bool:
    scheme, _, place = origin.partition("://")
    return scheme in {"http", "https"} and [place.lower()] == [host.lower() for host in hosts]


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
