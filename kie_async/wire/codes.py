"""Says what the service's codes mean: which error, which task failure, which verdict on a create. Pure.

Sources: https://docs.kie.ai/market/common/get-task-detail and https://docs.kie.ai/common-api
"""

from __future__ import annotations

import re
from enum import Enum

from ..errors import (
    UNKNOWN_TASK,
    ApiError,
    AuthenticationError,
    InsufficientCredits,
    KieError,
    Maintenance,
    NotFound,
    QuotaExceeded,
    RateLimited,
    RequestRejected,
    ServerError,
)

_ERRORS: dict[int, type[ApiError]] = {
    400: RequestRejected,
    401: AuthenticationError,
    402: InsufficientCredits,
    403: AuthenticationError,
    404: NotFound,
    408: ServerError,
    422: RequestRejected,
    429: RateLimited,
    430: RateLimited,
    433: QuotaExceeded,
    455: Maintenance,
    505: RequestRejected,
}

TASK_FAILURE_CODES = frozenset({501, 531})
"""Envelope codes by which recordInfo says that the task has failed."""

_NO_RESULT_YET_CODE = 408

_TASK_CODES = frozenset({400, 404, 422})

_OF_THE_CALL = re.compile(
    r"\b(route|path|endpoint|api|resource|page|url|handler|account|application|gateway|upstream|host|server"
    r"|no message available)\b",
    re.IGNORECASE,
)

_UNKNOWN_RECORD = re.compile(r"\b(null|not? exists?|doesn'?t exist|not found|no such)\b", re.IGNORECASE)

_OF_A_PAGE = frozenset({401, 402, 403, 404})
"""As the status of a page these say nothing of key, credits or model: the service did not see the call."""

_HELD_BACK_STATUSES = {429: (200, 429), 430: (200, 429, 430), 455: range(200, 600)}

_UNCLEAR_CODES = frozenset({408, 409, 425})

_REFUSED_CODES = frozenset({400, 505})

_REFUSED_STATUSES = frozenset({401, 402, 403, 404, 405, 413, 415, 422, 431})


def error_for(
    code: int, message: str, http_status: int = 200, retry_after_s: float | None = None
) -> ApiError:
    """Return the error a code stands for; 500 has two meanings, and its words say which."""
    kind = _ERRORS.get(code) or (ServerError if code >= 500 or code < 100 else RequestRejected)
    if code == 500 and message.strip().lower().startswith("credits insufficient"):
        kind = InsufficientCredits
    if issubclass(kind, RateLimited):
        return kind(code, message, http_status, retry_after_s)
    return kind(code, message, http_status)


def error_for_page(http_status: int, retry_after_s: float | None = None) -> ApiError:
    """Return the error for an HTTP status without an answer of the service: a page of a gateway, mostly."""
    message = "no readable answer"
    if http_status in _OF_A_PAGE:
        return ServerError(http_status, message, http_status)
    return error_for(http_status, message, http_status, retry_after_s)


def is_of_account(error: ApiError) -> bool:
    """Tell whether the service says no to the account at this time, and nothing of what was asked."""
    return isinstance(error, AuthenticationError | InsufficientCredits | QuotaExceeded | RateLimited)


class Subject(Enum):
    """What an answer of recordInfo without a record is about."""

    KEY = "key"
    TASK = "task"
    """The service does not know the task, or will not show it."""
    PROVIDER = "provider"
    """Whoever makes the result has not answered for long: the task may have failed, or may not."""
    CALL = "call"
    """Anything else, which says nothing of the task: it is asked again."""


def subject_of(error: Exception) -> Subject:
    """Say what the error of a query is about; pages, gateways and routes are about the call alone."""
    if isinstance(error, AuthenticationError):
        return Subject.KEY
    if not isinstance(error, ApiError):
        return Subject.CALL
    if error.code == _NO_RESULT_YET_CODE and error.http_status == 200:
        return Subject.PROVIDER
    is_of_task = error.code in _TASK_CODES and not _OF_THE_CALL.search(error.message)
    return Subject.TASK if is_of_task and not isinstance(error, ServerError) else Subject.CALL


def is_invisible(code: int, message: str) -> bool:
    """Tell whether recordInfo says that it does not know the task, or not yet."""
    return code == 404 or (code == 422 and _UNKNOWN_RECORD.search(message) is not None)


def is_unknown_task(error: ApiError) -> bool:
    """Tell whether a query was answered that the service does not know the task, or not yet."""
    return subject_of(error) is Subject.TASK and is_invisible(error.code, error.message)


def name_task(error: KieError, task_id: str) -> KieError:
    """Return the error of a query in words that name the task, where it says that there is none such."""
    if not isinstance(error, ApiError) or not is_unknown_task(error):
        return error
    message = f"{UNKNOWN_TASK} {task_id} ({error.message})"
    return type(error)(error.code, message, error.http_status)


class CreateVerdict(Enum):
    """What one attempt to create proved."""

    CREATED = "created"
    REFUSED = "refused"
    """Not created, says the answer; a callback may still overrule it."""
    HELD_BACK = "held back"
    """Not created, by a limit or maintenance: the same body may be sent again after a pause."""
    NOT_SENT = "not sent"
    """No byte of the body left the process."""
    UNKNOWN = "unknown"
    """Anything else. Never sent again."""


def create_verdict(
    *, sent: bool, http_status: int | None, code: int | None, task_id: str | None
) -> CreateVerdict:
    """Judge one attempt to create by the line it crossed and the answer that came.

    *http_status* is that of an answer really received (None without one: never the status that
    an exception claims), *code* the envelope's, *task_id* a well-formed id found in it.
    """
    if not sent:
        return CreateVerdict.NOT_SENT
    if http_status is None:
        return CreateVerdict.UNKNOWN
    if task_id is not None:  # even beside a no: a task that has an id is not paid for twice
        return CreateVerdict.CREATED if code == 200 and 200 <= http_status < 300 else CreateVerdict.UNKNOWN
    if code is None:
        return _verdict_on_status(http_status)
    if code in _HELD_BACK_STATUSES and http_status in _HELD_BACK_STATUSES[code]:
        return CreateVerdict.HELD_BACK
    if http_status == 200:
        return CreateVerdict.UNKNOWN if 200 <= code < 300 or code in _UNCLEAR_CODES else CreateVerdict.REFUSED
    if code == http_status and code in _REFUSED_CODES:
        return CreateVerdict.REFUSED
    if http_status == 429 and 200 <= code < 300:
        return CreateVerdict.UNKNOWN
    return _verdict_on_status(http_status)


def _verdict_on_status(http_status: int) -> CreateVerdict:
    if http_status == 429:
        return CreateVerdict.HELD_BACK
    if http_status in _REFUSED_STATUSES or 300 <= http_status < 400:
        return CreateVerdict.REFUSED
    return CreateVerdict.UNKNOWN
