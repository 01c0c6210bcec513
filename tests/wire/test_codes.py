"""What a code means, and what one attempt to create proved.

The tables are those of the service's pages and of the fault model; "held back" is the only verdict
after which the same body is sent again, so it is granted to nothing else.
"""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from support.tables import together

from kie_async.errors import (
    AnswerUnreadable,
    ApiError,
    AuthenticationError,
    InsufficientCredits,
    Maintenance,
    NotFound,
    QuotaExceeded,
    RateLimited,
    RequestRejected,
    ServerError,
    TransportError,
)
from kie_async.wire.codes import (
    CreateVerdict,
    Subject,
    create_verdict,
    error_for,
    error_for_page,
    is_invisible,
    is_unknown_task,
    subject_of,
)
from kie_async.wire.create_answers import decode_create
from kie_async.wire.envelope import WireResponse

CREATED, REFUSED, HELD_BACK = CreateVerdict.CREATED, CreateVerdict.REFUSED, CreateVerdict.HELD_BACK
NOT_SENT, UNKNOWN = CreateVerdict.NOT_SENT, CreateVerdict.UNKNOWN
ID = "e989621f54392584b05867f87b160672"
HTML = b"<html><head><title>502 Bad Gateway</title></head></html>"


def body(code: object, data: object = None, msg: str = "words") -> bytes:
    return json.dumps({"code": code, "msg": msg, "data": data}).encode()


# --- the table of answers to a create ------------------------------------------------------------

ANSWERS: list[tuple[int, bytes, CreateVerdict, type[ApiError] | None]] = [
    # HTTP 200, code 200, a usable id
    (200, body(200, {"taskId": ID}), CREATED, None),
    (200, body(200, {"taskId": ID, "recordId": ID}), CREATED, None),
    (200, body(200, {"taskId": "task_kling_1765185996677"}), CREATED, None),
    (200, body(200, {"taskId": "x" * 128}), CREATED, None),
    # HTTP 200, code 200, no usable id
    (200, body(200), UNKNOWN, None),
    (200, b'{"code":200,"msg":"success"}', UNKNOWN, None),
    (200, body(200, {}), UNKNOWN, None),
    (200, body(200, []), UNKNOWN, None),
    (200, body(200, {"taskId": ""}), UNKNOWN, None),
    (200, body(200, {"taskId": None}), UNKNOWN, None),
    (200, body(200, {"taskId": 17}), UNKNOWN, None),
    (200, body(200, {"taskId": [ID]}), UNKNOWN, None),
    (200, body(200, {"taskId": "a.b"}), UNKNOWN, None),
    (200, body(200, {"taskId": "../../x?y"}), UNKNOWN, None),
    (200, body(200, {"taskId": "x" * 129}), UNKNOWN, None),
    (200, body(200, {"recordId": ID}), UNKNOWN, None),
    # HTTP 200 with a code that says no
    (200, body(400), REFUSED, RequestRejected),
    (200, body(401), REFUSED, AuthenticationError),
    (200, body(402), REFUSED, InsufficientCredits),
    (200, body(403), REFUSED, AuthenticationError),
    (200, body(404), REFUSED, NotFound),
    (200, body(422), REFUSED, RequestRejected),
    (200, body(433), REFUSED, QuotaExceeded),
    (200, body(451), REFUSED, RequestRejected),
    (200, body(505), REFUSED, RequestRejected),
    (200, body(500), REFUSED, ServerError),
    (200, body(501), REFUSED, ServerError),
    (200, body(531), REFUSED, ServerError),
    (200, body(550), REFUSED, ServerError),
    (200, body(0), REFUSED, ServerError),
    (200, body(500, msg="Credits insufficient"), REFUSED, InsufficientCredits),
    (200, body(500, msg="aspect_ratio is required"), REFUSED, ServerError),
    # the same codes under an HTTP status of their own
    (400, body(400), REFUSED, RequestRejected),
    (401, body(401), REFUSED, AuthenticationError),
    (402, body(402), REFUSED, InsufficientCredits),
    (403, body(403), REFUSED, AuthenticationError),
    (404, body(404), REFUSED, NotFound),
    (422, body(422), REFUSED, RequestRejected),
    (505, body(505), REFUSED, RequestRejected),
    # limits and maintenance: the same body may go again
    (200, body(429), HELD_BACK, RateLimited),
    (429, body(429), HELD_BACK, RateLimited),
    (429, b"", HELD_BACK, RateLimited),
    (429, HTML, HELD_BACK, RateLimited),
    (429, body(500), HELD_BACK, RateLimited),
    (200, body(430), HELD_BACK, RateLimited),
    (429, body(430), HELD_BACK, RateLimited),
    (430, body(430), HELD_BACK, RateLimited),
    (200, body(455), HELD_BACK, Maintenance),
    (429, body(455), HELD_BACK, Maintenance),
    (455, body(455), HELD_BACK, Maintenance),
    (500, body(455), HELD_BACK, Maintenance),
    (503, body(455), HELD_BACK, Maintenance),
    # a limit that does not fit its HTTP status proves nothing
    (500, body(429), UNKNOWN, None),
    (202, body(429), UNKNOWN, None),
    (500, body(430), UNKNOWN, None),
    # a yes without an id under a limit is no proof that nothing was created
    (429, body(200), UNKNOWN, None),
    (429, body(200, {"taskId": 17}), UNKNOWN, None),
    # an id beside a no: perhaps a task, so never sent again
    (200, body(429, {"taskId": ID}), UNKNOWN, None),
    (429, body(429, {"taskId": ID}), UNKNOWN, None),
    (200, body(455, {"taskId": ID}), UNKNOWN, None),
    (200, body(500, {"taskId": ID}), UNKNOWN, None),
    (422, body(200, {"taskId": ID}), UNKNOWN, None),
    (500, body(200, {"taskId": ID}), UNKNOWN, None),
    # HTTP statuses that speak for themselves
    *((status, text, REFUSED, None) for status in (405, 413, 415, 431) for text in (b"", HTML, body(status))),
    # a page is no word of the service about key, credits or model: only nothing was created
    *((status, text, REFUSED, ServerError) for status in (401, 402, 403, 404) for text in (b"", HTML, b"{}")),
    (401, body(200), REFUSED, ServerError),
    (403, b'{"error":"account suspended"}', REFUSED, ServerError),
    (401, b'{"code":401,"error":"Unauthorized","path":"/api/v1/jobs/createTask"}', REFUSED, ServerError),
    (404, b'{"timestamp":1,"status":404,"error":"Not Found","path":"/x"}', REFUSED, ServerError),
    (422, b"{", REFUSED, RequestRejected),
    # redirects are not followed, so nothing was created
    *((status, b"", REFUSED, RequestRejected) for status in (300, 301, 302, 303, 307, 308)),
    # unclear by their nature, as a status and as a code
    *((status, text, UNKNOWN, None) for status in (408, 409, 425) for text in (b"", HTML, body(status))),
    *((200, body(code), UNKNOWN, None) for code in (408, 409, 425)),
    # gateways
    *((status, HTML, UNKNOWN, None) for status in (500, 502, 503, 504, 520, 522, 524, 530)),
    *((status, body(status), UNKNOWN, None) for status in (500, 501, 502, 503)),
    (400, b"", UNKNOWN, None),
    (400, HTML, UNKNOWN, None),
    (400, body(500), UNKNOWN, None),
    (505, b"", UNKNOWN, None),
    (451, b"", UNKNOWN, None),
    # other 2xx
    (201, body(200, {"taskId": ID}), CREATED, None),
    (202, body(200, {"taskId": ID}), CREATED, None),
    (200, body(201, {"taskId": ID}), UNKNOWN, None),
    (202, body(200), UNKNOWN, None),
    (204, b"", UNKNOWN, None),
    (202, body(401), UNKNOWN, None),
    # not JSON under HTTP 200
    (200, b"", UNKNOWN, None),
    (200, HTML, UNKNOWN, None),
    (200, b"{}", UNKNOWN, None),
    (200, b"[]", UNKNOWN, None),
    (200, body(None, {"taskId": ID}), UNKNOWN, None),
    (200, body("ok", {"taskId": ID}), UNKNOWN, None),
    (200, body(True, {"taskId": ID}), UNKNOWN, None),
    (200, body(200.0, {"taskId": ID}), UNKNOWN, None),
    # where a yes ends
    (299, body(200, {"taskId": ID}), CREATED, None),
    (300, body(200, {"taskId": ID}), UNKNOWN, None),
    (200, body(199), REFUSED, RequestRejected),
    (200, body(299), UNKNOWN, None),
    (200, body(300), REFUSED, RequestRejected),
    (429, body(199), HELD_BACK, RateLimited),
    (429, body(299), UNKNOWN, None),
    (429, body(300), HELD_BACK, RateLimited),
    (399, b"", REFUSED, RequestRejected),
    # a code in digits is a code
    (200, body("200", {"taskId": ID}), CREATED, None),
    (200, body("422"), REFUSED, RequestRejected),
]


@together(("http_status", "text", "verdict", "error"), ANSWERS)
def test_an_answer_to_a_create_proves(
    http_status: int, text: bytes, verdict: CreateVerdict, error: type[ApiError] | None
) -> None:
    answer = decode_create(WireResponse(status=http_status, body=text), sent=True)
    assert answer.verdict is verdict
    assert (answer.error is not None) == (verdict in {REFUSED, HELD_BACK})
    if error is not None:
        assert type(answer.error) is error


@together(("http_status", "text", "verdict", "error"), ANSWERS)
def test_a_body_read_in_parts_proves_the_same(
    http_status: int, text: bytes, verdict: CreateVerdict, error: type[ApiError] | None
) -> None:
    whole = decode_create(WireResponse(status=http_status, body=text), sent=True)
    parts = decode_create(WireResponse(status=http_status, body=b""), sent=True, partial=text)
    assert (parts.verdict, parts.task_id, repr(parts.error)) == (
        whole.verdict,
        whole.task_id,
        repr(whole.error),
    )


@together(("http_status", "text", "verdict", "error"), ANSWERS)
def test_what_was_not_sent_was_not_created_whatever_came(
    http_status: int, text: bytes, verdict: CreateVerdict, error: type[ApiError] | None
) -> None:
    answer = decode_create(WireResponse(status=http_status, body=text), sent=False)
    assert answer.verdict is NOT_SENT


def test_sent_and_no_answer_is_unknown() -> None:
    assert decode_create(None, sent=True).verdict is UNKNOWN


def test_not_sent_and_no_answer_is_not_sent() -> None:
    assert decode_create(None, sent=False).verdict is NOT_SENT


def test_what_was_created_has_its_id() -> None:
    answer = decode_create(WireResponse(status=200, body=body(200, {"taskId": ID})), sent=True)
    assert answer.task_id == ID


def test_an_id_beside_a_no_is_kept_for_the_reader() -> None:
    answer = decode_create(WireResponse(status=200, body=body(429, {"taskId": ID})), sent=True)
    assert (answer.verdict, answer.task_id) == (UNKNOWN, ID)


def test_the_pause_the_service_asks_for_travels_with_the_limit() -> None:
    answer = decode_create(WireResponse(status=429, body=b"", retry_after_s=7.0), sent=True)
    assert isinstance(answer.error, RateLimited)
    assert answer.error.retry_after_s == 7.0


def test_a_refusal_keeps_code_words_and_http_status() -> None:
    answer = decode_create(WireResponse(status=422, body=body(422, msg="text is required")), sent=True)
    assert answer.error is not None
    assert answer.error.args == (422, "text is required", 422)


MAYBE_ID = st.none() | st.just(ID)
MAYBE_CODE = (
    st.none() | st.sampled_from([200, 201, 400, 401, 408, 422, 429, 430, 455, 500]) | st.integers(-9, 999)
)
STATUS = st.sampled_from([200, 202, 301, 400, 401, 408, 422, 429, 430, 455, 500, 502]) | st.integers(100, 599)


@given(code=MAYBE_CODE, http_status=st.none() | STATUS, task_id=MAYBE_ID)
def test_only_a_clear_yes_with_an_id_is_created(
    code: int | None, http_status: int | None, task_id: str | None
) -> None:
    verdict = create_verdict(sent=True, http_status=http_status, code=code, task_id=task_id)
    is_yes = code == 200 and http_status is not None and 200 <= http_status < 300 and task_id is not None
    assert (verdict is CREATED) == is_yes


@given(code=MAYBE_CODE, http_status=st.none() | STATUS, task_id=MAYBE_ID)
def test_only_a_limit_or_maintenance_lets_a_body_go_again(
    code: int | None, http_status: int | None, task_id: str | None
) -> None:
    verdict = create_verdict(sent=True, http_status=http_status, code=code, task_id=task_id)
    if verdict is HELD_BACK:
        assert task_id is None
        assert http_status == 429 or code in {429, 430, 455}
    assert verdict is not NOT_SENT


@given(code=MAYBE_CODE, http_status=st.integers(500, 599), task_id=MAYBE_ID)
def test_a_gateway_never_refuses_and_never_creates(
    code: int | None, http_status: int, task_id: str | None
) -> None:
    verdict = create_verdict(sent=True, http_status=http_status, code=code, task_id=task_id)
    is_said = (code == 455) or (code == http_status == 505)
    assert verdict is UNKNOWN or is_said


# --- codes to errors -----------------------------------------------------------------------------


@together(
    ("code", "kind"),
    [
        (400, RequestRejected),
        (401, AuthenticationError),
        (402, InsufficientCredits),
        (403, AuthenticationError),
        (404, NotFound),
        (405, RequestRejected),
        (408, ServerError),
        (409, RequestRejected),
        (413, RequestRejected),
        (422, RequestRejected),
        (429, RateLimited),
        (430, RateLimited),
        (433, QuotaExceeded),
        (451, RequestRejected),
        (455, Maintenance),
        (500, ServerError),
        (501, ServerError),
        (502, ServerError),
        (505, RequestRejected),
        (531, ServerError),
        (550, ServerError),
        (99_999, ServerError),
        (-1, ServerError),
        (0, ServerError),
        (99, ServerError),
        (100, RequestRejected),
        (301, RequestRejected),
        (499, RequestRejected),
    ],
)
def test_a_code_stands_for_an_error(code: int, kind: type[ApiError]) -> None:
    error = error_for(code, "words", 418)
    assert type(error) is kind
    assert (error.code, error.message, error.http_status) == (code, "words", 418)


def test_an_error_is_of_http_200_unless_it_is_said() -> None:
    assert error_for(422, "words").http_status == 200


@together("message", ["Credits insufficient", " credits insufficient, please top up"])
def test_code_500_is_told_by_its_words_when_it_means_money(message: str) -> None:
    assert type(error_for(500, message)) is InsufficientCredits


@together(
    "message",
    ["", "Server exception, please try again later", "aspect_ratio is required", "not: credits insufficient"],
)
def test_no_other_words_move_code_500(message: str) -> None:
    assert type(error_for(500, message)) is ServerError


@together("code", [429, 430, 455])
def test_a_limit_carries_the_pause_the_service_asks_for(code: int) -> None:
    error = error_for(code, "slow down", 200, 12.5)
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 12.5


@together("status", [401, 402, 403, 404])
def test_a_page_is_no_word_about_key_credits_or_model(status: int) -> None:
    error = error_for_page(status)
    assert type(error) is ServerError
    assert (error.code, error.http_status) == (status, status)


@together(
    ("status", "kind"),
    [(413, RequestRejected), (301, RequestRejected), (429, RateLimited), (502, ServerError)],
)
def test_other_pages_are_told_by_their_status(status: int, kind: type[ApiError]) -> None:
    assert type(error_for_page(status)) is kind


@together(
    ("error", "subject"),
    [
        (error_for(401, "no"), Subject.KEY),
        (error_for(403, "not from this address"), Subject.KEY),
        (error_for(404, "Task not found"), Subject.TASK),
        (error_for(404, ""), Subject.TASK),
        (error_for(422, "recordInfo is null"), Subject.TASK),
        (error_for(400, "taskId parameter is required"), Subject.TASK),
        (error_for(408, "no result for over 10 minutes"), Subject.PROVIDER),
        (error_for(408, "", 408), Subject.CALL),
        *(
            (error_for(404, words), Subject.CALL)
            for words in (
                *("No message available", "no route", "Page not found", "API not found"),
                *("The requested resource was not found", "no such application"),
            )
        ),
        *(
            (error_for(code, "no"), Subject.CALL)
            for code in (402, 429, 430, 433, 451, 455, 500, 501, 505, 550)
        ),
        (error_for_page(403), Subject.CALL),
        (error_for_page(404), Subject.CALL),
        (AnswerUnreadable("HTTP 404 without an answer of the service"), Subject.CALL),
        (TransportError("timed out"), Subject.CALL),
        (KeyError("a bug of ours"), Subject.CALL),
    ],
)
def test_an_error_of_a_query_is_about(error: Exception, subject: Subject) -> None:
    assert subject_of(error) is subject


# --- not yet visible -----------------------------------------------------------------------------


@together(
    ("code", "message", "is_not_visible"),
    [
        (404, "Task not found", True),
        (404, "", True),
        (422, "recordInfo is null", True),
        (422, "RECORDINFO IS NULL", True),
        (422, "record is null", True),
        (422, "The record does not exist", True),
        (422, "record not found", True),
        (422, "no such task", True),
        (422, "aspect_ratio is required", False),
        (400, "taskId parameter is required", False),
        (401, "Unauthorized", False),
        (429, "Rate limit exceeded", False),
        (500, "recordInfo is null", False),
        (200, "success", False),
    ],
)
def test_a_task_may_not_be_visible_yet(code: int, message: str, is_not_visible: bool) -> None:
    assert is_invisible(code, message) is is_not_visible


@together(
    ("code", "message", "is_unknown"),
    [
        (404, "Task not found", True),
        (422, "recordInfo is null", True),
        (404, "no such route", False),
        (404, "No message available", False),
        (422, "aspect_ratio is required", False),
        (500, "recordInfo is null", False),
    ],
)
def test_what_a_no_says_of_the_call_is_no_word_about_the_task(
    code: int, message: str, is_unknown: bool
) -> None:
    assert is_unknown_task(error_for(code, message)) is is_unknown
