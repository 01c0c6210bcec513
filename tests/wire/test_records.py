"""A record of the service in every shape it was documented or seen, read into one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.tables import together

from kie_async.models import TaskRecord, TaskState
from kie_async.wire.records import decode_record, read_result, read_state_word
from kie_async.wire.values import clean_text, is_url, read_code, read_number, read_text, read_time

URL, OTHER_URL = "https://tempfile.example/a.mp4", "https://tempfile.example/b.mp4"
PARAM = json.dumps({"model": "kling/v1-avatar-standard", "input": json.dumps({"prompt": ""})})
RESULT = json.dumps({"resultUrls": [URL]})
CREATED_MS, COMPLETED_MS = 1_755_599_634_000, 1_755_599_644_500
CREATED = datetime(2025, 8, 19, 10, 33, 54, tzinfo=UTC)

ADDRESS = "https://bot.example/kie/0123456789abcdef0123456789abcdef/abcdefghijklmnopqrstuvwx23"


def decoded(**data: object) -> TaskRecord:
    return decode_record({"taskId": "t1", **data})


# --- the key sets of each generation -------------------------------------------------------------

OF_2025_CALLBACK = {
    "completeTime": COMPLETED_MS,
    "consumeCredits": 100,
    "costTime": 8,
    "createTime": CREATED_MS,
    "model": "kling/v1-avatar-standard",
    "param": PARAM,
    "remainedCredits": 2_510_330,
    "resultJson": RESULT,
    "state": "success",
    "taskId": "t1",
    "updateTime": COMPLETED_MS,
}
OF_SPRING_2026 = {
    "taskId": "t1",
    "model": "kling/v1-avatar-standard",
    "state": "success",
    "param": PARAM,
    "resultJson": RESULT,
    "failCode": None,
    "failMsg": None,
    "costTime": 10,
    "completeTime": COMPLETED_MS,
    "createTime": CREATED_MS,
}
OF_AUGUST_2026 = {**OF_SPRING_2026, "creditsConsumed": 88.0}
OF_AUTUMN_2026 = {
    **OF_AUGUST_2026,
    "operationType": "kling/v1-avatar-standard",
    "successFlag": 1,
    "paramJson": PARAM,
    "response": {"resultUrls": [URL]},
}
GENERATIONS = {
    "2025 callback": OF_2025_CALLBACK,
    "spring 2026": OF_SPRING_2026,
    "august 2026": OF_AUGUST_2026,
    "autumn 2026": OF_AUTUMN_2026,
}


@together("data", GENERATIONS.values())
def test_every_generation_reads_alike(data: dict[str, object]) -> None:
    record = decode_record(data)
    assert (record.task_id, record.model, record.state) == (
        "t1",
        "kling/v1-avatar-standard",
        TaskState.SUCCESS,
    )
    assert record.urls == (URL,)
    assert record.result_object is None
    assert (record.fail_code, record.fail_message) == ("", "")
    assert record.created_at == CREATED
    assert record.duration_s == 10.5
    assert record.param == {"model": "kling/v1-avatar-standard", "input": {"prompt": ""}}


def test_a_2025_callback_tells_the_balance_and_the_update() -> None:
    record = decode_record(OF_2025_CALLBACK)
    assert (record.credits, record.remaining_credits) == (100.0, 2_510_330.0)
    assert record.updated_at == record.completed_at


def test_a_pending_record_is_mostly_empty() -> None:
    record = decoded(
        state="waiting",
        param=PARAM,
        resultJson="",
        failCode=None,
        failMsg=None,
        costTime=None,
        completeTime=None,
        createTime=CREATED_MS,
        creditsConsumed=70.0,
        successFlag=0,
    )
    assert record.state is TaskState.WAITING
    assert not record.has_result
    assert (record.completed_at, record.duration_s) == (None, None)
    assert record.credits == 70.0


def test_the_shortest_documented_failure_is_a_failure() -> None:
    record = decoded(
        state="fail", failCode="GENERATION_FAILED", failMsg="Internal Error, Please try again later."
    )
    assert record.state is TaskState.FAIL
    assert (record.fail_code, record.fail_message) == (
        "GENERATION_FAILED",
        "Internal Error, Please try again later.",
    )
    assert (record.credits, record.created_at, record.duration_s) == (None, None, None)


def test_a_failure_gives_the_credits_back() -> None:
    assert decoded(state="fail", failCode="400", costTime=89, creditsConsumed=0).credits == 0.0


def test_an_empty_record_has_no_id_and_no_state() -> None:
    assert decode_record({}) == TaskRecord(task_id="")


@together("key", ["taskId", "task_id"])
def test_the_id_has_two_names(key: str) -> None:
    assert decode_record({key: "t1"}).task_id == "t1"


def test_the_operation_stands_in_for_a_missing_model() -> None:
    assert decoded(operationType="a/b").model == "a/b"
    assert decoded(operationType="a/b", model="c/d").model == "c/d"


def test_all_that_came_is_kept_in_raw() -> None:
    data = {**OF_AUTUMN_2026, "progress": 50, "newKey": {"a": [1]}, "failMsg": "one\ntwo"}
    assert decode_record(data).raw == data


# --- states --------------------------------------------------------------------------------------


@together("word", ["waiting", "queuing", "generating", "completed", "", None, 1, {}])
def test_any_state_but_the_two_last_is_still_running(word: object) -> None:
    assert not decoded(state=word).state.is_terminal


def test_an_unknown_state_is_kept() -> None:
    record = decoded(state="dreaming")
    assert record.state is TaskState.UNKNOWN
    assert read_state_word(record.raw) == "dreaming"


RESULTS_OF = {"resultJson": RESULT, "resultUrls": [URL], "response": {"resultUrls": [URL]}}
S, F, R = TaskState.SUCCESS, TaskState.FAIL, TaskState.UNKNOWN


@together(
    ("state", "more", "end"),
    [
        # words of other families, with what belongs to them
        *(
            (word, {"resultJson": RESULT}, S)
            for word in (
                "completed",
                "COMPLETE",
                "succeeded",
                "successful",
                "done",
                "finished",
                "ready",
                "ok",
            )
        ),
        *(("completed", {key: value}, S) for key, value in RESULTS_OF.items()),
        ("CALLBACK_EXCEPTION", {"response": {"sunoData": [{"audioUrl": URL}]}}, S),
        *(
            (word, {"failMsg": "no"}, F)
            for word in ("failed", "FAILED", "failure", "error", "timeout", "timed out")
        ),
        *(
            (word, {"errorMessage": "no"}, F)
            for word in ("CREATE_TASK_FAILED", "generate-failed", "SENSITIVE_WORD_ERROR")
        ),
        ("failed", {"failCode": 500}, F),
        ("failed", {"error": {"message": "no", "code": 7}}, F),
        *(("failed", {name: "no"}, F) for name in ("errMsg", "failureReason", "fail_reason", "detail")),
        *(("failed", {"errors": errors}, F) for errors in (["no"], [{"detail": "no"}])),
        *((word, {}, F) for word in ("cancelled", "canceled")),
        # the flag speaks where the word is not known
        *((word, {"successFlag": 1}, S) for word in (None, "", "rendering", 7)),
        *((word, {"successFlag": flag}, F) for word in (None, "rendering") for flag in (2, 3, "2", "3")),
        *((None, {"successFlag": flag}, S) for flag in ("1", 1.0, "SUCCESS")),
        (None, {"success_flag": 1}, S),
        (None, {"successFlag": "CREATE_TASK_FAILED", "errorMessage": "no"}, F),
        *((None, {"successFlag": flag}, R) for flag in ("0", "PENDING")),
        # another key
        *((None, {key: "success"}, S) for key in ("status", "taskStatus", "task_status")),
        ("", {"status": "FAIL"}, F),
        (None, {"status": "completed", "resultJson": RESULT}, S),
        # no end
        ("completed", {}, R),
        ("failed", {}, R),
        ("rendering", {"resultJson": RESULT, "failMsg": "no", "successFlag": 0}, R),
        ("TEXT_SUCCESS", {"response": {"sunoData": [{"audioUrl": URL}]}}, R),
        ("generating", {"successFlag": 1}, TaskState.GENERATING),
        ("success", {"successFlag": 3}, S),
        (None, {"successFlag": True}, R),
        (None, {"status": 200, "resultJson": RESULT}, R),
        (None, {}, R),
    ],
)
def test_an_end_is_known_by_what_belongs_to_one(
    state: object, more: dict[str, object], end: TaskState
) -> None:
    assert decoded(state=state, **more).state is end


@together(
    "key", ["resultUrls", "resultUrl", "result_urls", "video_url", "videoUrl", "audio_url", "resultImageUrl"]
)
def test_a_record_may_hold_its_result_itself(key: str) -> None:
    assert decoded(state="success", **{key: URL}).urls == (URL,)


@together("key", ["image_url", "url", "callBackUrl", "sourceUrl", "originImageUrl", "firstFrameUrl"])
def test_other_addresses_in_a_record_are_no_result(key: str) -> None:
    assert decoded(state="success", **{key: URL}).urls == ()


@together("key", ["info", "resultInfo", "videoInfo", "output", "data"])
@together("inner", ["resultUrls", "videoUrl", "result_urls"])
def test_a_result_may_lie_where_older_families_keep_it(key: str, inner: str) -> None:
    record = decoded(state="success", resultJson="", **{key: {inner: [URL], "progress": 1}})
    assert record.urls == (URL,)


@together("key", ["id", "recordId"])
def test_an_id_may_have_other_names_if_it_has_no_usual_one(key: str) -> None:
    assert decode_record({key: "t1"}).task_id == "t1"
    assert decode_record({key: "r1", "taskId": "t1"}).task_id == "t1"
    assert decode_record({key: "r1", "task_id": "t1"}).task_id == "t1"


# --- failures ------------------------------------------------------------------------------------


@together(
    ("code", "text"),
    [(None, ""), ("", ""), ("500", "500"), (500, "500"), ("GENERATION_FAILED", "GENERATION_FAILED")],
)
def test_a_fail_code_is_text(code: object, text: str) -> None:
    assert decoded(state="fail", failCode=code).fail_code == text


@together("code", [[], {}, True])
def test_a_fail_code_that_is_no_word_and_no_number_is_none(code: object) -> None:
    assert decoded(state="fail", failCode=code).fail_code == ""


@together(
    ("more", "code", "words"),
    [
        ({"failCode": "", "failMsg": None, "errorCode": 451, "errorMessage": "no image"}, "451", "no image"),
        ({"fail_code": "400", "fail_msg": "no"}, "400", "no"),
        ({"error_code": 1, "error_message": "no"}, "1", "no"),
        ({"errorMsg": "no"}, "", "no"),
        ({"error": "no"}, "", "no"),
        ({"error": {"code": 5, "message": "no"}}, "", "no"),
        ({"failReason": "no"}, "", "no"),
        ({"msg": "no"}, "", "no"),
        ({"failMsg": "no", "errorMessage": "other"}, "", "no"),
    ],
)
def test_code_and_words_of_a_failure_have_many_names(more: dict[str, object], code: str, words: str) -> None:
    record = decoded(state="fail", **more)
    assert (record.fail_code, record.fail_message) == (code, words)


def test_words_of_a_success_are_no_failure() -> None:
    record = decoded(
        state="success", resultJson=RESULT, errorCode=0, errorMessage="", message="success", msg="ok"
    )
    assert (record.fail_code, record.fail_message) == ("", "")


def test_a_fail_message_cannot_forge_a_log_line() -> None:
    record = decoded(state="fail", failMsg="blocked\r\n[FATAL]\x1b[31m paid twice\u2028end")
    assert record.fail_message == "blocked [FATAL] [31m paid twice end"


def test_a_fail_message_is_bounded_and_raw_has_all_of_it() -> None:
    record = decoded(state="fail", failMsg="x" * 100_000)
    assert len(record.fail_message) == 500
    assert record.raw["failMsg"] == "x" * 100_000


# --- results -------------------------------------------------------------------------------------

MUSIC = [
    {"audio_url": URL, "stream_audio_url": "https://s.example/a", "duration": 120.5, "title": "A"},
    {"audio_url": OTHER_URL, "title": "B"},
]
RESULTS: list[tuple[object, tuple[str, ...], object]] = [
    # what came, the URLs in it, what else it holds: ... stands for all of it
    (RESULT, (URL,), None),
    ({"resultUrls": [URL]}, (URL,), None),
    ({"resultUrls": [URL, OTHER_URL]}, (URL, OTHER_URL), None),
    (json.dumps({"resultUrls": URL}), (URL,), None),
    (json.dumps([URL, OTHER_URL]), (URL, OTHER_URL), None),
    ([URL], (URL,), None),
    (json.dumps(URL), (URL,), None),
    (URL, (URL,), None),
    ({"resultUrls": [f"\0{URL} \n\0"]}, (URL,), None),
    ({"fullResultUrls": [URL], "originUrls": [OTHER_URL], "resultUrls": []}, (URL,), ...),
    ({"originUrls": [URL], "resultUrls": []}, (URL,), ...),
    ({"resultUrls": [URL], "firstFrameUrl": ["https://f.example/1"]}, (URL,), ...),
    ({"resultUrls": [URL], "lastFrameUrl": ["https://f.example/2"]}, (URL,), ...),
    ({"resultUrls": [URL], "resultWaterMarkUrls": ["https://w.example/1"]}, (URL,), ...),
    ({"resultObject": {"mask_urls": ["https://m.example/1"]}}, (), {"mask_urls": ["https://m.example/1"]}),
    ({"resultObject": {"subject_status": 1}, "resultUrls": [URL]}, (URL,), {"subject_status": 1}),
    ({"code": 200, "data": MUSIC}, (URL, OTHER_URL), ...),
    ({"code": 200, "msg": "success", "data": []}, (), None),
    ({"data": [1, None, {"title": "x"}]}, (), ...),
    ({"choices": [{"message": {"content": "hi"}}]}, (), ...),
    ({"content": "hi"}, (), ...),
    ({"isAvailable": True}, (), ...),
    ({"resultUrls": []}, (), None),
    ({"resultUrls": None}, (), None),
    ({"resultUrls": [None, 1, "", "ftp://f.example/x", URL]}, (URL,), None),
    ({"resultUrls": ["ftp://f.example/x"]}, (), None),
    ({"resultUrls": {"a": URL}}, (), None),
    ({"resultObject": {}, "resultUrls": []}, (), None),
    ({"resultObject": None}, (), None),
    ({"resultObject": ["https://m.example/1"]}, (), ...),
    ({}, (), None),
    ("", (), None),
    (None, (), None),
    ("null", (), None),
    ("7", (), None),
    (7, (), None),
    (True, (), None),
    ("{}", (), None),
    ("[]", (), None),
    ('{"resultUrls":["https://tempfile', (), None),
    ("Once upon a time", (), {"text": "Once upon a time"}),
    (json.dumps("Once upon a time"), (), {"text": "Once upon a time"}),
    ("NaN", (), None),
    ("1e999", (), None),
    ('{"resultUrls":["' + URL + '"],"a":NaN}', (URL,), None),
    ('{"resultUrls":["' + URL + '"],"text":"\\ud83d half"}', (URL,), {"resultUrls": [URL], "text": " half"}),
    # the same, spelled otherwise
    (json.dumps(RESULT), (URL,), None),
    (json.dumps(json.dumps(RESULT)), (URL,), None),
    ({"resultUrls": json.dumps([URL, OTHER_URL])}, (URL, OTHER_URL), None),
    ({"resultUrls": [json.dumps([URL])]}, (URL,), None),
    ({"resultUrls": [{"url": URL}, {"url": OTHER_URL}]}, (URL, OTHER_URL), None),
    ({"resultUrls": [f" {URL}\n"]}, (URL,), None),
    ({"resultUrls": [f"\ufeff{URL}\u200b"]}, (URL,), None),
    *(({"resultUrls": f"{URL}{gap}{OTHER_URL}"}, (URL, OTHER_URL), None) for gap in (",", ", ", "\n", ";")),
    ({"resultUrls": f"{URL}?next={OTHER_URL}"}, (f"{URL}?next={OTHER_URL}",), None),
    *(({"resultUrls": [{name: URL}]}, (URL,), None) for name in ("href", "src", "uri", "link")),
    ({"resultUrls": [URL.replace("https", "HTTPS")]}, (URL,), None),
    ({"resultUrls": [f'"{URL}"']}, (URL,), None),
    # under the names of the families that moved here
    ({"resultUrl": URL}, (URL,), None),
    ({"result_urls": [URL]}, (URL,), None),
    ({"resultImageUrl": URL, "originImageUrl": OTHER_URL}, (URL,), ...),
    ({"resultVideoUrl": URL, "resultImageUrl": OTHER_URL}, (URL,), ...),
    ({"videoInfo": {"videoUrl": URL, "imageUrl": OTHER_URL}}, (URL,), None),
    (
        {"sunoData": [{"audioUrl": URL, "imageUrl": OTHER_URL}, {"audioUrl": OTHER_URL}]},
        (URL, OTHER_URL),
        None,
    ),
    ({"data": {"video_url": URL, "image_url": OTHER_URL}}, (URL,), None),
    ({"data": [{"audio_url": "", "stream_audio_url": URL, "image_url": OTHER_URL}]}, (URL,), None),
    ({"audioWavUrl": URL}, (URL,), None),
    ({"images": [{"url": URL}, {"url": OTHER_URL}]}, (URL, OTHER_URL), None),
    ({"info": {"result_urls": [URL]}}, (URL,), None),
    ({"image_url": OTHER_URL, "video_url": URL}, (URL,), ...),
    ({"mask_urls": [URL]}, (), ...),
    ({"data": {"data": {"data": {"data": {"data": {"data": {"data": URL}}}}}}}, (), ...),
    ('{"resultUrls":["\\ud800"]}', (), None),
    ('{"resultUrls":[],"resultUrls":["' + URL + '"]}', (), None),
    ("[" * 100_000, (), None),
    ('{"a":' + "9" * 5000 + "}", (), None),
    ("\x00", (), None),
    (URL + "\n" + OTHER_URL, (URL, OTHER_URL), None),
    (URL + "\nand words", (), {"text": URL + "\nand words"}),
]


@together("key", ["resultJson", "response"])
@together(("value", "urls", "rest"), RESULTS)
def test_a_result_is_read_from_any_shape(
    key: str, value: object, urls: tuple[str, ...], rest: object
) -> None:
    record = decoded(state="success", **{key: value})
    assert record.urls == urls
    assert record.result_object == (value if rest is ... else rest)
    assert record.raw[key] == value


def test_the_same_result_is_read_from_text_as_from_an_object() -> None:
    for value, urls, rest in RESULTS:
        if isinstance(value, dict):
            expected = (urls, value if rest is ... else rest)
            assert read_result({"resultJson": json.dumps(value)}) == expected


@together("empty", ["", None, "{", "{}", '{"resultUrls":[]}'])
def test_the_mirror_serves_where_the_older_key_is_empty(empty: object) -> None:
    assert decoded(resultJson=empty, response={"resultUrls": [URL]}).urls == (URL,)


def test_the_older_key_wins_over_its_mirror() -> None:
    assert decoded(resultJson=RESULT, response={"resultUrls": [OTHER_URL]}).urls == (URL,)


def test_a_success_with_nothing_in_it_is_seen_to_have_no_result() -> None:
    record = decoded(state="success", resultJson='{"resultUrls":[]}')
    assert record.state is TaskState.SUCCESS
    assert not record.has_result


# --- credits -------------------------------------------------------------------------------------


@together("key", ["creditsConsumed", "consumeCredits", "credits_consumed", "consume_credits"])
@together(("value", "credits"), [(88, 88.0), (0.02, 0.02), (0, 0.0), ("1.23", 1.23), (None, None)])
def test_credits_have_four_names(key: str, value: object, credits: float | None) -> None:
    assert decoded(**{key: value}).credits == credits


@together("key", ["remainedCredits", "remainingCredits"])
def test_the_balance_has_two_names(key: str) -> None:
    assert decoded(**{key: 60.62}).remaining_credits == 60.62


@together("value", [True, [], {}, "many", "", "nan", "inf", 10**399])
def test_credits_that_are_no_number_are_none(value: object) -> None:
    assert decoded(creditsConsumed=value).credits is None


def test_a_null_under_the_newer_name_leaves_the_older_one() -> None:
    assert decoded(creditsConsumed=None, consumeCredits=100).credits == 100.0


def test_a_price_of_zero_is_not_taken_for_a_missing_one() -> None:
    assert decoded(creditsConsumed=0.0, consumeCredits=100).credits == 0.0


# --- times ---------------------------------------------------------------------------------------

MOMENT = datetime(2009, 2, 13, 23, 31, 30, tzinfo=UTC)


@together(
    ("value", "moment"),
    [
        (1_234_567_890, MOMENT),
        (1_234_567_890_000, MOMENT),
        (1_234_567_890_000.0, MOMENT),
        ("1234567890", MOMENT),
        ("1234567890000", MOMENT),
        (1_755_599_634_123, datetime(2025, 8, 19, 10, 33, 54, 123000, tzinfo=UTC)),
        (0, None),
        ("0", None),
        (None, None),
        (-1, None),
        ("", None),
        ("yesterday", None),
        ("2025-08-19T10:33:54Z", None),
        (True, None),
        ([], None),
        ({}, None),
        (1e300, None),
        (10**399, None),
        (1_755_599_634_000_000, None),
        ("nan", None),
    ],
)
def test_a_time_is_milliseconds_or_seconds(value: object, moment: datetime | None) -> None:
    assert read_time(value) == moment


@together("key", ["createTime", "updateTime", "completeTime"])
def test_a_time_is_aware_and_in_utc(key: str) -> None:
    record = decoded(**{key: CREATED_MS})
    moment = record.created_at or record.updated_at or record.completed_at
    assert moment == CREATED
    assert moment is not None
    assert moment.tzinfo is UTC


@together("cost", [8, 8000, 10_500, 0, None, "8"])
def test_the_duration_is_what_lies_between_the_times(cost: object) -> None:
    record = decoded(createTime=CREATED_MS, completeTime=COMPLETED_MS, costTime=cost)
    assert record.duration_s == 10.5


@together(
    ("cost", "duration_s"),
    [
        (8, 8.0),
        (0, 0.0),
        (785, 785.0),
        (9_999, 9_999.0),
        (15_000, 15.0),
        (785_000, 785.0),
        ("8", 8.0),
        (None, None),
        (-1, None),
        ("soon", None),
        ([], None),
    ],
)
def test_without_both_times_the_cost_is_seconds_or_milliseconds(
    cost: object, duration_s: float | None
) -> None:
    assert decoded(costTime=cost).duration_s == duration_s
    assert decoded(costTime=cost, createTime=CREATED_MS).duration_s == duration_s


def test_a_completion_before_the_creation_does_not_count() -> None:
    record = decoded(createTime=COMPLETED_MS, completeTime=CREATED_MS, costTime=8)
    assert record.duration_s == 8.0


def test_a_completion_at_the_creation_took_no_time() -> None:
    assert decoded(createTime=CREATED_MS, completeTime=CREATED_MS).duration_s == 0.0


# --- the small readers ---------------------------------------------------------------------------


@together(
    ("value", "code"),
    [
        (200, 200),
        (0, 0),
        (-1, -1),
        ("200", 200),
        ("000200", 200),
        (999_999, 999_999),
        (1_000_000, None),
        ("1000000", None),
        ("", None),
        ("-1", None),
        ("２００", None),
        ("200 ", None),
        (200.0, None),
        (True, None),
        (None, None),
        ([200], None),
        (10**300, None),
    ],
)
def test_a_code_is_a_whole_number(value: object, code: int | None) -> None:
    assert read_code(value) == code


@together(
    ("value", "text"), [("a", "a"), (5, "5"), (1.5, "1.5"), (True, ""), (None, ""), ([], ""), ({"a": 1}, "")]
)
def test_text_is_words_and_numbers(value: object, text: str) -> None:
    assert read_text(value) == text


@together("character", ["\x00", "\x1b", "\n", "\r", "\t", "\x7f", "\x85", "\x9b", "\u2028", "\u2029"])
def test_a_message_is_one_line_without_control_characters(character: str) -> None:
    assert clean_text(f"a{character}b") == "a b"


@given(text=st.text(st.characters(), max_size=2000))
def test_any_message_is_one_short_line(text: str) -> None:
    assert len(clean_text(text)) <= 500
    assert len(clean_text(text).splitlines()) <= 1


@together(
    ("value", "number"),
    [
        (1, 1.0),
        (1.5, 1.5),
        ("1.5", 1.5),
        (0, 0.0),
        (True, None),
        (None, None),
        ("x", None),
        ("", None),
        ([], None),
    ],
)
def test_a_number_is_finite(value: object, number: float | None) -> None:
    assert read_number(value) == number


@together(
    ("value", "is_one"),
    [
        (URL, True),
        ("http://f.example/a", True),
        ("ftp://f.example/a", False),
        ("//f.example/a", False),
        ("file:///etc/passwd", False),
        ("javascript:alert(1)", False),
        (URL + "\n" + OTHER_URL, False),
        (URL + "\x00", False),
        (" " + URL, False),
        ("", False),
        (None, False),
        ([URL], False),
    ],
)
def test_a_result_url_is_http_in_one_line(value: object, is_one: bool) -> None:
    assert is_url(value) is is_one


# --- anything at all -----------------------------------------------------------------------------

KEYS = sorted({*OF_2025_CALLBACK, *OF_AUTUMN_2026, "task_id", "callBackUrl", "resultObject"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just(ADDRESS),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(data=st.dictionaries(st.sampled_from(KEYS) | st.text(), JSON, max_size=12))
def test_any_object_is_some_record(data: dict[str, Any]) -> None:
    record = decode_record(data)
    assert isinstance(record.state, TaskState)
    assert all(isinstance(url, str) for url in record.urls)
    assert record.raw.keys() == data.keys()
    assert hash(record) == hash(decode_record(data))
    assert repr(record)
