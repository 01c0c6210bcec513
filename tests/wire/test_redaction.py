"""No text of the service keeps a secret: the key, webhook keys and macs are cut out, in any spelling."""

from __future__ import annotations

import json
import pickle
import re
import time
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote, unquote

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tables import together

from kie_async._secrets import Secret
from kie_async.errors import ApiError
from kie_async.models import TaskRecord
from kie_async.wire.create_answers import decode_create
from kie_async.wire.envelope import Envelope, WireResponse, decode_answer, read_envelope
from kie_async.wire.redaction import MACS_ONLY, Redactor, without_mac
from kie_async.wire.responses import decode_callback, decode_confirmation, decode_query, decode_upload

INTENT, MAC = "0123456789abcdef0123456789abcdef", "abcdefghijklmnopqrstuvwx23"
ADDRESS = f"https://bot.example/kie/{INTENT}/{MAC}"
KEY, HMAC_KEY = 'kie-canary/key"1\\2', "вебхук-key-😀"
SECRETS = Redactor([Secret(KEY), Secret(HMAC_KEY), Secret("short"), Secret(b"\xff" * 32)])


def answer(data: object = None, *, code: int = 200, msg: str = "success", status: int = 200) -> WireResponse:
    body = json.dumps({"code": code, "msg": msg, "data": data}).encode()
    return WireResponse(status=status, body=body, redactor=SECRETS)


def decoded(**data: object) -> TaskRecord:
    return decode_query(answer({"taskId": "t1", **data}), "t1")


# --- every way to spell a text in JSON -----------------------------------------------------------


def escaped(text: str) -> str:
    """Return a text as JSON that escapes every character."""
    units = text.encode("utf-16-be").hex()
    return '"' + "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)) + '"'


def nested(text: str, depth: int) -> str:
    """Return JSON text in JSON text."""
    for _ in range(depth):
        text = json.dumps({"inner": text})
    return text


SPELLINGS = {
    "as it is": lambda text: text,
    "json": json.dumps,
    "json in utf-8": lambda text: json.dumps(text, ensure_ascii=False),
    "slashes escaped": lambda text: json.dumps(text).replace("/", "\\/"),
    "slashes as code points": lambda text: json.dumps(text).replace("/", "\\u002f"),
    "slashes as code points, upper case": lambda text: json.dumps(text).replace("/", "\\u002F"),
    "all escaped": escaped,
    "all escaped, upper case": lambda text: escaped(text).upper().replace("\\U", "\\u"),
    "in words": lambda text: f"callBackUrl {text} cannot be reached",
}


def variants(secret: str) -> list[str]:
    return [nested(spell(secret), depth) for spell in SPELLINGS.values() for depth in range(4)]


def unfolded(text: str) -> str:
    """Return everything that reading a text again and again as JSON yields."""
    shown = [text]
    while shown[-1] and len(shown) < 10:
        try:
            value = json.loads(shown[-1])
        except ValueError:
            break
        shown.append(value["inner"] if isinstance(value, dict) else str(value))
    return "\n".join(shown)


@together("text", variants(KEY) + variants(HMAC_KEY) + variants(f"Bearer {KEY}"))
def test_a_key_is_cut_out_however_it_is_spelled(text: str) -> None:
    shown = unfolded(SECRETS.text(text))
    assert KEY not in shown
    assert HMAC_KEY not in shown
    assert "***" in shown


ENCODED = {
    "hex": lambda data: data.hex(),
    "hex, upper case": lambda data: data.hex().upper(),
    "base64": lambda data: b64encode(data).decode(),
    "base64 of a URL": lambda data: urlsafe_b64encode(data).decode(),
}


@together(
    "text",
    [
        encode(before.encode() + key.encode() + after.encode())
        for encode in ENCODED.values()
        for key in (KEY, HMAC_KEY)
        for before in ("", "u", "u:", "Bearer ")
        for after in ("", "!", "!!", " and more")
    ],
)
def test_a_key_is_cut_out_of_hex_and_base64(text: str) -> None:
    shown = SECRETS.text(f"Authorization: {text}")
    assert "***" in shown
    assert len(shown) < len("Authorization: ***") + len(text) - len(KEY)  # but for what stood around it


def test_a_no_that_echoes_a_key_in_base64_does_not_show_it() -> None:
    echo = b64encode(KEY.encode()).decode()
    with pytest.raises(ApiError) as caught:
        decode_query(answer({"seen": [echo]}, code=401, msg=f"bad Authorization {echo}"), "t1")
    assert "bad Authorization ***" in str(caught.value)
    assert echo[:16] not in repr(caught.value)


PERCENTS = {
    "reserved characters": lambda text: quote(text, safe=""),
    "reserved characters, lower case": lambda text: re.sub(
        "%..", lambda found: found[0].lower(), quote(text, safe="")
    ),
    "every byte": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
}


@together(
    "text",
    [f"https://x.example/?key={spell(key)}&a=%20" for spell in PERCENTS.values() for key in (KEY, HMAC_KEY)],
)
def test_a_key_is_cut_out_of_a_url(text: str) -> None:
    shown = SECRETS.text(text)
    assert KEY not in unquote(shown)
    assert HMAC_KEY not in unquote(shown)
    assert shown == "https://x.example/?key=***&a=%20"


@together("text", variants(ADDRESS) + variants(ADDRESS + "/") + variants(ADDRESS + "?v=1"))
def test_a_mac_is_cut_out_however_it_is_spelled(text: str) -> None:
    shown = unfolded(MACS_ONLY.text(text))
    assert MAC not in shown
    assert "***" in shown


@together(
    "text", [ADDRESS.replace("/", "%2F"), ADDRESS.replace("/", "%2f"), f"{INTENT}/{MAC}", f"({ADDRESS})"]
)
def test_a_mac_is_known_by_its_form_alone(text: str) -> None:
    assert MACS_ONLY.text(text) == text.replace(MAC, "***")


@together(
    "url",
    [
        f"https://files.example/{INTENT}/{MAC}.mp4",
        f"https://files.example/{INTENT}/{MAC}_1/a.mp4",
        f"https://files.example/{INTENT}/{MAC}a",
        f"https://files.example/{INTENT}/{INTENT}.mp4",
        "https://files.example/e989621f54392584b05867f87b160672/abcdefabcdefabcdefabcdefabcdefab.mp4",
        f"https://files.example/{INTENT[:-1]}/{MAC}",
        f"https://files.example/{INTENT}/video.mp4",
    ],
)
def test_the_address_of_a_result_is_left_alone(url: str) -> None:
    assert decoded(state="success", resultJson=json.dumps({"resultUrls": [url]})).urls == (url,)


def test_a_short_secret_is_not_cut_out_of_words_that_contain_it() -> None:
    assert SECRETS.text("a shortcut") == "a shortcut"


@given(text=st.text(st.characters(), max_size=300))
def test_a_text_without_secrets_stays(text: str) -> None:
    assert SECRETS.text(text) == text


@given(
    before=st.text(st.sampled_from('a/\\u0"%'), max_size=30),
    after=st.text(st.sampled_from(' /\\"'), max_size=30),
)
def test_whatever_stands_around_a_secret_it_is_cut_out(before: str, after: str) -> None:
    assert KEY not in SECRETS.text(before + KEY + after)
    assert MAC not in SECRETS.text(f"{before}{INTENT}/{MAC}{after}")


def test_keys_of_objects_and_lists_are_cleaned_too() -> None:
    tree = {KEY: [{ADDRESS: KEY}, ADDRESS, 7, None]}
    assert SECRETS.tree(tree) == {
        "***": [{ADDRESS.replace(MAC, "***"): "***"}, ADDRESS.replace(MAC, "***"), 7, None]
    }


def test_a_redactor_shows_nothing_and_is_not_pickled() -> None:
    assert KEY not in f"{SECRETS!r} {SECRETS}"
    assert KEY not in repr(answer())


# --- an answer as a whole ------------------------------------------------------------------------

PLAIN_KEY = "kie-canary-key-12"
PLAIN_SECRETS = Redactor([Secret(PLAIN_KEY), Secret("вебхук-ключ")])
"""Of secrets that JSON has to escape nothing in."""

_pieces = st.sampled_from(
    [
        *(KEY, HMAC_KEY, PLAIN_KEY, "вебхук-ключ", ADDRESS, f"{INTENT}%2F{MAC}", f"{INTENT}/{MAC}.mp4"),
        *(INTENT, MAC, "/", "\\", '"', "\n", "%", "\\u0061", "a", " ", "ü"),
        *(json.dumps(ADDRESS).replace("/", "\\/"), escaped(ADDRESS), escaped(PLAIN_KEY), json.dumps(KEY)),
    ]
)
_texts = st.lists(_pieces, max_size=6).map("".join)
_values = st.recursive(
    _texts | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=6
)


@together("redactor", [MACS_ONLY, SECRETS, PLAIN_SECRETS])
@given(data=st.dictionaries(_texts, _values, max_size=4), is_ascii=st.booleans(), escapes=st.booleans())
def test_an_answer_keeps_what_a_walk_through_all_its_texts_keeps(
    redactor: Redactor, data: dict[str, object], is_ascii: bool, escapes: bool
) -> None:
    text = json.dumps({"code": 200, "data": data}, ensure_ascii=is_ascii)
    body = (text.replace("/", "\\/") if escapes else text).encode()
    found = read_envelope(body, redactor, is_own=True)
    assert isinstance(found, Envelope)
    assert found.data == redactor.tree(data)


@together("secret", [PLAIN_KEY, ADDRESS])
@together("stray", [b"\x01", b"\xff"])
def test_a_secret_that_only_mending_makes_whole_is_cut_out(secret: str, stray: bytes) -> None:
    broken = secret[:-5].encode() + stray + secret[-5:].encode()
    body = b'{"code":200,"data":{"taskId":"t1","state":"fail","failMsg":"bad %s"}}' % broken
    record = decode_query(WireResponse(status=200, body=body, redactor=PLAIN_SECRETS), "t1")
    assert PLAIN_KEY not in everything_of(record)
    assert MAC not in everything_of(record)
    assert "***" in record.fail_message


# --- nothing that is decoded keeps one -----------------------------------------------------------

ECHO = f"bad key {KEY}, webhook key {HMAC_KEY}, callback {ADDRESS}"


def assert_clean(shown: str) -> None:
    for secret in (KEY, HMAC_KEY, MAC, json.dumps(KEY)[1:-1], json.dumps(HMAC_KEY)[1:-1]):
        assert secret not in shown


@together("code", [400, 401, 402, 404, 408, 422, 429, 433, 455, 500, 501])
def test_no_error_keeps_a_secret(code: int) -> None:
    with pytest.raises(ApiError) as caught:
        decode_answer(answer(code=code, msg=ECHO))
    assert_clean(f"{caught.value} {caught.value.args!r} {pickle.dumps(caught.value).decode('latin-1')}")
    assert "bad key ***" in str(caught.value)


@together("code", [401, 422, 429, 500])
def test_no_refusal_of_a_create_keeps_a_secret(code: int) -> None:
    found = decode_create(answer(code=code, msg=ECHO), sent=True)
    assert_clean(f"{found} {found.error} {found.error!r}")


def test_a_secret_at_the_edge_of_what_is_shown_is_not_cut_in_two() -> None:
    with pytest.raises(ApiError) as caught:
        decode_answer(answer(code=500, msg="x" * 490 + KEY))
    assert KEY[:6] not in str(caught.value)


def everywhere(secret: str) -> dict[str, object]:
    param = {
        "callBackUrl": secret,
        "callbackUrl": secret,
        "webhook_url": secret,
        "input": json.dumps({"u": secret}),
    }
    return {
        **dict.fromkeys(("callbackUrl", "callback_url", "webhook", "notifyUrl", "failMsg", "model"), secret),
        "param": json.dumps(param),
        "paramJson": json.dumps(param).replace("/", "\\/"),
        "extra": {"a": [{"callBackUrl": secret}]},
        "resultJson": json.dumps({"resultObject": {"text": secret}}),
        secret: 1,
    }


@together("secret", [KEY, HMAC_KEY, ADDRESS])
def test_no_record_keeps_a_secret(secret: str) -> None:
    assert_clean(everything_of(decoded(state="fail", **everywhere(secret))))


@together("secret", [KEY, HMAC_KEY, ADDRESS])
def test_no_delivery_keeps_a_secret(secret: str) -> None:
    data = {"taskId": "t1", "state": "success", **everywhere(secret)}
    record = decode_callback(json.dumps({"code": 200, "msg": ECHO, "data": data}).encode(), SECRETS)
    assert_clean(everything_of(record))


def test_a_failure_told_by_its_code_alone_keeps_no_secret() -> None:
    assert_clean(everything_of(decode_query(answer(code=501, msg=ECHO), "t1")))


def test_no_upload_keeps_a_secret() -> None:
    data = {"downloadUrl": "https://f.example/a", "fileName": KEY, "mimeType": ADDRESS}
    assert_clean(repr(decode_upload(answer(data))))


@together("name", ["callBackUrl", "callbackUrl", "callback_url"])
def test_only_a_confirmation_returns_the_whole_address(name: str) -> None:
    record, url = decode_confirmation(answer({"taskId": "t1", "param": json.dumps({name: ADDRESS})}), "t1")
    assert url == ADDRESS
    assert_clean(everything_of(record))


# --- the mac never stays in a record -------------------------------------------------------------


def texts_with_address() -> dict[str, object]:
    plain = json.dumps({"callBackUrl": ADDRESS, "model": "a/b", "input": "{}"})
    within = json.dumps({"input": json.dumps({"callBackUrl": ADDRESS})})
    return {
        "plain": plain,
        "compact": plain.replace(": ", ":"),
        "blanks": plain.replace(": ", "  :\n "),
        "slashes escaped": plain.replace("/", "\\/"),
        "slashes as code points": plain.replace("/", "\\u002f"),
        "slashes as code points, upper case": plain.replace("/", "\\u002F"),
        "in a string in the string": within,
        "in a string in the string, slashes escaped": within.replace("/", "\\\\\\/"),
        "twice": json.dumps({"a": json.dumps({"callBackUrl": ADDRESS}), "callBackUrl": ADDRESS}),
        "an object": {"callBackUrl": ADDRESS, "input": {}},
    }


def everything_of(record: TaskRecord) -> str:
    shown = f"{record!r} {record.raw} {record.param} {attrs.asdict(record)} {attrs.astuple(record)}"
    return shown + pickle.dumps(record).decode("latin-1")


@together("key", ["param", "paramJson", "request"])
@together("value", texts_with_address().values())
def test_the_mac_is_in_no_record(key: str, value: object) -> None:
    shown = everything_of(decoded(**{key: value}))
    assert MAC not in shown
    assert INTENT in shown


@together("text", [t for t in texts_with_address().values() if isinstance(t, str)])
def test_the_mac_can_be_cut_from_any_json_text(text: str) -> None:
    assert without_mac(text) == text.replace(MAC, "***")


def test_the_mac_is_cut_from_a_bare_key_too() -> None:
    record = decoded(callBackUrl=ADDRESS)
    assert record.raw["callBackUrl"] == ADDRESS.replace(MAC, "***")


def test_what_is_left_of_param_can_still_be_read() -> None:
    record = decoded(param=texts_with_address()["slashes escaped"])
    assert record.param == {"callBackUrl": ADDRESS.replace(MAC, "***"), "model": "a/b", "input": {}}


@together(
    "url",
    [
        "https://bot.example/kie",
        "https://bot.example/kie/",
        f"https://bot.example/{MAC}x",
        f"https://bot.example/{MAC.upper()}",
        f"https://bot.example/{MAC}/more",
        f"https://bot.example/x?{MAC}",
    ],
)
def test_a_callback_url_of_somebody_else_is_left_alone(url: str) -> None:
    param = json.dumps({"callBackUrl": url})
    assert decoded(param=param).raw["param"] == param


def test_a_callback_url_that_is_no_text_is_left_alone() -> None:
    assert decoded(callBackUrl=7, param={"callBackUrl": None}).raw["callBackUrl"] == 7


def test_cleaning_changes_nothing_in_what_it_was_given() -> None:
    data = {"taskId": "t1", "callBackUrl": ADDRESS, "param": {"callBackUrl": ADDRESS}, "list": [ADDRESS]}
    MACS_ONLY.tree(data)
    assert data == {
        "taskId": "t1",
        "callBackUrl": ADDRESS,
        "param": {"callBackUrl": ADDRESS},
        "list": [ADDRESS],
    }


@together(
    "text",
    [
        'callBackUrl":"' + "/" * 900_000,
        'callBackUrl":"' + "a" * 900_000,
        'callBackUrl":"' + "\\/" * 450_000,
        "callBackUrl" + "\\" * 900_000,
        'callBackUrl"' + " " * 900_000,
        'callBackUrl":"/' * 60_000,
        'callBackUrl":"' + ("/" + MAC) * 30_000,
        "\\u0061" * 150_000,
        "\\u0061" + "a" * 900_000,
        "\\u0061" + (INTENT + "/") * 25_000,
        "\\u0061" + "\\" * 900_000,
    ],
)
def test_no_text_makes_the_search_for_a_mac_slow(text: str) -> None:
    started = time.process_time()
    decoded(param=text)
    assert time.process_time() - started < 2.0
