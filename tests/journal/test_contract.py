"""What every journal promises: on PostgreSQL as in a file, and in memory as long as the process lives."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from conftest import HMAC_KEY, OpenSession
from support.clock import eventually
from support.journals import DONE, created, intent, states
from support.stores import Store

from kie_async import (
    CallbackReceiver,
    InvalidRequest,
    JournalError,
    Sandbox,
    ServedReceiver,
    TaskRecord,
    TaskRequest,
    TaskState,
)
from kie_async.callbacks.address import callback_mac, derive_callback_secret
from kie_async.journal.base import Journal
from kie_async.journal.intents import Claim, ClaimSource, IntentState
from kie_async.wire.records import decode_record

ROOT = Path(__file__).parent.parent.parent
ECHO = TaskRequest(model="sandbox/echo", input={"prompt": "a smile"})
HOUR_S = 3600.0


# --- one intent, one body, one task ----------------------------------------------------------------


async def test_a_task_is_unsettled_until_its_end(journal: Journal) -> None:
    await created(journal)
    assert [found.task_id for found in await journal.list_unsettled()] == ["t1"]
    await journal.mark_settled("i1", DONE)
    assert await journal.list_unsettled() == []


async def test_an_unknown_create_keeps_its_ref_and_has_no_end(journal: Journal) -> None:
    await journal.mark_sending(intent(2))
    await journal.mark_ended("i2", IntentState.UNKNOWN)
    found = await journal.find_by_ref("r2")
    assert found is not None
    assert (found.intent_id, found.state, found.read_end()) == ("i2", IntentState.UNKNOWN, None)


async def test_a_task_id_said_twice_is_no_error(journal: Journal) -> None:
    await created(journal)
    await journal.mark_created("i1", "t1")
    found = await journal.find_by_ref("r1")
    assert found is not None
    assert (found.state, found.task_id) == (IntentState.CREATED, "t1")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE intent SET sends = 2 WHERE intent_id = 'i1'",
        "UPDATE intent SET sends = sends + 1",
        "UPDATE intent SET state = 'SENT'",
        "UPDATE intent SET task_id = 't1'",
        "UPDATE intent SET ref = 'r1'",
        "UPDATE intent SET intent_id = 'i1'",
        "UPDATE intent SET planned_ms = 'soon'",
        "UPDATE intent SET model = NULL",
    ],
)
async def test_the_schema_refuses_what_must_not_be(durable_store: Store, change: str) -> None:
    async with durable_store.opened() as journal:
        await created(journal, 1)
        await created(journal, 2)
    with pytest.raises(durable_store.refused):
        await durable_store.change(change)


async def test_an_intent_is_sent_once(durable: Any) -> None:
    await durable.mark_sending(intent())
    with pytest.raises(JournalError, match="state it must be in"):
        await durable.mark_sending(intent())
    await durable.mark_unsent("i1")
    await durable.mark_sending(intent())
    await durable.mark_created("i1", "t1")
    for again in (durable.mark_sending(intent()), durable.mark_unsent("i1")):
        with pytest.raises(JournalError):
            await again
    assert await states(durable) == {"i1": "CREATED"}


async def test_a_task_belongs_to_one_intent(durable: Any) -> None:
    await created(durable)
    await durable.mark_sending(intent(2))
    with pytest.raises(JournalError, match="task t1 belongs to another intent, i1"):
        await durable.mark_created("i2", "t1")
    await durable.mark_created("i1", "t1")  # said again, it is no news
    with pytest.raises(JournalError, match="another task"):
        await durable.mark_created("i1", "t3")


async def test_a_ref_belongs_to_one_intent_that_may_be_a_task(durable: Any, durable_store: Store) -> None:
    for state, code, is_free in [
        (IntentState.NOT_CREATED, None, True),
        (IntentState.REJECTED, 402, True),
        (IntentState.REJECTED, 422, True),
        (IntentState.REJECTED, 408, False),
        (IntentState.REJECTED, 500, False),
        (IntentState.UNKNOWN, None, False),
        (IntentState.WRITTEN_OFF, None, False),
    ]:
        name = f"{state}{code}"
        await durable.mark_sending(intent(name))
        await durable.mark_ended(f"i{name}", state, reason="words", code=code)
        assert (await durable.find_by_ref(f"r{name}") is None) is is_free
        if is_free:
            await durable.mark_sending(intent(name, intent_id=f"second {name}"))
        elif state is not IntentState.WRITTEN_OFF:
            with pytest.raises(JournalError, match=durable_store.taken_ref):
                await durable.mark_sending(intent(name, intent_id=f"second {name}"))


async def test_what_a_task_became_is_never_changed(durable: Any, durable_store: Store) -> None:
    await created(durable)
    await durable.mark_settled("i1", DONE)
    with durable_store.another_end():
        await durable.mark_settled("i1", TaskRecord(task_id="t1", state=TaskState.FAIL))
    for change in (durable.mark_ended("i1", IntentState.UNKNOWN), durable.mark_unsent("i1")):
        with pytest.raises(JournalError):
            await change
    await durable.mark_created("i1", "t1")
    (found,) = await durable.list_intents()
    assert (found.state, found.credits, json.loads(found.record)["state"]) == (
        IntentState.SUCCEEDED,
        1.0,
        "success",
    )


async def test_one_note_that_fails_takes_nothing_else_back(durable: Any, durable_store: Store) -> None:
    notes = [durable.mark_sending(intent(number)) for number in (1, 2, 1, 3)]
    outcomes = await asyncio.gather(*notes, return_exceptions=True)
    failed = [number for number, outcome in enumerate(outcomes) if outcome is not None]
    assert failed in durable_store.either_of(0, 2)
    assert isinstance(outcomes[failed[0]], JournalError)
    assert set(await states(durable)) == {"i1", "i2", "i3"}


async def test_a_note_of_two_changes_that_fails_takes_both_back(durable: Any) -> None:
    await durable.mark_sending(intent(1))
    await durable.mark_ended("i1", IntentState.NOT_CREATED)
    await durable.mark_sending(intent(2))
    notes = (
        durable.mark_sending(intent(1, intent_id="i2")),  # frees the ref, and then finds its own id taken
        durable.mark_sending(intent(3)),
    )
    outcomes = await asyncio.gather(*notes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [JournalError, type(None)]
    assert {found.intent_id: found.ref for found in await durable.list_intents()} == {
        "i1": "r1",
        "i2": "r2",
        "i3": "r3",
    }


HOSTILE = [
    "'; DROP TABLE intent; --", '"', "a\0b", "a", "a\0", "%", "_", "A", "ä", "a\u0308", "\u202egpj.exe",
    "😀" * 128, "x" * 512, " a", "\r\n[FATAL] x", "NULL", "1", "1.0", "../../etc/passwd", "{}", "${jndi:x}",
]  # fmt: skip


async def test_any_text_is_a_ref(durable_store: Store) -> None:
    refs = [ref for ref in HOSTILE if durable_store.holds_any_bytes or "\0" not in ref]
    async with durable_store.opened() as journal:
        for number, ref in enumerate(refs):
            await journal.mark_sending(intent(number, ref=ref))
    async with durable_store.opened() as journal:
        for number, ref in enumerate(refs):
            found = await journal.find_by_ref(ref)
            assert found is not None
            assert (found.intent_id, found.ref) == (f"i{number}", ref)


def test_half_a_character_is_no_ref() -> None:
    with pytest.raises(InvalidRequest, match="ref must be valid unicode"):
        TaskRequest(model="m", input={}, ref="a\ud800")


# --- open, close, crash ----------------------------------------------------------------------------


async def test_a_closed_journal_says_so(durable_store: Store) -> None:
    journal = durable_store.make()
    with pytest.raises(JournalError, match="is closed"):
        await journal.find_by_ref("r1")
    await journal.open()
    with pytest.raises(JournalError, match="is open already"):
        await journal.open()
    closing = asyncio.create_task(journal.aclose())
    await asyncio.sleep(0)
    with pytest.raises(JournalError, match="is closed"):
        await journal.mark_sending(intent())
    await closing
    await journal.aclose()
    await journal.open()
    await journal.aclose()


async def test_a_cancelled_open_lets_go(durable_store: Store) -> None:
    opening = asyncio.create_task(durable_store.make().open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    async with durable_store.opened():
        pass


async def test_a_close_right_after_a_note_was_asked_for_keeps_it(durable_store: Store) -> None:
    async with durable_store.opened() as journal:
        notes = [asyncio.create_task(journal.mark_sending(intent(number))) for number in range(3)]
        await asyncio.sleep(0)
    await asyncio.gather(*notes)
    async with durable_store.opened() as journal:
        assert set(await states(journal)) == {"i0", "i1", "i2"}


async def test_what_was_on_its_way_is_unknown_and_never_planned_again(durable_store: Store) -> None:
    async with durable_store.doomed() as journal:
        await journal.mark_sending(intent(1))
        await journal.mark_sending(intent(2))
        await journal.mark_unsent("i2")
        await durable_store.crash()
        for _ in range(3):
            async with durable_store.opened() as next_journal:
                assert [(left.intent_id, left.state) for left in durable_store.left] == [
                    ("i1", IntentState.UNKNOWN)
                ]
                assert await states(next_journal) == {"i1": "UNKNOWN", "i2": "NOT_CREATED"}
                assert await next_journal.find_by_ref("r1")
                with pytest.raises(JournalError):
                    await next_journal.mark_sending(intent(1))
                with pytest.raises(JournalError):
                    await next_journal.mark_sending(intent(1, intent_id="again"))


async def test_occurrences_are_counted_for_one_run(durable_store: Store) -> None:
    for _ in range(2):
        async with durable_store.opened() as journal:
            assert [await journal.count_occurrence(key) for key in (b"a", b"b", b"a", b"a")] == [1, 1, 2, 3]


async def test_a_killed_process_leaves_a_journal_that_opens(durable_store: Store) -> None:
    script = """
        import asyncio, os, signal, sys
        from kie_async import SqliteJournal
        from kie_async.journal.base import Intent
        from kie_async.journal.postgres import PostgresJournal

        async def main():
            is_url = sys.argv[1].startswith("postgresql:")
            journal = PostgresJournal(sys.argv[1]) if is_url else SqliteJournal(sys.argv[1])
            await journal.open()
            for number in range(20):
                await journal.mark_sending(Intent(intent_id=f"i{number}", model="m", ref=f"r{number}"))
            print("ready", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), durable_store.place]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = await asyncio.to_thread(subprocess.run, command, capture_output=True, env=environment)
    assert run.returncode == -signal.SIGKILL
    durable_store.was_killed()
    async with durable_store.opened() as journal:
        assert list((await states(journal)).values()) == ["UNKNOWN"] * 20
        assert attrs.astuple(await journal.load_totals()) == (20, 0, 0.0)


# --- ends ------------------------------------------------------------------------------------------


def text_result(text: str, **options: Any) -> dict[str, object]:
    return {"resultJson": json.dumps({"resultObject": {"text": text}}, **options)}


def nested(depth: int) -> object:
    value: object = "x"
    for _ in range(depth):
        value = [value]
    return value


READABLE = {
    "cyrillic, 380 kB": text_result("ж" * 190_000, ensure_ascii=False),
    "chinese, 540 kB": text_result("漢" * 180_000, ensure_ascii=False),
    "emoji, 360 kB": text_result("😀" * 90_000, ensure_ascii=False),
    "escapes in the result itself": text_result("ж" * 170_000),
    "larger than any answer": {**text_result("a"), "more": "ж" * 2_000_000},
    "numbers that grow": {"resultUrls": [], **text_result("a"), "numbers": [1e15] * 100_000},
    "zero bytes and odd line ends": text_result("\0\u2028\x85\r\n", ensure_ascii=False),
    "half a surrogate pair": {**text_result("a"), "more": "\ud83d"},
    "an object": {"response": {"resultObject": {"text": "жук"}}},
    "a url": {"resultJson": json.dumps({"resultUrls": ["https://e.org/жук.mp4"]})},
}


@pytest.mark.parametrize("result", READABLE.values(), ids=READABLE)
async def test_a_result_is_the_same_in_the_next_run(
    durable_store: Store, result: Mapping[str, object]
) -> None:
    record = decode_record({"taskId": "t1", "state": "success", "creditsConsumed": 5, **result})
    assert record.has_result
    async with durable_store.opened() as journal:
        await created(journal)
        await journal.mark_settled("i1", record)
    async with durable_store.opened() as journal:
        found = await journal.find_by_ref("r1")
        assert found is not None
        assert (found.state, found.credits, found.read_end()) == (IntentState.SUCCEEDED, 5.0, record)


@pytest.mark.parametrize("value", [nested(100_000), {1, 2}], ids=["nested", "no JSON"])
async def test_an_end_that_cannot_be_noted_is_one_that_was_not_seen(durable: Any, value: object) -> None:
    record = decode_record({"taskId": "t1", "state": "success", "more": value, **text_result("a")})
    await created(durable)
    with pytest.raises(JournalError, match="cannot be noted as JSON"):
        await durable.mark_settled("i1", record)
    assert [intent.task_id for intent in await durable.list_unsettled()] == ["t1"]


UNREADABLE = {
    "empty": "''",
    "cut off": """'{"taskId": "t1", "state": "succ'""",
    "no object": "'[1]'",
    "null": "'null'",
    "without a state": """'{"taskId": "t1"}'""",
    "not terminal": """'{"taskId": "t1", "state": "generating"}'""",
    "a success without a result": """'{"taskId": "t1", "state": "success"}'""",
    "nested too deeply": "'" + "[" * 100_000 + "'",
    "an integer too long": """'{"state": "success", "n": """ + "9" * 10_000 + "}'",
    "no UTF-8": "CAST(X'7BFF7D' AS TEXT)",
    "no UTF-8 in a text": """CAST(X'7B2261223A22FF227D' AS TEXT)""",
}
"""As SQL; what is no UTF-8 PostgreSQL does not take."""


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
async def test_an_end_that_cannot_be_read_can_be_noted_again(durable_store: Store, text: str) -> None:
    if text.startswith("CAST") and not durable_store.holds_any_bytes:
        return
    record = decode_record({"taskId": "t1", "state": "success", "creditsConsumed": 5, **text_result("жук")})
    async with durable_store.opened() as journal:
        await created(journal)
        await journal.mark_settled("i1", record)
    await durable_store.change(f"UPDATE intent SET record = {text}")  # noqa: S608
    async with durable_store.opened() as journal:
        found = await journal.find_by_ref("r1")
        assert found is not None
        assert (found.task_id, found.read_end()) == ("t1", None)
        failed = decode_record({"taskId": "t1", "state": "fail"})
        with durable_store.another_end():  # a task does not end twice in two ways
            await journal.mark_settled("i1", failed)
        await journal.mark_settled("i1", decode_record({**record.raw, "creditsConsumed": None}))
        (found,) = await journal.list_intents()
        assert found.credits == 5.0
        assert (end := found.read_end()) is not None
        assert end.result_object == {"text": "жук"}
        with durable_store.another_end():
            await journal.mark_settled("i1", record)
        assert (await journal.list_intents())[0].read_end() == end


@pytest.mark.parametrize("text", ["''", "'{'", "CAST(X'7BFF7D' AS TEXT)"])
async def test_an_end_that_cannot_be_read_is_polled_for(
    durable_store: Store, text: str, sandbox: Sandbox, open_session: OpenSession
) -> None:
    if text.startswith("CAST") and not durable_store.holds_any_bytes:
        return
    kie = await open_session(journal=durable_store.make())
    handle = await kie.create("sandbox/echo", {"prompt": "жук"}, ref="a")
    sandbox.finish(handle.task_id)
    urls = (await handle).urls
    await kie.aclose()
    await durable_store.change(f"UPDATE intent SET record = {text}")  # noqa: S608
    for has_to_poll in (True, False):
        before = sandbox.counts["query"]
        kie = await open_session(journal=durable_store.make())
        again = await kie.create("sandbox/echo", {"prompt": "жук"}, ref="a")
        assert (await again).urls == urls
        assert again.state is TaskState.SUCCESS
        assert (sandbox.counts["query"] > before) is has_to_poll
        await kie.aclose()
    assert sandbox.counts["create.bodies"] == 1


async def test_durations_are_read_however_large(durable_store: Store) -> None:
    learned = {"модель": {"bins": [0.1] * 300_000}, "b": {"seen": 1}}
    async with durable_store.opened() as journal:
        await journal.save_durations(learned)
    await durable_store.change("INSERT INTO learned VALUES ('odd', '{'), ('list', '[]')")
    async with durable_store.opened() as journal:
        assert await journal.load_durations() == learned


# --- what is read ----------------------------------------------------------------------------------


async def test_what_was_spent_is_found_in_the_next_run(durable_store: Store) -> None:
    async with durable_store.opened() as journal:
        for number, (model, price) in enumerate([("m", 4.0), ("m", 9.0), ("n", None), ("m", 0.0)]):
            await journal.mark_sending(intent(number, model=model))
            await journal.mark_created(f"i{number}", f"t{number}")
            await journal.mark_settled(f"i{number}", attrs.evolve(DONE, task_id=f"t{number}", credits=price))
        await created(journal, "runs")
        for name, state in [("refused", IntentState.REJECTED), ("unknown", IntentState.UNKNOWN)]:
            await journal.mark_sending(intent(name))
            await journal.mark_ended(f"i{name}", state, code=422)
        await journal.mark_sending(intent("back"))
        await journal.mark_unsent("iback")
    async with durable_store.opened() as journal:
        assert attrs.astuple(await journal.load_totals()) == (6, 4, 13.0)
        prices = await journal.load_prices()
        assert {model: taken.credits for model, taken in prices.items()} == {"m": 9.0}


async def test_ends_are_read_in_their_order(durable: Any) -> None:
    await asyncio.gather(*(created(durable, number) for number in range(110)))
    order = [*range(50, 110), *range(50)]
    for number in order:
        record = attrs.evolve(DONE, task_id=f"t{number}")
        await durable.mark_settled(f"i{number}", record)
        await asyncio.sleep(0.002)  # those of one millisecond come in the order they were planned
    ends = [found async for found in durable.iterate_settled()]
    assert [found.intent_id for found in ends] == [f"i{number}" for number in order]
    middle = ends[70].terminal_ms
    assert [found.intent_id async for found in durable.iterate_settled(since_ms=middle)] == [
        found.intent_id for found in ends if found.terminal_ms >= middle
    ]
    by_ref = [found.ref async for found in durable.iterate_settled(ref_prefix="r10")]
    assert sorted(by_ref) == ["r10", *(f"r10{digit}" for digit in range(10))]
    assert [found.ref async for found in durable.iterate_settled(ref_prefix="%")] == []
    assert [found.intent_id for found in await durable.list_last_results(2)] == [
        found.intent_id for found in (await durable.list_intents())[-2:]
    ]


async def test_every_intent_is_read_in_the_order_it_was_planned(durable: Any) -> None:
    for number in range(7):
        await durable.mark_sending(intent(number))
    for chunk in (1, 3, 7, 100):
        found = [each.intent_id async for each in durable.iterate_intents(chunk=chunk)]
        assert found == [f"i{number}" for number in range(7)]


async def test_an_intent_is_found_by_each_of_its_names(durable: Any) -> None:
    await created(durable)
    by_id, by_task = await durable.find_by_intent("i1"), await durable.find_by_task("t1")
    assert by_id == by_task == await durable.find_by_ref("r1")
    for name in ("i2", "t1", ""):
        assert await durable.find_by_intent(name) is None
    assert await durable.find_by_task("") is None


async def test_claims_are_kept_until_a_task_is_known(durable_store: Store) -> None:
    def claim(task: str, source: ClaimSource) -> Claim:
        return Claim(intent_id="i1", task_id=task, source=source)

    async with durable_store.opened() as journal:
        await journal.mark_sending(intent())
        await journal.mark_ended("i1", IntentState.UNKNOWN)
        for task, source in [
            ("t9", ClaimSource.UNSIGNED),
            ("t1", ClaimSource.UNSIGNED),
            ("t1", ClaimSource.SIGNED),
            ("t1", ClaimSource.UNSIGNED),
            ("t2", ClaimSource.ANSWER),
        ]:
            await journal.save_claim(claim(task, source))
            await asyncio.sleep(0.002)
        await journal.drop_claim("i1", "t9")
        await journal.drop_claim("i1", "t9")
    async with durable_store.opened() as journal:
        assert await journal.list_claims() == [
            claim("t1", ClaimSource.SIGNED),
            claim("t2", ClaimSource.ANSWER),
        ]
        await journal.mark_created("i1", "t1", adopted_by="callback")
        assert await journal.list_claims() == []
        await journal.save_claim(claim("t2", ClaimSource.SIGNED))
        assert await journal.list_claims() == []


# --- small notes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("note", [{"url": "https://e.org/жук"}, [1, 2.5], "text", 7, True, "\ud83d"])
async def test_what_was_remembered_is_recalled(journal: Journal, note: object) -> None:
    await journal.remember("a", "former", for_s=HOUR_S)
    await journal.remember("a", note, for_s=HOUR_S)
    assert await journal.recall("a") == note
    assert await journal.recall("b") is None


async def test_a_note_is_recalled_after_a_restart(durable_store: Store) -> None:
    async with durable_store.opened() as journal:
        await journal.remember("a", {"n": 1}, for_s=HOUR_S)
    async with durable_store.opened() as journal:
        assert await journal.recall("a") == {"n": 1}


async def test_a_note_is_forgotten_when_its_time_is_over(journal: Journal) -> None:
    await journal.remember("a", 1, for_s=0.01)
    await journal.remember("b", 1, for_s=0)
    await journal.remember("c", 1, for_s=float("inf"))
    await asyncio.sleep(0.02)
    assert [await journal.recall(key) for key in "abc"] == [None, None, 1]


async def test_what_has_no_json_form_is_logged_and_not_kept(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "kie_async"):
        await journal.remember("a", {1, 2}, for_s=HOUR_S)
    assert await journal.recall("a") is None
    assert "the note 'a' could not be read or kept" in caplog.text


async def test_a_journal_that_cannot_be_used_remembers_nothing_and_raises_nothing(
    durable_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async with durable_store.opened() as journal:
        await journal.remember("a", 1, for_s=HOUR_S)
    with caplog.at_level(logging.WARNING, "kie_async"):
        await journal.remember("a", 2, for_s=HOUR_S)
        assert await journal.recall("a") is None
    assert caplog.text.count("is closed") == 2


async def test_a_note_that_fails_takes_nothing_else_with_it(durable: Any) -> None:
    bad = durable.remember("half a pair \ud83d", 1, for_s=HOUR_S)
    await asyncio.gather(bad, created(durable))
    assert await states(durable) == {"i1": "CREATED"}


async def test_a_note_that_cannot_be_read_is_none(durable_store: Store) -> None:
    async with durable_store.opened() as journal:
        for key in ("a", "b"):
            await journal.remember(key, {}, for_s=HOUR_S)
    await durable_store.change("UPDATE note SET note = CASE key WHEN 'a' THEN '' ELSE '{' END")
    async with durable_store.opened() as journal:
        assert [await journal.recall(key) for key in ("a", "b")] == [None, None]


# --- what is not in it -----------------------------------------------------------------------------


@pytest.mark.parametrize("keeps", [False, True])
async def test_requests_are_kept_only_on_demand_and_secrets_never(
    durable_store: Store,
    sandbox: Sandbox,
    served: ServedReceiver,
    receiver: CallbackReceiver,
    keeps: bool,
    open_session: OpenSession,
) -> None:
    journal = durable_store.make(keep_bodies=keeps)
    kie = await open_session(journal=journal, callback_url=served.url, receiver=receiver)
    request = TaskRequest(model="sandbox/echo", input={"prompt": "my private words"}, ref="a")
    ended, begun = await kie.create(request), await kie.create("sandbox/echo", {"prompt": "my private words"})
    sandbox.finish(ended.task_id)
    await ended
    intents = {intent.intent_id for intent in await journal.list_intents()}
    written = await durable_store.content()
    await kie.aclose()
    written += await durable_store.content()
    secret = derive_callback_secret("sandbox-key")
    for key in ("sandbox-key", HMAC_KEY, *(callback_mac(intent_id, secret=secret) for intent_id in intents)):
        assert key.encode() not in written
    assert (b"my private words" in written) is keeps
    assert ended.task_id.encode() in written
    assert begun.task_id.encode() in written


# --- the rules -------------------------------------------------------------------------------------


class Gates:
    """Goes before a journal's class: some of its notes wait at a gate, or fail."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gates: dict[str, asyncio.Event] = {}
        self.reached: list[str] = []
        self.broken: set[str] = set()

    async def _pass(self, name: str) -> None:
        self.reached.append(name)
        if name in self.broken:
            raise JournalError("made up")
        if name in self.gates:
            await self.gates[name].wait()

    async def mark_sending(self, *args: Any) -> None:
        await self._pass("sending")
        await super().mark_sending(*args)  # type: ignore[misc]

    async def mark_created(self, *args: Any, **options: Any) -> None:
        await super().mark_created(*args, **options)  # type: ignore[misc]
        await self._pass("created")

    async def mark_settled(self, *args: Any) -> None:
        await super().mark_settled(*args)  # type: ignore[misc]
        await self._pass("settled")


@pytest.fixture
def gated(durable_store: Store) -> Any:
    """Return a journal that waits where it is told to."""
    return durable_store.make(type("Gated", (Gates, durable_store.cls), {}))


async def test_r1_sending_is_committed_before_the_first_byte(
    durable_store: Store, gated: Any, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=gated)
    gate = gated.gates["sending"] = asyncio.Event()
    sandbox.faults.create_answer_gate = asyncio.Event()
    creating = asyncio.create_task(kie.create(ECHO))
    await eventually(lambda: gated.reached)
    await asyncio.sleep(0.05)
    assert not sandbox.counts["create"]
    gate.set()
    await eventually(lambda: sandbox.counts["create.bodies"])
    facts = await durable_store.committed()
    sandbox.faults.create_answer_gate.set()
    await creating
    assert [state for _, _, state in facts.values()] == [IntentState.UNKNOWN]


async def test_r2_an_id_is_committed_before_create_returns(
    durable_store: Store, gated: Any, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=gated)
    gate = gated.gates["created"] = asyncio.Event()
    creating = asyncio.create_task(kie.create(ECHO))
    await eventually(lambda: "created" in gated.reached)
    facts = await durable_store.committed()
    assert not creating.done()
    gate.set()
    handle = await creating
    assert [task_id for _, task_id, _ in facts.values()] == [handle.task_id]


async def test_r3_an_end_is_committed_before_the_handle_tells_it(
    durable_store: Store, gated: Any, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session(journal=gated)
    gate = gated.gates["settled"] = asyncio.Event()
    handle = await kie.create(ECHO)
    sandbox.finish(handle.task_id)
    await eventually(lambda: "settled" in gated.reached)
    facts = await durable_store.committed()
    assert not handle.is_done
    gate.set()
    await handle
    assert [state for _, _, state in facts.values()] == [IntentState.SUCCEEDED]


async def test_r4_what_could_not_be_committed_is_not_sent(gated: Any, open_session: OpenSession) -> None:
    arrived = bytearray()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        gated.broken = {"sending"}
        kie = await open_session(journal=gated, base_url=url)
        with pytest.raises(JournalError, match="made up"):
            await kie.create(ECHO)
        await asyncio.sleep(0.05)
    assert arrived == b""
    assert not await states(gated)
