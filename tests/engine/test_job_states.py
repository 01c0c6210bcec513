"""One word for how a job stands: for every error it can end with, and every state of the journal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from support.tables import together

from kie_async import JobState
from kie_async.engine.job_states import state_after
from kie_async.errors import (
    AuthenticationError,
    BatchStopped,
    BudgetExceeded,
    CreateOutcomeUnknown,
    CreatesHalted,
    DownloadFailed,
    InsufficientCredits,
    JournalError,
    KieError,
    Maintenance,
    QuotaExceeded,
    RateLimited,
    RefConflict,
    RequestRejected,
    ResultExpired,
    ResultUnreadable,
    ServerError,
    SessionMisuse,
    TaskAbandoned,
    TaskDetached,
    TaskFailed,
    TaskNotNoted,
    TaskTimedOut,
    TransportError,
    UploadRefused,
)
from kie_async.journal.intents import Intent, IntentState

NOW = datetime.now(UTC)
NOTHING, TASK, RESULT = (
    {"has_task": False, "has_result": False},
    {"has_task": True, "has_result": False},
    {"has_task": True, "has_result": True},
)


@together(
    ("error", "has", "word"),
    [
        (None, RESULT, "done"),
        (DownloadFailed("x"), RESULT, "done, not saved"),
        (ResultExpired("x"), RESULT, "done, not saved"),
        (TaskFailed("t"), TASK, "failed"),
        (ResultUnreadable("t"), TASK, "failed"),
        (TaskTimedOut("t"), TASK, "running"),
        (TaskDetached("t"), TASK, "running"),
        (TaskAbandoned("t"), TASK, "running"),
        (AuthenticationError(401, "no"), TASK, "running"),
        (RequestRejected(422, "the service knows no task t"), TASK, "running"),
        (TaskTimedOut("", None, "i"), NOTHING, "perhaps paid"),
        (CreateOutcomeUnknown("i", "lost", NOW), NOTHING, "perhaps paid"),
        (TaskNotNoted("t", "the disk is full"), NOTHING, "perhaps paid"),
        (RequestRejected(422, "no"), NOTHING, "refused"),
        (ServerError(500, "no"), NOTHING, "refused"),
        (RefConflict("r"), NOTHING, "refused"),
        (UploadRefused("no"), NOTHING, "refused"),
        (AuthenticationError(401, "no"), NOTHING, "not sent"),
        (InsufficientCredits(402, "no"), NOTHING, "not sent"),
        (QuotaExceeded(433, "no"), NOTHING, "not sent"),
        (RateLimited(429, "no"), NOTHING, "not sent"),
        (Maintenance(455, "no"), NOTHING, "not sent"),
        (TransportError("no"), NOTHING, "not sent"),
        (BatchStopped("no"), NOTHING, "not sent"),
        (BudgetExceeded(1, 1, 1), NOTHING, "not sent"),
        (CreatesHalted(3, NOW), NOTHING, "not sent"),
        (SessionMisuse("closed"), NOTHING, "not sent"),
        (JournalError("full"), NOTHING, "not sent"),
    ],
)
def test_an_outcome_has_one_word(error: KieError | None, has: dict[str, Any], word: str) -> None:
    assert state_after(error, **has) == word


@pytest.mark.parametrize("state", IntentState)
def test_every_state_of_the_journal_has_one_word(state: IntentState) -> None:
    assert Intent(intent_id="i", model="m", state=state).job_state in set(JobState)
