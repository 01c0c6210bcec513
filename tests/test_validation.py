"""What a user gives is checked at the door, and the message names the field."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tables import together

from kie_async._validation import (
    above_zero,
    check_above_zero,
    check_callback_url,
    check_count,
    check_journal_path,
    check_origin,
    check_task_id,
    check_url,
    is_loopback,
    read_key,
    whole_above_zero,
)
from kie_async.errors import InvalidRequest


@attrs.frozen(kw_only=True)
class Settings:
    wait_s: float = attrs.field(default=1.0, validator=above_zero)
    stop_s: float | None = attrs.field(default=None, validator=above_zero)
    count: int = attrs.field(default=1, validator=whole_above_zero)
    most: int | None = attrs.field(default=None, validator=whole_above_zero)


NOT_ABOVE_ZERO = [0, -1, 0.0, -0.5, float("nan"), float("-inf"), True, False, "4", b"4", [], object()]


@together("value", [1, 0.001, 10**9, float("inf")])
def test_a_number_above_zero_passes(value: float) -> None:
    check_above_zero("wait_s", value)
    assert Settings(wait_s=value, stop_s=value).wait_s == value


@together("value", [*NOT_ABOVE_ZERO, None])
def test_a_number_that_is_not_above_zero_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidRequest, match="wait_s must be a number above zero"):
        check_above_zero("wait_s", value)


@together("value", NOT_ABOVE_ZERO)
@together("name", ["wait_s", "stop_s", "count", "most"])
def test_a_field_refuses_what_is_not_above_zero(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]


@together("name", ["stop_s", "most"])
def test_none_passes_where_it_is_the_default(name: str) -> None:
    assert getattr(Settings(**{name: None}), name) is None  # type: ignore[arg-type]


@together("name", ["wait_s", "count"])
def test_none_is_refused_where_a_number_is_needed(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        Settings(**{name: None})  # type: ignore[arg-type]


@together("value", [0.5, 2.5, 3.0, float("inf")])
@together("name", ["count", "most"])
def test_a_count_is_a_whole_number(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} must be a whole number"):
        Settings(**{name: value})  # type: ignore[arg-type]


@together("value", [1, 2, 10**9])
def test_a_count_of_at_least_one_passes(value: int) -> None:
    check_count("max_in_flight", value)


@together("value", [*NOT_ABOVE_ZERO, None, 0.5, 1.0, float("inf")])
def test_a_count_below_one_or_in_parts_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="max_in_flight must be a whole number of at least 1"):
        check_count("max_in_flight", value)


@together(
    "url",
    [
        "https://files.example/face.png",
        "http://files.example/face.png",
        "HTTPS://FILES.EXAMPLE/x",
        "https://files.example:8443/x?sig=1#part",
        "https://[2001:db8::1]/x",
        "https://пример.example/ü",
        "https://files.example/mail@home",
    ],
)
def test_an_absolute_web_address_passes(url: str) -> None:
    check_url("image_url", url)


@together(
    "url",
    [
        "",
        "face.png",
        "/face.png",
        "//files.example/x",
        "ftp://files.example/x",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "https://",
        "https:///x",
        "https://:443/x",
        "https://files.example:99999/x",
        "https://files.example:port/x",
        "https://[::1/x",
        "https://files.example/a b",
        "https://files.example/a\nb",
        "https://files.example/a\x00b",
        "https://files.example/a\x7fb",
        " https://files.example/",
        "https://user@files.example/",
        "https://user:secret@files.example/",
        "https://@files.example/",
        None,
        1,
        b"https://files.example/x",
    ],
)
def test_anything_else_is_refused_by_name(url: object) -> None:
    with pytest.raises(InvalidRequest, match="image_url"):
        check_url("image_url", url)


@together(
    "url",
    [
        "https://files.example/a b?token=s3cret",
        "ftp://files.example/x?token=s3cret",
        "https://[::1/x?token=s3cret",
        "https://user:s3cret@files.example/",
        "https://user:s3cret@files.example/a b",
        "ftp://user:s3cret@files.example/",
        "https://user:s3cret@files.example:99999/",
    ],
)
def test_a_refusal_shows_no_secret_of_the_url(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_url("image_url", url)
    assert "s3cret" not in str(caught.value)


@together(
    ("url", "shown"),
    [
        ("ftp://files.example/x?token=1", "'ftp://files.example/x'"),
        ("ftp://user:pw@files.example/x", "'ftp://***@files.example/x'"),
        ("ftp://user:p/w@files.example/x", "'ftp://***@files.example/x'"),
        ("ftp://user:p?w@files.example/x", "'ftp://***@'"),
        ("user:pw@files.example/x", "'***@files.example/x'"),
        ("x" * 100, "'" + "x" * 80 + "'"),
        (7, "int"),
        (None, "NoneType"),
    ],
)
def test_a_refusal_shows_what_was_given(url: object, shown: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_url("image_url", url)
    assert str(caught.value).endswith((f", got {shown}", f"is not a URL: {shown}"))


def test_a_refusal_shows_a_long_url_only_in_part() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_url("image_url", "x" * 100_000)
    assert len(str(caught.value)) < 200


@given(url=st.text(max_size=60))
def test_any_text_is_a_url_or_is_refused(url: str) -> None:
    try:
        check_url("image_url", url)
    except InvalidRequest:
        return
    assert url.lower().startswith(("http://", "https://"))


@together(
    ("url", "is_local"),
    [
        ("http://localhost:80", True),
        ("http://127.0.0.1:8080/x", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:80", True),
        ("http://0.0.0.0", False),
        ("http://10.0.0.1", False),
        ("https://api.kie.ai", False),
        ("http://localhost.example", False),
        ("http:///x", False),
    ],
)
def test_loopback_is_this_machine(url: str, is_local: bool) -> None:
    assert is_loopback(url) is is_local


@together(
    ("url", "origin"),
    [
        ("https://api.kie.ai", "https://api.kie.ai"),
        ("https://api.kie.ai/", "https://api.kie.ai"),
        ("https://proxy.example/kie/", "https://proxy.example/kie"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost:8080/", "http://localhost:8080"),
        ("HTTPS://api.kie.ai", "https://api.kie.ai"),
        ("https://API.Kie.AI", "https://api.kie.ai"),
        ("https://api.kie.ai:443", "https://api.kie.ai"),
        ("https://api.kie.ai.:443/", "https://api.kie.ai"),
        ("https://api.kie.ai:8443", "https://api.kie.ai:8443"),
        ("https://api.kie.ai//", "https://api.kie.ai"),
        ("https://api.kie.ai/api/v1", "https://api.kie.ai"),
        ("https://api.kie.ai/api/v1/", "https://api.kie.ai"),
        ("https://api.kie.ai/api/v1/jobs", "https://api.kie.ai"),
        ("https://api.kie.ai/api/v1/jobs/createTask", "https://api.kie.ai"),
        ("https://gw.example/Kie/api/v1", "https://gw.example/Kie"),
        ("https://gw.example/api/v10", "https://gw.example/api/v10"),
        ("https://[2001:DB8::1]:443/x", "https://[2001:db8::1]/x"),
        ("http://localhost:80", "http://localhost"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_origin_has_one_form_and_is_https_or_this_machine(url: str, origin: str) -> None:
    assert check_origin("base_url", url) == origin


@together(
    ("url", "is_taken"),
    [
        ("http://sandbox:8800", True),
        ("http://SANDBOX.:8800", True),
        ("http://192.168.1.5:8800", True),
        ("http://[fd00::1]:8800", True),
        ("http://sandbox.example:8800", False),
        ("http://192.168.1.50:8800", False),
        ("http://host.docker.internal:8800", False),
    ],
)
def test_plain_http_goes_to_hosts_that_were_named(url: str, is_taken: bool) -> None:
    with nullcontext() if is_taken else pytest.raises(InvalidRequest, match="allow_http_to"):
        check_origin("base_url", url, http_hosts=("sandbox", "192.168.1.5", "fd00::1"))


@together("url", ["http://api.kie.ai", "http://10.0.0.1", "ftp://localhost", "api.kie.ai", ""])
def test_the_key_is_never_sent_in_the_clear(url: str) -> None:
    with pytest.raises(InvalidRequest, match="base_url"):
        check_origin("base_url", url)


@together("url", ["https://api.kie.ai?x=1", "https://api.kie.ai/#a", "https://api.kie.ai/?"])
def test_nothing_may_stand_behind_an_origin(url: str) -> None:
    with pytest.raises(InvalidRequest, match="base_url must have no query"):
        check_origin("base_url", url)


@together("url", ["https://bot.example.org/kie", "https://8.8.8.8/kie", "https://a.b:8443/kie"])
def test_a_public_https_callback_url_passes(url: str) -> None:
    assert check_callback_url(url, allow_insecure=False) == url
    assert check_callback_url(url + "/", allow_insecure=False) == url


@together(
    ("url", "checked"),
    [
        ("https://a.example/kie?code=1", "https://a.example/kie?code=1"),
        ("https://a.example/kie/?code=1", "https://a.example/kie?code=1"),
        ("https://a.example/?x=a/b/", "https://a.example?x=a/b/"),
        ("https://a.example/kie?", "https://a.example/kie"),
        ("https://a.example/kie//", "https://a.example/kie"),
    ],
)
def test_a_callback_url_may_have_a_query(url: str, checked: str) -> None:
    assert check_callback_url(url, allow_insecure=False) == checked


PRIVATE = [
    "http://bot.example.org/kie",
    "https://localhost/kie",
    "https://bot/kie",
    "https://bot.local/kie",
    "https://bot.local./kie",
    "https://bot./kie",
    "https://bot.internal/kie",
    "https://bot.lan/kie",
    "https://a.localhost/kie",
    "https://127.0.0.1/kie",
    "https://10.0.0.1/kie",
    "https://192.168.1.1/kie",
    "https://169.254.169.254/kie",
    "https://[::1]/kie",
    "https://[fe80::1]/kie",
]


@together("url", PRIVATE)
def test_a_callback_url_the_service_cannot_reach_safely_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="callback_url must be https on a public host"):
        check_callback_url(url, allow_insecure=False)


@together("url", PRIVATE)
def test_it_passes_when_the_user_allows_it(url: str) -> None:
    assert check_callback_url(url, allow_insecure=True) == url


@together(
    "url",
    [
        "https://a.example/kie#x",
        "https://a.example/kie?x=1#y",
        "https://a.example/#",
        "https://u:p@a.example/",
    ],
)
@together("allow_insecure", [True, False])
def test_a_callback_url_has_no_fragment_and_no_password(url: str, allow_insecure: bool) -> None:
    with pytest.raises(InvalidRequest, match="callback_url"):
        check_callback_url(url, allow_insecure=allow_insecure)


@together("task_id", ["t", "task_kling_1765185996677", "x" * 128])
def test_an_id_of_the_service_passes(task_id: str) -> None:
    check_task_id(task_id)


@together("task_id", ["", "a.b", "../../x?y", "a\n", "x" * 129, None, 7, b"t"])
def test_what_is_no_id_of_the_service_is_refused(task_id: object) -> None:
    with pytest.raises(InvalidRequest, match="task_id"):
        check_task_id(task_id)


def test_a_key_that_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_API_KEY", "from-the-environment")
    assert read_key("given") == "given"
    assert read_key(None) == "from-the-environment"


@together("given", [" key\n", '"key"', "'key'", ' " key " ', "\u201ckey\u201d", "`key`"])
def test_blanks_and_quotes_around_a_key_are_a_slip_of_copying(given: str) -> None:
    assert read_key(given) == "key"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIE_API_KEY", given)
        assert read_key(None) == "key"


@together("key", [b"key", 7, ["key"]])
def test_a_key_is_text(key: Any) -> None:
    with pytest.raises(InvalidRequest, match="api_key must be text"):
        read_key(key)


def test_a_key_of_the_environment_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_API_KEY", "s3cret key")
    with pytest.raises(InvalidRequest, match=r"^KIE_API_KEY holds characters"):
        read_key(None)


@together("key", ["", "  "])
def test_a_blank_key_is_missing(key: str) -> None:
    with pytest.raises(InvalidRequest, match="api_key is missing"):
        read_key(key)


def test_no_key_anywhere_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIE_API_KEY", raising=False)
    with pytest.raises(InvalidRequest, match="KIE_API_KEY"):
        read_key(None)


@together("key", ["s3cret key", "s3cret\nX-Evil: 1", "s3cret\x00", "s3crét", "s3cret\x7f"])
def test_a_key_that_could_break_a_header_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_key(key)
    assert "s3cr" not in str(caught.value)


@pytest.mark.parametrize(
    "given", ["postgresql+asyncpg://kie:PASS@db/app", "host=db password=PASS", "kie:PASS@db/app"]
)
def test_an_address_of_another_form_is_no_journal_and_is_not_shown(given: str) -> None:
    with pytest.raises(InvalidRequest, match="the address of a database") as caught:
        check_journal_path(given)
    assert "PASS" not in str(caught.value)


@pytest.mark.parametrize(
    "given", ["run.db", "C:/jobs/run.db", "C:\\jobs\\run.db", "./a b/host.db", "/tmp/user@host/run.db"]
)
def test_a_path_is_no_address_of_a_database(given: str) -> None:
    check_journal_path(given)


def test_a_long_row_of_quotes_is_no_address_of_a_database_and_soon_judged() -> None:
    check_journal_path("'" * 100_000)
