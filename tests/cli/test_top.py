"""``kie-async top``: how a batch stands, read from its journal while another has it open."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.journals import intent

from kie_async import SqliteJournal, TaskRecord, cli
from kie_async.cli.journal_place import JournalPlace
from kie_async.cli.top import CannotRunNow, Overview, read_overview, show_live
from kie_async.journal.intents import IntentState
from kie_async.wire.records import decode_record

NOW_S = 2_000_000_000.0


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    """Return the journal of a batch that is under way; it stays open."""
    journal = SqliteJournal(tmp_path / "run.db")
    await journal.open()
    for number in range(20):
        await journal.mark_sending(intent(number))
    for number in range(15):
        await journal.mark_created(f"i{number}", f"task{number}")
    await journal.mark_settled("i0", ended("task0", "success"))
    await journal.mark_settled("i1", ended("task1", "fail", failCode="500", failMsg="too\x1b[2J dark"))
    await journal.mark_ended("i15", IntentState.REJECTED, reason="no such model", code=422)
    await journal.mark_ended("i16", IntentState.UNKNOWN, reason="the answer was lost")
    await journal.mark_ended("i17", IntentState.NOT_CREATED)
    yield journal
    await journal.aclose()


def ended(task_id: str, state: str, **raw: str) -> TaskRecord:
    results = {"resultJson": '{"resultUrls": ["https://x.example/v.mp4"]}', "creditsConsumed": 16}
    return decode_record({"taskId": task_id, "state": state, **(results if state == "success" else raw)})


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert not left.value.code
    return capsys.readouterr().out


async def test_it_counts_every_job_once(journal: SqliteJournal, capsys: pytest.CaptureFixture[str]) -> None:
    assert journal.path
    shown = await asyncio.to_thread(show, capsys, "top", str(journal.path))
    assert shown.splitlines()[:2] == [
        "20 jobs: 1 done; 1 failed; 1 refused; 1 perhaps paid; 13 running; 2 sending; 1 not sent",
        "16 credits (0.08 USD)",
    ]


async def test_it_shows_the_oldest_that_run_and_how_many_more(journal: SqliteJournal) -> None:
    assert journal.path
    lines = list((await read_overview(JournalPlace(str(journal.path)))).lines(NOW_S))
    running = [line.split() for line in lines if line.startswith("running")]
    assert [cells[1] for cells in running[:-1]] == [str(place) for place in range(1, 11)]
    assert running[0][-2:] == ["r2", "task2"]
    assert " ".join(running[-1]) == "running and 3 more, younger"


async def test_it_shows_the_last_failures_and_nothing_that_steers_a_terminal(
    journal: SqliteJournal, capsys: pytest.CaptureFixture[str]
) -> None:
    assert journal.path
    shown = await asyncio.to_thread(show, capsys, "top", str(journal.path), "--once")
    told = [re.sub(r" +\S+ \w+ ago ", "", line) for line in shown.splitlines()[-2:]]
    assert sorted(told) == [r"failed r1  500 too [2J dark", "refused r15  422 no such model"]


@pytest.mark.parametrize(("name", "words"), [("nowhere.db", "there is no journal"), ("text.db", "text.db")])
def test_what_is_no_journal_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    (tmp_path / "text.db").write_text("no journal at all")
    with pytest.raises(SystemExit) as left:
        cli.main(["top", str(tmp_path / name)])
    assert left.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", ["top {} --every 0.2", "journal show {} --watch"])
async def test_on_a_terminal_it_goes_on_until_it_is_interrupted(journal: SqliteJournal, command: str) -> None:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kie_async", *(word.format(journal.path) for word in command.split())),
        stdin=theirs,
        stdout=theirs,
        env=os.environ | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    async with asyncio.timeout(30):
        while b"13 running" not in shown:
            shown += await asyncio.to_thread(os.read, ours, 4096)
        await journal.mark_settled("i2", ended("task2", "success"))
        while b"12 running" not in shown:
            shown += await asyncio.to_thread(os.read, ours, 4096)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    os.close(ours)


async def test_a_database_that_goes_away_is_waited_for_once_it_was_seen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    has_failed = asyncio.Event()

    async def read() -> Overview:
        if has_failed.is_set():
            await asyncio.sleep(60)
        if seen.pop():
            has_failed.set()
            raise CannotRunNow("it cannot be reached")
        return Overview(credits=16.0)

    seen = [True, False]
    showing = asyncio.create_task(show_live(read, 0.0))
    await has_failed.wait()
    await asyncio.sleep(0.1)
    showing.cancel()
    assert await showing == 0
    shown = capsys.readouterr().out.split("\n")
    assert [line.strip() for line in shown][:3] == ["0 jobs", "16 credits (0.08 USD)", "it cannot be reached"]

    seen, has_failed = [True], asyncio.Event()
    with pytest.raises(CannotRunNow):
        await show_live(read, 0.0)
