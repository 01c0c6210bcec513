"""Every argument is checked where it is given, by name, before anything is sent."""

from __future__ import annotations

import datetime
import decimal
import io
import math
import uuid
from pathlib import Path
from typing import Any

import pytest
from conftest import OpenSession
from support.tables import together

from kie_async import (
    Budget,
    CallbackReceiver,
    InvalidRequest,
    KieSession,
    KlingAvatar,
    Limits,
    PollSchedule,
    Rate,
    Sandbox,
    SqliteJournal,
    TaskRecord,
    TaskRequest,
    TaskResult,
)

HOOKED, URL = "https://a.org/kie", "https://a.org/a"


@together(
    ("name", "value"),
    [
        ("api_key", b"k"),
        ("api_key", 5),
        ("base_url", Path("/kie")),
        ("upload_url", b"https://a.org"),
        ("callback_url", Path("/kie")),
        ("receiver", CallbackReceiver),
        ("receiver", True),
        ("journal", b"run.db"),
        ("journal", 5),
        ("journal", ""),
        ("journal", " "),
        ("journal", "a\0b"),
        ("max_in_flight", "5"),
        ("max_in_flight", None),
        ("limits", {"create": 5}),
        ("limits", None),
        ("limits", Limits),
        ("poll", 3),
        ("poll", PollSchedule),
        ("task_timeout_s", None),
        ("task_timeout_s", datetime.timedelta(seconds=5)),
        ("task_timeout_s", decimal.Decimal(5)),
        ("budget", 500),
        ("budget", Budget),
        ("confirm_callbacks", "yes"),
        ("confirm_callbacks", 1),
        ("account", 5),
        ("account", b"work"),
        ("account", ""),
        ("account", " "),
        ("account", "\udc80"),
        ("callback_secrets", 5),
        ("callback_secrets", "secret"),
        ("callback_secrets", [5]),
        ("allow_insecure_callbacks", "no"),
        ("network", {"proxy": "http://p:1"}),
        ("network", "http://p:1"),
        ("network", None),
        ("on_event", 5),
        ("rng", 7),
    ],
)
def test_an_argument_of_a_session_is_refused_by_name(name: str, value: object) -> None:
    needed = {"callback_url": HOOKED} if name == "receiver" else {}
    with pytest.raises(InvalidRequest, match=name):
        KieSession(**({"api_key": "k"} | needed | {name: value}))  # type: ignore[arg-type]


@together(
    ("make", "words"),
    [
        (lambda: Limits(create=(20, 10)), "create must be a Rate"),  # type: ignore[arg-type]
        (lambda: Limits(query=None), "query must be a Rate"),  # type: ignore[arg-type]
        (lambda: Limits(create_connections="4"), "create_connections"),  # type: ignore[arg-type]
        (lambda: Rate("20", per_s=10), "count"),  # type: ignore[arg-type]
        (lambda: Budget(credits="500"), "credits"),  # type: ignore[arg-type]
        (lambda: Budget(tasks=1.5), "tasks"),  # type: ignore[arg-type]
        (lambda: PollSchedule(learns="yes"), "learns"),  # type: ignore[arg-type]
        (lambda: PollSchedule(tiers=5), "tiers"),  # type: ignore[arg-type]
        (lambda: PollSchedule(tiers=(5,)), "tiers"),  # type: ignore[arg-type]
        (lambda: PollSchedule(tiers=(("a", "b"),)), "tiers"),  # type: ignore[arg-type]
        (lambda: PollSchedule(recheck_s=5), "recheck_s"),  # type: ignore[arg-type]
        (lambda: PollSchedule(recheck_s=("a",)), "recheck_s"),  # type: ignore[arg-type]
        (lambda: PollSchedule(jitter="a"), "jitter"),  # type: ignore[arg-type]
        (lambda: PollSchedule(wait_share=None), "wait_share"),  # type: ignore[arg-type]
        (lambda: PollSchedule(tiers=iter([(math.inf, 5.0)])), "tiers"),  # type: ignore[arg-type]
        (lambda: PollSchedule(wait_s=10**400), "wait_s"),
        (lambda: PollSchedule.fixed("5"), "interval_s"),  # type: ignore[arg-type]
        (lambda: PollSchedule.fixed(5, jitter="a"), "jitter"),  # type: ignore[arg-type]
    ],
)
def test_a_field_of_a_setting_is_refused_by_name(make: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make()


@together(
    ("make", "words"),
    [
        (lambda: CallbackReceiver(tolerance_s="5"), "tolerance_s"),  # type: ignore[arg-type]
        (lambda: CallbackReceiver(tolerance_s=None), "tolerance_s"),  # type: ignore[arg-type]
        (lambda: CallbackReceiver(max_body=None), "max_body"),  # type: ignore[arg-type]
        (lambda: CallbackReceiver(max_body=1.5), "max_body"),  # type: ignore[arg-type]
        (lambda: CallbackReceiver(now=5), "now"),  # type: ignore[arg-type]
        (lambda: CallbackReceiver().routes(None), "path"),  # type: ignore[arg-type]
        (lambda: CallbackReceiver().routes("/kie?code=1"), "path"),
        (lambda: CallbackReceiver().routes("https://a.org/kie"), "path"),
        (lambda: CallbackReceiver().routes("/{kie}"), "path"),
        (lambda: CallbackReceiver().serve(host=5), "host"),  # type: ignore[arg-type]
        (lambda: CallbackReceiver().serve(port="80"), "port"),  # type: ignore[arg-type]
        (lambda: CallbackReceiver().serve(port=65_536), "port"),
        (lambda: CallbackReceiver().serve(path=b"/kie"), "path"),  # type: ignore[arg-type]
        (lambda: CallbackReceiver().serve(path="/k ie"), "path"),
        (lambda: SqliteJournal(None), "path"),  # type: ignore[arg-type]
        (lambda: SqliteJournal(b"run.db"), "path"),  # type: ignore[arg-type]
        (lambda: SqliteJournal("run.db", keep_bodies="yes"), "keep_bodies"),  # type: ignore[arg-type]
        (lambda: KlingAvatar(image_url=io.StringIO(), audio_url=URL), "image_url: a file"),  # type: ignore[arg-type]
        (lambda: KlingAvatar(image_url=URL, audio_url=io.StringIO()), "audio_url: a file"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_what_a_session_is_given_is_refused_by_name(make: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make()


@together(
    ("given", "word"),
    [
        ((None, {}, b"{}"), "path_tail"),
        ((b"a/b", {}, b"{}"), "path_tail"),
        (("a/b", None, b"{}"), "headers"),
        (("a/b", {}, "{}"), "body"),
        (("a/b", {}, None), "body"),
    ],
)
async def test_an_argument_of_feed_is_refused_by_name(given: Any, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        await CallbackReceiver().feed(*given)


RESULT = TaskResult(record=TaskRecord(task_id="t"))
CALLS: dict[str, tuple[Any, str]] = {
    "create of a dict": (lambda kie: kie.create({"model": "a"}), "request"),
    "create of a list": (lambda kie: kie.create("a/b", [1]), "input"),
    "create of a text": (lambda kie: kie.create("a/b", "x"), "input"),
    "create with a number as ref": (lambda kie: kie.create("a/b", {}, ref=5), "ref"),
    "create with a text as time": (lambda kie: kie.create("a/b", {}, timeout_s="5"), "timeout_s"),
    "create with an endless number as time": (
        lambda kie: kie.create("a/b", {}, timeout_s=10**400),
        "timeout_s",
    ),
    "attach of a number": (lambda kie: kie.attach(123), "task_id"),
    "attach with a text as time": (lambda kie: kie.attach("t", timeout_s="5"), "timeout_s"),
    "query of None": (lambda kie: kie.query(None), "task_id"),
    "upload of None": (lambda kie: kie.upload(None), "file"),
    "upload of a list": (lambda kie: kie.upload(["a.png"]), "file"),
    "upload of a number": (lambda kie: kie.upload(5), "file"),
    "download of a text": (lambda kie: kie.download("https://a.org/v.mp4", "x"), "result"),
    "download of a handle": (lambda kie: kie.download(kie.attach("t"), "x"), "result"),
    "download to None": (lambda kie: kie.download(RESULT, None), "folder"),
    "download to half a character": (lambda kie: kie.download(RESULT, "\ud83d"), "folder"),
    "upload of a stream of text": (lambda kie: kie.upload(io.StringIO()), "file"),
    "download to a number": (lambda kie: kie.download(RESULT, 5), "folder"),
    "batch of None": (lambda kie: kie.batch(None), "requests"),
    "batch of one request": (lambda kie: kie.batch(TaskRequest(model="a/b", input={})), "requests"),
    "batch of a function": (lambda kie: kie.batch(kie.credits), "requests"),
    "batch to a number": (lambda kie: kie.batch([], download_to=5), "download_to"),
    "batch to nowhere": (lambda kie: kie.batch([], download_to=""), "download_to"),
    "waiting for a text": (lambda kie: kie.attach("t").result(timeout_s="5"), "timeout_s"),
    "waiting for a nan": (lambda kie: kie.attach("t").result(timeout_s=float("nan")), "timeout_s"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_an_argument_of_a_call_is_refused_by_name(
    name: str, sandbox: Sandbox, open_session: OpenSession
) -> None:
    kie = await open_session()
    call, word = CALLS[name]

    async def make() -> None:
        await call(kie)

    with pytest.raises(InvalidRequest, match=word):
        await make()
    assert not sandbox.counts["create.bodies"]
    assert not sandbox.counts["upload"]


# --- what an input may hold ------------------------------------------------------------------------

UNFIT: list[tuple[Any, str]] = [
    ({"x": float("nan")}, r"input\.x has no JSON form: it is nan"),
    ({"x": float("inf")}, r"input\.x has no JSON form: it is inf"),
    ({"x": decimal.Decimal("0.5")}, r"input\.x has no JSON form: it is of type Decimal"),
    ({"x": {1, 2}}, r"input\.x has no JSON form: it is of type set"),
    ({"x": datetime.date(2026, 1, 1)}, r"input\.x has no JSON form: it is of type date"),
    ({"x": uuid.UUID(int=0)}, r"input\.x has no JSON form: it is of type UUID"),
    ({"x": "\ud800"}, r"input\.x has no JSON form: it holds half a character"),
    ({"x": 10**5000}, r"input\.x has no JSON form: the number is too long"),
    (
        {"frames": [1, 2, 3, {"url": {1}}]},
        r"input\.frames\[3\]\.url has no JSON form: it is of type set",
    ),
    ({"a": {"b": ({"c": [float("nan")]},)}}, r"input\.a\.b\[0\]\.c\[0\] has no JSON form"),
    ({"a": {(1, 2): 3}}, r"input\.a has no JSON form: its keys must be text, one is tuple"),
]


@together(("given", "words"), UNFIT)
def test_what_has_no_json_form_is_named_by_its_path_when_it_is_given(given: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        TaskRequest(model="a/b", input=given)


async def test_it_is_named_before_a_file_beside_it_is_uploaded(kie: KieSession, sandbox: Sandbox) -> None:
    with pytest.raises(InvalidRequest, match=r"input\.x has no JSON form"):
        await kie.create("sandbox/echo", {"image_url": Path(__file__), "x": float("nan")})
    assert not sandbox.counts["upload"]


@together("given", [{"x": None, "y": True, "z": [1, 2.5, ("a", {})]}, {"x": {1: "its key becomes text"}}])
def test_what_has_one_passes(given: Any) -> None:
    assert TaskRequest(model="a/b", input=given).input
