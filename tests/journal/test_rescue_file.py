"""Rescued ids: each line stands alone, nothing is lost unread, and nothing in the file blocks open."""

# ruff: noqa: ASYNC240  (files are what this is about)

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.journals import created, intent, opened, states

from kie_async.journal.rescue_file import RescueFile, decode_line, split_lines


def line(intent_id: object = "i1", task_id: object = "t1") -> str:
    return json.dumps({"intent_id": intent_id, "task_id": task_id})


@pytest.mark.parametrize(
    "before",
    ["", "\n", line() + "\n", '{"intent_id": "i0", "ta', "\0\0\0", "x" * 100_000, line(), "ж", '"\\'],
)
def test_an_id_stands_alone_whatever_was_before_it(tmp_path: Path, before: str) -> None:
    file = RescueFile(tmp_path / "r.jsonl")
    file.path.write_text(before)
    for number in (8, 9):
        file.append(f"i{number}", f"t{number}")
    content = file.read()
    assert content is not None
    assert content.startswith(before.encode())
    lines = content.decode().splitlines()
    assert [decode_line(found) for found in lines[-2:]] == [("i8", "t8"), ("i9", "t9")]


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (line(), [("i1", "t1")]),
        (f"\n\n{line()}\r\n  \n", [("i1", "t1")]),
        (line("i0")[:-6] + line(), [None, ("i1", "t1")]),  # a former version wrote on behind a torn line
        ("\0" * 500 + line(), [None, ("i1", "t1")]),
        ("\x0b\x1c\u2028" + line(), [("i1", "t1")]),  # blank, though not to JSON
        (line("i0")[:9] + line("i0")[:20] + line(), [None, ("i1", "t1")]),
        ('{"intent_id": "i1", "ta', [None]),
        (line() + "}", [None]),
        (line("i1", ["t1"]), [None]),
        (line("i1", {"a": "t1"}), [None]),
        (line("i1", 7), [None]),
        (line("i1", None), [None]),
        (line("i1", ""), [None]),
        (line("", "t1"), [None]),
        (line(7, "t1"), [None]),
        ('["intent_id", "task_id"]', [None]),
        ('"intent_id task_id"', [None]),
        ("null", [None]),
        ("9" * 10_000, [None]),
        ("[" * 100_000, [None]),
        ('{"intent_id":' * 50_000, [None]),
    ],
)
def test_lines_are_read_or_set_aside(content: str, ids: list[tuple[str, str] | None]) -> None:
    assert [decode_line(found) for found in split_lines(content.encode())] == ids


UNUSABLE = {
    "nested deeply": "[" * 100_000,
    "objects in objects": '{"intent_id":' * 50_000,
    "another intent's task": line("i2", "t1"),
    "an intent nobody knows": line("i9", "paid"),
    "a task id that is a list": line("i2", ["paid"]),
    "a task id that is a number": line("i2", 7),
    "half a surrogate pair": line("i2", "\ud83d"),
    "no text": b"\xff\xfe\x00\x80".decode("latin-1"),
    "cut off": '{"intent_id": "i2", "task_id": "pai',
}


@pytest.mark.parametrize("text", UNUSABLE.values(), ids=UNUSABLE)
async def test_what_cannot_be_used_blocks_nothing_and_is_named(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await created(journal, 1)
        for number in (2, 3):
            await journal.mark_sending(intent(number))
    content = f"{text}\n{line('i3', 't3')}\n"
    journal.rescue_path.write_text(content, encoding="utf-8", errors="surrogatepass")
    before = journal.rescue_path.read_bytes()
    async with opened(path) as journal:
        assert await states(journal) == {"i1": "CREATED", "i2": "UNKNOWN", "i3": "CREATED"}
    kept = path.with_name("run.db.rescue.unused")
    assert kept.read_bytes() == before
    assert f"1 rescued ids could not be put into the journal; they are in {kept}: " in caplog.text
    assert repr(text[:20])[1:-1] in caplog.text
    assert not journal.rescue_path.exists()


async def test_nothing_that_was_set_aside_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    for number in range(4):
        async with opened(path) as journal:
            pass
        journal.rescue_path.write_text(line("i9", f"paid{number}"))
    async with opened(path):
        pass
    kept = {found.name: found.read_text() for found in tmp_path.glob("*.unused*")}
    assert kept == {
        f"run.db.rescue.unused{suffix}": line("i9", f"paid{number}")
        for number, suffix in enumerate(["", ".2", ".3", ".4"])
    }


async def test_a_file_that_cannot_be_read_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await created(journal)
    journal.rescue_path.mkdir()
    (journal.rescue_path / "inside").write_text("x")
    async with opened(path) as journal:
        assert await states(journal) == {"i1": "CREATED"}
    assert (journal.rescue_path / "inside").exists()
    assert "cannot be read" in caplog.text


def test_what_was_added_since_it_was_read_is_not_deleted(tmp_path: Path) -> None:
    file = RescueFile(tmp_path / "r.jsonl")
    file.append("i1", "t1")
    content = file.read()
    assert content is not None
    file.append("i2", "t2")
    for unused in ([], [line()]):
        file.put_away(content, unused)
        assert '"t2"' in file.path.read_text()
    assert os.listdir(tmp_path) == ["r.jsonl"]
