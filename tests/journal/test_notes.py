"""What was noted of an end can be read in every later run; what cannot be is polled for again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import OpenSession
from support.journals import created, opened, raw

from kie_async import JournalError, Sandbox, TaskState
from kie_async.journal.intents import IntentState
from kie_async.wire.records import decode_record


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
async def test_a_result_is_the_same_in_the_next_run(tmp_path: Path, result: Mapping[str, object]) -> None:
    record = decode_record({"taskId": "t1", "state": "success", "creditsConsumed": 5, **result})
    assert record.has_result
    async with opened(tmp_path / "run.db") as journal:
        await created(journal)
        await journal.mark_settled("i1", record)
    async with opened(tmp_path / "run.db") as journal:
        found = await journal.find_by_ref("r1")
        assert found is not None
        assert (found.state, found.credits, found.read_end()) == (IntentState.SUCCEEDED, 5.0, record)


async def test_a_text_result_takes_the_room_of_its_utf8(tmp_path: Path) -> None:
    record = decode_record({"taskId": "t1", "state": "success", **READABLE["cyrillic, 380 kB"]})
    async with opened(tmp_path / "run.db") as journal:
        await created(journal)
        await journal.mark_settled("i1", record)
    assert (tmp_path / "run.db").stat().st_size < 500_000


@pytest.mark.parametrize("value", [nested(100_000), {1, 2}], ids=["nested", "no JSON"])
async def test_an_end_that_cannot_be_noted_is_one_that_was_not_seen(tmp_path: Path, value: object) -> None:
    record = decode_record({"taskId": "t1", "state": "success", "more": value, **text_result("a")})
    async with opened(tmp_path / "run.db") as journal:
        await created(journal)
        with pytest.raises(JournalError, match="cannot be noted as JSON"):
            await journal.mark_settled("i1", record)
        assert [intent.task_id for intent in await journal.list_unsettled()] == ["t1"]


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


def spoil(path: Path, text: str) -> None:
    with raw(path) as db:
        db.execute(f"UPDATE intent SET record = {text}")  # noqa: S608


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
async def test_an_end_that_cannot_be_read_can_be_noted_again(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.db"
    record = decode_record({"taskId": "t1", "state": "success", "creditsConsumed": 5, **text_result("жук")})
    async with opened(path) as journal:
        await created(journal)
        await journal.mark_settled("i1", record)
    spoil(path, text)
    async with opened(path) as journal:
        found = await journal.find_by_ref("r1")
        assert found is not None
        assert (found.task_id, found.read_end()) == ("t1", None)
        failed = decode_record({"taskId": "t1", "state": "fail"})
        with pytest.raises(JournalError):  # a task does not end twice in two ways
            await journal.mark_settled("i1", failed)
        await journal.mark_settled("i1", decode_record({**record.raw, "creditsConsumed": None}))
        (found,) = await journal.list_intents()
        assert found.credits == 5.0
        assert (end := found.read_end()) is not None
        assert end.result_object == {"text": "жук"}
        with pytest.raises(JournalError):
            await journal.mark_settled("i1", record)


@pytest.mark.parametrize("text", ["''", "'{'", "CAST(X'7BFF7D' AS TEXT)"])
async def test_an_end_that_cannot_be_read_is_polled_for(
    tmp_path: Path, text: str, sandbox: Sandbox, open_session: OpenSession
) -> None:
    path = tmp_path / "run.db"
    kie = await open_session(journal=path)
    handle = await kie.create("sandbox/echo", {"prompt": "жук"}, ref="a")
    sandbox.finish(handle.task_id)
    urls = (await handle).urls
    await kie.aclose()
    spoil(path, text)
    for has_to_poll in (True, False):
        before = sandbox.counts["query"]
        kie = await open_session(journal=path)
        again = await kie.create("sandbox/echo", {"prompt": "жук"}, ref="a")
        assert (await again).urls == urls
        assert again.state is TaskState.SUCCESS
        assert (sandbox.counts["query"] > before) is has_to_poll
        await kie.aclose()
    assert sandbox.counts["create.bodies"] == 1


async def test_durations_are_read_however_large(tmp_path: Path) -> None:
    learned = {"модель": {"bins": [0.1] * 300_000}, "b": {"seen": 1}}
    async with opened(tmp_path / "run.db") as journal:
        await journal.save_durations(learned)
    with raw(tmp_path / "run.db") as db:
        db.execute("INSERT INTO learned VALUES ('odd', '{'), ('list', '[]')")
    async with opened(tmp_path / "run.db") as journal:
        assert await journal.load_durations() == learned
