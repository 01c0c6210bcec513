"""The records: frozen, by keyword, with the price and the doubt in plain sight."""

from __future__ import annotations

import json
import pickle
from typing import Any

import attrs
import pytest
from support.tables import together

from kie_async import models
from kie_async._json import decode_object
from kie_async.config import Budget, Limits, Rate
from kie_async.errors import InvalidRequest
from kie_async.events import Counters, SessionStats, Source
from kie_async.models import TaskRecord, TaskResult, TaskState, UploadedFile

REQUEST = {"model": "a/b", "callBackUrl": "https://bot.example/kie", "input": {"prompt": "héllo", "n": [1]}}

FROZEN = [
    kind
    for kind in vars(models).values()
    if isinstance(kind, type)
    and kind.__module__ == models.__name__
    and attrs.has(kind)
    and kind is not Counters
]


def record(**raw: object) -> TaskRecord:
    return TaskRecord(task_id="t1", raw=raw)


@together("kind", FROZEN)
def test_a_record_is_frozen(kind: type[Any]) -> None:
    unset = kind.__new__(kind)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(unset, attrs.fields(kind)[0].name, 1)


@together("kind", [kind for kind in FROZEN if kind is not Rate])
def test_a_record_is_made_by_keyword_only(kind: type[Any]) -> None:
    assert all(field.kw_only for field in attrs.fields(kind))


# --- what the service stored of the request ------------------------------------------------------


def test_param_is_decoded_from_a_string_in_a_string() -> None:
    stored = json.dumps({**REQUEST, "input": json.dumps(REQUEST["input"])})
    assert record(param=stored).param == REQUEST


def test_param_is_decoded_from_one_string() -> None:
    assert record(param=json.dumps(REQUEST)).param == REQUEST


def test_param_may_be_an_object_already() -> None:
    assert record(param=REQUEST).param == REQUEST


@together("empty", [None, ""])
def test_the_newer_key_serves_where_the_older_is_empty(empty: object) -> None:
    assert record(param=empty, paramJson=json.dumps(REQUEST)).param == REQUEST


@together("broken", [None, "", "{", "[]", "7", "null", 7, [], "[" * 100_000])
def test_a_param_that_cannot_be_read_is_none(broken: object) -> None:
    assert record(param=broken).param is None


def test_no_param_is_none() -> None:
    assert record().param is None


@together("inner", ["plain words", "{", None, 7, []])
def test_an_inner_input_that_is_no_object_stays_as_it_came(inner: object) -> None:
    stored = {"model": "a/b", "input": inner}
    assert record(param=json.dumps(stored)).param == stored


def test_decoding_param_changes_nothing_in_raw() -> None:
    one = record(param={"input": '{"a":1}'})
    assert one.param == {"input": {"a": 1}}
    assert one.raw == {"param": {"input": '{"a":1}'}}


@together(
    ("value", "decoded"),
    [
        ({"a": 1}, {"a": 1}),
        ('{"a":1}', {"a": 1}),
        ("[1]", None),
        ("x", None),
        ("", None),
        (None, None),
        (1, None),
    ],
)
def test_an_object_is_taken_as_it_is_or_out_of_its_text(value: object, decoded: object) -> None:
    assert decode_object(value) == decoded


# --- a record and its result ---------------------------------------------------------------------


@together(
    ("fields", "has_result"),
    [
        ({}, False),
        ({"urls": ("https://f.example/a.mp4",)}, True),
        ({"result_object": {"mask_urls": []}}, True),
        ({"result_object": {}}, False),
        ({"result_object": None}, False),
    ],
)
def test_a_record_knows_whether_there_is_anything_to_hand_out(
    fields: dict[str, Any], has_result: bool
) -> None:
    assert TaskRecord(task_id="t1", **fields).has_result is has_result


@together(
    ("state", "fields", "is_complete"),
    [
        (TaskState.UNKNOWN, {}, False),
        (TaskState.UNKNOWN, {"urls": ("https://f.example/a.mp4",)}, False),
        (TaskState.WAITING, {}, True),
        (TaskState.QUEUING, {}, True),
        (TaskState.GENERATING, {}, True),
        (TaskState.FAIL, {}, True),
        (TaskState.SUCCESS, {}, False),
        (TaskState.SUCCESS, {"result_object": {}}, False),
        (TaskState.SUCCESS, {"result_object": {"text": "hi"}}, True),
        (TaskState.SUCCESS, {"urls": ("https://f.example/a.mp4",)}, True),
    ],
)
def test_a_record_is_complete_unless_its_state_is_unknown_or_its_success_has_no_result(
    state: TaskState, fields: dict[str, Any], is_complete: bool
) -> None:
    assert TaskRecord(task_id="t1", state=state, **fields).is_complete is is_complete


def test_raw_is_neither_shown_nor_compared() -> None:
    assert "s3cret" not in repr(record(x="s3cret"))
    assert record(x=1) == record(x=2)


def test_a_record_can_stand_in_a_set_and_in_a_pickle() -> None:
    one = TaskRecord(task_id="t1", state=TaskState.SUCCESS, result_object={"a": []}, raw={"b": {}})
    assert {one} == {attrs.evolve(one)}
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301


def test_a_result_shows_what_its_record_says() -> None:
    one = TaskRecord(
        task_id="t1",
        state=TaskState.SUCCESS,
        urls=("https://f.example/a.mp4",),
        result_object={"a": 1},
        credits=88.0,
        duration_s=301.5,
    )
    result = TaskResult(record=one)
    assert (result.task_id, result.urls, result.result_object) == ("t1", one.urls, {"a": 1})
    assert (result.credits, result.duration_s) == (88.0, 301.5)


def test_an_uploaded_file_needs_only_its_url() -> None:
    assert UploadedFile(url="https://f.example/a.png").size is None


# --- limits and budget ---------------------------------------------------------------------------


def test_the_published_limits_are_the_defaults() -> None:
    assert Limits().create == Rate(20, per_s=10.0)
    assert Limits().query == Rate(10, per_s=1.0)


BAD_NUMBERS = [0, -1, float("nan"), None, "4", True]


@together("bad", BAD_NUMBERS)
def test_a_rate_refuses_what_is_not_above_zero(bad: Any) -> None:
    with pytest.raises(InvalidRequest, match="count"):
        Rate(bad, per_s=1.0)
    with pytest.raises(InvalidRequest, match="per_s"):
        Rate(1, per_s=bad)


@together("bad", [*BAD_NUMBERS, 1.5])
@together("field", ["create_connections", "query_connections"])
def test_limits_refuse_a_bad_number_of_connections(field: str, bad: Any) -> None:
    with pytest.raises(InvalidRequest, match=field):
        Limits(**{field: bad})


def test_a_rate_counts_whole_requests() -> None:
    with pytest.raises(InvalidRequest, match="count must be a whole number"):
        Rate(0.5, per_s=1.0)  # type: ignore[arg-type]


@together("bad", [bad for bad in BAD_NUMBERS if bad is not None])
@together("field", ["credits", "tasks"])
def test_a_budget_refuses_what_is_not_above_zero(field: str, bad: Any) -> None:
    with pytest.raises(InvalidRequest, match=field):
        Budget(**{field: bad})


def test_a_budget_may_leave_either_open() -> None:
    assert Budget() == Budget(credits=None, tasks=None)
    assert Budget(credits=0.5).credits == 0.5


def test_a_budget_counts_whole_tasks() -> None:
    with pytest.raises(InvalidRequest, match="tasks must be a whole number"):
        Budget(tasks=1.5)  # type: ignore[arg-type]


# --- counts --------------------------------------------------------------------------------------


def test_a_snapshot_has_every_count() -> None:
    counters = Counters(creates=3, queries=9, settled_by_callback=2, credits_consumed=176.0)
    counters.reject("wrong signature")
    counters.reject("wrong signature")
    counters.reject("wrong address")
    assert counters.snapshot(in_flight=1, queued=4) == SessionStats(
        creates=3,
        queries=9,
        settled_by_callback=2,
        credits_consumed=176.0,
        callbacks_rejected={"wrong signature": 2, "wrong address": 1},
        in_flight=1,
        queued=4,
    )


def test_a_snapshot_stays_as_it_was_taken() -> None:
    counters = Counters()
    before = counters.snapshot(in_flight=0, queued=0)
    counters.creates += 1
    counters.reject("stale timestamp")
    assert before == SessionStats()


def test_a_snapshot_can_be_logged_as_json_and_pickled() -> None:
    counters = Counters()
    counters.reject("wrong address")
    stats = counters.snapshot(in_flight=2, queued=0)
    assert json.loads(json.dumps(attrs.asdict(stats)))["callbacks_rejected"] == {"wrong address": 1}
    assert pickle.loads(pickle.dumps(stats)) == stats  # noqa: S301


def test_a_task_counts_for_the_side_that_settled_it_and_with_its_price() -> None:
    counters = Counters()
    counters.settle(record(), Source.POLL)
    counters.settle(TaskRecord(task_id="t1", credits=88.0), Source.CALLBACK)
    counters.settle(TaskRecord(task_id="t2", credits=0.5), Source.POLL)
    assert (counters.settled_by_callback, counters.settled_by_poll) == (1, 2)
    assert counters.credits_consumed == 88.5


def test_every_running_count_is_in_the_snapshot() -> None:
    counts = {field.name for field in attrs.fields(Counters)}
    assert counts | {"in_flight", "queued"} == {field.name for field in attrs.fields(SessionStats)}
