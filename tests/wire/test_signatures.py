"""Tests signatures and callback addresses against a file of vectors that any language can read.

The expected values come from the standard library alone, never from the package.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tables import together

from kie_async._secrets import as_secrets
from kie_async.callbacks.address import callback_mac, derive_callback_secret, is_valid_mac, new_intent_id
from kie_async.errors import CallbackRejected, InvalidRequest
from kie_async.wire.signatures import sign, verify

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "support" / "signature_vectors.json").read_text()
)["vectors"]
SIGNATURES = [vector for vector in VECTORS if vector["kind"] == "signature"]
KEY_SETS = [vector for vector in VECTORS if vector["kind"] == "keys"]

KEY = b"kie_test_hmac_key_0001"
TASK, TIMESTAMP, SIGNATURE = "task_12345678", "1700000000", "Anx/GjXNvjDTIN2Ve/TBrlmJxDKW9F4ULb4SPlhouCU="
NOW = 1_700_000_000.0

INTENT = "0123456789abcdef0123456789abcdef"
SECRET = b"a callback secret"


def expected_signature(key: bytes, task_id: str, timestamp: str) -> str:
    return base64.b64encode(
        hmac.new(key, f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    ).decode()


def name_of(vector: dict[str, Any]) -> str:
    return str(vector["name"])


# --- the file of vectors -------------------------------------------------------------------------


def test_the_file_holds_at_least_64_signatures() -> None:
    assert len(SIGNATURES) >= 64


def test_the_names_of_the_vectors_are_unique() -> None:
    assert Counter((vector["kind"], vector["name"]) for vector in VECTORS).most_common(1)[0][1] == 1


@together("vector", [v for v in SIGNATURES if v["expect"] == "accept"])
def test_an_accepted_vector_is_signed_by_one_of_its_keys(vector: dict[str, Any]) -> None:
    signatures = [
        expected_signature(key.encode(), vector["task_id"], vector["timestamp"]) for key in vector["keys"]
    ]
    assert vector["signature"] in signatures


@together("vector", SIGNATURES)
def test_a_vector_is_judged_as_the_file_says(vector: dict[str, Any]) -> None:
    judged = "accept"
    try:
        verify(
            vector["task_id"],
            vector["timestamp"],
            vector["signature"],
            keys=as_secrets(vector["keys"]),
            now=vector["now"],
            tolerance_s=vector["tolerance_s"],
        )
    except CallbackRejected as exc:
        judged = exc.reason
    assert judged == vector["expect"]


@together("vector", KEY_SETS)
def test_a_set_of_keys_is_judged_as_the_file_says(vector: dict[str, Any]) -> None:
    judged = "accept"
    try:
        as_secrets(vector["keys"])
    except InvalidRequest:
        judged = "refused"
    assert judged == vector["expect"]


# --- the signature -------------------------------------------------------------------------------


@given(key=st.binary(min_size=1, max_size=80), task_id=st.text(max_size=40), timestamp=st.text(max_size=20))
def test_sign_is_the_documented_formula(key: bytes, task_id: str, timestamp: str) -> None:
    try:
        expected = expected_signature(key, task_id, timestamp)
    except UnicodeEncodeError:
        return
    assert sign(task_id, timestamp, key=key) == expected


def test_the_published_signature_has_our_format() -> None:
    published = "KxDlpbbq0GDOKqm0+FuJpJWTzY8baHSjhEt4kwElqQI="
    ours = sign("ee9c2715375b7837f8bb51d641ff5863", "1769670760", key=KEY)
    assert len(ours) == len(published) == 44
    assert len(base64.b64decode(published, validate=True)) == hashlib.sha256().digest_size


@together(
    ("timestamp", "task_id", "signature", "status"),
    [
        (TIMESTAMP, TASK, "wrong", 401),
        ("+1", TASK, SIGNATURE, 401),
        (TIMESTAMP, "a.b", SIGNATURE, 400),
        ("1600000000", TASK, expected_signature(KEY, TASK, "1600000000"), 401),
    ],
)
def test_a_refusal_knows_the_status_to_answer(
    timestamp: str, task_id: str, signature: str, status: int
) -> None:
    with pytest.raises(CallbackRejected) as caught:
        verify(task_id, timestamp, signature, keys=[KEY], now=NOW, tolerance_s=300)
    assert caught.value.status == status


def test_a_refusal_does_not_hold_the_right_signature() -> None:
    with pytest.raises(CallbackRejected) as caught:
        verify(TASK, TIMESTAMP, "wrong", keys=[KEY], now=NOW, tolerance_s=300)
    assert SIGNATURE not in f"{caught.value!r} {caught.value} {caught.value.__dict__}"


@together("signature", ["\ud800", "a\udfff", "\U0001f600"])
def test_text_that_has_no_bytes_is_a_wrong_signature(signature: str) -> None:
    with pytest.raises(CallbackRejected, match="wrong signature"):
        verify(TASK, TIMESTAMP, signature, keys=[KEY], now=NOW, tolerance_s=300)


@together("tolerance_s", [float("nan"), -1.0])
def test_a_tolerance_that_is_no_number_lets_nothing_through(tolerance_s: float) -> None:
    with pytest.raises(CallbackRejected, match="stale timestamp"):
        verify(TASK, TIMESTAMP, SIGNATURE, keys=[KEY], now=NOW, tolerance_s=tolerance_s)


class _Counted(list[bytes]):
    """Keys that count how many of them were tried."""

    tried_count = 0

    def __iter__(self) -> Iterator[bytes]:
        for key in super().__iter__():
            self.tried_count += 1
            yield key


@together("keys", [[KEY, b"2", b"3"], [b"2", KEY, b"3"], [b"2", b"3", KEY]])
def test_every_key_is_tried_whichever_fits(keys: list[bytes]) -> None:
    counted = _Counted(keys)
    verify(TASK, TIMESTAMP, SIGNATURE, keys=counted, now=NOW, tolerance_s=300)
    assert counted.tried_count == 3


@given(
    task_id=st.text(max_size=20),
    timestamp=st.text(max_size=14),
    signature=st.text(st.characters(), max_size=60),
)
def test_anything_unsigned_is_refused_with_a_reason(task_id: str, timestamp: str, signature: str) -> None:
    with pytest.raises(CallbackRejected) as caught:
        verify(task_id, timestamp, signature, keys=[KEY], now=NOW, tolerance_s=1e12)
    assert caught.value.reason in {"wrong signature", "malformed timestamp", "malformed task id"}


def judged(task_id: str, timestamp: str, signature: str, *, now: float) -> str:
    """Return the reason of a refusal, or nothing."""
    try:
        verify(task_id, timestamp, signature, keys=[KEY], now=now, tolerance_s=300)
    except CallbackRejected as exc:
        return exc.reason
    return ""


@given(seconds=st.integers(0, 99_999_999_999), drift_s=st.floats(-600, 600))
def test_a_right_signature_passes_exactly_within_the_tolerance(seconds: int, drift_s: float) -> None:
    now = seconds + drift_s
    reason = judged(TASK, str(seconds), expected_signature(KEY, TASK, str(seconds)), now=now)
    assert reason == ("" if abs(now - seconds) <= 300 else "stale timestamp")


# --- keys ----------------------------------------------------------------------------------------


def test_text_keys_are_utf_8_and_bytes_are_bytes() -> None:
    assert as_secrets(["ключ", b"\x00\xff"]) == ("ключ".encode(), b"\x00\xff")


@together("keys", ["one key", b"one key"])
def test_one_bare_key_is_refused_with_the_right_spelling(keys: str | bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"hmac_keys=\[KEY\]"):
        as_secrets(keys)  # type: ignore[arg-type]


@together("keys", [[""], [b""], ["right", ""], ("", "right")])
def test_an_empty_key_is_refused(keys: list[str | bytes]) -> None:
    with pytest.raises(InvalidRequest, match="empty key"):
        as_secrets(keys)


@together("key", [5, None, 1.5, True, [1, 2]])
def test_a_key_that_is_neither_text_nor_bytes_is_refused(key: object) -> None:
    with pytest.raises(InvalidRequest, match="text or bytes"):
        as_secrets([key])  # type: ignore[list-item]


def test_a_refusal_names_the_field_and_no_key() -> None:
    with pytest.raises(InvalidRequest) as caught:
        as_secrets(["s3cret", ""], field="callback_secrets")
    assert "callback_secrets" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@together("key", [*as_secrets(["s3cret", b"s3cret"]), derive_callback_secret("s3cret")])
def test_a_key_shows_in_no_repr_and_no_format(key: bytes) -> None:
    assert (
        f"{key!r} {key!s} {key} {[key]} {(key,)}"
        == "Secret(***) Secret(***) Secret(***) [Secret(***)] (Secret(***),)"
    )


def test_a_key_is_used_as_the_bytes_it_is() -> None:
    (key,) = as_secrets([KEY])
    assert key == KEY
    assert sign(TASK, TIMESTAMP, key=key) == SIGNATURE


def test_keys_may_come_from_a_generator() -> None:
    assert as_secrets(key for key in ("a", "b")) == (b"a", b"b")


# --- the address of an intent --------------------------------------------------------------------


def test_a_mac_has_a_known_answer() -> None:
    digest = hmac.new(SECRET, b"cb1." + INTENT.encode(), hashlib.sha256).digest()
    assert callback_mac(INTENT, secret=SECRET) == base64.b32encode(digest).decode()[:26].lower()
    assert callback_mac(INTENT, secret=SECRET) == "vge4o7xz3mstx35qc7hukmbgf2"


def test_the_secret_of_an_account_has_a_known_answer() -> None:
    secret = derive_callback_secret("kie_test_api_key")
    assert secret == hmac.new(b"kie_test_api_key", b"kie_async callback v1", hashlib.sha256).digest()
    assert secret.hex() == "0202805e39cec075bebbcd928ab1d558be3b552b804fbbae91c78fd839e0b818"


@given(intent_id=st.text("0123456789abcdef", min_size=32, max_size=32), secret=st.binary(min_size=1))
def test_a_mac_is_26_characters_of_lower_case_base32(intent_id: str, secret: bytes) -> None:
    mac = callback_mac(intent_id, secret=secret)
    assert re.fullmatch("[a-z2-7]{26}", mac)
    assert is_valid_mac(intent_id, mac, callback_secrets=[secret])


def test_a_right_mac_is_known_under_any_of_the_secrets() -> None:
    mac = callback_mac(INTENT, secret=SECRET)
    assert is_valid_mac(INTENT, mac, callback_secrets=[SECRET, b"new"])
    assert is_valid_mac(INTENT, mac, callback_secrets=[b"new", b"newer", SECRET])


def test_a_right_mac_is_not_known_under_other_secrets() -> None:
    mac = callback_mac(INTENT, secret=SECRET)
    assert not is_valid_mac(INTENT, mac, callback_secrets=[b"new"])
    assert not is_valid_mac(INTENT, mac, callback_secrets=[])


@together("secrets", [[SECRET, b"2", b"3"], [b"2", b"3", SECRET], [b"2", b"3", b"4"]])
def test_every_secret_is_tried_whichever_fits(secrets: list[bytes]) -> None:
    counted = _Counted(secrets)
    is_valid_mac(INTENT, callback_mac(INTENT, secret=SECRET), callback_secrets=counted)
    assert counted.tried_count == 3


def test_a_mac_belongs_to_one_intent() -> None:
    mac = callback_mac(INTENT, secret=SECRET)
    assert not is_valid_mac(INTENT[::-1], mac, callback_secrets=[SECRET])


RIGHT = callback_mac(INTENT, secret=SECRET)


@together(
    ("intent_id", "mac"),
    [
        (INTENT, RIGHT.upper()),
        (INTENT, RIGHT.capitalize()),
        (INTENT.upper(), RIGHT),
        (INTENT, RIGHT[:-1]),
        (INTENT, RIGHT + "a"),
        (INTENT, RIGHT + "\n"),
        (INTENT, " " + RIGHT),
        (INTENT, RIGHT + "/"),
        (INTENT, ""),
        (INTENT, "a" * 26),
        (INTENT, "é" * 26),
        (INTENT, "\ud800" * 26),
        (INTENT + "\n", RIGHT),
        (INTENT[:-1], RIGHT),
        ("", RIGHT),
        ("../" + INTENT, RIGHT),
        ("１" * 32, RIGHT),
    ],
)
def test_any_other_spelling_of_an_address_is_wrong(intent_id: str, mac: str) -> None:
    assert not is_valid_mac(intent_id, mac, callback_secrets=[SECRET])


@given(intent_id=st.text(max_size=40), mac=st.text(max_size=30))
def test_no_guessed_address_is_right(intent_id: str, mac: str) -> None:
    assert not is_valid_mac(intent_id, mac, callback_secrets=[SECRET])


def test_intent_ids_are_128_random_bits() -> None:
    made = {new_intent_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", intent_id) for intent_id in made)
