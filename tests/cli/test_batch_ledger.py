"""What the ledger of a batch says of jobs at the end, from its journal, results and what it has seen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.journals import intent

from kie_async import JobState, SqliteJournal
from kie_async.cli.batch_ledger import BatchLedger
from kie_async.cli.jobs_file import Jobs, read_jobs
from kie_async.journal.intents import IntentState
from kie_async.wire.records import decode_record


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    (tmp_path / "jobs.csv").write_text("ref,model\nr0,a/b\nr1,a/b\nr2,a/b\nr3,a/b\n")
    with read_jobs(tmp_path / "jobs.csv", report=print) as jobs:
        yield jobs


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(tmp_path / "run.db")
    await journal.open()
    yield journal
    await journal.aclose()


async def test_what_came_to_the_journal_while_the_session_closed_counts(
    jobs: Jobs, journal: SqliteJournal, tmp_path: Path
) -> None:
    ledger = BatchLedger(jobs, tmp_path / "results.jsonl")
    await ledger.begin(journal, range(4))
    for number in range(3):
        await journal.mark_sending(intent(number))
    for number in range(2):
        await journal.mark_created(f"i{number}", f"t{number}")
        ledger.record_task(f"r{number}", f"t{number}")
    results = '{"resultUrls": ["https://x.example/v.mp4"]}'
    done = {"taskId": "t0", "state": "success", "resultJson": results, "creditsConsumed": 16}
    await journal.mark_settled("i0", decode_record(done))
    failed = {"taskId": "t1", "state": "fail", "failCode": "500", "failMsg": "too dark"}
    await journal.mark_settled("i1", decode_record(failed))
    await journal.mark_ended("i2", IntentState.UNKNOWN, reason="the answer was lost")

    await ledger.catch_up(journal)
    ledger.end()
    sums = ledger.sums(0.0, await journal.load_totals())
    assert sums.states == {"done, not saved": 1, "failed": 1, "perhaps paid": 1, "not sent": 1}
    assert (sums.run_credits, sums.all_credits) == (16, 16)
    assert [(reason.state, reason.text) for reason in sums.reasons[:2]] == [
        (JobState.PERHAPS_PAID, "the answer was lost"),
        (JobState.FAILED, "too dark (500)"),
    ]
