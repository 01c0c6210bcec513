"""Clocks that were set between runs: no age is negative, no time blocks open, no create ages too fast."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import OpenSession
from support.journals import intent, opened, raw

from kie_async import SqliteJournal, TaskRequest
from kie_async.journal.intents import IntentState

DAY_MS = 86_400_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.parametrize(
    ("age_ms", "is_expected"),
    [
        (0, True),
        (13 * DAY_MS, True),
        (15 * DAY_MS, False),
        (-DAY_MS, True),  # the clock was set back since
        (-30 * 365 * DAY_MS, True),
        ("0", True),  # no time at all
        ("-1", True),
        (str(-(2**63)), True),
        (str(2**63 - 1), True),
    ],
)
@pytest.mark.parametrize("state", [IntentState.REJECTED, IntentState.UNKNOWN])
async def test_what_may_be_a_task_is_expected_for_as_long(
    tmp_path: Path, state: IntentState, age_ms: int | str, is_expected: bool
) -> None:
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await journal.mark_sending(intent())
        await journal.mark_ended("i1", state, reason="words", code=500)
    with raw(path) as db:
        noted = int(age_ms) if isinstance(age_ms, str) else now_ms() - age_ms
        db.execute("UPDATE intent SET planned_ms = ?", (noted,))
    journal = SqliteJournal(path)
    left = await journal.open()
    assert bool(left) is (is_expected or state is IntentState.UNKNOWN)
    for found in await journal.list_intents():
        assert 0 <= found.planned_ms <= now_ms()
    await journal.aclose()


@pytest.mark.parametrize("noted", [2**63 - 1, -(2**63), 10**15, -1, 253_402_300_800_000])
async def test_no_time_blocks_open(tmp_path: Path, noted: int, open_session: OpenSession) -> None:
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await journal.mark_sending(intent(ref="a"))
    with raw(path) as db:
        db.execute("UPDATE intent SET planned_ms = ?", (noted,))
    kie = await open_session(journal=path)
    (handle,) = await kie.resume()
    assert handle.task_id == ""
    request = TaskRequest(model="sandbox/echo", input={}, ref="b")
    assert (await kie.create(request)).task_id
    await kie.aclose()
    with raw(path) as db:
        ((time_ms,),) = db.execute("SELECT planned_ms FROM intent WHERE ref = 'b'")
    assert abs(time_ms - now_ms()) < 60_000


@pytest.mark.parametrize("ahead_ms", [3_600_000, 400 * DAY_MS])
async def test_noted_times_do_not_go_back_with_the_clock(tmp_path: Path, ahead_ms: int) -> None:
    """A run whose clock is a year behind must not make its creates look a year old to the next."""
    path = tmp_path / "run.db"
    async with opened(path) as journal:
        await journal.mark_sending(intent(1))
    ahead = now_ms() + ahead_ms
    with raw(path) as db:
        db.execute("UPDATE intent SET planned_ms = ?", (ahead,))
    async with opened(path) as journal:
        for number in (2, 3):
            await journal.mark_sending(intent(number))
    with raw(path) as db:
        noted = [time_ms for (time_ms,) in db.execute("SELECT planned_ms FROM intent ORDER BY seq")]
    assert noted == sorted(noted)
    assert noted[0] == ahead
