"""The wire specification: every envelope, every shape of answer and delivery, every hostile body."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tables import together

from kie_async._json import MAX_RECORD_BYTES
from kie_async.errors import (
    AnswerUnreadable,
    ApiError,
    AuthenticationError,
    CallbackRejected,
    InsufficientCredits,
    InvalidRequest,
    KieError,
    Maintenance,
    NotFound,
    RateLimited,
    RequestRejected,
    ServerError,
)
from kie_async.inputs.media import is_media_field
from kie_async.inputs.request import TaskRequest
from kie_async.models import TASK_ID, TaskState
from kie_async.wire import responses as wire
from kie_async.wire.codes import CreateVerdict, Subject, is_invisible, subject_of
from kie_async.wire.create_answers import decode_create
from kie_async.wire.envelope import WireResponse, decode_answer
from kie_async.wire.requests import encode_create, encode_credits, encode_query
from kie_async.wire.responses import (
    decode_callback,
    decode_confirmation,
    decode_credits,
    decode_query,
    decode_upload,
)

ID = "e989621f54392584b05867f87b160672"
URL = "https://tempfile.example/a.mp4"
HTML = b"<html><head><title>502 Bad Gateway</title></head></html>"
INTENT, MAC = "0123456789abcdef0123456789abcdef", "abcdefghijklmnopqrstuvwx23"
ADDRESS = f"https://bot.example/kie/{INTENT}/{MAC}"
PARAM = json.dumps({"model": "a/b", "callBackUrl": ADDRESS, "input": json.dumps({"prompt": "hi"})})
RECORD = {
    "taskId": ID,
    "model": "a/b",
    "state": "success",
    "param": PARAM,
    "resultJson": f'{{"resultUrls":["{URL}"]}}',
}


def body(code: object = 200, data: object = None, msg: object = "success", **more: object) -> bytes:
    return json.dumps({"code": code, "msg": msg, "data": data, **more}).encode()


def answer(code: object = 200, data: object = None, *, status: int = 200, **more: Any) -> WireResponse:
    return WireResponse(status=status, body=body(code, data, **more))


def says(envelope: dict[str, object]) -> WireResponse:
    return WireResponse(status=200, body=json.dumps(envelope).encode())


def name_of(value: object) -> str | None:
    return repr(value)[:60] if isinstance(value, bytes | str) else None


# --- requests ------------------------------------------------------------------------------------


def sent_body(request: TaskRequest, callback_url: str | None = None) -> dict[str, Any]:
    encoded = encode_create(request, callback_url)
    assert encoded.body is not None
    decoded: dict[str, Any] = json.loads(encoded.body)
    return decoded


def test_a_create_is_posted_to_the_jobs_api() -> None:
    request = encode_create(TaskRequest(model="a/b", input={}), None)
    assert (request.method, request.path, request.query) == ("POST", "/api/v1/jobs/createTask", "")


def test_a_create_holds_model_input_and_callback_url_on_top() -> None:
    request = TaskRequest(model="a/b", input={"prompt": "hi"}, ref="row-7")
    assert sent_body(request, ADDRESS) == {"model": "a/b", "input": {"prompt": "hi"}, "callBackUrl": ADDRESS}


def test_there_is_no_callback_key_when_there_is_no_callback_url() -> None:
    assert sent_body(TaskRequest(model="a/b", input={})) == {"model": "a/b", "input": {}}


def test_a_callback_url_of_the_callers_own_is_sent_untouched() -> None:
    own = "https://own.example/Hook?x=%2F&y=ü"
    assert sent_body(TaskRequest(model="a/b", input={}, callback_url=own))["callBackUrl"] == own


FIELDS: dict[str, object] = {
    "empty": "",
    "off": False,
    "zero": 0,
    "none": None,
    "list": [],
    "object": {},
    "deep": {"a": [{"b": [1, 2.5, None, True, "x"]}]},
    "text": 'naïve 日本語 \U0001f600 \u2028 \x00 \\ " /',
    "number as text": "5",
    "callBackUrl": "inside",
}


def test_an_input_passes_through_untouched() -> None:
    assert sent_body(TaskRequest(model="a/b", input=FIELDS))["input"] == FIELDS


def test_an_input_keeps_the_order_of_its_fields() -> None:
    assert list(sent_body(TaskRequest(model="a/b", input=FIELDS))["input"]) == list(FIELDS)


TEXT = st.text(st.characters(exclude_categories=("Cs",)))
NAME = TEXT.filter(lambda name: not is_media_field(name))  # there a text that is no URL is refused
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAME, inner, max_size=4),
    max_leaves=15,
)


@given(fields=st.dictionaries(NAME, JSON, max_size=6))
def test_any_input_arrives_as_it_was_given(fields: dict[str, Any]) -> None:
    encoded = encode_create(TaskRequest(model="a/b", input=fields), ADDRESS)
    assert encoded.body is not None
    assert json.loads(encoded.body) == {"model": "a/b", "input": fields, "callBackUrl": ADDRESS}
    assert list(json.loads(encoded.body)["input"]) == list(fields)


@together("value", [float("nan"), float("inf"), "\ud800", {1, 2}, b"x", object(), 10**5000])
def test_an_input_without_json_form_is_refused_before_anything_is_sent(value: object) -> None:
    with pytest.raises(InvalidRequest, match=r"input\.x has no JSON form"):
        encode_create(TaskRequest(model="a/b", input={"x": value}), None)


def test_a_query_asks_for_one_task() -> None:
    request = encode_query(ID)
    assert (request.method, request.path, request.query, request.body) == (
        "GET",
        "/api/v1/jobs/recordInfo",
        f"taskId={ID}",
        None,
    )


def test_the_balance_is_asked_where_it_is() -> None:
    assert (encode_credits().method, encode_credits().path) == ("GET", "/api/v1/chat/credit")


def test_no_repr_shows_a_body() -> None:
    request = encode_create(TaskRequest(model="a/b", input={"prompt": "s3cret"}), ADDRESS)
    response = WireResponse(status=200, body=b"s3cret")
    shown = f"{request!r} {response!r}"
    assert "s3cret" not in shown
    assert MAC not in shown


# --- the envelope --------------------------------------------------------------------------------


@together("key", ["msg", "message"])
def test_the_words_have_two_names(key: str) -> None:
    with pytest.raises(RequestRejected, match="text is required"):
        decode_answer(
            WireResponse(status=200, body=json.dumps({"code": 422, key: "text is required"}).encode())
        )


@together("msg", [None, "", [], {}, True])
def test_words_that_are_missing_are_none(msg: object) -> None:
    with pytest.raises(RequestRejected) as caught:
        decode_answer(says({"code": 422, "msg": msg}))
    assert caught.value.message == ""


def test_the_newer_name_wins() -> None:
    with pytest.raises(RequestRejected, match="newer"):
        decode_answer(
            WireResponse(
                status=200, body=json.dumps({"code": 422, "msg": "newer", "message": "older"}).encode()
            )
        )


def test_words_of_the_service_cannot_forge_a_log_line() -> None:
    with pytest.raises(ServerError) as caught:
        decode_answer(
            WireResponse(status=200, body=json.dumps({"code": 500, "msg": "x\n[FATAL]\x1b[31m"}).encode())
        )
    assert caught.value.message == "x [FATAL] [31m"


@together("more", [{"success": True}, {"traceId": "x"}, {"timestamp": 1}])
def test_keys_nobody_knows_do_not_disturb(more: dict[str, object]) -> None:
    assert decode_answer(WireResponse(status=200, body=body(200, 1, **more))) == 1


@together(
    "text",
    [
        b"",
        b"   ",
        HTML,
        b"[]",
        b"null",
        b'"ok"',
        b"200",
        b"{}",
        b'{"msg":"success"}',
        b'{"code":null}',
        b'{"code":"ok"}',
    ],
)
def test_what_has_no_code_is_unreadable(text: bytes) -> None:
    with pytest.raises(AnswerUnreadable):
        decode_answer(WireResponse(status=200, body=text))


# --- hostile bodies ------------------------------------------------------------------------------

NINES = b"9" * 5000
HOSTILE = {
    "nested list": b'{"code":200,"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested object": b'{"code":200,"data":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "nested, never closed": b"[" * 100_000,
    "nan": b'{"code":200,"data":NaN}',
    "infinity": b'{"code":200,"data":{"a":Infinity}}',
    "minus infinity": b'{"code":200,"data":{"a":-Infinity}}',
    "float overflow": b'{"code":200,"data":1e999}',
    "long integer": b'{"code":200,"data":' + NINES + b"}",
    "long code": b'{"code":' + NINES + b"}",
    "lone surrogate": b'{"code":200,"msg":"\\ud800"}',
    "lone surrogate as key": b'{"code":200,"\\udfff":1}',
    "key twice": b'{"code":200,"code":500}',
    "key twice, the same": b'{"code":200,"code":200}',
    "key twice inside": b'{"code":200,"data":{"state":"fail","state":"success"}}',
    "five megabytes of garbage": b"\x8f" * 5_000_000,
    "five megabytes of blanks": b" " * 5_000_000,
    "five megabytes of text": b'{"code":200,"msg":"' + b"x" * 5_000_000 + b'"}',
    "five megabytes of keys": b'"code" "taskId" ' * 320_000,
    "invalid utf-8": b'{"code":200,"msg":"\xff\xfe"}',
    "encoded surrogate": b'{"code":200,"msg":"\xed\xa0\x80"}',
    "utf-16": '{"code":200}'.encode("utf-16"),
    "nul": b'{"code":200,"msg":"\x00"}',
    "only nul": b"\x00" * 100,
    "gzip": b"\x1f\x8b\x08\x00\x00\x00",
    "cut off": b'{"code":200,"msg":"succ',
    "two bodies": b'{"code":200}{"code":200}',
    "javascript": b'{code:200,msg:"success"}',
}


@together("text", HOSTILE.values())
def test_a_hostile_answer_is_unreadable(text: bytes) -> None:
    with pytest.raises(AnswerUnreadable):
        decode_query(WireResponse(status=200, body=text), ID)


@together("text", HOSTILE.values())
def test_a_hostile_delivery_is_rejected_with_400(text: bytes) -> None:
    with pytest.raises(CallbackRejected) as caught:
        decode_callback(text)
    assert (caught.value.reason, caught.value.status) == ("unreadable body", 400)


@together("text", HOSTILE.values())
def test_a_hostile_answer_to_a_create_leaves_it_unknown(text: bytes) -> None:
    assert decode_create(WireResponse(status=200, body=text), sent=True).verdict is CreateVerdict.UNKNOWN


@together("text", HOSTILE.values())
def test_hostile_bodies_cost_little_time_and_leave_short_words(text: bytes) -> None:
    started = time.process_time()
    with pytest.raises(AnswerUnreadable) as caught:
        decode_query(WireResponse(status=200, body=text), ID)
    decode_create(WireResponse(status=200, body=text), sent=True)
    assert time.process_time() - started < 1.0
    assert len(str(caught.value)) < 300


@together("inner", ["[" * 100_000, "NaN", "1e999", "9" * 5000, '{"a":1,"a":2}', "\x00"])
@together("key", ["resultJson", "param", "paramJson"])
def test_a_hostile_text_in_a_record_costs_only_itself(key: str, inner: str) -> None:
    record = decode_query(answer(200, {**RECORD, "resultJson": "", "param": "", key: inner}), ID)
    assert (record.state, record.urls, record.result_object) == (TaskState.SUCCESS, (), None)
    assert record.param is None
    assert record.raw[key] == inner


@together("flaw", ['"\\ud800"', "NaN", "1e999", "9" * 5000, '{"a":1,"a":2}', '"\x00"', '"\x01"'])
def test_a_flaw_beside_the_url_in_a_result_does_not_hide_it(flaw: str) -> None:
    text = f'{{"resultUrls":["{URL}"],"x":{flaw}}}'
    record = decode_query(answer(200, {**RECORD, "resultJson": text}), ID)
    assert (record.state, record.urls, record.raw["resultJson"]) == (TaskState.SUCCESS, (URL,), text)


# --- broken records ------------------------------------------------------------------------------

WHOLE_RECORD = json.dumps(
    {
        "code": 200,
        "msg": "success",
        "data": {**RECORD, "creditsConsumed": 7, "failMsg": "words", "x": "spoilt"},
    },
    separators=(",", ":"),
).encode()
FLAWS: list[tuple[bytes, str]] = [
    (WHOLE_RECORD.replace(b"spoilt", b"sp\xff\xfeoilt"), "bytes that are no UTF-8"),
    (WHOLE_RECORD.replace(b"spoilt", b"spoilt\xe4\xb8"), "bytes that are no UTF-8"),
    (WHOLE_RECORD.replace(b"spoilt", b"spoilt\xed\xa0\x80"), "bytes that are no UTF-8"),
    (WHOLE_RECORD.replace(b"spoilt", b"spo\x00ilt"), "control characters"),
    (WHOLE_RECORD.replace(b"spoilt", b"spo\x1filt"), "control characters"),
    (WHOLE_RECORD.replace(b'"x":', b'\x00"x":'), "control characters"),
    (WHOLE_RECORD.replace(b"spoilt", b"\\ud83dspoilt"), "halves of characters"),
    (WHOLE_RECORD.replace(b'"x":', b'"y":NaN,"x":'), "a number that is none"),
    (WHOLE_RECORD.replace(b'"x":', b'"y":[-Infinity],"x":'), "a number that is none"),
    (WHOLE_RECORD.replace(b'"x":', b'"y":1e999,"x":'), "an endless number"),
    (WHOLE_RECORD.replace(b'"x":', b'"y":' + b"9" * 5000 + b',"x":'), "an endless number"),
    (WHOLE_RECORD.replace(b'"x":', b'"y":1,"y":2,"x":'), "a key with two values"),
    (WHOLE_RECORD.replace(b'{"code"', b'{"y":NaN,"code"'), "a number that is none"),
    (WHOLE_RECORD.replace(b'"success","data"', b'"\xff","data"'), "bytes that are no UTF-8"),
    (WHOLE_RECORD + b"\x00", "control characters"),
    (WHOLE_RECORD + b"\n<!-- cached -->", "text behind the object"),
]


@together(("text", "flaw"), FLAWS)
def test_a_flaw_anywhere_does_not_hide_the_end_of_a_task(text: bytes, flaw: str) -> None:
    record = decode_query(WireResponse(status=200, body=text), ID)
    assert (record.task_id, record.state, record.urls) == (ID, TaskState.SUCCESS, (URL,))
    assert (record.credits, record.fail_message) == (7.0, "words")


@together(("text", "flaw"), FLAWS)
def test_what_is_broken_is_left_out_of_raw(text: bytes, flaw: str) -> None:
    raw = decode_query(WireResponse(status=200, body=text), ID).raw
    assert raw["x"] == "spoilt"
    assert raw.get("y", []) == []
    json.dumps(raw, allow_nan=False, ensure_ascii=False).encode()


def test_what_was_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    for text, flaw in FLAWS:
        caplog.clear()
        decode_query(WireResponse(status=200, body=text), ID)
        assert caplog.record_tuples == [
            ("kie_async", logging.WARNING, f"the record of task {ID} was broken; left out: {flaw}")
        ]


def test_nothing_is_said_of_a_record_that_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    decode_query(WireResponse(status=200, body=b"\xef\xbb\xbf" + WHOLE_RECORD + b"\r\n"), ID)
    assert not caplog.records


@together(
    "text",
    [
        WHOLE_RECORD + b'{"code":500}',
        WHOLE_RECORD[:-1],
        b"<html>" + WHOLE_RECORD + b"</html>",
        WHOLE_RECORD.replace(b'"state":"success"', b'"state":"success","state":"fail"'),
    ],
)
def test_what_can_be_read_in_two_ways_is_no_end(text: bytes) -> None:
    with suppress(AnswerUnreadable):
        assert not decode_query(WireResponse(status=200, body=text), ID).state.is_terminal


@together(("text", "flaw"), FLAWS)
def test_a_broken_delivery_is_refused_whole(text: bytes, flaw: str) -> None:
    if b"\xff" in text or b"NaN" in text:
        with pytest.raises(CallbackRejected):
            decode_callback(text)


@together("size", [2**20, 8 * 2**20])
def test_a_record_may_be_large(size: int) -> None:
    result = json.dumps({"resultUrls": [URL], "text": "x" * size})
    record = decode_query(answer(200, {**RECORD, "resultJson": result, "param": PARAM + " " * size}), ID)
    assert record.urls == (URL,)
    assert record.param is not None


def test_a_record_may_not_be_endless() -> None:
    with pytest.raises(AnswerUnreadable, match="more than"):
        decode_query(WireResponse(status=200, body=WHOLE_RECORD + b" " * MAX_RECORD_BYTES), ID)


def test_a_byte_order_mark_is_no_harm() -> None:
    assert decode_answer(WireResponse(status=200, body=b"\xef\xbb\xbf" + body(200, 1))) == 1


# --- answers -------------------------------------------------------------------------------------


@together(
    ("response", "kind", "code"),
    [
        # HTTP 200 is how errors usually come
        (answer(401, msg="You do not have access permissions"), AuthenticationError, 401),
        (answer(402, msg="Insufficient credits"), InsufficientCredits, 402),
        (answer(404, msg="Task not found"), NotFound, 404),
        (answer(422, msg="recordInfo is null"), RequestRejected, 422),
        (answer(429, msg="Rate limit exceeded"), RateLimited, 429),
        (answer(455, msg="maintained"), Maintenance, 455),
        (answer(500, msg="Server Error"), ServerError, 500),
        (answer(500, msg="Credits insufficient"), InsufficientCredits, 500),
        (answer(199), RequestRejected, 199),
        (answer(300), RequestRejected, 300),
        # a real status with an envelope: the envelope knows more
        (answer(422, msg="recordInfo is null", status=404), RequestRejected, 422),
        (answer(429, status=429), RateLimited, 429),
        (answer(455, status=503), Maintenance, 455),
        # a real status without one
        (WireResponse(status=408, body=b""), ServerError, 408),
        (WireResponse(status=429, body=HTML), RateLimited, 429),
        (WireResponse(status=500, body=b""), ServerError, 500),
        (WireResponse(status=502, body=HTML), ServerError, 502),
        (WireResponse(status=504, body=b'{"code":'), ServerError, 504),
        # a yes under a status that says no
        (answer(200, RECORD, status=500), ServerError, 500),
    ],
)
def test_a_no_is_an_error_with_the_code(response: WireResponse, kind: type[ApiError], code: int) -> None:
    with pytest.raises(ApiError) as caught:
        decode_answer(response)
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.http_status) == (code, response.status)


def test_a_limit_keeps_the_pause_the_service_asks_for() -> None:
    with pytest.raises(RateLimited) as caught:
        decode_answer(WireResponse(status=429, body=b"", retry_after_s=3.0))
    assert caught.value.retry_after_s == 3.0


@together(
    "response",
    [
        WireResponse(status=200, body=b""),
        WireResponse(status=200, body=HTML),
        WireResponse(status=200, body=b"{}"),
        WireResponse(status=204, body=b""),
        answer(201, RECORD),
        answer(200, RECORD, status=202),
        answer(202, RECORD, status=202),
        # pages of whatever stands before the service say nothing of key, task or account
        *(
            WireResponse(status=status, body=text)
            for status in (301, 302, 307, 400, 401, 402, 403, 404, 407, 410, 418, 422, 451)
            for text in (b"", HTML, b"{}", b'{"error":"account suspended"}', body(200, RECORD))
        ),
        says({"timestamp": 1, "status": 404, "error": "Not Found", "path": "/api/v1/jobs/recordInfo"}),
        says({"code": 404, "message": "No message available", "path": "/api/v1/jobs/recordInfo"}),
        says({"code": 401, "error": "Unauthorized"}),
    ],
)
def test_neither_a_yes_nor_a_no_is_unreadable(response: WireResponse) -> None:
    with pytest.raises(AnswerUnreadable):
        decode_query(response, ID)


# --- createTask: the shapes; the verdicts are in test_codes --------------------------------------


@together(
    "text",
    [
        b'{"code":200,"msg":"success","data":{"taskId":"%b"}}',
        b'{"code":200,"message":"success","data":{"taskId":"%b"}}',
        b'{"code":200,"msg":"success","data":{"taskId":"%b","recordId":"%b"}}',
        b'{"code":200,"msg":"success","data":{"taskId":"%b","recordId":"elevenlabs_1765185518880"}}',
        b'{"code":200,"msg":"success","data":{"task_id":"%b"}}',
        b'{"code":200,"msg":"success","data":{"taskId":null,"task_id":"%b"}}',
        b'{"code":200,"msg":"success","data":"%b"}',
        b'{"code":200,"data":{"taskId":"%b"}}',
        b'\xef\xbb\xbf{"code":200,"data":{"taskId":"%b"}}',
        b' {\n "data" : { "taskId" : "%b" } , "code" : 200 }\r\n',
    ],
)
def test_a_created_task_has_its_id_in_any_shape(text: bytes) -> None:
    found = decode_create(WireResponse(status=200, body=text.replace(b"%b", ID.encode())), sent=True)
    assert (found.verdict, found.task_id, found.error) == (CreateVerdict.CREATED, ID, None)


WHOLE = body(200, {"taskId": ID, "recordId": ID})
ID_ENDS = WHOLE.index(ID.encode()) + len(ID) + 1


@together("length", range(len(WHOLE)))
def test_an_id_is_salvaged_from_a_body_that_broke_off_behind_it(length: int) -> None:
    found = decode_create(WireResponse(status=200, body=b""), sent=True, partial=WHOLE[:length])
    expected = (CreateVerdict.CREATED, ID) if length >= ID_ENDS else (CreateVerdict.UNKNOWN, "")
    assert (found.verdict, found.task_id) == expected


@together(
    "partial",
    [
        b'{"code":422,"msg":"x","data":{"taskId":"' + ID.encode() + b'"',
        b'{"code":500,"data":{"taskId":"' + ID.encode() + b'"',
        b'{"msg":"success","data":{"taskId":"' + ID.encode() + b'"',
        b'{"code":2001,"data":{"taskId":"' + ID.encode() + b'"',
        b'{"code":200.5,"data":{"taskId":"' + ID.encode() + b'"}}',
        b'{"code":null,"data":{"code":200,"taskId":"' + ID.encode() + b'"}}',
        b'{"code":200,"code":500,"data":{"taskId":"' + ID.encode() + b'"}}',
        b'{"code":200,"data":{"taskId":"one","taskId":"two"}}',
        b'{"code":200,"data":{"taskId":"one","task_id":"two"',
        b'{"code":200,"msg":"\\"taskId\\":\\"evil\\"","data":',
        b'{"code":200,"data":{"taskId":"a.b"',
        b'{"code":200,"data":{"taskId":17',
        b'<html>{"code":200,"data":{"taskId":"' + ID.encode() + b'"}}</html>',
    ],
)
def test_nothing_is_salvaged_that_is_not_clear(partial: bytes) -> None:
    found = decode_create(WireResponse(status=200, body=b""), sent=True, partial=partial)
    assert found.verdict is CreateVerdict.UNKNOWN


CANDIDATES: list[tuple[int, bytes]] = [
    # beside a code that is no clean yes
    *((200, body(code, {"taskId": ID})) for code in (0, 201, 429, 500, "ok", None, True)),
    *((status, body(200, {"taskId": ID})) for status in (301, 403, 422, 500, 502)),
    # under another name, in another place, without an envelope
    *(
        (200, body(200, {name: ID}))
        for name in ("id", "recordId", "record_id", "TaskID", "task-id", "jobId", "generationId")
    ),
    *((200, body(200, data)) for data in ([ID], json.dumps({"taskId": ID}), {"taskId": f" {ID}\n"})),
    *((200, body(200, data)) for data in ([{"taskId": ID}], {"task": {"id": ID}}, {"data": {"taskId": ID}})),
    (200, body(200, None, taskId=ID)),
    (200, json.dumps({"taskId": ID}).encode()),
    (200, json.dumps({"data": {"taskId": ID}}).encode()),
    (200, body(500, ID)),
    (500, body(500, {"taskId": ID, "id": "other-1"})),
    # in what is broken, or is no JSON at all
    (200, b'{"x":NaN,"code":200,"data":{"taskId":"%b"}}'),
    (200, b'{"msg":"\xff","code":200,"data":{"taskId":"%b"}}'),
    (200, b'{"code":200,"code":200,"data":{"taskId":"%b"}}'),
    (200, b'<html>{"code":200,"data":{"taskId":"%b"}}</html>'),
    (502, b'{"msg":"success","data":{"taskId":"%b"'),
    (200, b"code=200&taskId=%b&x=1"),
    (200, body(200, {"taskIds": [ID]})),
    (200, body(200, json.dumps(json.dumps({"taskId": ID})))),
    (200, b"<answer><code>200</code><taskId>%b</taskId></answer>"),
    (502, b"<pre>{&quot;taskId&quot;:&quot;%b&quot;}</pre>"),
    # beside a limit, which alone would have it sent again
    *((status, body(code, {"recordId": ID})) for status, code in ((200, 429), (429, 429), (200, 455))),
    (200, b"{code: 200, data: {taskId: '%b'}}"),
    (200, b'"{\\"code\\":200,\\"data\\":{\\"taskId\\":\\"%b\\"}}"'),
]


@together(("status", "text"), CANDIDATES)
def test_an_id_that_an_answer_names_is_kept_without_a_clean_yes(status: int, text: bytes) -> None:
    found = decode_create(WireResponse(status=status, body=text.replace(b"%b", ID.encode())), sent=True)
    assert found.verdict is CreateVerdict.UNKNOWN
    assert found.candidate_task_id == ID


@together(
    ("data", "candidate"), [({"taskId": 17}, "17"), ({"id": 1765185996677}, "1765185996677"), (17653, "")]
)
def test_an_id_may_be_a_number(data: object, candidate: str) -> None:
    assert decode_create(answer(200, data), sent=True).candidate_task_id == candidate


@together(
    "text",
    [
        b"",
        HTML,
        body(200),
        body(200, {}),
        body(500, "an error"),
        body(200, {"taskId": ""}),
        body(200, {"taskId": None}),
        body(200, {"taskId": "../../x?y"}),
        body(200, {"taskId": "null"}),
        body(200, {"param": json.dumps({"taskId": ID}), "input": {"taskId": ID}}),
        b'<p>taskId: "one", taskId: "two"</p>',
        b'{"code":200,"data":{"taskId":"e989621',
        b"task_id=",
    ],
)
def test_what_is_no_clear_id_is_no_candidate(text: bytes) -> None:
    assert decode_create(WireResponse(status=200, body=text), sent=True).candidate_task_id == ""


def test_a_refusal_that_names_a_task_says_so_in_its_words() -> None:
    found = decode_create(answer(422, {"recordId": ID}, msg="no"), sent=True)
    assert found.verdict is CreateVerdict.REFUSED
    assert str(found.error) == f"code 422: no (the answer names task {ID})"


def test_what_was_created_has_no_candidate() -> None:
    found = decode_create(answer(200, {"taskId": ID}), sent=True)
    assert (found.task_id, found.candidate_task_id) == (ID, "")


@together("status", [202, 200])
def test_a_salvaged_id_counts_under_any_yes_of_http(status: int) -> None:
    found = decode_create(WireResponse(status=status, body=b""), sent=True, partial=WHOLE[:-2])
    assert found.verdict is CreateVerdict.CREATED


@together("status", [301, 429, 500, 502])
def test_a_salvaged_id_is_no_proof_under_a_no_of_http(status: int) -> None:
    found = decode_create(WireResponse(status=status, body=b""), sent=True, partial=WHOLE[:-2])
    assert found.verdict is CreateVerdict.UNKNOWN


# --- recordInfo ----------------------------------------------------------------------------------


def test_a_record_comes_out_of_its_envelope() -> None:
    record = decode_query(answer(200, RECORD), ID)
    assert (record.task_id, record.model, record.state, record.urls) == (ID, "a/b", TaskState.SUCCESS, (URL,))


@together("data", [None, [], "x", 7, True])
def test_an_answer_without_a_record_is_unreadable(data: object) -> None:
    with pytest.raises(AnswerUnreadable, match="no record"):
        decode_query(answer(200, data), ID)


def test_an_answer_without_data_is_unreadable() -> None:
    with pytest.raises(AnswerUnreadable, match="no record"):
        decode_query(WireResponse(status=200, body=b'{"code":200,"msg":"success"}'), ID)


@together("task_id", ["other", "", None, [], {}, True, ID.upper(), ID + "\n"])
def test_the_record_of_another_task_is_not_taken(task_id: object) -> None:
    with pytest.raises(AnswerUnreadable, match="another task"):
        decode_query(answer(200, {**RECORD, "taskId": task_id}), ID)


def test_a_record_may_be_json_in_a_string() -> None:
    assert decode_query(answer(200, json.dumps(RECORD)), ID) == decode_query(answer(200, RECORD), ID)


def test_a_record_without_an_id_is_not_taken() -> None:
    with pytest.raises(AnswerUnreadable, match="another task"):
        decode_query(answer(200, {"state": "success"}), ID)


def test_a_record_may_call_its_id_task_id() -> None:
    assert decode_query(answer(200, {"task_id": ID}), ID).task_id == ID


@together("code", [501, 531])
def test_some_codes_on_a_query_speak_of_the_task(code: int) -> None:
    record = decode_query(answer(code, msg="No result for over 10 minutes"), ID)
    assert (record.task_id, record.state) == (ID, TaskState.FAIL)
    assert (record.fail_code, record.fail_message) == (str(code), "No result for over 10 minutes")


def test_code_408_on_a_query_leaves_it_in_doubt() -> None:
    with pytest.raises(ServerError) as caught:
        decode_query(answer(408, msg="No result for over 10 minutes"), ID)
    assert subject_of(caught.value) is Subject.PROVIDER


@together("code", [408, 501, 531])
def test_the_same_numbers_as_http_statuses_speak_of_the_call(code: int) -> None:
    for text in (b"", HTML, body(code)):
        with pytest.raises(ServerError):
            decode_query(WireResponse(status=code, body=text), ID)


@together(
    "response",
    [
        answer(404, msg="Task not found"),
        answer(422, msg="recordInfo is null"),
        answer(422, msg="The record does not exist"),
        answer(422, msg="Record not found", status=422),
    ],
)
def test_a_task_that_is_not_visible_yet_is_told_apart(response: WireResponse) -> None:
    with pytest.raises(ApiError) as caught:
        decode_query(response, ID)
    assert is_invisible(caught.value.code, caught.value.message)


@together("key", ["param", "paramJson"])
@together("param", [PARAM, json.loads(PARAM), PARAM.replace("/", "\\/")])
def test_a_confirmation_returns_the_callback_url_the_record_hides(key: str, param: object) -> None:
    record, url = decode_confirmation(answer(200, {"taskId": ID, key: param}), ID)
    assert url == ADDRESS
    assert MAC not in f"{record!r} {record.raw} {attrs.asdict(record)}"


@together("param", [None, "", "{", "[]", "{}", '{"callBackUrl":null}', '{"callBackUrl":["x"]}', 7])
def test_a_confirmation_may_find_no_callback_url(param: object) -> None:
    assert decode_confirmation(answer(200, {"taskId": ID, "param": param}), ID)[1] is None


def test_a_failed_task_without_a_record_has_no_callback_url() -> None:
    assert decode_confirmation(answer(501), ID)[1] is None


# --- the balance ---------------------------------------------------------------------------------


@together(("data", "credits"), [(100, 100.0), (60.62, 60.62), (0, 0.0), ("72.5", 72.5)])
def test_the_balance_is_a_number(data: object, credits: float) -> None:
    assert decode_credits(answer(200, data)) == credits


@together("data", [None, True, [], {}, "many", ""])
def test_a_balance_that_is_no_number_is_unreadable(data: object) -> None:
    with pytest.raises(AnswerUnreadable, match="balance"):
        decode_credits(answer(200, data))


def test_a_refused_balance_is_an_error() -> None:
    with pytest.raises(AuthenticationError):
        decode_credits(WireResponse(status=200, body=b'{"code":401,"msg":"Unauthorized"}'))


# --- uploads -------------------------------------------------------------------------------------

UPLOADED = {
    "fileName": "1777539187532-kgfz8edkkle.jpg",
    "filePath": "kieai/1/images/1777539187532-kgfz8edkkle.jpg",
    "downloadUrl": "https://tempfile.example/face.jpg",
    "fileSize": 154_832,
    "mimeType": "image/jpeg",
    "uploadedAt": "2026-10-01T10:00:00.000Z",
}


def test_an_uploaded_file_is_known_by_its_download_url() -> None:
    uploaded = decode_upload(answer(200, UPLOADED, success=True))
    assert uploaded.url == "https://tempfile.example/face.jpg"
    assert (uploaded.name, uploaded.size, uploaded.mime_type) == (UPLOADED["fileName"], 154_832, "image/jpeg")


def test_the_older_shape_calls_it_file_url() -> None:
    data = {"fileId": "f1", "originalName": "face.jpg", "fileUrl": "https://files.example/face.jpg"}
    uploaded = decode_upload(answer(200, data))
    assert (uploaded.url, uploaded.name, uploaded.size) == ("https://files.example/face.jpg", "", None)


def test_the_download_url_wins() -> None:
    data = {**UPLOADED, "fileUrl": "https://files.example/face.jpg"}
    assert decode_upload(answer(200, data)).url == UPLOADED["downloadUrl"]


@together(
    "data",
    [
        None,
        [],
        {},
        "https://f.example/a",
        {"downloadUrl": ""},
        {"downloadUrl": 7},
        {"fileUrl": "ftp://f.example/a"},
    ],
)
def test_an_upload_without_a_url_is_unreadable(data: object) -> None:
    with pytest.raises(AnswerUnreadable, match="no URL"):
        decode_upload(answer(200, data))


@together("size", [None, "large", [], True, "nan"])
def test_a_size_that_is_no_number_is_none(size: object) -> None:
    assert decode_upload(answer(200, {**UPLOADED, "fileSize": size})).size is None


def test_a_refused_upload_is_an_error_with_its_words() -> None:
    with pytest.raises(RequestRejected, match="Missing required parameter: uploadPath"):
        decode_upload(answer(400, success=False, msg="Missing required parameter: uploadPath"))


# --- deliveries ----------------------------------------------------------------------------------


def delivery(code: object = 200, /, top: dict[str, object] | None = None, **data: object) -> bytes:
    return json.dumps({"code": code, "msg": "words", "data": data, **(top or {})}).encode()


def test_a_delivery_of_a_success_is_a_record() -> None:
    record = decode_callback(body(200, RECORD, msg="Playground task completed successfully."))
    assert (record.task_id, record.state, record.urls) == (ID, TaskState.SUCCESS, (URL,))


def test_a_delivery_of_a_failure_is_a_failed_record_and_no_error() -> None:
    record = decode_callback(delivery(501, taskId=ID, state="fail", failCode="500", failMsg="Internal Error"))
    assert (record.state, record.fail_code, record.fail_message) == (TaskState.FAIL, "500", "Internal Error")


@together("code", [400, 422, 500, 501, 531])
def test_a_failure_may_come_under_any_code_that_says_no(code: int) -> None:
    assert decode_callback(delivery(code, taskId=ID, state="fail")).state is TaskState.FAIL


@together(
    ("code", "state"),
    [(200, "fail"), (501, "success"), (500, "success"), (400, "generating"), (501, "waiting")],
)
def test_a_code_and_a_state_that_contradict_each_other_say_nothing(code: int, state: str) -> None:
    record = decode_callback(delivery(code, taskId=ID, state=state))
    assert record.state is TaskState.UNKNOWN
    assert record.raw["state"] == state


@together("code", [200, 400, 501])
@together("state", [None, "", "completed", 1])
def test_a_delivery_without_a_known_state_ends_nothing(code: int, state: object) -> None:
    assert not decode_callback(delivery(code, taskId=ID, state=state)).state.is_terminal


@together("kind", ["text", "first"])
def test_a_delivery_of_a_step_on_the_way_ends_nothing(kind: str) -> None:
    record = decode_callback(delivery(200, callbackType=kind, task_id=ID, data=[{"audio_url": ""}]))
    assert (record.task_id, record.state) == (ID, TaskState.UNKNOWN)


PLACES: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"taskId": ID}, {}),
    ({"task_id": ID}, {}),
    ({}, {"taskId": ID}),
    ({}, {"task_id": ID}),
    ({"taskId": ID, "task_id": ID}, {}),
    ({"taskId": ID}, {"taskId": ID}),
    ({"task_id": ID}, {"taskId": ID, "task_id": ID}),
    ({"taskId": None, "task_id": ID}, {"taskId": None}),
]


@together(("data", "top"), PLACES)
def test_the_id_may_stand_in_four_places(data: dict[str, object], top: dict[str, object]) -> None:
    assert decode_callback(delivery(200, top, **data)).task_id == ID


@together("data", [None, [], "x", 7])
def test_the_id_may_stand_beside_data_that_is_none(data: object) -> None:
    record = decode_callback(body(200, data, taskId=ID))
    assert (record.task_id, record.state) == (ID, TaskState.UNKNOWN)


@together(
    ("data", "top"),
    [
        ({"taskId": ID, "task_id": "other"}, {}),
        ({"taskId": ID}, {"taskId": "other"}),
        ({"task_id": ID}, {"task_id": "other"}),
        ({"taskId": ID, "task_id": ID}, {"taskId": "other"}),
        ({"taskId": ID}, {"taskId": ID.upper()}),
    ],
)
def test_ids_that_disagree_are_rejected_with_400(data: dict[str, object], top: dict[str, object]) -> None:
    with pytest.raises(CallbackRejected, match="ids disagree") as caught:
        decode_callback(delivery(200, top, **data))
    assert caught.value.status == 400


@together("bad", [7, 1.5, True, [ID], {"id": ID}, "", " ", "a.b", "../../x?y", ID + "\n", "x" * 129, "é"])
@together("place", ["data", "top", "both"])
def test_an_id_that_is_none_is_rejected_with_400(place: str, bad: object) -> None:
    data: dict[str, object] = {"taskId": ID if place == "top" else bad}
    top: dict[str, object] = {"taskId": ID if place == "data" else bad}
    with pytest.raises(CallbackRejected, match="malformed task id") as caught:
        decode_callback(delivery(200, top, **data))
    assert caught.value.status == 400


@together("text", [delivery(200), delivery(200, taskId=None), body(200), b'{"code":200}'])
def test_a_delivery_without_an_id_is_rejected_with_400(text: bytes) -> None:
    with pytest.raises(CallbackRejected, match="malformed task id"):
        decode_callback(text)


def test_a_delivery_keeps_the_mac_to_itself() -> None:
    record = decode_callback(delivery(200, taskId=ID, state="success", param=PARAM))
    assert MAC not in f"{record!r} {record.raw} {record.param}"
    assert record.param is not None
    assert record.param["input"] == {"prompt": "hi"}


# --- anything at all -----------------------------------------------------------------------------

KEYS = [
    "code",
    "msg",
    "message",
    "data",
    "task_id",
    "response",
    "paramJson",
    "failCode",
    "failMsg",
    "createTime",
]
KEYS += ["completeTime", "costTime", "creditsConsumed", "resultUrls", "callBackUrl", *RECORD, *UPLOADED]
KNOWN_KEYS = st.sampled_from(KEYS)
KNOWN_VALUES = st.sampled_from(
    [200, 408, 422, 429, 455, 500, 501, ID, URL, "success", "fail", "waiting", PARAM, ADDRESS]
)
LEAVES = KNOWN_VALUES | st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KNOWN_KEYS | st.text(), inner, max_size=5),
    max_leaves=12,
)
ENVELOPES = st.fixed_dictionaries(
    {"code": st.sampled_from([200, 501, 429, 422, "200", None]), "data": OBJECTS},
    optional={"msg": OBJECTS, "taskId": OBJECTS, "task_id": OBJECTS},
)
RECORDS = st.builds(
    lambda data: {"code": 200, "msg": "success", "data": {**data, "taskId": ID}},
    st.dictionaries(KNOWN_KEYS, OBJECTS, max_size=8),
)
BODIES = st.binary(max_size=200) | (OBJECTS | ENVELOPES | RECORDS).map(
    lambda value: json.dumps(value).encode()
)
STATUSES = st.sampled_from([200, 200, 200, 202, 301, 400, 404, 408, 429, 500, 501, 502]) | st.integers(
    100, 599
)
FUZZ = settings(max_examples=150, deadline=None)


@FUZZ
@given(text=BODIES, status=st.none() | STATUSES, sent=st.booleans(), cut=st.integers(0, 100))
def test_judging_a_create_never_raises(text: bytes, status: int | None, sent: bool, cut: int) -> None:
    response = None if status is None else WireResponse(status=status, body=text)
    whole = decode_create(response, sent=sent)
    broken = decode_create(
        response and attrs.evolve(response, body=b""), sent=sent, partial=text[: len(text) - cut]
    )
    for found in (whole, broken):
        assert isinstance(found.verdict, CreateVerdict)
        assert (found.verdict is CreateVerdict.NOT_SENT) == (not sent)
        assert found.verdict is not CreateVerdict.CREATED or TASK_ID.fullmatch(found.task_id)
        assert (found.error is not None) == (
            found.verdict in {CreateVerdict.REFUSED, CreateVerdict.HELD_BACK}
        )


@FUZZ
@given(text=BODIES, status=STATUSES)
@pytest.mark.parametrize(
    "decode", [lambda r: decode_query(r, ID), decode_credits, decode_upload, decode_answer]
)
def test_reading_an_answer_raises_only_our_own_errors(
    decode: Callable[[WireResponse], object], text: bytes, status: int
) -> None:
    with suppress(KieError):
        decode(WireResponse(status=status, body=text))


@FUZZ
@given(text=BODIES)
def test_reading_a_delivery_raises_only_a_rejection(text: bytes) -> None:
    with suppress(CallbackRejected):
        assert TASK_ID.fullmatch(decode_callback(text).task_id)


@FUZZ
@given(
    text=st.binary(max_size=60),
    before=st.sampled_from([b"", b'{"code":200,', b'{"code":200,"data":{"taskId":"']),
)
def test_bytes_behind_a_good_beginning_raise_only_our_own_errors(text: bytes, before: bytes) -> None:
    decode_create(WireResponse(status=200, body=before + text), sent=True)
    with pytest.raises(KieError):
        decode_query(WireResponse(status=200, body=before + text), ID)


def test_the_module_knows_no_clock_and_no_network() -> None:
    assert {"time", "datetime", "asyncio", "aiohttp"}.isdisjoint(vars(wire))
