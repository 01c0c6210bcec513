"""Holds the state of an emulated service: settings, tasks, limits, and which route answers what.

A dialect is a module of functions marked with `route`; each takes the world and a request and returns a
status and a JSON body.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import attrs

try:
    from orjson import dumps, loads
except ImportError:

    def dumps(value: Any) -> bytes:
        """Return JSON without spaces, as orjson does."""
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()

    loads = json.loads


@attrs.frozen(kw_only=True)
class Settings:
    """How the service behaves; times in seconds."""

    durations: tuple[str, float] | tuple[str, float, float] | tuple[str] = ("fixed", 0.0)
    """``fixed s``, ``uniform low high``, ``lognormal median sigma`` or ``never``."""
    seed: int = 0
    callbacks: bool = True
    """Whether it calls back the tasks that name a URL."""
    callback_loss: float = 0.0
    callback_connections: int = 64
    hmac_key: str = ""
    create_limit: tuple[int, float] | None = None
    """So many in any window of so many seconds; more are refused and leave no trace in the window."""
    query_limit: tuple[int, float] | None = None
    max_concurrent: int | None = None
    """So many tasks run at once; the others wait for their turn."""
    fail_rate: float = 0.0
    delay_s: float = 0.0
    """How long an answer is held back after its request was judged."""


@attrs.define(eq=False)
class Task:
    """A task; times are those of CLOCK_MONOTONIC, which all processes of a machine share."""

    task_id: str
    model: str
    param: str
    callback_url: str | None
    created_at: float
    starts_at: float
    ends_at: float
    is_good: bool
    sent_at: float | None = None
    """When its callback was last written to a socket."""

    @property
    def state(self) -> str:
        """Return the service's word for where it stands."""
        now = time.monotonic()
        if now < self.ends_at:
            return "generating" if now >= self.starts_at else "waiting"
        return "success" if self.is_good else "fail"


@attrs.define
class Request:
    """One HTTP request."""

    method: str
    path: str
    query: str
    head: bytes
    body: bytes


class World:
    """The tasks under one set of settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tasks: dict[str, Task] = {}
        self.counts: Counter[str] = Counter()
        self.wall_clock_ahead_s = time.time() - time.monotonic()
        self.call_back: Callable[[Task], None] = lambda _: None
        self._loop = asyncio.get_running_loop()
        self._rng = random.Random(settings.seed)
        self._windows: dict[str, deque[float]] = {"create": deque(), "query": deque()}
        self._running: list[float] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def admits(self, kind: str) -> bool:
        """Return whether the limit on ``create`` or ``query`` lets a request in that arrives now."""
        settings = self.settings
        limit = settings.create_limit if kind == "create" else settings.query_limit
        if limit is None:
            return True
        window, now = self._windows[kind], time.monotonic()
        while window and window[0] <= now - limit[1]:
            window.popleft()
        if len(window) >= limit[0]:
            self.counts[f"{kind} 429"] += 1
            return False
        window.append(now)
        return True

    def create(self, *, model: str, param: str = "", callback_url: str | None = None) -> Task:
        """Begin a task."""
        now = time.monotonic()
        starts_at, ends_at = self._planned(now)
        task = Task(
            task_id=f"{self._rng.getrandbits(128):032x}",
            model=model,
            param=param,
            callback_url=callback_url,
            created_at=now,
            starts_at=starts_at,
            ends_at=ends_at,
            is_good=self._rng.random() >= self.settings.fail_rate,
        )
        self.tasks[task.task_id] = task
        if callback_url and self.settings.callbacks and ends_at < math.inf:
            delay_s = max(0.0, ends_at - time.monotonic())
            self._timers[task.task_id] = self._loop.call_later(delay_s, self._ended, task)
        return task

    def end_all(self) -> int:
        """End every task that goes on, all in the same instant; return how many."""
        now = time.monotonic()
        ended = [task for task in self.tasks.values() if task.ends_at > now]
        for task in ended:
            task.ends_at = now
        for task in ended:
            if task.callback_url and self.settings.callbacks:
                self._ended(task)
        return len(ended)

    def clear(self) -> None:
        """Call nobody back any more."""
        for timer in self._timers.values():
            timer.cancel()

    def _ended(self, task: Task) -> None:
        if (timer := self._timers.pop(task.task_id, None)) is not None:
            timer.cancel()
        task.ends_at = min(task.ends_at, time.monotonic())  # a timer of uvloop may be early
        if self._rng.random() < self.settings.callback_loss:
            self.counts["callbacks lost"] += 1
        else:
            self.call_back(task)

    def _planned(self, now: float) -> tuple[float, float]:
        """Return when a task that came in now starts and ends."""
        starts_at, most = now, self.settings.max_concurrent
        if most is not None and len(self._running) >= most:
            starts_at = max(now, heapq.heappop(self._running))
        ends_at = starts_at + self._duration_s()
        if most is not None:
            heapq.heappush(self._running, ends_at)
        return starts_at, ends_at

    def _duration_s(self) -> float:
        kind, *numbers = self.settings.durations
        if kind == "fixed":
            return numbers[0]
        if kind == "uniform":
            return self._rng.uniform(*numbers)
        if kind == "lognormal":
            return self._rng.lognormvariate(math.log(numbers[0]), numbers[1])
        return math.inf


Handler = Callable[[World, Request], tuple[int, bytes]]
_EXACT: dict[tuple[str, str], Handler] = {}
_PREFIXES: list[tuple[str, str, Handler]] = []


def route(method: str, path: str) -> Callable[[Handler], Handler]:
    """Let a function answer this path; one that ends in ``*`` stands for all that begin like it."""

    def mark(handler: Handler) -> Handler:
        if path.endswith("*"):
            _PREFIXES.append((method, path[:-1], handler))
            _PREFIXES.sort(key=lambda entry: -len(entry[1]))
        else:
            _EXACT[method, path] = handler
        return handler

    return mark


def handler_of(method: str, path: str) -> Handler:
    """Return what answers a request; the longest prefix wins."""
    if (handler := _EXACT.get((method, path))) is not None:
        return handler
    for other, prefix, handler in _PREFIXES:
        if path.startswith(prefix) and method == other:
            return handler
    return _unknown


def _unknown(_: World, request: Request) -> tuple[int, bytes]:
    return 404, dumps({"code": 404, "msg": f"no {request.method} {request.path}", "data": None})


# --- Kie's dialect -------------------------------------------------------------------------------


def _envelope(data: object, code: int = 200, message: str = "success") -> bytes:
    return dumps({"code": code, "msg": message, "data": data})


_REFUSED = _envelope(None, 429, "Your call frequency is too high. Please try again later.")
_NO_RECORD = _envelope(None, 422, "recordInfo is null")
_BALANCE = _envelope(5916.25)


@route("POST", "/api/v1/jobs/createTask")
def create_task(world: World, request: Request) -> tuple[int, bytes]:
    """Begin a task; the verdict is in the envelope, HTTP says 200."""
    if not world.admits("create"):
        return 200, _REFUSED
    asked = loads(request.body)
    param = {**asked, "input": dumps(asked["input"]).decode()}
    task = world.create(
        model=asked["model"], param=dumps(param).decode(), callback_url=asked.get("callBackUrl")
    )
    return 200, _envelope({"taskId": task.task_id, "recordId": task.task_id})


@route("GET", "/api/v1/jobs/recordInfo")
def record_info(world: World, request: Request) -> tuple[int, bytes]:
    """Return the record of a task."""
    if not world.admits("query"):
        return 200, _REFUSED
    task = world.tasks.get(request.query.removeprefix("taskId="))
    return 200, _NO_RECORD if task is None else _envelope(record_of(world, task))


@route("GET", "/api/v1/chat/credit")
def credit(world: World, _: Request) -> tuple[int, bytes]:
    """Return the balance."""
    return (200, _BALANCE) if world.admits("query") else (200, _REFUSED)


def record_of(world: World, task: Task) -> dict[str, object]:
    """Return a record as the service gives it; ``costTime`` is in seconds."""
    state = task.state
    record: dict[str, object] = {
        "taskId": task.task_id,
        "model": task.model,
        "state": state,
        "param": task.param,
        "resultJson": "",
        "failCode": None,
        "failMsg": None,
        "costTime": None,
        "completeTime": None,
        "createTime": int((task.created_at + world.wall_clock_ahead_s) * 1000),
        "creditsConsumed": 88.0,
    }
    if state in ("success", "fail"):
        record["costTime"] = int(task.ends_at - task.starts_at)
        record["completeTime"] = int((task.ends_at + world.wall_clock_ahead_s) * 1000)
    if state == "success":
        url = f"https://tempfile.aiquickdraw.com/r/{task.task_id}_1759000000_video.mp4"
        record["resultJson"] = dumps({"resultUrls": [url]}).decode()
    elif state == "fail":
        record |= {
            "failCode": "500",
            "failMsg": "Internal Error, Please try again later.",
            "creditsConsumed": 0,
        }
    return record


def callback_of(world: World, task: Task) -> bytes:
    """Return the body the service posts when a task is over."""
    if task.is_good:
        return _envelope(record_of(world, task), message="Playground task completed successfully.")
    return _envelope(record_of(world, task), 501, "Playground task failed.")
