"""Parses and writes JSON, strictly and within bounds.

With orjson installed (extra ``speed``) most text is read by it. What it may read differently is read again
by the standard library, which alone decides: duplicate keys, long numbers, deep nesting, halves of pairs.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

MAX_JSON_BYTES = 1_048_576
"""No create answer or callback comes near this."""

MAX_RECORD_BYTES = 32 * 1_048_576
"""For answers to our own queries: a long text result stands twice in a record."""

_MAX_DIGITS = 400

_BOM = b"\xef\xbb\xbf"

_UNSURE = object()

_LOST = object()
"""Stands for a value that could not be read, until it is left out."""

_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")

_MAX_INTEGER_BITS = 14_000
"""Python writes no number of more than 4,300 digits."""

_HALF_PAIR = re.compile(r"[\ud800-\udfff]")

_STRING_OR_LAST_COMMA = re.compile(r'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)|,(?=\s*[}\]])', re.DOTALL)

# Each costs two microseconds, in which the event loop stands still.
_MAX_TIDIED = 500_000

_ESCAPE = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})?')

_GUARDS = " \t\r\n\ufeff)]}',"
"""What may stand before an object: blanks, and what some servers write against old browsers."""


class NotJson(ValueError):
    """The text is not JSON that every reader would read alike."""


def parse_json(text: bytes | str, *, max_bytes: int = MAX_JSON_BYTES) -> object:
    """Return the object in *text*.

    Refused besides broken text: more than *max_bytes*, NaN and infinities, integers of more than
    400 digits, a key that stands twice in one object, half a surrogate pair, and nesting beyond the
    interpreter's recursion limit.

    Raises:
        NotJson: For all of these, and nothing else.
    """
    try:
        encoded = text.encode() if isinstance(text, str) else text
        if len(encoded) > max_bytes:
            raise NotJson(f"more than {max_bytes} bytes")
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


def salvage_json(text: bytes | str) -> tuple[object, tuple[str, ...]]:
    """Return the object in *text* without what is broken in it, and what that was; nothing if all is well.

    Only for answers to our own queries: a stray byte in some field must not hide the end of a paid task.
    Left out: bytes that are no UTF-8, control characters, NaN and infinities, integers of more than 400
    digits, a key with two values, halves of surrogate pairs, backslashes that
    escape nothing, a comma behind the last of a row, and what stands around the object.

    Raises:
        NotJson: There is no one object or list in it, or it has more than `MAX_RECORD_BYTES`.
    """
    try:
        return parse_json(text, max_bytes=MAX_RECORD_BYTES), ()
    except NotJson:
        return _Salvage().read(text)


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
            value = parse_json(value, max_bytes=MAX_RECORD_BYTES)  # bounded with what it stood in
        except NotJson:
            return None
    return value if isinstance(value, dict) else None


class _Salvage:
    """Reads broken JSON once and notes what it left out."""

    def __init__(self) -> None:
        self._losses: set[str] = set()
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._pairs,
            parse_constant=lambda _: self._lose("a number that is none"),
            parse_int=self._int,
            parse_float=self._float,
            strict=False,
        )

    def read(self, text: bytes | str) -> tuple[object, tuple[str, ...]]:
        if len(text) > MAX_RECORD_BYTES:
            raise NotJson(f"more than {MAX_RECORD_BYTES} bytes")
        readable = self._readable(text)
        if readable[:1] not in ("{", "["):
            raise NotJson("neither an object nor a list")
        try:
            try:
                found, end = self._decoder.raw_decode(readable)
            except ValueError:  # what its hooks cannot mend
                if readable.count('"') + readable.count("\\") > _MAX_TIDIED:
                    raise
                readable = _STRING_OR_LAST_COMMA.sub(self._tidy, readable)
                found, end = self._decoder.raw_decode(readable)
            value = self._mended(found)
        except RecursionError:
            raise NotJson("nested too deeply") from None
        except ValueError as exc:
            raise NotJson(str(exc)[:200]) from None
        if behind := readable[end:].strip():
            if behind[0] in "{[":
                raise NotJson("two values")
            self._lose("text behind the object")
        return value, tuple(sorted(self._losses))

    def _readable(self, text: bytes | str) -> str:
        """Return *text* without what no JSON can hold and without a guard before it."""
        try:
            decoded = text if isinstance(text, str) else text.decode()
        except UnicodeDecodeError:
            self._lose("bytes that are no UTF-8")
            decoded = text.decode("utf-8", "ignore") if isinstance(text, bytes) else text
        readable = _NO_TEXT.sub("", decoded)
        if readable != decoded:
            self._lose("control characters")
        return readable.lstrip(_GUARDS)

    def _tidy(self, found: re.Match[str]) -> str:
        """Return a string without escapes that are none, and a comma behind the last of a row as nothing."""
        if found[0] == ",":
            self._lose("a comma too many")
            return ""
        tidy = _ESCAPE.sub(lambda escape: escape[0] if escape[1] else "", found[0])
        if tidy != found[0]:
            self._lose("escapes that are none")
        return tidy

    def _lose(self, what: str) -> object:
        self._losses.add(what)
        return _LOST

    def _pairs(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            found[key] = value if found.get(key, value) == value else self._lose("a key with two values")
        return found

    def _int(self, digits: str) -> object:
        return int(digits) if len(digits) <= _MAX_DIGITS else self._lose("an endless number")

    def _float(self, digits: str) -> object:
        value = float(digits)
        return value if math.isfinite(value) else self._lose("an endless number")

    def _mended(self, value: object) -> object:
        if isinstance(value, dict):
            kept = {key: inner for key, inner in value.items() if inner is not _LOST}
            return {self._text(key): self._mended(inner) for key, inner in kept.items()}
        if isinstance(value, list):
            return [self._mended(inner) for inner in value if inner is not _LOST]
        return self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> str:
        if _HALF_PAIR.search(text):
            self._lose("halves of characters")
            return _HALF_PAIR.sub("", text)
        return text


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


def name_what_has_no_json(field: str, value: object, *, files: tuple[type, ...] = ()) -> str:
    """Return which part of a value has no JSON form, named by its path, and why; empty if all of it has.

    *files* are kinds of values that something with a JSON form will take the place of.
    """
    try:
        return _what_has_no_json(field, value, files)
    except RecursionError:
        return f"{field} has no JSON form: nested too deeply"


def _what_has_no_json(path: str, value: object, files: tuple[type, ...]) -> str:
    if isinstance(value, str):
        return "" if is_unicode(value) else f"{path} has no JSON form: it holds half a character"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} has no JSON form: it is {value}"
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        return f"{path} has no JSON form: the number is too long"
    if value is None or isinstance(value, (int, float, *files)):
        return ""
    if isinstance(value, (dict, Mapping)):
        for key, inner in value.items():
            if key is not None and not isinstance(key, str | int | float):
                return f"{path} has no JSON form: its keys must be text, one is {type(key).__name__}"
            if named := _what_has_no_json(f"{path}.{key}", inner, files):
                return named
        return ""
    if isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            if named := _what_has_no_json(f"{path}[{at}]", inner, files):
                return named
        return ""
    return f"{path} has no JSON form: it is of type {type(value).__name__}"


def is_unicode(text: str) -> bool:
    """Tell whether text has a form in UTF-8: no half of a surrogate pair is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
