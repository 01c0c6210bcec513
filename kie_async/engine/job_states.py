"""Says in one word how a job stands that ended with an error."""

from __future__ import annotations

from ..errors import (
    ApiError,
    CreateOutcomeUnknown,
    FileError,
    InvalidRequest,
    KieError,
    ResultUnreadable,
    TaskError,
    TaskFailed,
    TaskNotNoted,
)
from ..models import JobState
from ..wire.codes import is_of_account


def state_after(error: KieError | None, *, has_task: bool, has_result: bool) -> JobState:
    """Return how a job stands after its outcome; *has_task* tells whether it has a task of its own."""
    if error is None:
        return JobState.DONE
    if has_result:
        return JobState.NOT_SAVED
    if isinstance(error, TaskFailed | ResultUnreadable):
        return JobState.FAILED
    if has_task:  # whatever ended the wait for it
        return JobState.RUNNING
    if isinstance(error, CreateOutcomeUnknown | TaskError | TaskNotNoted):
        return JobState.PERHAPS_PAID
    if isinstance(error, ApiError) and is_of_account(error):
        return JobState.NOT_SENT
    return JobState.REFUSED if isinstance(error, ApiError | InvalidRequest | FileError) else JobState.NOT_SENT
