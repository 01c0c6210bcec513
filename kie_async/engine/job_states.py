"""Says in one word how a job stands that ended with an error."""

from __future__ import annotations

from ..errors import (
    ApiError,
    AuthenticationError,
    CreateOutcomeUnknown,
    FileError,
    InsufficientCredits,
    InvalidRequest,
    KieError,
    QuotaExceeded,
    RateLimited,
    ResultUnreadable,
    TaskError,
    TaskFailed,
)
from ..models import JobState

_NOT_OF_THE_JOB = (AuthenticationError, InsufficientCredits, QuotaExceeded, RateLimited)
"""What the service says no to is the account, at this time."""


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
    if isinstance(error, CreateOutcomeUnknown | TaskError):
        return JobState.PERHAPS_PAID
    is_refusal = isinstance(error, ApiError | InvalidRequest | FileError)
    return JobState.REFUSED if is_refusal and not isinstance(error, _NOT_OF_THE_JOB) else JobState.NOT_SENT
