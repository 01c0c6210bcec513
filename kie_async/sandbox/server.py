"""The `Sandbox` class: opens and closes the server, ends tasks on time, and shows tests what happened."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

from aiohttp import web

from .deliveries import Courier
from .durations import Durations, Fixed
from .endpoints import Endpoints
from .faults import Faults
from .films import Films, require_renderer
from .inspection import ControlGuard, Inspection, is_loopback_name
from .tasks import Delivery, EndState, SandboxTask
from .uploads import FileHost
from .window import Window
from .world import World

_BODY_LIMIT = 16 * 1024 * 1024
"""Bytes of a JSON body: 10 MB in base64 and some."""
_DRAIN_S = 0.1
"""How long answers under way may take when the sandbox closes."""
_BACKLOG = 1024
_FIFTY_MS = Fixed(0.05)


class Sandbox:
    """A local stand-in for the Kie.ai service, for tests, demos and benchmarks.

    Use it as an async context manager, or call ``start`` and ``aclose``. Closed, it still shows what
    happened; started again, it listens on the same port and its tasks go on.

    Limits are so many requests in so many seconds, of the key; *task_query_limit* is one for queries of each
    task. The service's own texts differ on which of the two it has.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = "sandbox-key",
        durations: Durations = _FIFTY_MS,
        seed: int = 0,
        credits: float = 100_000.0,
        credits_per_s: float = 8.0,
        create_limit: tuple[int, float] | None = (20, 10.0),
        query_limit: tuple[int, float] | None = (10, 1.0),
        task_query_limit: tuple[int, float] | None = None,
        hmac_key: str | None = None,
        key_set: Literal["2026", "2025"] = "2026",
        callbacks: bool = True,
        callback_delay_s: float = 0.0,
        callback_retries_s: tuple[float, ...] = (),
        render: bool = False,
        faults: Faults | None = None,
        control_token: str | None = None,
    ) -> None:
        if not control_token:
            control_token = None if is_loopback_name(host) else secrets.token_urlsafe(24)
        self._guard = ControlGuard(token=control_token)
        limits = {"create": create_limit, "query": query_limit}
        self._host, self._port = host, port
        self._callbacks = callbacks
        self._world = World(
            api_key=api_key,
            durations=durations,
            rng=random.Random(seed),
            balance=credits,
            credits_per_s=credits_per_s,
            windows={name: Window(*limit) for name, limit in limits.items() if limit is not None},
            task_query_limit=task_query_limit,
            key_set=key_set,
            faults=faults or Faults(),
        )
        self._courier = Courier(
            world=self._world, hmac_key=hmac_key, delay_s=callback_delay_s, retries_s=callback_retries_s
        )
        self._films = Films(self._world.files) if render else None
        self._runner: web.AppRunner | None = None

    # -- opening and closing ---------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and let the clocks of unfinished tasks run.

        Raises:
            RuntimeError: It runs already, or rendering is wanted and PyAV is not installed.
            OSError: The port is taken.
        """
        if self._runner is not None:
            raise RuntimeError("the sandbox is already running")
        if self._films is not None:
            require_renderer()
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=_DRAIN_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=_BACKLOG).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner, self._port = runner, runner.addresses[0][1]
        self._world.files.origin = self.url
        self._courier.open()
        for task in self.tasks.values():
            self._arm(task)

    async def aclose(self) -> None:
        """Stop listening and end all background work; calling it twice is harmless."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        await runner.cleanup()
        for task in self.tasks.values():
            _stop_clock(task)
        await self._courier.aclose()
        if self._films is not None:
            await self._films.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _application(self) -> web.Application:
        endpoints = Endpoints(
            world=self._world,
            courier=self._courier,
            sends_callbacks=self._callbacks,
            arm=self._arm,
            end=self._end_silently,
        )
        app = web.Application(client_max_size=_BODY_LIMIT)
        app.add_routes(endpoints.routes())
        films = None if self._films is None else self._films.of
        app.add_routes(FileHost(world=self._world, films=films).routes())
        app.add_routes(Inspection(world=self._world, finish=self.finish, guard=self._guard).routes())
        return app

    # -- what it shows ---------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The API's base URL, without a slash at its end. Known once started."""
        host = "127.0.0.1" if self._host in ("", "0.0.0.0") else self._host  # noqa: S104  compared
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def upload_url(self) -> str:
        """The upload API's base URL: the same server."""
        return self.url

    @property
    def control_token(self) -> str | None:
        """What ``/sandbox/`` endpoints want in the header ``X-Sandbox-Token``; None where none is needed.

        Listening on this machine alone they want none; elsewhere one is made up if none is given.
        """
        return self._guard.token

    @property
    def tasks(self) -> dict[str, SandboxTask]:
        """Every task by its id, oldest first."""
        return self._world.tasks

    @property
    def counts(self) -> Counter[str]:
        """Requests by endpoint, refusals as ``endpoint.code``, callbacks as ``callback.…``."""
        return self._world.counts

    @property
    def deliveries(self) -> list[Delivery]:
        """Every callback posted, in the order of their answers."""
        return self._world.deliveries

    @property
    def films_rendered(self) -> int:
        """Renders begun; one for each pair of portrait and voice asked for."""
        return 0 if self._films is None else self._films.rendered

    @property
    def balance(self) -> float:
        """Credits left, holds deducted."""
        return self._world.balance

    @balance.setter
    def balance(self, credits: float) -> None:
        self._world.balance = credits

    @property
    def faults(self) -> Faults:
        """What goes wrong from now on."""
        return self._world.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._world.faults = faults

    # -- what tests can make it do ---------------------------------------------------------------

    def finish(
        self,
        task_id: str,
        state: EndState = "success",
        *,
        fail_code: str | None = None,
        fail_msg: str | None = None,
    ) -> None:
        """End a task now and let its callback leave. A task that has ended stays as it is.

        Raises:
            KeyError: There is no such task.
            ValueError: *state* is neither "success" nor "fail".
        """
        if state not in ("success", "fail"):
            raise ValueError(f"a task ends as success or fail, not {state!r}")
        task = self.tasks[task_id]
        _stop_clock(task)
        if self._world.end(task, state, fail_code=fail_code, fail_msg=fail_msg) and self._callbacks:
            self._courier.announce(task)

    def start_generating(self, task_id: str) -> None:
        """Move a task to "generating" now.

        Raises:
            KeyError: There is no such task.
        """
        self.tasks[task_id].generating_at = time.monotonic()

    def callback_body(self, task_id: str) -> bytes:
        """Return the genuine callback body of a task as it would leave now.

        Raises:
            KeyError: There is no such task.
        """
        return self._world.callback_body(self.tasks[task_id])

    def callback_headers(self, task_id: str) -> dict[str, str]:
        """Return the signature headers of a callback leaving now; empty without an ``hmac_key``."""
        return self._courier.headers(task_id)

    async def send_callback(
        self, task_id: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> int:
        """Post a callback once, now, and return the HTTP status; by default the genuine one.

        Raises:
            KeyError: There is no such task.
            ConnectionError: No answer came within 15 s, or the task has no callback URL.
        """
        task = self.tasks[task_id]
        body = self.callback_body(task_id) if body is None else body
        headers = self.callback_headers(task_id) if headers is None else headers
        status = await self._courier.post(task, body, headers, kind="manual")
        if status is None:
            raise ConnectionError(f"no answer from {task.callback_url!r}")
        return status

    # -- the clock -------------------------------------------------------------------------------

    def _arm(self, task: SandboxTask) -> None:
        if task.end_state is None and task.duration_s is not None:
            at = task.created_at + task.duration_s
            wait_s = max(0.0, at - time.monotonic())
            task.timer = asyncio.get_running_loop().call_later(wait_s, self._end_on_time, task.task_id)

    def _end_on_time(self, task_id: str) -> None:
        self.finish(task_id, self._world.draw_end())

    def _end_silently(self, task: SandboxTask) -> None:
        self._world.end(task, "success")


def _stop_clock(task: SandboxTask) -> None:
    if task.timer is not None:
        task.timer.cancel()
        task.timer = None
