"""Reads single values as the service writes them: text, numbers, codes, ids, URLs and instants. Pure."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from ..models import TASK_ID

_MAX_CODE = 1_000_000

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

_AROUND = re.compile(r"^[\s\x00-\x1f\x7f\u200b\ufeff]+|[\s\x00-\x1f\x7f\u200b\ufeff]+\Z")

_PLAIN_URL = re.compile(r"https?://[!-~]+")

_MAX_MESSAGE = 500

_NUMERIC = (int, float, str)


def read_url(value: object) -> str:
    """Return an http(s) URL without blanks around it, its scheme in small letters; else nothing."""
    if not isinstance(value, str):
        return ""
    if _PLAIN_URL.fullmatch(value):  # nearly all that is a URL
        return value
    url = _AROUND.sub("", value)
    if url[:4].lower() != "http":  # nearly all that is none
        return ""
    scheme, separator, rest = url.partition("://")
    url = f"{scheme.lower()}{separator}{rest}"
    return url if is_url(url) else ""


def is_url(value: object) -> bool:
    """Tell whether *value* is an http(s) URL in one line."""
    if not isinstance(value, str) or not value.startswith(("https://", "http://")):
        return False
    return value.isprintable() or not CONTROL.search(value)  # nearly all are printable, and that is faster


def clean_text(value: object) -> str:
    """Return text of the service fit for a message: one line, without control characters, bounded."""
    if isinstance(value, str) and len(value) <= _MAX_MESSAGE and value.isprintable():
        return value
    return CONTROL.sub(" ", read_text(value))[:_MAX_MESSAGE] if value is not None else ""


def read_code(value: object) -> int | None:
    """Return an envelope code: a whole number, or one in digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 6:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_CODE:
        return value
    return None


def read_text(value: object) -> str:
    """Return words and numbers as text, anything else as nothing."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def read_number(value: object) -> float | None:
    """Return a finite number, also from its digits; anything else is None."""
    if value is None or isinstance(value, bool) or not isinstance(value, _NUMERIC):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_time(value: object) -> datetime | None:
    """Return a unix time in milliseconds or seconds as aware UTC; 0, null and nonsense are None."""
    number = read_number(value)
    if not number or number < 0:
        return None
    try:
        return datetime.fromtimestamp(number / 1000 if number >= 1e11 else number, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def read_instant(value: object) -> datetime | None:
    """Return an instant written as ISO 8601 or as a unix time; without a zone it is UTC."""
    if not isinstance(value, str) or value.isdigit():
        return read_time(value)
    try:
        instant = datetime.fromisoformat(value.strip())
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def is_task_id(value: object) -> bool:
    """Tell whether a value has the form of a task id."""
    return isinstance(value, str) and TASK_ID.fullmatch(value) is not None
