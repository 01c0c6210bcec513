"""What every journal has in common, and what the one in memory forgets."""

from __future__ import annotations

import inspect
import logging

import pytest
from support.journals import DONE, intent

from kie_async import JournalError, SqliteJournal
from kie_async.journal.base import Journal
from kie_async.journal.intents import IntentState
from kie_async.journal.memory import MemoryJournal
from kie_async.journal.notes import log_failed_note


def test_the_two_journals_share_a_contract_and_nothing_else() -> None:
    assert inspect.isabstract(Journal)
    assert SqliteJournal.__bases__ == MemoryJournal.__bases__ == (Journal,)
    assert (MemoryJournal.is_durable, SqliteJournal.is_durable) == (False, True)


@pytest.mark.parametrize("name", [name for name in vars(Journal) if not name.startswith("_")])
def test_what_a_journal_does_is_documented(name: str) -> None:
    assert name == "is_durable" or inspect.getdoc(getattr(Journal, name))


async def test_the_one_in_memory_forgets_what_has_settled() -> None:
    journal = MemoryJournal()
    assert await journal.open() == []
    await journal.mark_sending(intent(1))
    await journal.mark_created("i1", "t1")
    assert [found.task_id for found in await journal.list_unsettled()] == ["t1"]
    await journal.mark_settled("i1", DONE)
    assert await journal.list_unsettled() == []
    assert await journal.find_by_ref("r1") is None
    await journal.mark_sending(intent(2))
    await journal.mark_ended("i2", IntentState.UNKNOWN)
    found = await journal.find_by_ref("r2")
    assert found is not None
    assert found.read_end() is None
    await journal.aclose()


async def test_the_one_in_memory_knows_what_a_task_costs_until_it_has_settled() -> None:
    journal = MemoryJournal()
    await journal.mark_sending(intent(1, audio_s=2.0, expected_credits=6.0))
    await journal.mark_created("i1", "t1")
    await journal.mark_held("i1", 16.0)
    assert [(i.audio_s, i.expected_credits, i.held_credits) for i in await journal.list_unsettled()] == [
        (2.0, 6.0, 16.0)
    ]


def test_a_note_that_failed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "kie_async"), log_failed_note("the end of a create"):
        raise JournalError("disk full")
    assert "the end of a create could not be noted" in caplog.text
    with pytest.raises(ValueError, match="other"), log_failed_note("that"):
        raise ValueError("other")
