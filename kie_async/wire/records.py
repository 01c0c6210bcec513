"""Decodes a task's record, from every key set and every shape of result the service has sent. Pure."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from .._json import NotJson, parse_json
from ..models import TaskRecord, TaskState

_log = logging.getLogger("kie_async")

_STATES = {state.value: state for state in TaskState}

_MAX_LOGGED_WORDS = 100

_logged: set[str] = set()
"""The unknown words of states that the log has had already."""

_MAX_CODE = 1_000_000

_URL_IN_JSON = re.compile(r'(callBackUrl\\*"\s*:\s*\\*")([^"]*)(?=")')

_QUERY = re.compile(r"\?|\\+u003[fF]")

_MAC_AT_END = re.compile(r"(?:/|\\u002[fF])([a-z2-7]{26})\Z")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

_MAX_MESSAGE = 500

_NUMERIC = (int, float, str)

_NO_CONTENT = frozenset({"resultUrls", "code", "msg"})

_CREDITS = ("creditsConsumed", "consumeCredits", "credits_consumed", "consume_credits")
"""What records of different ages call the price; the first that holds a value counts. So below."""

_REMAINING = ("remainedCredits", "remainingCredits")


def decode_record(data: Mapping[str, object]) -> TaskRecord:
    """Return the record in an envelope's ``data``, whichever of the key sets it has."""
    get = data.get
    urls, rest = read_result(data)
    created_at, completed_at = read_time(get("createTime")), read_time(get("completeTime"))
    task_id, model = get("taskId"), get("model")
    return TaskRecord(
        task_id=clean_text(get("task_id") if task_id is None else task_id),
        model=clean_text(get("operationType") if model is None else model),
        state=read_state(get("state")),
        urls=urls,
        result_object=rest,
        fail_code=clean_text(get("failCode")),
        fail_message=clean_text(get("failMsg")),
        credits=read_number(_first(data, _CREDITS)),
        remaining_credits=read_number(_first(data, _REMAINING)),
        created_at=created_at,
        updated_at=read_time(get("updateTime")),
        completed_at=completed_at,
        duration_s=_duration_s(created_at, completed_at, get("costTime")),
        raw=_without_macs(data),
    )


def _first(data: Mapping[str, object], keys: tuple[str, ...]) -> object:
    """Return what stands under the first of *keys* that holds anything."""
    for key in keys:
        if (value := data.get(key)) is not None:
            return value
    return None


def _duration_s(
    created_at: datetime | None, completed_at: datetime | None, cost_time: object
) -> float | None:
    """Return the wall time; ``costTime`` only where the times are missing.

    It is documented in milliseconds and was seconds in every record seen.
    """
    if created_at and completed_at and completed_at >= created_at:
        return (completed_at - created_at).total_seconds()
    cost = read_number(cost_time)
    if cost is None or cost < 0:
        return None
    return cost / 1000 if cost >= 10_000 else cost


def read_result(data: Mapping[str, object]) -> tuple[tuple[str, ...], Mapping[str, object] | None]:
    """Return the URLs of a record and what else its result holds, from any of the shapes seen."""
    for key in ("resultJson", "response"):
        value = data.get(key)
        if isinstance(value, str) and value:
            value = (value,) if is_url(value) else _parsed(value)
        urls, rest = _split_result(value)
        if urls or rest:
            return urls, rest
    return (), None


def _split_result(value: object) -> tuple[tuple[str, ...], Mapping[str, object] | None]:
    if not isinstance(value, dict):
        return _urls_in(value), None
    urls = _urls_in(value.get("resultUrls"))
    if urls and len(value) == 1:
        return urls, None
    inner = value.get("resultObject")
    if not urls and isinstance(value.get("data"), list):
        urls = _urls_in([item.get("audio_url") for item in value["data"] if isinstance(item, dict)])
    if isinstance(inner, dict) and inner:
        return urls, inner
    return urls, value if any(value[key] for key in value.keys() - _NO_CONTENT) else None


def _urls_in(value: object) -> tuple[str, ...]:
    candidates = value if isinstance(value, (list, tuple)) else (value,)
    return tuple([url for url in candidates if is_url(url)])


def _parsed(text: str) -> object:
    try:
        return parse_json(text)
    except NotJson:
        return None


def _without_macs(data: Mapping[str, object]) -> dict[str, object]:
    """Return *data* without the secret last part of a callback address, wherever one may stand."""
    raw = dict(data)
    for key, value in data.items():
        if type(value) is str:  # what JSON text yields is of no other kind
            if "callBackUrl" in value:
                raw[key] = without_mac(value)
        elif type(value) is dict:
            raw[key] = _mask_url(value)
    return _mask_url(raw) if "callBackUrl" in raw else raw


def without_mac(text: str) -> str:
    """Return JSON text without the secret last parts of the callback addresses in it."""
    return _URL_IN_JSON.sub(lambda found: found[1] + _masked(found[2]), text)


def _masked(url: str) -> str:
    """Return a URL with stars for a mac that ends its path, and for a query then, which may be secret too.

    It may stand in JSON, escapes and all; the backslashes that end it belong to what comes after.
    """
    body = url.rstrip("\\")
    path, *query = _QUERY.split(body, maxsplit=1)
    stem = _without_slashes(path)
    if _MAC_AT_END.search(stem[-40:]) is None:
        return url
    return f"{stem[:-26]}***" + ("?***" if query else "") + url[len(body) :]


def _without_slashes(path: str) -> str:
    """Return a path in JSON text without the slashes that end it, escaped or not."""
    while (stem := path.rstrip("\\/")).endswith(("\\u002f", "\\u002F")):
        path = stem[: -len("\\u002f")]
    return stem


def _mask_url(found: dict[str, object]) -> dict[str, object]:
    url = found.get("callBackUrl")
    return {**found, "callBackUrl": _masked(url)} if isinstance(url, str) else found


def is_url(value: object) -> bool:
    """Tell whether *value* is an http(s) URL in one line."""
    if not isinstance(value, str) or not value.startswith(("https://", "http://")):
        return False
    return value.isprintable() or not _CONTROL.search(value)  # nearly all are printable, and that is faster


def clean_text(value: object) -> str:
    """Return text of the service fit for a message: one line, without control characters, bounded."""
    if isinstance(value, str) and len(value) <= _MAX_MESSAGE and value.isprintable():
        return value
    return _CONTROL.sub(" ", read_text(value))[:_MAX_MESSAGE] if value is not None else ""


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


def read_state(word: object) -> TaskState:
    """Return the state a wire word names; an unknown word is logged once and counts as running."""
    if not isinstance(word, str):
        return TaskState.UNKNOWN
    state = _STATES.get(word) or _STATES.get(word.strip().lower())
    if state is not None:
        return state
    word = word[:64]
    if word not in _logged and len(_logged) < _MAX_LOGGED_WORDS:
        _logged.add(word)
        _log.warning("unknown task state %r counts as still running", word)
    return TaskState.UNKNOWN
