"""Every error has one base, its fields, a sentence a reader can act on, and survives a pickle."""

from __future__ import annotations

import inspect
import pickle
import re
from datetime import UTC, datetime
from typing import Any

from support.tables import together

from kie_async import errors
from kie_async.errors import (
    ApiError,
    AuthenticationError,
    BatchStopped,
    BudgetExceeded,
    CallbackRejected,
    CreateOutcomeUnknown,
    CreatesHalted,
    InsufficientCredits,
    InvalidRequest,
    KieError,
    Maintenance,
    NotFound,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    RefConflict,
    RequestRejected,
    ResultUnreadable,
    ServerError,
    SessionMisuse,
    TaskAbandoned,
    TaskDetached,
    TaskError,
    TaskFailed,
    TaskNotNoted,
    TaskTimedOut,
    UploadRefused,
    Withdrawn,
)
from kie_async.models import TaskRecord, TaskState

SINCE = datetime(2026, 1, 2, tzinfo=UTC)
FAILED = TaskRecord(task_id="t1", state=TaskState.FAIL, fail_code="500", fail_message="Internal Error")

WITH_FIELDS: tuple[tuple[KieError, dict[str, object]], ...] = (
    (RefConflict("row-7"), {"ref": "row-7", "changed": ()}),
    (RefConflict("row-7", ("prompt",)), {"ref": "row-7", "changed": ("prompt",)}),
    (BatchStopped("no credits"), {"reason": "no credits", "budget": None, "until": None}),
    (QueueFull(500), {"max_queued": 500}),
    (Withdrawn("order-7"), {"ref": "order-7"}),
    (BudgetExceeded(500.0, 460.0, 40.0), {"budget": 500.0, "spent": 460.0, "held": 40.0, "unit": "credits"}),
    (TaskNotNoted("t1", "disk full"), {"task_id": "t1", "reason": "disk full"}),
    (CreatesHalted(3, SINCE), {"unknown_in_a_row": 3, "until": SINCE}),
    (ApiError(418, "teapot", 418), {"code": 418, "message": "teapot", "http_status": 418}),
    (AuthenticationError(401, "no"), {"code": 401, "message": "no", "http_status": 200}),
    (InsufficientCredits(402, "no"), {"code": 402}),
    (QuotaExceeded(433, "cap"), {"code": 433}),
    (RequestRejected(422, "bad"), {"code": 422}),
    (NotFound(404, "none"), {"code": 404}),
    (RateLimited(429, "slow", 429, 3.5), {"code": 429, "http_status": 429, "retry_after_s": 3.5}),
    (Maintenance(455, "later", 200, None), {"code": 455, "retry_after_s": None}),
    (ServerError(500, "oops"), {"code": 500}),
    (UploadRefused("code 455: later", True), {"reason": "code 455: later", "may_pass": True}),
    (
        CreateOutcomeUnknown("i1", "timed out", SINCE, "row-7"),
        {"intent_id": "i1", "reason": "timed out", "since": SINCE, "ref": "row-7", "handle": None},
    ),
    (
        CreateOutcomeUnknown("i1", "code 500", SINCE, None, "t1"),
        {"intent_id": "i1", "reason": "code 500", "since": SINCE, "ref": None, "candidate_task_id": "t1"},
    ),
    (TaskError("t1"), {"task_id": "t1", "record": None}),
    (TaskFailed("t1", FAILED), {"task_id": "t1", "record": FAILED}),
    (TaskTimedOut("t1", FAILED), {"task_id": "t1", "record": FAILED}),
    (TaskAbandoned("t1"), {"task_id": "t1", "record": None}),
    (TaskDetached("t1"), {"task_id": "t1", "record": None}),
    (ResultUnreadable("t1", FAILED), {"task_id": "t1", "record": FAILED}),
    (CallbackRejected("stale timestamp"), {"reason": "stale timestamp", "status": 401}),
)


def classes() -> list[type[Any]]:
    """Return every exception class that the module defines."""
    found = (value for _, value in inspect.getmembers(errors, inspect.isclass))
    return [kind for kind in found if kind.__module__ == errors.__name__]


def has_fields(kind: type[Any]) -> bool:
    return kind.__init__ not in (Exception.__init__, ValueError.__init__, RuntimeError.__init__)


OF_WORDS = [(kind("it went wrong"), {}) for kind in classes() if not has_fields(kind)]
EXAMPLES = [*WITH_FIELDS, *OF_WORDS]


def name_of(value: object) -> str:
    return type(value).__name__ if isinstance(value, KieError) else ""


def drawn_tree() -> dict[str, str]:
    """Return each class of the module's drawing with the class it hangs under."""
    parents: dict[str, str] = {}
    stack = ["KieError"]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([│ ]*)[├└]── ((?:[A-Z]\w+(?:, )?)+)", line)
        if found:
            depth = len(found[1]) // 4 + 1
            names = found[2].rstrip(", ").split(", ")
            del stack[depth:]
            parents |= dict.fromkeys(names, stack[-1])
            stack.append(names[0])
    return parents


def test_every_class_with_fields_has_an_example_here() -> None:
    assert {type(error) for error, _ in WITH_FIELDS} == {kind for kind in classes() if has_fields(kind)}


@together("kind", classes())
def test_every_class_is_a_kie_error(kind: type[Any]) -> None:
    assert issubclass(kind, KieError)


@together("kind", classes())
def test_every_class_says_what_it_means(kind: type[Any]) -> None:
    assert inspect.getdoc(kind)


def test_the_drawing_names_every_class() -> None:
    assert {"KieError", *drawn_tree()} == {kind.__name__ for kind in classes()}


@together(("name", "parent"), sorted(drawn_tree().items()))
def test_the_drawing_tells_the_truth(name: str, parent: str) -> None:
    assert issubclass(getattr(errors, name), getattr(errors, parent))


@together(("error", "fields"), EXAMPLES)
def test_an_error_carries_its_fields(error: KieError, fields: dict[str, object]) -> None:
    assert {name: getattr(error, name) for name in fields} == fields


@together(("error", "fields"), EXAMPLES)
def test_an_error_survives_a_pickle(error: KieError, fields: dict[str, object]) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert str(copy) == str(error)
    assert {name: getattr(copy, name) for name in fields} == fields


@together(("error", "fields"), EXAMPLES)
def test_an_error_reads_as_one_line_of_words(error: KieError, fields: dict[str, object]) -> None:
    assert re.fullmatch(r"[^\n<>]{4,}", str(error))


@together(
    ("error", "standard"),
    [
        (InvalidRequest("x"), ValueError),
        (RefConflict("x"), ValueError),
        (SessionMisuse("x"), RuntimeError),
        (TaskTimedOut("t1"), TimeoutError),
    ],
)
def test_an_error_is_also_the_one_python_has_for_it(error: KieError, standard: type[Exception]) -> None:
    assert isinstance(error, standard)


def test_an_api_error_shows_its_code_and_the_words_of_the_service() -> None:
    assert str(ApiError(422, "recordInfo is null")) == "code 422: recordInfo is null"


def test_an_api_error_shows_an_http_status_only_when_it_is_not_200() -> None:
    assert str(ApiError(502, "", 502)) == "code 502 (HTTP 502): no message"


def test_a_failed_task_shows_the_reason_and_the_code() -> None:
    assert str(TaskFailed("t1", FAILED)) == "task t1 failed: Internal Error (500)"


def test_a_failed_task_without_a_record_says_so() -> None:
    assert str(TaskFailed("t1")) == "task t1 failed: no reason given"


@together("kind", [TaskTimedOut, TaskAbandoned, TaskDetached])
def test_an_error_of_a_task_that_goes_on_says_that_it_is_billed(kind: type[TaskError]) -> None:
    assert "it goes on" in str(kind("t1"))
    assert "billed" in str(kind("t1"))


def test_an_unknown_create_says_that_money_may_be_gone_and_what_will_not_happen() -> None:
    words = str(CreateOutcomeUnknown("i1", "timed out", SINCE))
    for said in ("timed out", "may be running and paid for", "will not be sent again", "i1"):
        assert said in words


def test_an_unknown_create_names_the_task_that_its_answer_named() -> None:
    assert "the answer named task t1" in str(CreateOutcomeUnknown("i1", "code 500", SINCE, None, "t1"))
    assert "named" not in str(CreateOutcomeUnknown("i1", "code 500", SINCE))


def test_the_handle_of_an_unknown_create_stays_behind_when_it_is_pickled() -> None:
    error = CreateOutcomeUnknown("i1", "timed out", SINCE)
    error.handle = lambda: None  # type: ignore[assignment]  # something no pickle takes
    assert pickle.loads(pickle.dumps(error)).handle is None  # noqa: S301
