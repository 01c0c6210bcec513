"""Tests which deliveries a receiver accepts, which of them settle a task, and which only cause a poll.

The first part calls the receiver itself; in the second the sandbox delivers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, HMAC_KEY, Events, OpenSession
from support.clock import Clock, eventually, settle
from support.tables import together

from kie_async import (
    CallbackReceiver,
    CallbackRejected,
    CallbackVerdict,
    CreateOutcomeUnknown,
    InvalidRequest,
    KieSession,
    PollSchedule,
    RequestRejected,
    Sandbox,
    ServedReceiver,
    TaskFailed,
    TaskHandle,
    TaskRecord,
    TaskRequest,
    TaskState,
)
from kie_async.callbacks.address import callback_mac
from kie_async.callbacks.base import Delivery
from kie_async.callbacks.body import MAX_DROPPED_BODY
from kie_async.sandbox.tasks import encode_param
from kie_async.wire.redaction import MACS_ONLY
from kie_async.wire.signatures import sign

INTENT = "0123456789abcdef" * 2
SECRET = b"secret of the addresses"
KEY = "kie_test_hmac_key_0001"
NOW = 1_700_000_000
TASK = "task_12345678"
NET = PollSchedule(jitter=0.0)
"""The default schedule: with callbacks expected, nothing is polled in the first minute."""


class Inbox:
    """A session as a receiver sees it: the intents it knows, and a list of what it was given."""

    def __init__(self, *secrets: bytes, tasks: dict[str, str] | None = None) -> None:
        self.callback_secrets: Sequence[bytes] = secrets or (SECRET,)
        self.redactor = MACS_ONLY
        self.tasks = {INTENT: TASK} if tasks is None else tasks
        self.accepted: list[Delivery] = []
        self.rejected: Counter[str] = Counter()

    def owner_of(self, intent_id: str) -> str | None:
        return self.tasks.get(intent_id)

    async def find_noted(self, intent_id: str) -> str | None:
        return None

    async def accept(self, delivery: Delivery) -> None:
        self.accepted.append(delivery)

    def note_rejection(self, reason: str) -> None:
        self.rejected[reason] += 1


def tail(intent_id: str = INTENT, secret: bytes = SECRET) -> str:
    return f"{intent_id}/{callback_mac(intent_id, secret=secret)}"


def body_of(task_id: str = TASK, state: str = "success", code: int = 200, **fields: Any) -> bytes:
    result = {"resultJson": '{"resultUrls":["https://files.example/a.mp4"]}'} if state == "success" else {}
    data = {"taskId": task_id, "state": state, **result, **fields}
    return json.dumps({"code": code, "msg": "words", "data": data}).encode()


def signed(task_id: str = TASK, at: int = NOW, key: str = KEY) -> dict[str, str]:
    return {
        "X-Webhook-Timestamp": str(at),
        "X-Webhook-Signature": sign(task_id, str(at), key=key.encode()),
    }


def receiver_with(
    *keys: str, inbox: Inbox | None = None, now: float = NOW, **options: Any
) -> CallbackReceiver:
    receiver = CallbackReceiver(keys, now=lambda: now, **options)
    receiver.attach(inbox or Inbox())
    return receiver


def judge(receiver: CallbackReceiver, headers: Any, body: bytes, *, now: float = NOW) -> CallbackVerdict:
    return receiver.receive(receiver.address(tail()), headers, body, now)


class TestAddress:
    def test_a_right_one_names_its_intent(self) -> None:
        assert receiver_with().address(tail()).intent_id == INTENT

    @pytest.mark.parametrize("path", [f"/{tail()}/", f"//{tail()}", tail().replace("/", "//"), f"{tail()}//"])
    def test_it_may_stand_between_slashes(self, path: str) -> None:
        assert receiver_with().address(path).intent_id == INTENT

    @pytest.mark.parametrize(
        "wrong",
        [
            tail().upper(),
            tail()[:-1],
            tail() + "x",
            tail("f" * 32).replace("f" * 32, INTENT),
            f"{INTENT}/",
            INTENT,
            "",
            "/",
            f"kie/{tail()}",
            f"{tail()}/more",
        ],
    )
    def test_a_wrong_one_is_404_and_counted(self, wrong: str) -> None:
        inbox = Inbox()

        with pytest.raises(CallbackRejected, match="wrong address") as caught:
            receiver_with(inbox=inbox).address(wrong)

        assert caught.value.status == 404
        assert inbox.rejected == {"wrong address": 1}

    def test_without_an_open_session_every_one_is_503(self) -> None:
        with pytest.raises(CallbackRejected, match="no session is open") as caught:
            CallbackReceiver().address(tail())

        assert caught.value.status == 503

    def test_a_closed_session_is_asked_no_more(self) -> None:
        inbox = Inbox()
        receiver = receiver_with(inbox=inbox)
        receiver.detach(inbox)

        with pytest.raises(CallbackRejected, match="no session is open"):
            receiver.address(tail())

    def test_a_closed_session_s_is_503_while_another_is_open_and_a_wrong_one_is_404(self) -> None:
        closed = Inbox()
        receiver = receiver_with(inbox=closed)
        receiver.attach(Inbox(b"of another key"))
        receiver.detach(closed)

        for path, status in ((tail(), 503), (tail()[:-1] + "_", 404)):
            with pytest.raises(CallbackRejected) as caught:
                receiver.address(path)
            assert caught.value.status == status

    def test_one_made_under_an_older_secret_is_right(self) -> None:
        inbox = Inbox(b"new secret", SECRET)

        assert receiver_with(inbox=inbox).address(tail()).inboxes == (inbox,)

    def test_each_session_is_tried_with_its_own_secrets(self) -> None:
        first, second = Inbox(b"other"), Inbox()
        receiver = receiver_with(inbox=first)
        receiver.attach(second)

        assert receiver.address(tail()).inboxes == (second,)

    def test_its_repr_holds_no_mac(self) -> None:
        assert tail().partition("/")[2] not in repr(receiver_with().address(tail()))


class TestSignature:
    def test_a_right_one_is_accepted(self) -> None:
        verdict = judge(receiver_with(KEY), signed(), body_of())

        assert (verdict.status, verdict.reason, verdict.is_signed) == (200, "", True)
        assert verdict.record.urls == ("https://files.example/a.mp4",)

    def test_any_of_several_keys_may_have_made_it(self) -> None:
        receiver = receiver_with("new", KEY)

        assert judge(receiver, signed(), body_of()).status == 200
        assert judge(receiver, signed(key="new"), body_of()).status == 200

    def test_without_keys_none_is_required_and_none_is_verified(self) -> None:
        verdict = judge(receiver_with(), signed(), body_of())

        assert verdict.status == 200
        assert not verdict.is_signed

    @pytest.mark.parametrize("missing", ["X-Webhook-Timestamp", "X-Webhook-Signature"])
    def test_a_missing_part_is_401(self, missing: str) -> None:
        headers = signed()
        del headers[missing]

        verdict = judge(receiver_with(KEY), headers, body_of())

        assert (verdict.status, verdict.reason) == (401, "missing signature")

    @pytest.mark.parametrize("twice", ["x-webhook-timestamp", "X-WEBHOOK-SIGNATURE"])
    def test_a_part_that_stands_twice_is_401(self, twice: str) -> None:
        headers = [*signed().items(), (twice, "1")]

        assert judge(receiver_with(KEY), headers, body_of()).status == 401

    def test_a_wrong_one_is_401(self) -> None:
        verdict = judge(receiver_with(KEY), signed(key="another key"), body_of())

        assert (verdict.status, verdict.reason) == (401, "wrong signature")

    @pytest.mark.parametrize("age_s", [301, -301, 86_400])
    def test_a_stale_or_future_one_is_401(self, age_s: int) -> None:
        verdict = judge(receiver_with(KEY), signed(), body_of(), now=NOW + age_s)

        assert (verdict.status, verdict.reason) == (401, "stale timestamp")

    @pytest.mark.parametrize("age_s", [300, -300])
    def test_the_clocks_may_differ_by_five_minutes(self, age_s: int) -> None:
        assert judge(receiver_with(KEY), signed(), body_of(), now=NOW + age_s).status == 200

    def test_the_tolerance_can_be_chosen(self) -> None:
        receiver = receiver_with(KEY, tolerance_s=10)

        assert judge(receiver, signed(), body_of(), now=NOW + 10).status == 200
        assert judge(receiver, signed(), body_of(), now=NOW + 11).status == 401

    def test_one_of_another_task_is_401(self) -> None:
        assert judge(receiver_with(KEY), signed("another_task"), body_of()).status == 401


VECTORS = [
    vector
    for vector in json.loads((Path(__file__).parents[1] / "support" / "signature_vectors.json").read_text())[
        "vectors"
    ]
    if vector["kind"] == "delivery"
]


@together("vector", VECTORS)
async def test_deliveries_are_judged_as_the_vectors_say(vector: dict[str, Any]) -> None:
    inbox = Inbox(tasks={INTENT: vector["task_id"]})
    receiver = CallbackReceiver(vector["keys"], vector["tolerance_s"], now=lambda: vector["now"])
    receiver.attach(inbox)
    headers = [tuple(header) for header in vector["headers"]]

    verdict = await receiver.feed(tail(), headers, vector["body"].encode())

    assert (verdict.status, verdict.reason) == (vector["status"], vector["reason"])
    assert len(inbox.accepted) == (vector["status"] == 200)
    assert sum(inbox.rejected.values()) == (vector["status"] != 200)


class TestBody:
    @pytest.mark.parametrize(
        "body",
        [b"", b"null", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"code":200}', b'{"data":{"taskId":"t"}}'],
    )
    def test_an_unreadable_one_is_400(self, body: bytes) -> None:
        assert judge(receiver_with(), {}, body).status == 400

    def test_ids_that_disagree_are_400(self) -> None:
        body = json.dumps({"code": 200, "taskId": "another", "data": {"task_id": TASK}}).encode()

        verdict = judge(receiver_with(), {}, body)

        assert (verdict.status, verdict.reason) == (400, "ids disagree")

    def test_the_id_of_another_task_than_the_intents_is_400(self) -> None:
        verdict = judge(receiver_with(), {}, body_of("another"))

        assert (verdict.status, verdict.reason) == (400, "id of another task")

    @pytest.mark.parametrize(
        ("moment", "status"), [("read", 400), ("next turn", 400), ("verified", 400), ("accepted", 200)]
    )
    async def test_that_id_is_the_one_known_when_it_is_accepted(self, moment: str, status: int) -> None:
        def bind(now: str) -> None:
            if now == moment:
                inbox.tasks[INTENT] = "another"  # by a create answer, while other deliveries were read

        class Slow(Inbox):
            async def accept(self, delivery: Delivery) -> None:
                await super().accept(delivery)
                bind("accepted")

        async def read(_: int) -> bytes:
            bind("read")
            asyncio.get_running_loop().call_soon(bind, "next turn")
            return body_of(TASK)

        def now() -> float:
            bind("verified")
            return NOW

        inbox = Slow(tasks={INTENT: ""})
        receiver = CallbackReceiver(now=now)
        receiver.attach(inbox)

        assert (await receiver._on_request(tail(), {}, read)).status == status
        assert len(inbox.accepted) == (status == 200)

    def test_while_the_intent_has_no_task_any_id_is_accepted(self) -> None:
        assert judge(receiver_with(inbox=Inbox(tasks={INTENT: ""})), {}, body_of("any")).status == 200

    def test_an_intent_nobody_knows_here_is_503(self) -> None:
        verdict = judge(receiver_with(inbox=Inbox(tasks={})), {}, body_of())

        assert (verdict.status, verdict.reason) == (503, "intent is not known here")

    @pytest.mark.parametrize("keys", [(), (KEY,)], ids=["unsigned", "signed"])
    def test_too_large_a_one_says_only_that_it_came(self, keys: tuple[str, ...]) -> None:
        verdict = judge(receiver_with(*keys, max_body=1000), signed(), body_of(padding="x" * 1000))

        assert (verdict.status, verdict.is_signed) == (200, bool(keys))
        assert verdict.record == TaskRecord(task_id=TASK)

    def test_its_id_may_stand_behind_what_is_read(self) -> None:
        verdict = judge(receiver_with(max_body=1000), {}, b'{"padding":"' + b"x" * 1000 + b'"}')

        assert (verdict.status, verdict.record) == (200, TaskRecord(task_id=TASK))

    @pytest.mark.parametrize(("spare", "status"), [(0, 200), (1, 413)])
    def test_one_of_more_than_8_mib_is_413(self, spare: int, status: int) -> None:
        assert judge(receiver_with(), {}, body_of().ljust(MAX_DROPPED_BODY + spare)).status == status

    @pytest.mark.parametrize("size", [0, 300_000], ids=["dirty", "large"])
    @pytest.mark.parametrize(
        ("headers", "task_id", "status"),
        [
            (signed(), TASK, 200),
            (signed(key="another"), TASK, 401),
            ({}, TASK, 401),
            (signed("another"), "another", 400),
            (signed(at=NOW - 301), TASK, 401),
        ],
    )
    def test_one_that_is_not_read_is_verified_all_the_same(
        self, headers: dict[str, str], task_id: str, status: int, size: int
    ) -> None:
        body = body_of(task_id).replace(b'"words"', b'"w\x00rds"') + b" " * size

        assert judge(receiver_with(KEY), headers, body).status == status

    def test_one_that_is_not_read_names_the_task_of_an_intent_without_one(self) -> None:
        receiver = receiver_with(inbox=Inbox(tasks={INTENT: ""}))

        assert judge(receiver, {}, body_of("new") + b" " * 300_000).record == TaskRecord(task_id="new")
        assert judge(receiver, {}, b" " * 300_000).status == 400

    def test_the_session_that_knows_the_intent_is_given_it(self) -> None:
        stranger, owner = Inbox(tasks={}), Inbox()
        receiver = receiver_with(inbox=stranger)
        receiver.attach(owner)

        assert judge(receiver, {}, body_of()).inbox is owner

    def test_judging_changes_nothing(self) -> None:
        inbox = Inbox()
        receiver = receiver_with(KEY, inbox=inbox)

        judge(receiver, signed(), body_of())
        judge(receiver, {}, body_of())

        assert not inbox.accepted
        assert not inbox.rejected


class TestFeed:
    async def test_it_hands_over_the_delivery_and_returns_the_answer(self) -> None:
        inbox = Inbox()

        verdict = await receiver_with(KEY, inbox=inbox).feed(tail(), signed(), body_of())

        (delivery,) = inbox.accepted
        assert (delivery.intent_id, delivery.record.task_id, delivery.is_signed) == (INTENT, TASK, True)
        assert (verdict.status, verdict.body) == (200, b'{"code":200,"msg":"success"}')

    @pytest.mark.parametrize(
        ("path", "headers", "status"),
        [("x/y", signed(), 404), (tail(), {}, 401), (tail("f" * 32), signed(), 503)],
    )
    async def test_a_refusal_is_counted_and_its_answer_is_empty(
        self, path: str, headers: dict[str, str], status: int
    ) -> None:
        inbox = Inbox()

        verdict = await receiver_with(KEY, inbox=inbox).feed(path, headers, body_of())

        assert (verdict.status, verdict.body) == (status, b"")
        assert sum(inbox.rejected.values()) == 1
        assert not inbox.accepted

    async def test_strangers_do_not_fill_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "kie_async")
        receiver = receiver_with()

        for _ in range(100):
            await receiver.feed("a\n[FATAL]/b", {}, b"")

        assert caplog.messages == [
            "callback refused: wrong address (further ones of this minute are only counted)"
        ]


class TestConstruction:
    @pytest.mark.parametrize("keys", [[""], [b""], ["right", ""]])
    def test_an_empty_key_is_refused(self, keys: Any) -> None:
        with pytest.raises(InvalidRequest, match="hmac_keys"):
            CallbackReceiver(keys)

    def test_a_key_alone_is_not_a_list_of_keys(self) -> None:
        with pytest.raises(InvalidRequest, match="hmac_keys"):
            CallbackReceiver("key")  # type: ignore[arg-type]

    @pytest.mark.parametrize("field", ["tolerance_s", "max_body"])
    @pytest.mark.parametrize("value", [0, -1, float("nan")])
    def test_bounds_must_be_above_zero(self, field: str, value: float) -> None:
        with pytest.raises(InvalidRequest, match=field):
            CallbackReceiver(**{field: value})

    def test_its_repr_holds_no_key(self) -> None:
        assert repr(CallbackReceiver(["hmac-secret"])) == "<CallbackReceiver keys=1 sessions=0>"


# --- with the sandbox ----------------------------------------------------------------------------


@pytest.fixture
async def signed_kie(
    clock: Clock, open_session: OpenSession, receiver: CallbackReceiver, served: ServedReceiver
) -> KieSession:
    """Return a session whose callbacks are signed, which polls as by default."""
    return await open_session(receiver=receiver, callback_url=served.url, poll=NET)


@pytest.fixture
async def unsigned_kie(
    clock: Clock, open_session: OpenSession, doorbell: CallbackReceiver, served_doorbell: ServedReceiver
) -> KieSession:
    """Return a session whose callbacks are unsigned and only cause a poll, which polls as by default."""
    return await open_session(receiver=doorbell, callback_url=served_doorbell.url, poll=NET)


async def begin(kie: KieSession) -> TaskHandle:
    return await kie.create("sandbox/echo", {})


def intent_of(sandbox: Sandbox, task_id: str) -> str:
    """Return the end of a task's callback URL."""
    return "/".join(sandbox.tasks[task_id].callback_url.split("/")[-2:])


class TestTheAddressOfATask:
    async def test_it_is_the_callback_url_an_intent_and_a_mac(
        self, sandbox: Sandbox, served: ServedReceiver, signed_kie: KieSession
    ) -> None:
        handle = await begin(signed_kie)

        url = sandbox.tasks[handle.task_id].callback_url
        assert re.fullmatch(re.escape(served.url) + "/[0-9a-f]{32}/[a-z2-7]{26}", url)

    async def test_no_two_tasks_share_one(self, sandbox: Sandbox, signed_kie: KieSession) -> None:
        await begin(signed_kie)
        await begin(signed_kie)

        assert len({task.callback_url for task in sandbox.tasks.values()}) == 2

    async def test_without_a_callback_url_none_is_sent(self, sandbox: Sandbox, kie: KieSession) -> None:
        handle = await begin(kie)

        assert sandbox.tasks[handle.task_id].callback_url is None
        assert "callBackUrl" not in sandbox.tasks[handle.task_id].param

    async def test_one_of_the_callers_own_is_sent_untouched_and_the_task_is_polled(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        own = "https://example.org/My%20Hook/?a=b&c=%2F"

        handle = await signed_kie.create(TaskRequest(model="sandbox/echo", input={}, callback_url=own))
        await clock.advance(3.0)

        assert sandbox.tasks[handle.task_id].callback_url == own
        assert sandbox.counts["query"] == 1

    async def test_it_is_made_with_the_first_secret(
        self, sandbox: Sandbox, open_session: OpenSession, receiver: CallbackReceiver, served: ServedReceiver
    ) -> None:
        kie = await open_session(
            receiver=receiver, callback_url=served.url + "/", callback_secrets=["current", "old"]
        )

        handle = await begin(kie)

        intent_id, _, mac = intent_of(sandbox, handle.task_id).partition("/")
        assert mac == callback_mac(intent_id, secret=b"current")

    async def test_the_record_a_user_sees_does_not_hold_the_mac(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle = await begin(signed_kie)
        mac = intent_of(sandbox, handle.task_id).partition("/")[2]
        sandbox.finish(handle.task_id)

        result = await handle

        assert mac not in repr(result)
        assert mac not in json.dumps(dict(result.record.raw))


class TestWhatSettles:
    @pytest.mark.parametrize(
        ("confirm", "is_signed", "queries"),
        [
            (None, True, 0),
            (None, False, 1),
            (True, True, 1),
            (True, False, 1),
            (False, True, 0),
            (False, False, 0),
        ],
    )
    async def test_confirm_callbacks_decides_whether_a_delivery_settles_by_itself(
        self,
        clock: Clock,
        sandbox: Sandbox,
        open_session: OpenSession,
        confirm: bool | None,
        is_signed: bool,
        queries: int,
    ) -> None:
        receiver = CallbackReceiver([HMAC_KEY] if is_signed else [])
        async with receiver.serve("127.0.0.1", 0) as served:
            kie = await open_session(
                receiver=receiver, callback_url=served.url, confirm_callbacks=confirm, poll=NET
            )
            handle = await begin(kie)
            sandbox.finish(handle.task_id)

            assert (await handle).urls
            assert sandbox.counts["query"] == queries
            assert kie.stats().settled_by_callback == 1
            await settle()

    async def test_a_signed_failure_settles_by_itself(self, sandbox: Sandbox, signed_kie: KieSession) -> None:
        handle = await begin(signed_kie)
        sandbox.finish(handle.task_id, "fail", fail_msg="face not found")

        with pytest.raises(TaskFailed, match="face not found"):
            await handle
        assert sandbox.counts["query"] == 0

    async def test_of_an_unsigned_delivery_nothing_counts_but_that_it_came(
        self, sandbox: Sandbox, unsigned_kie: KieSession
    ) -> None:
        handle = await begin(unsigned_kie)
        sandbox.finish(handle.task_id, "fail", fail_msg="the truth")
        lie = body_of(handle.task_id, resultJson='{"resultUrls":["https://attacker.example/x.mp4"]}')

        await sandbox.send_callback(handle.task_id, body=lie)

        with pytest.raises(TaskFailed, match="the truth"):
            await handle

    @pytest.mark.parametrize("is_signed", [True, False])
    async def test_forgers_change_nothing(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession, is_signed: bool
    ) -> None:
        sandbox.faults.forge_callbacks = 1.0
        receiver = CallbackReceiver([HMAC_KEY] if is_signed else [])
        async with receiver.serve("127.0.0.1", 0) as served:
            kie = await open_session(receiver=receiver, callback_url=served.url, poll=NET)
            handles = [await begin(kie) for _ in range(20)]
            for number, handle in enumerate(handles):
                sandbox.finish(handle.task_id, "fail" if number % 2 else "success")
            await clock.advance(10.0)

            for number, handle in enumerate(handles):
                (outcome,) = await asyncio.gather(handle, return_exceptions=True)
                assert isinstance(outcome, TaskFailed) == number % 2
                assert "forged" not in str(outcome)

    async def test_a_signed_success_without_a_result_is_polled(
        self, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle = await begin(signed_kie)
        sandbox.finish(handle.task_id)
        empty = body_of(handle.task_id, resultJson="")

        await sandbox.send_callback(handle.task_id, body=empty)

        assert (await handle).urls

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda body: body + b" " * 300_000,
            lambda body: body.replace(b"words", b"w\xffrds"),
            lambda body: body.replace(b'"words"', b"NaN"),
            lambda body: body.replace(b"words", b"w\x00rds"),
            lambda body: body[:-2],
        ],
        ids=["large", "broken UTF-8", "NaN", "NUL", "cut off"],
    )
    @pytest.mark.parametrize("is_signed", [True, False])
    async def test_a_delivery_that_cannot_be_read_is_answered_200_and_polled_at_once(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession, is_signed: bool, spoil: Any
    ) -> None:
        receiver = CallbackReceiver([HMAC_KEY] if is_signed else [])
        kie = await open_session(receiver=receiver, callback_url="http://127.0.0.1:1/kie", poll=NET)
        handle = await begin(kie)
        sandbox.faults.drop_callbacks = 1.0
        sandbox.finish(handle.task_id)
        headers = sandbox.callback_headers(handle.task_id)

        verdict = await receiver.feed(
            intent_of(sandbox, handle.task_id), headers, spoil(body_of(handle.task_id, "fail"))
        )

        assert (verdict.status, verdict.body) == (200, b'{"code":200,"msg":"success"}')
        assert (await handle).urls
        assert sandbox.counts["query"] == 1
        assert kie.stats().callbacks_accepted == 1

    @pytest.mark.parametrize("code_and_state", [(200, "fail"), (501, "success"), (400, "success")], ids=str)
    async def test_a_signed_delivery_that_contradicts_itself_is_polled(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession, code_and_state: tuple[int, str]
    ) -> None:
        code, state = code_and_state
        handle = await begin(signed_kie)

        await sandbox.send_callback(handle.task_id, body=body_of(handle.task_id, state, code))
        await clock.advance(0.1)

        assert not handle.is_done
        assert sandbox.counts["query"] == 1

    @pytest.mark.parametrize("kind", ["text", "first", "progress"])
    async def test_a_step_on_the_way_ends_nothing(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession, kind: str
    ) -> None:
        handle = await begin(signed_kie)
        step = {"code": 200, "msg": "ok", "data": {"task_id": handle.task_id, "callbackType": kind}}

        await sandbox.send_callback(handle.task_id, body=json.dumps(step).encode())
        await clock.advance(0.5)
        assert not handle.is_done

        sandbox.finish(handle.task_id)
        assert await handle

    async def test_a_signed_state_on_the_way_is_shown(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle = await begin(signed_kie)

        await sandbox.send_callback(handle.task_id, body=body_of(handle.task_id, "generating"))

        assert handle.state is TaskState.GENERATING
        assert sandbox.counts["query"] == 0


class TestUnsignedDeliveries:
    async def test_one_is_followed_by_a_poll_at_once(
        self, clock: Clock, sandbox: Sandbox, unsigned_kie: KieSession
    ) -> None:
        handle = await begin(unsigned_kie)
        sandbox.finish(handle.task_id)
        before = clock.now

        await handle

        assert clock.now == before
        assert sandbox.counts["query"] == 1

    async def test_one_that_outruns_the_record_is_followed_by_another_poll(
        self, clock: Clock, sandbox: Sandbox, unsigned_kie: KieSession
    ) -> None:
        handle = await begin(unsigned_kie)
        await sandbox.send_callback(handle.task_id, body=body_of(handle.task_id))
        await clock.advance(0.9)
        assert sandbox.counts["query"] == 1
        assert not handle.is_done

        sandbox.tasks[handle.task_id].callback_url = None  # no second callback
        sandbox.finish(handle.task_id)
        await clock.advance(0.2)

        assert await handle

    async def test_one_whose_poll_is_refused_for_the_rate_is_not_forgotten(
        self, clock: Clock, sandbox: Sandbox, unsigned_kie: KieSession
    ) -> None:
        sandbox.faults.query_429_next, sandbox.faults.retry_after_s = 1, 3.0
        handle = await begin(unsigned_kie)
        sandbox.finish(handle.task_id)

        await clock.advance(3.2)

        assert await handle

    async def test_a_thousand_are_one_poll_a_second(
        self, clock: Clock, sandbox: Sandbox, unsigned_kie: KieSession, doorbell: CallbackReceiver
    ) -> None:
        handle = await begin(unsigned_kie)
        body = body_of(handle.task_id)

        for _ in range(1000):
            verdict = await doorbell.feed(intent_of(sandbox, handle.task_id), {}, body)
            assert verdict.status == 200
        await clock.advance(10.0)

        assert sandbox.counts["query"] <= 5
        assert not handle.is_done


class TestDuplicates:
    async def test_one_that_comes_again_is_thanked_and_counted(
        self, sandbox: Sandbox, signed_kie: KieSession, receiver: CallbackReceiver
    ) -> None:
        handle = await begin(signed_kie)
        sandbox.finish(handle.task_id)
        result = await handle

        statuses = {await sandbox.send_callback(handle.task_id) for _ in range(10)}

        assert statuses == {200}
        assert (await handle) is result
        stats = signed_kie.stats()
        assert (stats.callbacks_accepted, stats.callbacks_duplicate) == (1, 10)

    async def test_a_thousand_copies_settle_once(
        self,
        sandbox: Sandbox,
        open_session: OpenSession,
        receiver: CallbackReceiver,
        served: ServedReceiver,
        events: Events,
    ) -> None:
        kie = await open_session(receiver=receiver, callback_url=served.url, on_event=events)
        handle = await begin(kie)
        sandbox.tasks[handle.task_id].callback_url, url = None, intent_of(sandbox, handle.task_id)
        sandbox.finish(handle.task_id)
        headers, body = sandbox.callback_headers(handle.task_id), sandbox.callback_body(handle.task_id)

        verdicts = [await receiver.feed(url, headers, body) for _ in range(1000)]
        await settle()

        assert {verdict.status for verdict in verdicts} == {200}
        assert events.kinds().count("settled") == 1
        assert kie.stats().credits_consumed == 1.0

    async def test_one_that_comes_after_the_poll_is_thanked(
        self, sandbox: Sandbox, open_session: OpenSession, receiver: CallbackReceiver, served: ServedReceiver
    ) -> None:
        kie = await open_session(receiver=receiver, callback_url=served.url, poll=FAST)
        sandbox.faults.drop_callbacks = 1.0
        handle = await begin(kie)
        sandbox.finish(handle.task_id)
        await handle

        assert await sandbox.send_callback(handle.task_id) == 200
        assert kie.stats().settled_by_poll == 1
        assert kie.stats().callbacks_duplicate == 1

    async def test_one_that_comes_after_abandoning_is_thanked(
        self, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle = await begin(signed_kie)
        handle.abandon()

        assert await sandbox.send_callback(handle.task_id, body=body_of(handle.task_id)) == 200

    async def test_a_late_one_with_the_id_of_another_task_is_refused(
        self, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        first, second = await begin(signed_kie), await begin(signed_kie)
        sandbox.finish(first.task_id)
        await first
        sandbox.tasks[second.task_id].callback_url = sandbox.tasks[first.task_id].callback_url

        assert await sandbox.send_callback(second.task_id, body=body_of(second.task_id)) == 400

    async def test_of_a_session_of_former_times_it_is_503_so_that_another_worker_may_get_it(
        self, sandbox: Sandbox, open_session: OpenSession, receiver: CallbackReceiver, served: ServedReceiver
    ) -> None:
        former = await open_session(receiver=receiver, callback_url=served.url)
        handle = await begin(former)
        await former.aclose()
        assert await sandbox.send_callback(handle.task_id, body=body_of(handle.task_id)) == 503

        now = await open_session(receiver=receiver, callback_url=served.url)

        assert await sandbox.send_callback(handle.task_id, body=body_of(handle.task_id)) == 503
        assert now.stats().callbacks_rejected == {"intent is not known here": 1}


class TestEarlyCallbacks:
    """A callback may outrun the answer that names the task that was created."""

    async def start(self, sandbox: Sandbox, kie: KieSession) -> tuple[asyncio.Task[TaskHandle], str]:
        """Let a create wait for its answer; return it and the id of the task it made."""
        sandbox.faults.create_answer_gate = asyncio.Event()
        creating = asyncio.create_task(begin(kie))
        await eventually(lambda: sandbox.tasks)
        return creating, next(iter(sandbox.tasks))

    async def test_it_settles_the_handle_that_is_about_to_exist(
        self, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        sandbox.faults.early_callback = 1.0

        handle = await begin(signed_kie)

        assert handle.is_done
        assert (await handle).urls
        assert sandbox.counts["query"] == 0

    async def test_without_a_signature_it_is_polled_as_soon_as_the_answer_is_there(
        self, clock: Clock, sandbox: Sandbox, unsigned_kie: KieSession
    ) -> None:
        sandbox.faults.early_callback = 1.0
        before = clock.now

        handle = await begin(unsigned_kie)

        assert (await handle).urls
        assert clock.now == before

    async def test_it_creates_no_handle_before_the_answer(
        self, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        creating, task_id = await self.start(sandbox, signed_kie)

        await sandbox.send_callback(task_id, body=body_of(task_id))
        await settle()

        assert not creating.done()
        assert sandbox.counts["query"] == 0
        assert signed_kie.stats().in_flight == 0
        sandbox.faults.create_answer_gate.set()
        await creating

    async def test_one_is_held_for_an_intent_and_the_last_counts(
        self, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        creating, task_id = await self.start(sandbox, signed_kie)
        for state in ("generating", "success"):
            await sandbox.send_callback(task_id, body=body_of(task_id, state))

        sandbox.faults.create_answer_gate.set()

        assert (await (await creating)).urls

    async def test_one_with_the_id_of_another_task_than_the_answers_is_thrown_away(
        self, clock: Clock, sandbox: Sandbox, unsigned_kie: KieSession
    ) -> None:
        creating, task_id = await self.start(sandbox, unsigned_kie)
        await sandbox.send_callback(task_id, body=body_of("another_task"))

        sandbox.faults.create_answer_gate.set()
        handle = await creating
        await clock.advance(1.0)

        assert not handle.is_done
        assert unsigned_kie.stats().callbacks_rejected == {"id of another task": 1}
        assert sandbox.counts["query"] == 0

    async def test_one_for_a_create_of_which_nothing_was_sent_is_not_known(
        self, sandbox: Sandbox, signed_kie: KieSession, receiver: CallbackReceiver
    ) -> None:
        handle = await begin(signed_kie)
        secret = signed_kie._settings.callbacks.secrets[0]
        handle.abandon()

        verdict = await receiver.feed(tail("f" * 32, secret), sandbox.callback_headers("t"), body_of("t"))

        assert verdict.status == 503


class TestSharing:
    async def test_two_sessions_of_one_account_share_a_receiver(
        self,
        clock: Clock,
        sandbox: Sandbox,
        open_session: OpenSession,
        receiver: CallbackReceiver,
        served: ServedReceiver,
    ) -> None:
        sessions = [
            await open_session(receiver=receiver, callback_url=served.url, poll=NET) for _ in range(2)
        ]
        handles = [await begin(kie) for kie in sessions for _ in range(3)]
        for handle in handles:
            sandbox.finish(handle.task_id)

        assert len(await asyncio.gather(*handles)) == 6
        assert [kie.stats().settled_by_callback for kie in sessions] == [3, 3]
        assert [kie.stats().callbacks_rejected for kie in sessions] == [{}, {}]

    async def test_two_sessions_of_two_accounts_share_a_receiver(
        self,
        clock: Clock,
        sandbox: Sandbox,
        open_session: OpenSession,
        receiver: CallbackReceiver,
        served: ServedReceiver,
    ) -> None:
        async with Sandbox(
            api_key="another-key", durations=sandbox._world.durations, hmac_key=HMAC_KEY
        ) as another:
            first = await open_session(receiver=receiver, callback_url=served.url, poll=NET)
            second = await open_session(
                api_key="another-key",
                base_url=another.url,
                receiver=receiver,
                callback_url=served.url,
                poll=NET,
            )
            handles = [await begin(first), await begin(second)]
            sandbox.finish(handles[0].task_id)
            another.finish(handles[1].task_id)

            assert [(await handle).task_id for handle in handles] == [h.task_id for h in handles]
            await second.aclose()

    async def test_the_other_session_goes_on_receiving_when_one_closes(
        self,
        clock: Clock,
        sandbox: Sandbox,
        open_session: OpenSession,
        receiver: CallbackReceiver,
        served: ServedReceiver,
    ) -> None:
        first, second = [
            await open_session(receiver=receiver, callback_url=served.url, poll=NET) for _ in range(2)
        ]
        handle = await begin(second)

        await first.aclose()
        sandbox.finish(handle.task_id)

        assert await handle


class TestRotation:
    async def test_while_the_hmac_key_is_replaced_both_are_right(
        self, clock: Clock, sandbox: Sandbox, open_session: OpenSession
    ) -> None:
        receiver = CallbackReceiver(["the next key", HMAC_KEY])
        async with receiver.serve("127.0.0.1", 0) as served:
            kie = await open_session(receiver=receiver, callback_url=served.url, poll=NET)
            first, second = await begin(kie), await begin(kie)
            sandbox.finish(first.task_id)
            assert await first

            sandbox._courier.hmac_key = "the next key"
            sandbox.finish(second.task_id)
            assert await second


class TestAdoption:
    """A create of unknown outcome is bound to its task only by the service's own record."""

    async def lose(self, sandbox: Sandbox, kie: KieSession, **options: float) -> tuple[TaskHandle, str]:
        """Create a task without getting the answer; return the handle and the lost id."""
        sandbox.faults.lose_answers_next = 1
        with pytest.raises(CreateOutcomeUnknown) as caught:
            await kie.create("sandbox/echo", {}, **options)
        return caught.value.handle, list(sandbox.tasks)[-1]

    async def test_a_callback_names_the_task_and_the_record_proves_it(
        self, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle, task_id = await self.lose(sandbox, signed_kie)

        sandbox.finish(task_id)

        assert (await handle).task_id == task_id
        assert handle.task_id == task_id
        assert sandbox.counts["query"] == 1
        assert signed_kie.stats().unknown_creates == 1

    async def test_an_unsigned_callback_is_enough(self, sandbox: Sandbox, unsigned_kie: KieSession) -> None:
        handle, task_id = await self.lose(sandbox, unsigned_kie)

        sandbox.finish(task_id)

        assert (await handle).task_id == task_id

    async def test_a_callback_that_came_before_the_connection_broke_is_remembered(
        self, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        sandbox.faults.early_callback = 1.0

        handle, task_id = await self.lose(sandbox, signed_kie)

        assert (await handle).task_id == task_id

    async def test_the_end_in_the_record_counts_not_the_one_in_the_delivery(
        self, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle, task_id = await self.lose(sandbox, signed_kie)
        sandbox.tasks[task_id].callback_url, url = None, sandbox.tasks[task_id].callback_url
        sandbox.finish(task_id, "fail", fail_msg="the truth")
        sandbox.tasks[task_id].callback_url = url

        await sandbox.send_callback(task_id, body=body_of(task_id))

        with pytest.raises(TaskFailed, match="the truth"):
            await handle

    async def test_a_task_that_has_not_ended_is_watched_on(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle, task_id = await self.lose(sandbox, signed_kie)
        await sandbox.send_callback(task_id, body=body_of(task_id, "generating"))
        await eventually(lambda: handle.task_id)
        assert not handle.is_done

        sandbox.finish(task_id)

        assert await handle

    async def test_the_hook_is_called(
        self,
        sandbox: Sandbox,
        open_session: OpenSession,
        receiver: CallbackReceiver,
        served: ServedReceiver,
        events: Events,
    ) -> None:
        kie = await open_session(receiver=receiver, callback_url=served.url, on_event=events)
        handle, task_id = await self.lose(sandbox, kie)
        sandbox.finish(task_id)
        await handle

        assert events.kinds() == ["unknown", "adopted", "settled"]

    async def test_a_record_with_another_callback_url_is_refused(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle, task_id = await self.lose(sandbox, signed_kie)
        other = await begin(signed_kie)
        sandbox.tasks[other.task_id].callback_url = sandbox.tasks[task_id].callback_url
        other.abandon()

        await sandbox.send_callback(other.task_id, body=body_of(other.task_id, "generating"))
        await clock.advance(0.1)

        assert not handle.task_id
        assert signed_kie.stats().callbacks_rejected == {"adoption of another task": 1}

        sandbox.finish(task_id)  # the right one can still come, a second after the wrong one
        await clock.advance(1.5)
        assert (await handle).task_id == task_id

    async def test_a_record_without_a_callback_url_is_refused(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle, task_id = await self.lose(sandbox, signed_kie)
        sandbox.tasks[task_id].param = encode_param("sandbox/echo", {}, None, key_set="2026")

        await sandbox.send_callback(task_id, body=body_of(task_id, "generating"))
        await clock.advance(0.1)

        assert not handle.task_id

    async def test_a_record_of_another_model_is_refused(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle, task_id = await self.lose(sandbox, signed_kie)
        sandbox.tasks[task_id].model = "nano-banana-2"

        await sandbox.send_callback(task_id, body=body_of(task_id, "generating"))
        await clock.advance(0.1)

        assert not handle.task_id

    async def test_a_task_somebody_attached_already_is_the_one_of_the_create(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle, task_id = await self.lose(sandbox, signed_kie)
        attached = signed_kie.attach(task_id)

        sandbox.finish(task_id)
        await clock.advance(3.0)

        assert (await attached).task_id == task_id
        assert (await handle).task_id == task_id

    async def test_who_waits_for_a_create_that_cannot_be_adopted_still_has_a_deadline(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        sandbox.faults.invisible_s = 3600.0
        handle, task_id = await self.lose(sandbox, signed_kie, timeout_s=5.0)
        sandbox.finish(task_id)
        await clock.advance(5.1)

        with pytest.raises(CreateOutcomeUnknown):
            await handle
        assert handle.candidate_task_id == task_id

    async def test_a_record_that_cannot_be_read_yet_is_asked_for_again(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle, task_id = await self.lose(sandbox, signed_kie)
        sandbox.faults.query_answers_next = [
            (200, b'{"code":422,"msg":"recordInfo is null"}'),
            (502, b"<html>"),
            (200, b'{"code":404,"msg":"Task not found"}'),
            (200, b'{"code":429,"msg":"too often"}'),
        ]

        sandbox.finish(task_id)
        await clock.advance(20.0)

        assert (await handle).task_id == task_id
        assert sandbox.counts["query"] == 5

    async def test_a_record_that_is_refused_once_is_asked_for_again(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle, task_id = await self.lose(sandbox, signed_kie)
        sandbox.faults.query_answers_next = [(200, b'{"code":400,"msg":"no"}')]

        sandbox.finish(task_id)
        await clock.advance(3.0)

        assert (await handle).task_id == task_id
        assert sandbox.counts["query"] == 2

    async def test_a_record_that_never_shows_is_given_up_after_minutes(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        handle, task_id = await self.lose(sandbox, signed_kie)
        sandbox.faults.invisible_s = 3600.0

        await sandbox.send_callback(task_id, body=body_of(task_id))
        await clock.advance(300.0)
        assert handle.candidate_task_id == task_id
        await clock.advance(300.0)

        assert not handle.is_done
        assert not handle.candidate_task_id
        assert signed_kie.stats().callbacks_rejected == {"adoption of another task": 1}
        assert sandbox.counts["query"] == 13

    async def test_the_result_may_show_later_than_the_success(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        sandbox.faults.empty_result_looks = 1
        handle, task_id = await self.lose(sandbox, signed_kie)

        sandbox.finish(task_id)
        await clock.advance(10.0)

        assert (await handle).urls

    async def test_deliveries_of_strangers_cost_few_questions(
        self, clock: Clock, sandbox: Sandbox, unsigned_kie: KieSession, doorbell: CallbackReceiver
    ) -> None:
        handle, task_id = await self.lose(sandbox, unsigned_kie)
        other = await begin(unsigned_kie)

        for _ in range(100):
            await doorbell.feed(intent_of(sandbox, task_id), {}, body_of(other.task_id))
            await clock.advance(0.05)

        assert sandbox.counts["query"] <= 7
        assert not handle.is_done

    async def test_a_task_the_service_said_it_had_refused_is_a_ghost(
        self, clock: Clock, sandbox: Sandbox, signed_kie: KieSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        sandbox.faults.refuse_but_create_next = 1
        with pytest.raises(RequestRejected):
            await begin(signed_kie)
        (task_id,) = sandbox.tasks

        sandbox.finish(task_id)
        await eventually(lambda: signed_kie.stats().settled_by_callback)

        stats = signed_kie.stats()
        assert (stats.ghost_creates, stats.creates, stats.credits_consumed) == (1, 0, 1.0)
        assert f"task {task_id} exists although its create was refused" in caplog.text

    async def test_a_refused_create_whose_callback_came_first_is_a_ghost_too(
        self, sandbox: Sandbox, signed_kie: KieSession
    ) -> None:
        sandbox.faults.refuse_but_create_next, sandbox.faults.early_callback = 1, 1.0

        with pytest.raises(RequestRejected):
            await begin(signed_kie)
        await eventually(lambda: signed_kie.stats().ghost_creates)
