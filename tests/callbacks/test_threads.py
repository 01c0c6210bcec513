"""Tests deliveries from other threads: the session is touched on its own event loop only, and waited for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import HMAC_KEY, OpenSession
from support.clock import eventually

from kie_async import CallbackReceiver, CallbackRejected, CallbackVerdict, PollSchedule, Sandbox, TaskHandle
from kie_async.callbacks import handover
from kie_async.callbacks.address import callback_mac
from kie_async.callbacks.base import Delivery
from kie_async.wire.redaction import MACS_ONLY

INTENT, SECRET, TASK = "0123456789abcdef" * 2, b"a secret", "task_12345678"
TAIL = f"{INTENT}/{callback_mac(INTENT, secret=SECRET)}"
BODY = b'{"code":200,"data":{"taskId":"task_12345678","state":"waiting"}}'
NEVER = PollSchedule.fixed(3600)
CALLBACK_URL = "http://127.0.0.1:1/kie"


class Inbox:
    """A session that notes on which threads it was touched."""

    callback_secrets: Sequence[bytes] = (SECRET,)

    redactor = MACS_ONLY

    def __init__(self) -> None:
        self.threads: list[tuple[str, int]] = []
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    def _note(self, what: str) -> None:
        self.threads.append((what, threading.get_ident()))

    def owner_of(self, intent_id: str) -> str | None:
        self._note("owner_of")
        return TASK if intent_id == INTENT else None

    async def find_noted(self, intent_id: str) -> str | None:
        return None

    async def accept(self, delivery: Delivery) -> None:
        self._note("accept")
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self._note("accepted")

    def note_rejection(self, reason: str) -> None:
        self._note(reason)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
async def receiver_of_inbox(inbox: Inbox) -> CallbackReceiver:
    receiver = CallbackReceiver()
    receiver.attach(inbox)
    return receiver


def feed(
    receiver: CallbackReceiver, tail: str = TAIL, headers: Any = (), body: bytes = BODY
) -> CallbackVerdict:
    """Deliver from a thread without an event loop, as a WSGI application does."""
    return asyncio.run(receiver.feed(tail, headers, body))


@pytest.mark.parametrize(
    ("tail", "body", "status", "touched"),
    [
        (TAIL, BODY, 200, ["owner_of", "accept", "accepted"]),
        (TAIL, BODY + b" " * 300_000, 200, ["owner_of", "accept", "accepted"]),
        ("x/y", BODY, 404, ["wrong address"]),
        (TAIL, b"", 400, ["owner_of", "unreadable body"]),
        (TAIL, BODY.replace(b"12345678", b"1"), 400, ["owner_of", "id of another task"]),
    ],
    ids=["genuine", "large", "wrong address", "empty", "other task"],
)
async def test_a_session_is_touched_on_its_own_thread_only(
    receiver_of_inbox: CallbackReceiver,
    inbox: Inbox,
    tail: str,
    body: bytes,
    status: int,
    touched: list[str],
) -> None:
    verdict = await asyncio.to_thread(feed, receiver_of_inbox, tail, (), body)

    assert verdict.status == status
    assert inbox.threads == [(what, threading.get_ident()) for what in touched]


async def test_the_answer_waits_until_the_delivery_is_taken_in(
    receiver_of_inbox: CallbackReceiver, inbox: Inbox
) -> None:
    inbox.gate = asyncio.Event()

    feeding = asyncio.create_task(asyncio.to_thread(feed, receiver_of_inbox))
    await eventually(lambda: ("accept", threading.get_ident()) in inbox.threads)
    await asyncio.sleep(0.05)
    assert not feeding.done()

    inbox.gate.set()
    assert (await feeding).status == 200


@pytest.mark.parametrize(
    ("error", "status"), [(CallbackRejected("the claim could not be noted", 503), 503), (None, 200)]
)
@pytest.mark.parametrize("in_thread", [True, False])
async def test_a_session_may_refuse_a_delivery_so_that_it_is_tried_again(
    receiver_of_inbox: CallbackReceiver, inbox: Inbox, error: Exception | None, status: int, in_thread: bool
) -> None:
    inbox.error = error

    feeding = (
        asyncio.to_thread(feed, receiver_of_inbox) if in_thread else receiver_of_inbox.feed(TAIL, (), BODY)
    )
    verdict = await feeding

    assert verdict.status == status
    assert verdict.reason == ("" if error is None else "the claim could not be noted")


async def test_a_mistake_of_ours_is_raised_where_it_was_fed(
    receiver_of_inbox: CallbackReceiver, inbox: Inbox
) -> None:
    inbox.error = RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.to_thread(feed, receiver_of_inbox)


async def test_a_blocked_loop_is_answered_503_and_the_delivery_is_not_taken_in_later(
    receiver_of_inbox: CallbackReceiver, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "HANDOVER_TIMEOUT_S", 0.05)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        feeding = pool.submit(feed, receiver_of_inbox)
        time.sleep(0.3)  # noqa: ASYNC251  (that is the mistake)
        verdict = feeding.result(5)
    await asyncio.sleep(0.05)

    assert (verdict.status, verdict.reason) == (503, "the event loop of the session is blocked")
    assert [what for what, _ in inbox.threads] == ["the event loop of the session is blocked"]


async def test_what_takes_too_long_is_answered_503_and_goes_on(
    receiver_of_inbox: CallbackReceiver, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "HANDOVER_TIMEOUT_S", 0.05)
    inbox.gate = asyncio.Event()

    assert (await asyncio.to_thread(feed, receiver_of_inbox)).status == 503

    inbox.gate.set()
    await eventually(lambda: ("accepted", threading.get_ident()) in inbox.threads)


def test_a_loop_that_has_ended_is_503_at_once(inbox: Inbox) -> None:
    receiver = CallbackReceiver()

    async def attach() -> None:
        receiver.attach(inbox)

    asyncio.run(attach())
    assert feed(receiver).status == 503
    assert feed(receiver, "x/y").status == 404
    assert inbox.threads == []


async def test_a_loop_that_ends_meanwhile_is_503(inbox: Inbox) -> None:
    receiver, is_attached, ending = CallbackReceiver(), threading.Event(), threading.Event()

    async def open_and_close() -> None:
        inbox.gate = asyncio.Event()
        receiver.attach(inbox)
        is_attached.set()
        await asyncio.to_thread(ending.wait, 5)

    session = asyncio.create_task(asyncio.to_thread(asyncio.run, open_and_close()))
    await asyncio.to_thread(is_attached.wait, 5)
    feeding = asyncio.create_task(receiver.feed(TAIL, (), BODY))
    await eventually(lambda: "accept" in [what for what, _ in inbox.threads])
    ending.set()
    await session

    assert (await feeding).status == 503


async def test_a_session_that_closed_meanwhile_is_not_touched(
    receiver_of_inbox: CallbackReceiver, inbox: Inbox
) -> None:
    async def read(_: int) -> bytes:
        receiver_of_inbox.detach(inbox)
        return BODY

    verdict = await receiver_of_inbox._on_request(TAIL, {}, read)

    assert (verdict.status, verdict.reason) == (503, "no session is open")
    assert inbox.threads == []


def _loop_factories() -> list[Any]:
    factories: list[Any] = [pytest.param(asyncio.new_event_loop, id="asyncio")]
    if (eager := getattr(asyncio, "eager_task_factory", None)) is not None:

        def new_eager_loop() -> asyncio.AbstractEventLoop:
            loop = asyncio.new_event_loop()
            loop.set_task_factory(eager)
            return loop

        factories.append(pytest.param(new_eager_loop, id="eager"))
    try:
        import uvloop

        factories.append(pytest.param(uvloop.new_event_loop, id="uvloop"))
    except ImportError:
        pass
    return factories


@pytest.mark.parametrize("loop_factory", _loop_factories())
def test_the_loop_of_the_session_may_be_of_any_kind(loop_factory: Any, inbox: Inbox) -> None:
    receiver = CallbackReceiver()

    async def play() -> list[CallbackVerdict]:
        receiver.attach(inbox)
        feeding = [asyncio.to_thread(feed, receiver) for _ in range(50)]
        return list(await asyncio.gather(*feeding))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        verdicts = runner.run(play())

    assert {verdict.status for verdict in verdicts} == {200}
    assert {thread for _, thread in inbox.threads} == {threading.get_ident()}
    assert feed(receiver).status == 503


# --- with a session ------------------------------------------------------------------------------


def delivery_of(sandbox: Sandbox, handle: TaskHandle) -> tuple[str, dict[str, str], bytes]:
    task = sandbox.tasks[handle.task_id]
    tail = "/".join(str(task.callback_url).split("/")[-2:])
    return tail, dict(sandbox.callback_headers(task.task_id)), sandbox.callback_body(task.task_id)


@pytest.mark.parametrize("keeps_journal", [True, False], ids=["journal", "memory"])
async def test_many_threads_at_once_settle_every_handle_on_the_thread_of_the_session(
    sandbox: Sandbox, open_session: OpenSession, tmp_path: Path, keeps_journal: bool
) -> None:
    hooked: set[int] = set()
    receiver = CallbackReceiver([HMAC_KEY])
    sandbox.faults.drop_callbacks = 1.0
    kie = await open_session(
        receiver=receiver,
        callback_url=CALLBACK_URL,
        poll=NEVER,
        journal=tmp_path / "run.db" if keeps_journal else None,
        on_event=lambda _: hooked.add(threading.get_ident()),
    )
    handles = [await kie.create("sandbox/echo", {}) for _ in range(40)]
    for handle in handles:
        sandbox.finish(handle.task_id)
    given = [delivery_of(sandbox, handle) for handle in handles] * 3

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        loop = asyncio.get_running_loop()
        fed = [loop.run_in_executor(pool, feed, receiver, *delivery) for delivery in given]
        verdicts = await asyncio.gather(*fed)

    assert {verdict.status for verdict in verdicts} == {200}
    async with asyncio.timeout(5):
        await asyncio.gather(*handles)
    stats = kie.stats()
    assert stats.settled_by_callback == 40
    assert stats.callbacks_accepted + stats.callbacks_duplicate == 120
    assert hooked == {threading.get_ident()}


def _serve_in_thread(receiver: CallbackReceiver) -> tuple[str, Callable[[], None]]:
    ready, stopping = threading.Event(), threading.Event()
    urls: list[str] = []

    async def serve() -> None:
        async with receiver.serve("127.0.0.1", 0) as served:
            urls.append(served.url)
            ready.set()
            await asyncio.to_thread(stopping.wait, 30)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait(5)

    def stop() -> None:
        stopping.set()
        thread.join()

    return urls[0], stop


async def test_a_server_of_ours_may_run_in_another_thread(
    sandbox: Sandbox, open_session: OpenSession, tmp_path: Path
) -> None:
    receiver = CallbackReceiver([HMAC_KEY])
    url, stop = _serve_in_thread(receiver)
    try:
        kie = await open_session(receiver=receiver, callback_url=url, poll=NEVER, journal=tmp_path / "run.db")
        handle = await kie.create("sandbox/echo", {})
        sandbox.finish(handle.task_id)
        async with asyncio.timeout(5):
            assert (await handle).urls
        assert kie.stats().settled_by_callback == 1
    finally:
        await asyncio.to_thread(stop)
