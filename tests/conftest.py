"""What many tests share: a sandbox without limits, sessions on it, a receiver, and a check for leaks.

A test that asks for ``clock`` runs on a loop whose time stands still until the test lets it pass.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support.clock import Clock, SteeredLoop, eventually
from support.command_line import run_command, service  # noqa: F401  (fixtures)
from support.inside import open_http_sessions
from support.loops import ASKED_FOR, LOOPS, as_asked
from support.postgres import (  # noqa: F401  (fixtures)
    own_postgres,
    postgres_dsn,
    postgres_server,
    postgres_template,
)
from support.stores import durable, durable_store, journal, store  # noqa: F401  (fixtures)

from kie_async import (
    CallbackReceiver,
    KieSession,
    Limits,
    PollSchedule,
    Rate,
    Sandbox,
    ServedReceiver,
    SessionEvent,
)
from kie_async.sandbox import Never

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process that a test starts compiles everything
sys.dont_write_bytecode = False
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has what runs in its background ignore Ctrl-C, and so would each process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("suite", max_examples=40, deadline=None)
settings.load_profile("suite")

HMAC_KEY = "hmac-key-of-the-tests"
FAST = PollSchedule(
    learns=False,
    first_s=0.01,
    tiers=((math.inf, 0.02),),
    safety_net_s=0.02,
    jitter=0.0,
    recheck_s=(0.01,),
    ring_gap_s=0.01,
)
"""Polls at every tick."""
NO_LIMITS = Limits(
    create=Rate(1_000_000, per_s=0.001),
    query=Rate(1_000_000, per_s=0.001),
    create_connections=64,
    query_connections=64,
)
OpenSession = Callable[..., Awaitable[KieSession]]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Function
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the suite on the loop asked for; the tests that ask for ``clock`` get one of their own."""
    if "clock" in item.fixturenames:
        return {"steered": as_asked(SteeredLoop)}
    return {ASKED_FOR: LOOPS[ASKED_FOR]}


@pytest.fixture(params=LOOPS)
def loop_name(request: pytest.FixtureRequest) -> str:
    """Name each loop that can be had, for `run_on`: whatever loop the suite runs on."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    if request.param == "eager" and sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")
    return str(request.param)


@pytest.fixture
async def clock() -> Clock:
    """Return what steers the loop's time."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteeredLoop)
    return Clock(loop)


@contextmanager
def time_passes() -> Iterator[None]:
    """Let time pass for what ends: it may wait for timeouts."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, SteeredLoop):
        yield
        return
    loop.advancing += 1
    try:
        yield
    finally:
        loop.advancing -= 1


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Take back what a test, or the command line in it, did to the levels of our logs."""
    logs = [logging.getLogger(name) for name in ("kie_async", "kie_async.uploads", "kie_async.weather")]
    levels = [log.level for log in logs]
    yield
    for log, level in zip(logs, levels, strict=True):
        log.setLevel(level)


@pytest.fixture(autouse=True)
def http_sessions() -> Iterator[None]:
    """Fail the test if an HTTP session of ours is left open: it would be until the process ends."""
    before = open_http_sessions()
    yield
    assert not open_http_sessions() - before


@asynccontextmanager
async def no_leaks() -> AsyncIterator[None]:
    """Fail if a task or a file descriptor is left when all that was opened inside is closed.

    Or if anything was reported to the loop's exception handler: an error nobody was there to take.
    """
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    files, tasks = open_files(), asyncio.all_tasks()
    yield
    assert not reported
    await eventually(lambda: open_files() <= files, rounds=1000)
    left = asyncio.all_tasks() - tasks - {asyncio.current_task()}
    assert not left, f"tasks are left: {left}"


@pytest.fixture
async def leaks() -> AsyncIterator[None]:
    """Fail the test if it leaves something behind, whatever loop it runs on."""
    async with no_leaks():
        yield


@pytest.fixture
async def sandbox(leaks: None) -> AsyncIterator[Sandbox]:
    """Return a sandbox without limits whose tasks end when a test says so; it signs its callbacks."""
    sandbox = Sandbox(durations=Never(), create_limit=None, query_limit=None, hmac_key=HMAC_KEY)
    await sandbox.start()
    yield sandbox
    with time_passes():
        await sandbox.aclose()


@pytest.fixture
async def open_session(sandbox: Sandbox) -> AsyncIterator[OpenSession]:
    """Return a function that opens a session on the sandbox; the end of the test closes it."""
    opened: list[KieSession] = []

    async def open_session(**options: Any) -> KieSession:
        given = {"base_url": sandbox.url, "poll": FAST, "limits": NO_LIMITS} | options
        kie = KieSession(given.pop("api_key", "sandbox-key"), **given)
        opened.append(kie)
        return await kie.open()

    yield open_session
    with time_passes():
        for kie in opened:
            await kie.aclose()


@pytest.fixture
async def kie(open_session: OpenSession) -> KieSession:
    """Return an open session that polls at every tick."""
    return await open_session()


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory if there is one: for what opens many journals."""
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    ) as folder:
        yield Path(folder)


@pytest.fixture
def receiver() -> CallbackReceiver:
    """Return a receiver that knows the sandbox's key: its deliveries settle handles by themselves."""
    return CallbackReceiver([HMAC_KEY])


@pytest.fixture
def doorbell() -> CallbackReceiver:
    """Return a receiver without keys: its deliveries only ask for a poll."""
    return CallbackReceiver()


@pytest.fixture
async def served(leaks: None, receiver: CallbackReceiver) -> AsyncIterator[ServedReceiver]:
    """Return where ``receiver`` listens."""
    async with receiver.serve("127.0.0.1", 0) as served:
        yield served


@pytest.fixture
async def served_doorbell(leaks: None, doorbell: CallbackReceiver) -> AsyncIterator[ServedReceiver]:
    """Return where ``doorbell`` listens."""
    async with doorbell.serve("127.0.0.1", 0) as served:
        yield served


class Events(list[SessionEvent]):
    """An ``on_event`` hook that keeps what it is told."""

    def __call__(self, event: SessionEvent) -> None:
        self.append(event)

    def kinds(self, task_id: str | None = None) -> list[str]:
        return [event.kind for event in self if task_id in (None, event.task_id)]


@pytest.fixture
def events() -> Events:
    """Return a hook for ``on_event`` that keeps what it is told."""
    return Events()
