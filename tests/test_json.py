"""JSON is read strictly and within bounds, and written so that every reader accepts it."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tables import together

from kie_async import _json
from kie_async._json import MAX_JSON_BYTES, MAX_RECORD_BYTES, NotJson, parse_json, salvage_json, write_json

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@pytest.fixture(params=["stdlib", "orjson"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read with the standard library alone, and with orjson before it."""
    orjson = pytest.importorskip("orjson") if request.param == "orjson" else None
    monkeypatch.setattr(_json, "_orjson", orjson)


HOSTILE = {
    "empty": b"",
    "blank": b"  ",
    "html": b"<html>502</html>",
    "cut off": b'{"code":200,"data":{"taskId":"a',
    "two values": b"{}{}",
    "trailing comma": b"[1,]",
    "single quotes": b"{'a':1}",
    "nan": b'{"a":NaN}',
    "infinity": b'{"a":Infinity}',
    "minus infinity": b'{"a":-Infinity}',
    "float overflow": b'{"a":1e999}',
    "negative float overflow": b'{"a":-1e999}',
    "long integer": b'{"a":' + b"9" * 5000 + b"}",
    "long negative integer": b'{"a":-' + b"9" * 5000 + b"}",
    "key twice": b'{"a":1,"a":1}',
    "key twice, spelled differently": b'{"a":1,"\\u0061":2}',
    "key twice, deep inside": b'{"x":[{"a":1,"a":2}]}',
    "lone high surrogate": b'{"a":"\\ud800"}',
    "lone low surrogate": b'{"a":"\\udc00"}',
    "lone surrogate as key": b'{"\\ud800":1}',
    "surrogates in wrong order": b'"\\udc00\\ud800"',
    "deep list": b"[" * 100_000,
    "deep closed list": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "invalid utf-8": b'{"a":"\xff"}',
    "encoded surrogate": b'{"a":"\xed\xa0\x80"}',
    "overlong utf-8": b'{"a":"\xc0\xaf"}',
    "utf-16": '{"a":1}'.encode("utf-16"),
    "nul": b'{"a":"\x00"}',
    "only nul": b"\x00",
    "raw newline in text": b'{"a":"\n"}',
    "five megabytes": b"x" * 5_000_000,
    "five megabytes of json": b'"' + b"x" * 5_000_000 + b'"',
}


@pytest.mark.usefixtures("reader")
@together("text", HOSTILE.values())
def test_what_readers_could_read_differently_is_refused(text: bytes) -> None:
    with pytest.raises(NotJson):
        parse_json(text)


@pytest.mark.usefixtures("reader")
@together("text", HOSTILE.values())
def test_a_refusal_is_quick_and_short(text: bytes) -> None:
    started = time.process_time()
    with pytest.raises(NotJson) as caught:
        parse_json(text)
    assert time.process_time() - started < 0.5
    assert len(str(caught.value)) <= 200


READABLE = {name: text for name, text in HOSTILE.items() if b"\xff" not in text and b"\xc0" not in text}


@pytest.mark.usefixtures("reader")
@together("text", READABLE.values())
def test_text_is_refused_where_its_bytes_are(text: bytes) -> None:
    with pytest.raises(NotJson):
        parse_json(text.decode("utf-8", "surrogatepass"))


@pytest.mark.usefixtures("reader")
def test_half_a_surrogate_pair_in_text_is_refused() -> None:
    with pytest.raises(NotJson, match="unicode"):
        parse_json('"\ud800"')


@pytest.mark.usefixtures("reader")
@together(
    ("text", "value"),
    [
        (b"null", None),
        (b"[1,-2,3.5,true]", [1, -2, 3.5, True]),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b' {"a" : 1}\r\n', {"a": 1}),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\u0000"', "\x00"),
        ('{"a":"ü"}', {"a": "ü"}),
        ("9" * 400, int("9" * 400)),
        (b"1e308", 1e308),
        (b"-0.0", -0.0),
        (b"-0", 0),
        (b"18446744073709551615", 2**64 - 1),
        (b"18446744073709551616", 2**64),
        (b"-9223372036854775809", -(2**63) - 1),
        (b"9007199254740993.0", 9007199254740992.0),
        (b"1e-999", 0.0),
    ],
)
def test_json_is_read(text: bytes | str, value: object) -> None:
    assert repr(parse_json(text)) == repr(value)


@pytest.mark.usefixtures("reader")
def test_an_integer_has_at_most_400_digits() -> None:
    with pytest.raises(NotJson, match="too long"):
        parse_json("9" * 401)


def test_the_bound_is_a_mebibyte() -> None:
    assert MAX_JSON_BYTES == 1024 * 1024


@pytest.mark.usefixtures("reader")
def test_the_bound_is_on_bytes() -> None:
    assert parse_json(b'"' + b"x" * (MAX_JSON_BYTES - 2) + b'"')
    with pytest.raises(NotJson, match="more than"):
        parse_json(b'"' + b"x" * (MAX_JSON_BYTES - 1) + b'"')
    with pytest.raises(NotJson, match="more than"):
        parse_json('"' + "ü" * (MAX_JSON_BYTES // 2) + '"')


def test_moderate_nesting_is_read() -> None:
    assert parse_json(b"[" * 100 + b"]" * 100)


SALVAGED: list[tuple[bytes, object, tuple[str, ...]]] = [
    (b'{"a":1}', {"a": 1}, ()),
    (b" [1] ", [1], ()),
    (b'{"a":NaN,"b":1}', {"b": 1}, ("a number that is none",)),
    (b'{"a":[1,-Infinity,2]}', {"a": [1, 2]}, ("a number that is none",)),
    (b'{"a":{"b":1e999}}', {"a": {}}, ("an endless number",)),
    (b'{"a":' + b"9" * 401 + b"}", {}, ("an endless number",)),
    (b'{"a":"\xffx"}', {"a": "x"}, ("bytes that are no UTF-8",)),
    (b'{"a":"x\xe4\xb8"}', {"a": "x"}, ("bytes that are no UTF-8",)),
    (b'{"a":"\x00x\x01"}', {"a": "x"}, ("control characters",)),
    (b'{"a":"x"}\x00', {"a": "x"}, ("control characters",)),
    (b'{"a":"\\ud83dx"}', {"a": "x"}, ("halves of characters",)),
    (b'{"\\ud83dx":["\\udc00"]}', {"x": [""]}, ("halves of characters",)),
    (b'{"a":1,"a":2,"b":3}', {"b": 3}, ("a key with two values",)),
    (b'{"a":1,"a":1}', {"a": 1}, ()),
    (b'{"a":1,"a":2,"a":1}', {}, ("a key with two values",)),
    (b'{"a":1}<!-- cached -->', {"a": 1}, ("text behind the object",)),
    (b'{"a":"it\\\'s \\x41 \\u12 \\\\x"}', {"a": "it's x41 u12 \\x"}, ("escapes that are none",)),
    (b'{"a":"C:\\Users","b":"\\"\\n"}', {"a": "C:Users", "b": '"\n'}, ("escapes that are none",)),
    (b'{"a":[1,2, ],"b":",]",}', {"a": [1, 2], "b": ",]"}, ("a comma too many",)),
    (b")]}',\n" + b'{"a":1}', {"a": 1}, ()),
    (b'{"a":"\n"}', {"a": "\n"}, ()),
    (b'{"a":NaN,"b":"\xff"}', {"b": ""}, ("a number that is none", "bytes that are no UTF-8")),
]


@pytest.mark.usefixtures("reader")
@together(("text", "value", "losses"), SALVAGED)
def test_what_is_not_broken_is_salvaged(text: bytes, value: object, losses: tuple[str, ...]) -> None:
    assert salvage_json(text) == (value, losses)


@together(
    "text",
    [
        b"",
        b"<html>502</html>",
        b'<html>{"a":1}</html>',
        b'{"a":1',
        b'{"a":1}{"a":2}',
        b'{"a":1}[2]',
        b"{'a':1}",
        b"NaN",
        b'"half \\ud83d"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"NaN" + b"]" * 100_000,
        b"\x00" * 100,
    ],
)
def test_what_holds_no_one_object_is_not_salvaged(text: bytes) -> None:
    with pytest.raises(NotJson) as caught:
        salvage_json(text)
    assert len(str(caught.value)) <= 200


def test_salvage_is_bounded_too() -> None:
    large = b'{"a":"' + b"x" * (MAX_RECORD_BYTES - 8)
    assert salvage_json(large + b'"}')[1] == ()
    with pytest.raises(NotJson, match="more than"):
        salvage_json(large + b'x"}')


@given(value=JSON)
def test_what_is_whole_is_salvaged_whole(value: object) -> None:
    assert salvage_json(write_json(value)) == (value, ())


@given(text=st.binary(max_size=200) | st.text(max_size=200))
def test_reading_anything_ends_in_a_value_or_in_not_json(text: bytes | str) -> None:
    try:
        parse_json(text)
    except NotJson:
        return


SCRAPS = [
    *'{}[]:,"\\/ \t\n0123456789-+.eE',
    "\ufeff",
    "\x00",
    "9" * 19,
    "9" * 20,
    "9" * 401,
    "[" * 300,
    "]" * 300,
]
SCRAPS += ['"a":', '"a" :', "null", "true", "NaN", "-Infinity", "1e400", "ü"]
SCRAPS += ["\\ud83d", "\\ude00", "\\u0061", "\\n"]
SPELLINGS = st.builds(
    lambda value, escaped, gap: json.dumps(value, ensure_ascii=escaped, separators=("," + gap, ":" + gap)),
    JSON,
    st.booleans(),
    st.sampled_from(["", " ", "\n"]),
)
SPOILT = st.builds(
    lambda text, at, scrap, cut: text[: at % (len(text) + 1)] + scrap + text[at % (len(text) + 1) + cut :],
    SPELLINGS,
    st.integers(0, 10_000),
    st.sampled_from(SCRAPS),
    st.integers(0, 3),
)


@given(text=st.binary(max_size=200) | st.text(max_size=200) | SPOILT)
def test_salvaging_anything_ends_in_what_json_can_hold_or_in_not_json(text: bytes | str) -> None:
    try:
        value, _ = salvage_json(text)
    except NotJson:
        return
    write_json(value)


def outcome(text: bytes | str, orjson: object) -> str:
    """Return the value to the last sign of a zero, or the words of the refusal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_json, "_orjson", orjson)
        try:
            return repr(parse_json(text))
        except NotJson as exc:
            return f"refused: {exc}"


@given(
    text=st.binary(max_size=100)
    | st.lists(st.sampled_from(SCRAPS), max_size=12).map("".join)
    | SPELLINGS
    | SPOILT
    | SPOILT.map(lambda text: text.encode()),
)
def test_with_orjson_everything_reads_as_without(text: bytes | str) -> None:
    assert outcome(text, pytest.importorskip("orjson")) == outcome(text, None)


@given(value=JSON)
def test_what_is_written_reads_back(value: object) -> None:
    assert parse_json(write_json(value)) == value


def test_writing_is_compact_utf_8() -> None:
    assert write_json({"a": [1, "ü"], "b": None}) == '{"a":[1,"ü"],"b":null}'.encode()


def test_order_and_empty_values_are_kept() -> None:
    assert (
        write_json({"z": "", "a": False, "m": 0, "n": None, "e": {}})
        == b'{"z":"","a":false,"m":0,"n":null,"e":{}}'
    )


def circular() -> list[object]:
    circle: list[object] = []
    circle.append(circle)
    return circle


@together(
    "value",
    [
        float("nan"),
        float("inf"),
        "\ud800",
        {"\ud800": 1},
        {1, 2},
        b"bytes",
        object(),
        circular(),
        10**5000,
        {(1,): 1},
    ],
)
def test_what_has_no_json_form_is_refused(value: object) -> None:
    with pytest.raises(NotJson):
        write_json(value)


def test_what_is_nested_too_deeply_is_refused() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(NotJson):
        write_json(value)


def test_the_standard_library_agrees_on_what_is_read() -> None:
    text = b'{"code":200,"msg":"success","data":{"taskId":"a","n":[1,2.5,null,true,"\\u00fc"]}}'
    assert parse_json(text) == json.loads(text)
