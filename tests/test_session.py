"""A session: what it takes, who may use it when, how much it does at once, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import math
import re
import subprocess
import sys
import wave
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import HMAC_KEY, NO_LIMITS, Events, OpenSession, open_files
from support.clock import Clock, eventually, settle

from kie_async import (
    AuthenticationError,
    Budget,
    BudgetExceeded,
    CallbackReceiver,
    CreateOutcomeUnknown,
    InvalidRequest,
    JournalLocked,
    KieError,
    KieSession,
    KlingAvatar,
    Limits,
    NotFound,
    PollSchedule,
    Rate,
    RateLimited,
    RequestRejected,
    Sandbox,
    ServedReceiver,
    ServerError,
    SessionMisuse,
    TaskAbandoned,
    TaskDetached,
    TaskFailed,
    TaskHandle,
    TaskRequest,
    TaskState,
    TransportError,
)
from kie_async.cli.demo_media import read_portrait, read_voice
from kie_async.journal.intents import Intent
from kie_async.journal.memory import MemoryJournal
from kie_async.sandbox import Uniform

LOCAL = "http://127.0.0.1:1"
ECHO = ("sandbox/echo", {})
AVATAR = KlingAvatar(image_url=read_portrait(), audio_url=read_voice())


def twice_as_long(voice: bytes) -> bytes:
    """Return a WAV that says everything twice."""
    longer = io.BytesIO()
    with wave.open(io.BytesIO(voice)) as read, wave.open(longer, "wb") as written:
        written.setparams(read.getparams())
        written.writeframes(2 * read.readframes(read.getnframes()))
    return longer.getvalue()


async def outcome_of(awaitable: Awaitable[object]) -> object:
    """Return the result, or the error as a value."""
    (outcome,) = await asyncio.gather(awaitable, return_exceptions=True)
    return outcome


def forget_what_others_left(caplog: pytest.LogCaptureFixture) -> None:
    """Let sessions that other tests lost say so now, and not in the middle of this test."""
    gc.collect()
    caplog.clear()


class TestArguments:
    def test_the_key_may_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KIE_API_KEY", "key-of-the-environment")

        assert KieSession()._settings.key.reveal() == "key-of-the-environment"

    def test_a_given_key_goes_before_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KIE_API_KEY", "key-of-the-environment")

        assert KieSession("given")._settings.key.reveal() == "given"

    @pytest.mark.parametrize("key", [None, "", "   ", "\n"])
    def test_without_a_key_the_message_says_where_to_put_it(
        self, monkeypatch: pytest.MonkeyPatch, key: str | None
    ) -> None:
        monkeypatch.delenv("KIE_API_KEY", raising=False)

        with pytest.raises(
            InvalidRequest, match=r"api_key is missing.*set KIE_API_KEY; a key is at https://kie\.ai/api-key"
        ):
            KieSession(key)

    def test_line_ends_around_a_key_are_nobodys_intention(self) -> None:
        assert KieSession(" key\n")._settings.key.reveal() == "key"

    @pytest.mark.parametrize("key", ["two words", "kéy", "key\x00", "a\nb"])
    def test_a_key_that_cannot_be_one_is_refused_without_showing_it(self, key: str) -> None:
        with pytest.raises(InvalidRequest, match="api_key holds characters") as caught:
            KieSession(key)
        assert key not in str(caught.value)

    def test_the_base_url_may_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KIE_BASE_URL", LOCAL + "/")

        assert repr(KieSession("key")) == f"<KieSession {LOCAL} not open>"

    def test_a_given_base_url_goes_before_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KIE_BASE_URL", LOCAL)

        assert "api.example.org" in repr(KieSession("key", base_url="https://api.example.org"))

    def test_the_service_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KIE_BASE_URL", raising=False)

        assert "https://api.kie.ai" in repr(KieSession("key"))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("base_url", "http://api.example.org"),
            ("base_url", "api.example.org"),
            ("base_url", "https://user:password@api.example.org"),
            ("upload_url", "ftp://files.example.org"),
            ("max_in_flight", 0),
            ("max_in_flight", -1),
            ("max_in_flight", math.nan),
            ("max_in_flight", True),
            ("max_in_flight", "100"),
            ("task_timeout_s", 0),
            ("task_timeout_s", -1.0),
            ("task_timeout_s", math.nan),
            ("task_timeout_s", None),
            ("callback_url", "https://bot.example.org/kie#x"),
            ("callback_url", "kie"),
            ("callback_secrets", [""]),
            ("callback_secrets", "secret"),
        ],
    )
    def test_a_wrong_one_is_named(self, field: str, value: object) -> None:
        with pytest.raises(InvalidRequest, match=field):
            KieSession("key", **{field: value})

    def test_max_in_flight_is_a_whole_number(self) -> None:
        with pytest.raises(InvalidRequest, match="max_in_flight"):
            KieSession("key", max_in_flight=2.5)  # type: ignore[arg-type]

    def test_a_receiver_without_a_url_is_refused(self) -> None:
        with pytest.raises(InvalidRequest, match="callback_url is missing"):
            KieSession("key", receiver=CallbackReceiver())

    def test_its_repr_tells_how_it_is(self) -> None:
        assert repr(KieSession("key", base_url=LOCAL)) == f"<KieSession {LOCAL} not open>"


class TestCallbackUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "http://bot.example.org/kie",
            "https://localhost/kie",
            "https://bot/kie",
            "https://bot.local/kie",
            "https://127.0.0.1/kie",
            "https://192.168.1.7/kie",
            "https://[::1]/kie",
            "https://169.254.169.254/kie",
        ],
    )
    def test_what_the_service_cannot_reach_safely_is_refused(self, url: str) -> None:
        with pytest.raises(InvalidRequest, match="callback_url must be https on a public host"):
            KieSession("key", base_url="https://api.kie.ai", callback_url=url)

    @pytest.mark.parametrize(
        "url", ["https://bot.example.org/kie", "https://bot.example.org:8443", "https://93.184.216.34/kie/"]
    )
    def test_public_https_is_taken(self, url: str) -> None:
        KieSession("key", base_url="https://api.kie.ai", callback_url=url)

    @pytest.mark.parametrize("options", [{"base_url": LOCAL}, {"allow_insecure_callbacks": True}], ids=str)
    def test_anything_goes_with_a_sandbox_or_on_demand(self, options: dict[str, Any]) -> None:
        KieSession("key", callback_url="http://127.0.0.1:8080/kie", **options)


class Odd:
    """Nothing a create takes."""


class TestBadRequests:
    @pytest.mark.parametrize(
        ("arguments", "options", "named"),
        [
            (("sandbox/echo",), {}, "input"),
            (("no slash allowed here/and/there", {}), {}, "model"),
            (("", {}), {}, "model"),
            (("sandbox/echo", []), {}, "input"),
            (("sandbox/echo", {"x": math.nan}), {}, "input"),
            (("sandbox/echo", {"x": Odd()}), {}, "input"),
            (("sandbox/echo", {}), {"ref": " "}, "ref"),
            (("sandbox/echo", {}), {"timeout_s": 0}, "timeout_s"),
            (("sandbox/echo", {}), {"timeout_s": -1}, "timeout_s"),
            (("sandbox/echo", {}), {"timeout_s": math.nan}, "timeout_s"),
            (("sandbox/echo", {}), {"timeout_s": True}, "timeout_s"),
            ((Odd(),), {}, "request"),
            ((TaskRequest(model="sandbox/echo", input={}), {}), {}, "input"),
        ],
    )
    async def test_a_wrong_argument_is_named_and_nothing_is_sent(
        self, sandbox: Sandbox, kie: KieSession, arguments: Any, options: Any, named: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=named):
            await kie.create(*arguments, **options)

        assert not sandbox.counts

    async def test_a_refused_request_takes_no_slot(self, clock: Clock, open_session: OpenSession) -> None:
        kie = await open_session(max_in_flight=1)
        for _ in range(3):
            with pytest.raises(InvalidRequest):
                await kie.create("sandbox/echo", {"x": Odd()})

        assert await kie.create(*ECHO)

    @pytest.mark.parametrize("task_id", ["", " ", "a b", "../../x?y", "a.b", "x" * 129, "é", None, 7])
    async def test_what_is_no_id_is_asked_of_nobody(
        self, sandbox: Sandbox, kie: KieSession, task_id: Any
    ) -> None:
        with pytest.raises(InvalidRequest, match="task_id"):
            await kie.query(task_id)
        with pytest.raises(InvalidRequest, match="task_id"):
            kie.attach(task_id)

        assert not sandbox.counts

    @pytest.mark.parametrize("timeout_s", [0, -1, math.nan])
    async def test_attach_names_a_wrong_timeout(self, kie: KieSession, timeout_s: float) -> None:
        with pytest.raises(InvalidRequest, match="timeout_s"):
            kie.attach("task_1", timeout_s=timeout_s)


USES: dict[str, Callable[[KieSession], Any]] = {
    "create": lambda kie: kie.create(*ECHO),
    "run": lambda kie: kie.run(*ECHO),
    "attach": lambda kie: kie.attach("task_1"),
    "resume": lambda kie: kie.resume(),
    "batch": lambda kie: kie.batch([]),
    "query": lambda kie: kie.query("task_1"),
    "credits": lambda kie: kie.credits(),
    "upload": lambda kie: kie.upload(b"x"),
}


async def use(kie: KieSession, name: str) -> object:
    """Use a session; an error is the result."""
    try:
        used = USES[name](kie)
        return await used if asyncio.iscoroutine(used) else used
    except KieError as error:
        return error


class TestMisuse:
    @pytest.mark.parametrize("name", USES)
    async def test_before_it_is_open_it_says_how_to_open_it(self, name: str) -> None:
        error = await use(KieSession("key", base_url=LOCAL), name)

        assert isinstance(error, SessionMisuse)
        assert str(error) == "the session is not open; use 'async with KieSession() as kie'"

    @pytest.mark.parametrize("name", USES)
    async def test_after_the_close_it_says_so(self, kie: KieSession, name: str) -> None:
        await kie.aclose()

        error = await use(kie, name)

        assert isinstance(error, SessionMisuse)
        assert str(error) == "the session is closed; open a new one"

    @pytest.mark.parametrize("name", USES)
    async def test_in_another_event_loop_it_says_so(self, kie: KieSession, name: str) -> None:
        error = await asyncio.to_thread(asyncio.run, use(kie, name))

        assert isinstance(error, SessionMisuse)
        assert str(error) == "this session belongs to another event loop; open one per loop"

    async def test_outside_of_any_event_loop_it_says_so(self, kie: KieSession) -> None:
        with pytest.raises(SessionMisuse, match="event loop"):
            await asyncio.to_thread(kie.attach, "task_1")

    async def test_it_opens_once(self, kie: KieSession) -> None:
        with pytest.raises(SessionMisuse, match="opens once"):
            await kie.open()

    async def test_a_closed_one_does_not_open_again(self, kie: KieSession) -> None:
        await kie.aclose()

        with pytest.raises(SessionMisuse, match="opens once"):
            await kie.open()

    async def test_one_that_was_closed_before_it_was_open_does_not_open(self) -> None:
        kie = KieSession("key", base_url=LOCAL)
        await kie.aclose()

        with pytest.raises(SessionMisuse, match="opens once"):
            await kie.open()

    async def test_closing_twice_is_closing(self, kie: KieSession) -> None:
        await kie.aclose()
        await kie.aclose()

    async def test_closing_in_another_event_loop_is_refused_and_closes_nothing(
        self, sandbox: Sandbox, kie: KieSession
    ) -> None:
        try:
            with pytest.raises(SessionMisuse, match="another event loop"):
                await asyncio.to_thread(asyncio.run, kie.aclose())

            assert await kie.create(*ECHO)
        finally:
            await kie._opened.aclose()  # while it counts as closed, nothing else does


class TestCreating:
    async def test_a_model_and_its_input_make_a_task(self, sandbox: Sandbox, kie: KieSession) -> None:
        handle = await kie.create("sandbox/echo", {"prompt": "hi"})

        task = sandbox.tasks[handle.task_id]
        assert (task.model, task.input) == ("sandbox/echo", {"prompt": "hi"})

    async def test_a_typed_input_makes_a_task(self, sandbox: Sandbox, kie: KieSession) -> None:
        avatar = KlingAvatar(image_url="https://x.example/a.png", audio_url="https://x.example/a.mp3")

        handle = await kie.create(avatar, ref="row-1")

        assert sandbox.tasks[handle.task_id].input == {
            "image_url": "https://x.example/a.png",
            "audio_url": "https://x.example/a.mp3",
            "prompt": "",
        }
        assert handle.ref == "row-1"

    async def test_run_creates_and_waits(self, clock: Clock, sandbox: Sandbox, kie: KieSession) -> None:
        running = asyncio.create_task(kie.run(*ECHO))
        await eventually(lambda: sandbox.tasks)
        (task_id,) = sandbox.tasks
        sandbox.finish(task_id)
        await clock.advance(0.1)

        assert (await running).task_id == task_id

    async def test_run_raises_what_the_task_ended_with(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        running = asyncio.create_task(outcome_of(kie.run(*ECHO)))
        await eventually(lambda: sandbox.tasks)
        sandbox.finish(next(iter(sandbox.tasks)), "fail")
        await clock.advance(0.1)

        assert isinstance(await running, TaskFailed)

    async def test_a_refusal_is_raised(self, sandbox: Sandbox, kie: KieSession) -> None:
        with pytest.raises(RequestRejected, match="model name you specified is not supported"):
            await kie.create("nobody/nothing", {})


class TestSlots:
    async def test_never_more_tasks_are_unsettled_than_allowed(
        self, open_session: OpenSession, leaks: None
    ) -> None:
        async with Sandbox(
            durations=Uniform(0.0, 0.02), create_limit=None, query_limit=None, hmac_key=HMAC_KEY
        ) as sandbox:
            receiver = CallbackReceiver([HMAC_KEY])
            async with receiver.serve("127.0.0.1", 0) as served:
                kie = await open_session(
                    base_url=sandbox.url, receiver=receiver, callback_url=served.url, max_in_flight=20
                )
                await asyncio.gather(*(kie.run(*ECHO) for _ in range(300)))
                await kie.aclose()

            tasks = list(sandbox.tasks.values())
            assert len(tasks) == 300
            assert (
                max(
                    sum(task.created_at <= other.created_at < task.ended_at for task in tasks)
                    for other in tasks
                )
                <= 20
            )

    async def test_as_many_tasks_are_unsettled_as_allowed(
        self, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(max_in_flight=20)
        running = [asyncio.create_task(kie.run(*ECHO)) for _ in range(50)]
        for created in (20, 40, 50):
            await eventually(lambda created=created: len(sandbox.tasks) == created)
            await asyncio.sleep(0.05)  # one more would come now
            assert len(sandbox.tasks) == created
            for task_id in list(sandbox.tasks):
                sandbox.finish(task_id)
        await asyncio.gather(*running)

    async def test_who_comes_first_goes_first(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(max_in_flight=1)
        creating = [asyncio.create_task(kie.create("sandbox/echo", {"n": n})) for n in range(10)]
        for number in range(10):
            await eventually(lambda number=number: len(sandbox.tasks) > number)
            (await creating[number]).abandon()

        assert [task.input["n"] for task in sandbox.tasks.values()] == list(range(10))

    async def test_a_cancelled_wait_sends_nothing_and_frees_its_place(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(max_in_flight=1)
        first = await kie.create("sandbox/echo", {"n": 0})
        second, third = [asyncio.create_task(kie.create("sandbox/echo", {"n": n})) for n in (1, 2)]
        await settle()

        second.cancel()
        first.abandon()
        await third

        assert second.cancelled()
        assert [task.input["n"] for task in sandbox.tasks.values()] == [0, 2]

    async def test_a_wait_cancelled_in_the_moment_its_turn_comes_passes_the_turn_on(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(max_in_flight=1)
        first = await kie.create("sandbox/echo", {"n": 0})
        second, third = [asyncio.create_task(kie.create("sandbox/echo", {"n": n})) for n in (1, 2)]
        await settle()

        first.abandon()
        second.cancel()
        await third

        assert [task.input["n"] for task in sandbox.tasks.values()] == [0, 2]

    @pytest.mark.parametrize(
        "end", ["success", "fail", "timeout", "abandon", "refused", "unknown", "not sent"]
    )
    async def test_every_end_gives_the_slot_back(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession, end: str
    ) -> None:
        kie = await open_session(max_in_flight=1)
        if end == "refused":
            assert isinstance(await outcome_of(kie.create("nobody/nothing", {})), RequestRejected)
        elif end == "unknown":
            sandbox.faults.lose_answers_next = 1
            assert isinstance(await outcome_of(kie.create(*ECHO)), CreateOutcomeUnknown)
        elif end == "not sent":
            sandbox.faults.create_429_next = 1_000
            creating = asyncio.create_task(outcome_of(kie.create(*ECHO, timeout_s=5.0)))
            await clock.advance(6.0)
            assert isinstance(await creating, RateLimited)
            sandbox.faults.create_429_next = 0
            await clock.advance(60.0)
        else:
            handle = await kie.create(*ECHO, timeout_s=1.0)
            if end in ("success", "fail"):
                sandbox.finish(handle.task_id, end)
            elif end == "abandon":
                handle.abandon()
            await clock.advance(1.1)
            assert handle.is_done
            handle.mark_retrieved()

        assert await asyncio.wait_for(kie.create(*ECHO), 60.0)

    @pytest.mark.parametrize("rounds", range(30))
    async def test_whenever_its_caller_is_cancelled_a_create_holds_its_slot_only_if_it_made_a_task(
        self, sandbox: Sandbox, open_session: OpenSession, rounds: int
    ) -> None:
        kie = await open_session(max_in_flight=1)
        creating = asyncio.create_task(kie.create("sandbox/echo", {"n": 0}))
        for _ in range(rounds):
            await asyncio.sleep(0)

        creating.cancel()
        await asyncio.wait({creating})

        again = asyncio.create_task(kie.create("sandbox/echo", {"n": 1}))
        await eventually(lambda: sandbox.tasks)
        await settle()
        for task_id in list(sandbox.tasks):
            sandbox.finish(task_id)
        assert await asyncio.wait_for(again, 5.0)

    async def test_attached_handles_wait_for_no_slot(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(max_in_flight=1)
        await kie.create(*ECHO)

        assert len({kie.attach(f"task_{number}") for number in range(10)}) == 10


class TestAttaching:
    async def test_a_task_of_another_process_can_be_awaited(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        former, now = await open_session(), await open_session()
        task_id = (await former.create(*ECHO)).task_id
        sandbox.finish(task_id)

        handle = now.attach(task_id)
        await clock.advance(0.1)

        assert (await handle).task_id == task_id

    async def test_one_task_has_one_handle(self, sandbox: Sandbox, kie: KieSession) -> None:
        handle = await kie.create(*ECHO)

        assert kie.attach(handle.task_id) is handle
        assert kie.attach("task_1") is kie.attach("task_1")

    async def test_a_settled_task_gets_a_new_one(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await kie.create(*ECHO)
        sandbox.finish(handle.task_id)
        await clock.advance(0.1)

        again = kie.attach(handle.task_id)
        await clock.advance(0.1)

        assert again is not handle
        assert await again == await handle

    async def test_it_is_polled_at_once_though_callbacks_come(
        self,
        clock: Clock,
        sandbox: Sandbox,
        open_session: OpenSession,
        receiver: CallbackReceiver,
        served: ServedReceiver,
    ) -> None:
        kie = await open_session(receiver=receiver, callback_url=served.url, poll=PollSchedule())

        kie.attach("task_1")
        await clock.advance(2.5)

        assert sandbox.counts["query"]

    async def test_it_does_no_io_itself(self, clock: Clock, sandbox: Sandbox, kie: KieSession) -> None:
        kie.attach("task_1")
        await settle()

        assert not sandbox.counts

    async def test_its_wait_can_be_bounded(self, clock: Clock, kie: KieSession) -> None:
        handle = kie.attach("task_1", timeout_s=3.0)

        assert handle.deadline == clock.now + 3.0


class TestReading:
    async def test_a_query_yields_the_record_as_it_stands(self, sandbox: Sandbox, kie: KieSession) -> None:
        handle = await kie.create(*ECHO)
        sandbox.start_generating(handle.task_id)

        record = await kie.query(handle.task_id)

        assert (record.task_id, record.state) == (handle.task_id, TaskState.GENERATING)
        assert record.model == "sandbox/echo"

    async def test_the_balance_is_a_number_of_credits(self, sandbox: Sandbox, kie: KieSession) -> None:
        sandbox.balance = 1234.5

        assert await kie.credits() == 1234.5

    @pytest.mark.parametrize("fault", ["query_500_next", "query_html_502_next", "query_429_next"])
    async def test_what_may_pass_is_asked_again(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, fault: str
    ) -> None:
        handle = await kie.create(*ECHO)
        handle.abandon()
        setattr(sandbox.faults, fault, 3)

        querying = asyncio.create_task(kie.query(handle.task_id))
        await clock.advance(10.0)

        assert (await querying).task_id == handle.task_id
        assert kie.stats().retries == 3

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ("query_500_next", ServerError),
            ("query_html_502_next", ServerError),
            ("query_429_next", RateLimited),
        ],
    )
    async def test_what_does_not_pass_is_raised_at_the_fourth_time(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, fault: str, error: type[KieError]
    ) -> None:
        setattr(sandbox.faults, fault, 100)

        querying = asyncio.create_task(outcome_of(kie.query("task_1")))
        await clock.advance(60.0)

        assert isinstance(await querying, error)
        assert sandbox.counts["query"] == 4

    async def test_the_pause_that_the_service_asks_for_is_kept(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        sandbox.faults.retry_after_s, sandbox.faults.query_429_next = 7.0, 1
        querying = asyncio.create_task(outcome_of(kie.query("task_1")))

        await clock.advance(6.9)
        assert sandbox.counts["query"] == 1
        await clock.advance(0.2)

        assert sandbox.counts["query"] == 2
        await querying

    @pytest.mark.parametrize("as_404", [True, False])
    async def test_a_task_nobody_knows_is_a_clear_answer(
        self, sandbox: Sandbox, kie: KieSession, as_404: bool
    ) -> None:
        sandbox.faults.invisible_as_404 = as_404

        with pytest.raises(NotFound if as_404 else RequestRejected):
            await kie.query("task_1")
        assert sandbox.counts["query"] == 1

    async def test_a_refused_key_is_a_clear_answer(self, sandbox: Sandbox, kie: KieSession) -> None:
        sandbox.faults.revoke_key = True

        with pytest.raises(AuthenticationError):
            await kie.credits()
        assert sandbox.counts["credit"] == 1

    async def test_a_service_that_is_not_there_is_asked_four_times(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        await sandbox.aclose()

        reading = asyncio.create_task(outcome_of(kie.credits()))
        await clock.advance(30.0)

        assert isinstance(await reading, TransportError)
        assert kie.stats().retries == 3


class TestBudget:
    async def test_no_more_tasks_are_created_than_it_allows(
        self, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(budget=Budget(tasks=3))

        outcomes = await asyncio.gather(*(kie.create(*ECHO) for _ in range(10)), return_exceptions=True)

        assert len(sandbox.tasks) == 3
        assert [type(outcome) for outcome in outcomes].count(BudgetExceeded) == 7

    async def test_the_message_names_it(self, open_session: OpenSession) -> None:
        kie = await open_session(budget=Budget(tasks=1))
        await kie.create(*ECHO)

        with pytest.raises(BudgetExceeded, match="the budget of 1 tasks is spent; nothing was sent"):
            await kie.create(*ECHO)

    async def test_a_refused_create_costs_nothing(self, open_session: OpenSession) -> None:
        kie = await open_session(budget=Budget(tasks=1))
        with pytest.raises(RequestRejected):
            await kie.create("nobody/nothing", {})

        assert await kie.create(*ECHO)

    async def test_a_create_of_unknown_outcome_counts(
        self, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(budget=Budget(tasks=1))
        sandbox.faults.lose_answers_next = 1
        with pytest.raises(CreateOutcomeUnknown):
            await kie.create(*ECHO)

        with pytest.raises(BudgetExceeded):
            await kie.create(*ECHO)

    async def test_attached_tasks_do_not_count(self, open_session: OpenSession) -> None:
        kie = await open_session(budget=Budget(tasks=1))
        kie.attach("task_1")

        assert await kie.create(*ECHO)

    async def test_spent_credits_stop_the_next_create(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(budget=Budget(credits=2.0))
        for _ in range(2):
            handle = await kie.create(*ECHO)
            sandbox.finish(handle.task_id)
            await clock.advance(0.1)

        with pytest.raises(BudgetExceeded, match="the budget of 2 credits is spent"):
            await kie.create(*ECHO)

    async def test_what_is_not_settled_counts_as_the_most_its_model_took(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(budget=Budget(credits=3.5))
        first = await kie.create(*ECHO)
        sandbox.finish(first.task_id)
        await clock.advance(0.1)  # it took 1 credit
        sandbox.faults.lose_answers_next = 1
        with pytest.raises(CreateOutcomeUnknown):
            await kie.create(*ECHO)
        abandoned = await kie.create(*ECHO)
        abandoned.abandon()
        abandoned.mark_retrieved()

        with pytest.raises(BudgetExceeded, match=r"the budget of 3.5 credits is spent") as caught:
            await kie.create(*ECHO)
        assert (caught.value.spent, caught.value.held) == (1.0, 2.0)

    async def test_a_task_taken_up_again_is_not_counted_twice(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(budget=Budget(credits=2.0))
        handle = await kie.create(*ECHO)
        handle.abandon()
        handle.mark_retrieved()
        again = kie.attach(handle.task_id)
        sandbox.finish(handle.task_id)
        await clock.advance(0.1)
        assert (await again).credits == 1.0

        assert await kie.create(*ECHO)

    async def test_credits_of_failed_tasks_come_back(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(budget=Budget(credits=1.0))
        for _ in range(3):
            handle = await kie.create(*ECHO)
            sandbox.finish(handle.task_id, "fail")
            await clock.advance(0.1)
            handle.mark_retrieved()

        assert await kie.create(*ECHO)

    async def test_the_seconds_of_a_local_voice_are_reserved_before_a_price_was_seen(
        self, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(budget=Budget(credits=40.0))
        sandbox.faults.lose_answers_next = 2  # 16 credits each, and nobody says so
        for _ in range(2):
            with pytest.raises(CreateOutcomeUnknown):
                await kie.create(AVATAR)

        with pytest.raises(BudgetExceeded) as caught:
            await kie.create(AVATAR)
        assert (caught.value.spent, caught.value.held) == (0.0, 32.0)
        assert len(sandbox.tasks) == 2

    async def test_the_seconds_of_an_upload_are_known_too(
        self, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(budget=Budget(credits=24.0))
        face, voice = await kie.upload(read_portrait()), await kie.upload(read_voice())
        sandbox.faults.lose_answers_next = 1
        with pytest.raises(CreateOutcomeUnknown):
            await kie.create(KlingAvatar(image_url=face, audio_url=voice))

        with pytest.raises(BudgetExceeded) as caught:
            await kie.create(KlingAvatar(image_url=face, audio_url=voice))
        assert caught.value.held == 16.0

    async def test_a_longer_voice_is_expected_to_take_more(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        def talk(voice: bytes) -> TaskRequest:
            fields = {"image_url": read_portrait(), "audio_url": voice, "prompt": ""}
            return TaskRequest(model="infinitalk/from-audio", input=fields)

        kie = await open_session(budget=Budget(credits=40.0))
        first = await kie.create(talk(read_voice()))
        sandbox.finish(first.task_id)
        await clock.advance(0.1)
        assert (await first).credits == 16.0  # of two seconds; the table says 6

        with pytest.raises(BudgetExceeded) as caught:
            await kie.create(talk(twice_as_long(read_voice())))
        assert (caught.value.spent, caught.value.held) == (16.0, 0.0)
        assert await kie.create(talk(read_voice()))

    async def test_a_stop_gives_the_slot_back(self, sandbox: Sandbox, open_session: OpenSession) -> None:
        kie = await open_session(budget=Budget(tasks=1), max_in_flight=2)
        await kie.create(*ECHO)

        for _ in range(5):
            with pytest.raises(BudgetExceeded):
                await asyncio.wait_for(kie.create(*ECHO), 5.0)


class TestStats:
    async def test_they_count_what_was_done(self, clock: Clock, sandbox: Sandbox, kie: KieSession) -> None:
        first, second, third = [await kie.create(*ECHO) for _ in range(3)]
        sandbox.finish(first.task_id)
        sandbox.finish(second.task_id, "fail")
        await clock.advance(0.1)
        await asyncio.gather(first, second, return_exceptions=True)

        stats = kie.stats()
        assert (stats.creates, stats.settled_by_poll, stats.in_flight) == (3, 2, 1)
        assert stats.credits_consumed == 1.0
        assert stats.queries >= 2
        assert not third.is_done

    async def test_they_are_a_snapshot(self, kie: KieSession) -> None:
        before = kie.stats()
        await kie.create(*ECHO)

        assert before.creates == 0

    async def test_they_can_be_read_before_and_after(self, kie: KieSession) -> None:
        assert KieSession("key", base_url=LOCAL).stats().creates == 0
        await kie.aclose()

        assert kie.stats().in_flight == 0


class TestTheHook:
    async def test_it_is_called_at_every_change(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession, events: Events
    ) -> None:
        kie = await open_session(on_event=events)
        handle = await kie.create(*ECHO, ref="row-1")
        await clock.advance(0.1)
        sandbox.start_generating(handle.task_id)
        await clock.advance(0.1)
        sandbox.finish(handle.task_id)
        await handle

        assert events.kinds() == ["created", "updated", "updated", "settled"]
        assert {(event.task_id, event.ref) for event in events} == {(handle.task_id, "row-1")}
        assert events[-1].source == "poll"
        assert events[-1].record == handle.record

    async def test_its_errors_hurt_nobody(
        self, sandbox: Sandbox, open_session: OpenSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        def hook(event: object) -> None:
            raise LookupError("a bug of the user")

        kie = await open_session(on_event=hook)
        handles = [await kie.create(*ECHO) for _ in range(3)]
        for handle in handles:
            sandbox.finish(handle.task_id)

        assert len(await asyncio.gather(*handles)) == 3
        assert "the on_event hook raised" in caplog.text
        assert "a bug of the user" in caplog.text

    async def test_it_may_abandon_what_it_is_called_for(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(
            on_event=lambda event: event.kind == "created" and kie.attach(event.task_id).abandon()
        )

        handle = await kie.create(*ECHO)
        await settle()
        await clock.advance(1.0)

        assert handle.is_done
        assert sandbox.counts["query"] == 0


class TestClosing:
    async def test_tasks_in_flight_are_detached_with_one_warning_that_names_them(
        self, kie: KieSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        forget_what_others_left(caplog)
        handles = [await kie.create(*ECHO) for _ in range(3)]
        awaiters = [asyncio.create_task(outcome_of(handle)) for handle in handles]
        await settle()

        await kie.aclose()

        assert [type(await awaiter) for awaiter in awaiters] == [TaskDetached] * 3
        (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert all(handle.task_id in warning.getMessage() for handle in handles)

    async def test_detached_handles_nobody_awaited_add_nothing_to_the_warning(
        self, kie: KieSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        forget_what_others_left(caplog)
        for _ in range(3):
            await kie.create(*ECHO)

        await kie.aclose()
        gc.collect()

        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1

    async def test_with_nothing_in_flight_nothing_is_said(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        forget_what_others_left(caplog)
        handle = await kie.create(*ECHO)
        sandbox.finish(handle.task_id)
        await clock.advance(0.1)
        assert await handle

        await kie.aclose()

        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    async def test_what_was_detached_can_be_attached_by_the_next_session(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session()
        task_id = (await kie.create(*ECHO)).task_id
        await kie.aclose()
        sandbox.finish(task_id)

        handle = (await open_session()).attach(task_id)
        await clock.advance(0.1)

        assert (await handle).task_id == task_id

    async def test_creates_that_wait_for_a_slot_send_nothing(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(max_in_flight=1)
        await kie.create(*ECHO)
        waiting = [asyncio.create_task(outcome_of(kie.create(*ECHO))) for _ in range(5)]
        await settle()

        await kie.aclose()

        for error in [await create for create in waiting]:
            assert isinstance(error, SessionMisuse)
        assert len(sandbox.tasks) == 1

    async def test_creates_that_wait_for_the_limit_send_nothing(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(limits=Limits(create=Rate(1, per_s=10.0)))
        creating = [asyncio.create_task(outcome_of(kie.create(*ECHO))) for _ in range(5)]
        await eventually(lambda: creating[0].done())

        await kie.aclose()

        assert [type(await create) for create in creating[1:]] == [SessionMisuse] * 4
        assert sandbox.counts["create"] == 1

    async def test_a_create_held_back_by_the_service_is_not_sent_again(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        sandbox.faults.create_429_next, sandbox.faults.retry_after_s = 1, 5.0
        creating = asyncio.create_task(outcome_of(kie.create(*ECHO)))
        await eventually(lambda: kie.stats().rate_limited)

        await kie.aclose()

        assert isinstance(await creating, SessionMisuse)
        assert sandbox.counts["create"] == 1

    async def test_a_create_that_has_left_gets_time_to_learn_its_id(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate = sandbox.faults.create_answer_gate = asyncio.Event()
        creating = asyncio.create_task(kie.create(*ECHO))
        await eventually(lambda: sandbox.tasks)
        closing = asyncio.create_task(kie.aclose())
        await clock.advance(9.0)
        assert not closing.done()

        gate.set()
        handle = await creating
        await closing

        assert isinstance(await outcome_of(handle), TaskDetached)
        assert handle.task_id in caplog.text

    async def test_a_create_without_an_answer_in_ten_seconds_is_of_unknown_outcome(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        gate = sandbox.faults.create_answer_gate = asyncio.Event()
        creating = asyncio.create_task(outcome_of(kie.create(*ECHO)))
        await eventually(lambda: sandbox.tasks)
        closing = asyncio.create_task(kie.aclose())
        await clock.advance(10.1)
        await closing

        error = await creating
        assert isinstance(error, CreateOutcomeUnknown)
        assert isinstance(await outcome_of(error.handle), CreateOutcomeUnknown)
        gate.set()

    async def test_a_close_that_is_cancelled_still_closes_everything(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        gate = sandbox.faults.create_answer_gate = asyncio.Event()
        handle = kie.attach("task_1")
        creating = asyncio.create_task(outcome_of(kie.create(*ECHO)))
        await eventually(lambda: sandbox.tasks)
        closing = asyncio.create_task(kie.aclose())
        await settle()

        closing.cancel()
        await asyncio.wait({closing})

        assert isinstance(await outcome_of(handle), TaskDetached)
        assert isinstance(await creating, CreateOutcomeUnknown)
        gate.set()

    @pytest.mark.parametrize("turns", range(1, 12))
    async def test_a_close_cancelled_in_any_turn_lets_go_of_the_journal(
        self, open_session: OpenSession, tmp_path: Path, turns: int
    ) -> None:
        kie = await open_session(journal=tmp_path / "run.db")
        closing = asyncio.create_task(kie.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})

        async with asyncio.timeout(5):
            while True:
                with contextlib.suppress(JournalLocked):
                    await open_session(journal=tmp_path / "run.db")
                    break
                await asyncio.sleep(0.01)

    async def test_nothing_is_asked_after_the_close(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        for number in range(20):
            kie.attach(f"task_{number}")
        await clock.advance(0.2)

        await kie.aclose()
        before = sandbox.counts.copy()
        await clock.advance(5.0)

        assert sandbox.counts == before

    async def test_polls_that_are_out_do_not_hold_the_close_up(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        gate = sandbox.faults.query_answer_gate = asyncio.Event()
        kie.attach("task_1")
        await clock.advance(0.1)
        assert sandbox.counts["query"] == 1

        await kie.aclose()
        gate.set()

    async def test_a_block_that_ends_in_an_error_closes_too(self, sandbox: Sandbox) -> None:
        with pytest.raises(LookupError):
            async with KieSession("sandbox-key", base_url=sandbox.url) as kie:
                raise LookupError
        with pytest.raises(SessionMisuse, match="closed"):
            await kie.credits()

    @pytest.mark.parametrize("rounds", [*range(12), 15, 20, 30, 50, 80])
    async def test_whenever_it_comes_a_create_ends_and_its_task_is_known_or_was_never_made(
        self, sandbox: Sandbox, kie: KieSession, rounds: int
    ) -> None:
        creating = asyncio.create_task(outcome_of(kie.create(*ECHO)))
        for _ in range(rounds):
            await asyncio.sleep(0)

        await kie.aclose()

        outcome = await creating
        if isinstance(outcome, TaskHandle):
            assert list(sandbox.tasks) == [outcome.task_id]
            assert isinstance(await outcome_of(outcome), TaskDetached)
        else:
            assert isinstance(outcome, SessionMisuse)
            assert not sandbox.tasks

    async def test_a_create_that_is_just_being_noted_sends_nothing(
        self, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        journal = SlowJournal()
        kie = await open_session(journal=journal)
        creating = asyncio.create_task(outcome_of(kie.create(*ECHO, timeout_s=2.0)))
        await journal.is_asked.wait()

        closing = asyncio.create_task(kie.aclose())
        await settle()
        journal.may_note.set()
        await closing

        assert isinstance(await creating, SessionMisuse)
        assert not sandbox.counts

    @pytest.mark.parametrize("rounds", range(1, 12))
    async def test_a_caller_who_gives_up_while_it_closes_is_cancelled(
        self, sandbox: Sandbox, kie: KieSession, rounds: int
    ) -> None:
        gate = sandbox.faults.create_answer_gate = asyncio.Event()  # it does not end before it is given up
        creating = asyncio.create_task(kie.create(*ECHO))
        for _ in range(rounds):
            await asyncio.sleep(0)

        creating.cancel()
        gate.set()
        await kie.aclose()
        await asyncio.wait({creating})

        assert creating.cancelled()


class SlowJournal(MemoryJournal):
    """Notes what is about to leave when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked, self.may_note = asyncio.Event(), asyncio.Event()

    async def mark_sending(self, intent: Intent) -> None:
        self.is_asked.set()
        await self.may_note.wait()
        await super().mark_sending(intent)


class TestClosingWhileReading:
    async def test_a_query_under_way_ends_at_once(self, sandbox: Sandbox, kie: KieSession) -> None:
        gate = sandbox.faults.query_answer_gate = asyncio.Event()
        asking = asyncio.create_task(outcome_of(kie.query("task_1")))
        await eventually(lambda: sandbox.counts["query"])

        await asyncio.wait_for(kie.aclose(), 5)

        assert isinstance(await asking, SessionMisuse)
        gate.set()

    async def test_a_caller_who_gives_up_takes_the_query_along(
        self, sandbox: Sandbox, kie: KieSession
    ) -> None:
        gate = sandbox.faults.query_answer_gate = asyncio.Event()
        asking = asyncio.create_task(kie.query("task_1"))
        await eventually(lambda: sandbox.counts["query"])

        asking.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asking
        gate.set()


class TestUnknownCreates:
    async def lose(self, sandbox: Sandbox, kie: KieSession) -> TaskHandle:
        sandbox.faults.lose_answers_next = 1
        with pytest.raises(CreateOutcomeUnknown) as caught:
            await kie.create(*ECHO)
        return caught.value.handle

    async def test_the_handle_on_the_error_can_be_told_its_task(
        self, clock: Clock, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await self.lose(sandbox, kie)
        (task_id,) = sandbox.tasks

        await handle.resolve(task_id)
        sandbox.finish(task_id)
        await clock.advance(0.1)

        assert (await handle).task_id == task_id

    async def test_a_task_told_by_hand_is_polled_as_any_other(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(poll=PollSchedule())
        handle = await self.lose(sandbox, kie)
        (task_id,) = sandbox.tasks
        await handle.resolve(task_id)
        before = sandbox.counts["query"]

        await clock.advance(10.0)

        assert sandbox.counts["query"] - before >= 3

    async def test_the_task_of_another_model_is_refused(self, sandbox: Sandbox, kie: KieSession) -> None:
        handle = await self.lose(sandbox, kie)
        other = await kie.create("nano-banana-2", {"prompt": "x"})
        other.abandon()

        with pytest.raises(InvalidRequest, match="is of model nano-banana-2"):
            await handle.resolve(other.task_id)

    async def test_the_task_of_another_handle_is_refused(self, sandbox: Sandbox, kie: KieSession) -> None:
        handle = await self.lose(sandbox, kie)
        other = await kie.create(*ECHO)

        with pytest.raises(InvalidRequest, match="belongs to another handle"):
            await handle.resolve(other.task_id)

    async def test_written_off_it_settles(self, sandbox: Sandbox, kie: KieSession) -> None:
        handle = await self.lose(sandbox, kie)

        handle.write_off()

        assert isinstance(await outcome_of(handle), CreateOutcomeUnknown)

    @pytest.mark.parametrize("rounds", range(12))
    async def test_written_off_while_it_is_being_adopted_it_settles_once(
        self,
        sandbox: Sandbox,
        open_session: OpenSession,
        doorbell: CallbackReceiver,
        served_doorbell: ServedReceiver,
        events: Events,
        rounds: int,
    ) -> None:
        kie = await open_session(receiver=doorbell, callback_url=served_doorbell.url, on_event=events)
        handle = await self.lose(sandbox, kie)
        gate = sandbox.faults.query_answer_gate = asyncio.Event()
        sandbox.finish(next(iter(sandbox.tasks)))
        await eventually(lambda: sandbox.counts["query"])
        gate.set()
        for _ in range(rounds):
            await asyncio.sleep(0)

        if not handle.task_id:
            handle.write_off()
        await asyncio.sleep(0.02)

        assert handle.is_done
        ended = [event.task_id for event in events if event.kind == "settled"]
        assert len(ended) == len(set(ended))  # the task of one written off settles too, as a ghost

    async def test_abandoned_it_is_named_by_its_intent(self, sandbox: Sandbox, kie: KieSession) -> None:
        handle = await self.lose(sandbox, kie)

        handle.abandon()

        with pytest.raises(TaskAbandoned, match=rf"^the task of intent {handle.intent_id}, if any, was "):
            await handle

    async def test_written_off_after_it_was_abandoned_it_does_not_settle_again(
        self, sandbox: Sandbox, open_session: OpenSession, events: Events
    ) -> None:
        kie = await open_session(on_event=events)
        handle = await self.lose(sandbox, kie)
        handle.abandon()
        handle.mark_retrieved()

        assert await kie._engine.reconciler.write_off(handle)
        await settle()

        assert events.kinds().count("settled") == 1

    async def test_it_is_sent_again_only_when_a_double_charge_is_accepted(
        self, sandbox: Sandbox, kie: KieSession
    ) -> None:
        handle = await self.lose(sandbox, kie)
        with pytest.raises(InvalidRequest, match="accept_double_charge"):
            await handle.resubmit(accept_double_charge=False)
        assert sandbox.counts["create"] == 1

        again = await handle.resubmit(accept_double_charge=True)

        assert again.task_id in sandbox.tasks
        assert sandbox.counts["create"] == 2
        assert isinstance(await outcome_of(handle), CreateOutcomeUnknown)


class TestManyHandles:
    """What hundreds of tasks leave behind: nothing."""

    async def create_and_finish(self, kie: KieSession, sandbox: Sandbox, count: int) -> list[TaskHandle]:
        handles = await asyncio.gather(*(kie.create(*ECHO) for _ in range(count)))
        for handle in handles:
            sandbox.finish(handle.task_id)
        return handles

    async def test_settled_by_callbacks_they_leave_no_task_no_socket_and_no_memory(
        self,
        clock: Clock,
        sandbox: Sandbox,
        open_session: OpenSession,
        receiver: CallbackReceiver,
        served: ServedReceiver,
    ) -> None:
        kie = await open_session(
            receiver=receiver, callback_url=served.url, max_in_flight=5_000, poll=PollSchedule()
        )
        await asyncio.gather(*await self.create_and_finish(kie, sandbox, 100))
        files = open_files()

        handles = await self.create_and_finish(kie, sandbox, 500)
        await asyncio.gather(*handles)
        await settle()

        assert kie.stats().settled_by_callback == 600
        assert kie.stats().in_flight == 0
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("kie_async poller")]
        assert open_files() <= files + 2 * NO_LIMITS.query_connections  # kept alive, both ends of each
        assert len(kie._engine.poller) < 100

    async def test_settled_by_polls_they_leave_no_task_no_socket_and_no_memory(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(max_in_flight=5_000, poll=PollSchedule.fixed(1.0))
        handles = await self.create_and_finish(kie, sandbox, 100)
        await clock.advance(1.2)
        assert all(handle.is_done for handle in handles)
        files = open_files()

        handles = await self.create_and_finish(kie, sandbox, 500)
        await clock.advance(1.2)
        await settle()

        assert kie.stats().settled_by_poll == 600
        assert kie.stats().in_flight == 0
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("kie_async poller")]
        assert open_files() <= files + 2 * NO_LIMITS.query_connections  # kept alive, both ends of each
        assert len(kie._engine.poller) < 100


def run_python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )


ORDERLY = """
import asyncio
from kie_async import CallbackReceiver, KieSession, Limits, PollSchedule, Rate, Sandbox
from kie_async.sandbox import Fixed

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0  # a busy machine is no news here
    many = Rate(10_000, per_s=1.0)
    receiver = CallbackReceiver(["key"])
    async with Sandbox(durations=Fixed(0.01), create_limit=None, query_limit=None, hmac_key="key") as sandbox:
        async with receiver.serve("127.0.0.1", 0) as served:
            for options in ({}, {"receiver": receiver, "callback_url": served.url}):
                async with KieSession(
                    "sandbox-key", base_url=sandbox.url, limits=Limits(create=many, query=many),
                    poll=PollSchedule.fixed(0.05), **options,
                ) as kie:
                    results = await asyncio.gather(*(kie.run("sandbox/echo", {}) for _ in range(30)))
                    assert len(results) == 30

asyncio.run(main())
"""

FORGETFUL = """
import asyncio, gc
from kie_async import KieSession, Sandbox
from kie_async.sandbox import Never

async def main():
    sandbox = Sandbox(durations=Never())
    await sandbox.start()
    kie = KieSession("sandbox-key", base_url=sandbox.url)
    await kie.open()
    handle = await kie.create("sandbox/echo", {})
    print(handle.task_id)
    await sandbox.aclose()

asyncio.run(main())
gc.collect()
"""


ENDS_IN_A_CREATE = """
import asyncio
from kie_async import KieSession, Sandbox

async def main():
    sandbox = Sandbox()
    await sandbox.start()
    sandbox.faults.create_answer_gate = asyncio.Event()
    kie = KieSession("sandbox-key", base_url=sandbox.url)
    await kie.open()
    creating = asyncio.create_task(kie.create("sandbox/echo", {}))
    while not sandbox.counts["create.bodies"]:
        await asyncio.sleep(0.01)

asyncio.run(main())
"""


class TestHowLongATaskTakes:
    async def test_before_one_was_seen_the_table_says_it(
        self, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session()

        assert kie.expected_s("kling/v1-avatar-standard") == 300
        assert kie.expected_s("nobody/knows") is None

    async def test_what_was_seen_counts_more_than_the_table(
        self, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        kie = await open_session(poll=PollSchedule(first_s=0.02))

        for _ in range(4):
            handle = await kie.create("sandbox/echo", {})
            sandbox.finish(handle.task_id)
            await handle

        assert kie.expected_s("sandbox/echo") == pytest.approx(0.1, abs=1.0)


class TestNoise:
    def test_a_program_that_ends_during_a_create_says_so_without_a_traceback(self) -> None:
        run = run_python(ENDS_IN_A_CREATE)

        assert "it will not be sent again" in run.stderr
        assert "unhandled exception" not in run.stderr
        assert "CreateOutcomeUnknown" not in run.stderr

    async def test_a_close_with_many_tasks_in_flight_names_them_all_in_readable_lines(
        self, sandbox: Sandbox, open_session: OpenSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        kie = await open_session()
        ids = [kie.attach(f"task_{number:03}").task_id for number in range(60)]

        await kie.aclose()

        lines = [record.getMessage() for record in caplog.records if "in flight" in record.getMessage()]
        assert "60 tasks in flight; they go on: task_000, " in lines[0]
        assert [task_id for line in lines for task_id in re.findall(r"task_\d+", line)] == ids
        assert max(map(len, lines)) < 400

    def test_in_debug_mode_with_all_warnings_nothing_is_said(self) -> None:
        run = run_python(ORDERLY, "-X", "dev", "-W", "error")

        assert (run.returncode, run.stderr) == (0, "")

    def test_a_loop_closed_without_the_session_is_one_clear_warning(self) -> None:
        run = run_python(FORGETFUL, "-W", "error::ResourceWarning")

        assert "Unclosed" not in run.stderr
        assert "Traceback" not in run.stderr
        assert "never closed" in run.stderr or "not closed" in run.stderr
        assert run.stdout.strip() in run.stderr  # the task that goes on
        assert len(run.stderr.strip().splitlines()) == 1
