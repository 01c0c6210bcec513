"""Parses and writes JSON, strictly and within bounds.

With orjson installed (extra ``speed``) most text is read by it. What it may read differently is read again
by the standard library, which alone decides: duplicate keys, long numbers, deep nesting, halves of pairs.
"""

from __future__ import annotations

import importlib
import json
from types import ModuleType
from typing import Any

MAX_JSON_BYTES = 1_048_576
"""No answer or callback of the service comes near this."""

_MAX_DIGITS = 400

_BOM = b"\xef\xbb\xbf"

_UNSURE = object()


class NotJson(ValueError):
    """The text is not JSON that every reader would read alike."""


def parse_json(text: bytes | str) -> object:
    """Return the object in *text*.

    Refused besides broken text: more than `MAX_JSON_BYTES`, NaN and infinities, integers of more than
    400 digits, a key that stands twice in one object, half a surrogate pair, and nesting beyond the
    interpreter's recursion limit.

    Raises:
        NotJson: For all of these, and nothing else.
    """
    try:
        encoded = text.encode() if isinstance(text, str) else text
        if len(encoded) > MAX_JSON_BYTES:
            raise NotJson(f"more than {MAX_JSON_BYTES} bytes")
        if _orjson is not None:
            parsed = _read_fast(_orjson, encoded)
            if parsed is not _UNSURE:
                return parsed
        return _read(encoded)
    except NotJson:
        raise
    except RecursionError:
        raise NotJson("nested too deeply") from None
    except UnicodeError:
        raise NotJson("not valid unicode") from None
    except ValueError as exc:
        raise NotJson(str(exc)[:200]) from None


def write_json(value: object) -> bytes:
    """Return *value* as compact JSON in UTF-8.

    Raises:
        NotJson: Something in it has no JSON form, or none that every reader accepts.
    """
    try:
        return _encoder.encode(value).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise NotJson(str(exc)[:200]) from None


def decode_object(value: object) -> dict[str, object] | None:
    """Return *value* if it is an object, the object in it if it is JSON text, else None."""
    if isinstance(value, str) and value:
        try:
            value = parse_json(value)
        except NotJson:
            return None
    return value if isinstance(value, dict) else None


def _read_fast(orjson: ModuleType, encoded: bytes) -> object:
    """Return what orjson makes of a text that it would write just so, else `_UNSURE`.

    What it writes has no key twice, no number that was cut and no escape that means two things, so the
    standard library reads the same from it. The service writes compact JSON: nearly all of it passes.
    """
    try:
        parsed: object = orjson.loads(encoded)
        return parsed if orjson.dumps(parsed) == encoded else _UNSURE
    except (ValueError, TypeError):  # not JSON, or deeper than it writes
        return _UNSURE


def _read(encoded: bytes) -> object:
    """Return the object in *encoded* with the standard library, every hook in place."""
    parsed: object = _decoder.decode(encoded.removeprefix(_BOM).decode())
    if b"\\u" in encoded:  # an escape may be half a surrogate pair
        json.dumps(parsed, ensure_ascii=False).encode()
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        raise NotJson("a key stands twice in one object")
    return parsed


def _refuse_constant(word: str) -> object:
    raise NotJson(f"{word} is not JSON")


def _int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise NotJson("an integer is too long")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise NotJson("a number is too large")
    return value


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_int, parse_float=_float
)


def _installed() -> ModuleType | None:
    try:
        return importlib.import_module("orjson")
    except ImportError:
        return None


_orjson = _installed()
