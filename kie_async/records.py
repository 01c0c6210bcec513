"""A record of the service to a `TaskRecord`: every key set, every shape of result. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

import cattrs
from cattrs.gen import make_dict_structure_fn, override

from . import jsontext
from .models import TaskRecord
from .states import TaskState, read_state

_MAX_CODE = 1_000_000
_MAC_IN_JSON = re.compile(r'(callBackUrl\\*"\s*:\s*\\*"[^"]*(?:/|\\u002[fF]))[a-z2-7]{26}(?=\\*")')
_MAC_IN_URL = re.compile(r"(?<=/)[a-z2-7]{26}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_MAX_MESSAGE = 500
_NO_CONTENT = frozenset({"resultUrls", "code", "msg"})

_KEYS: Mapping[str, tuple[str, ...]] = {
    "task_id": ("taskId", "task_id"),
    "model": ("model", "operationType"),
    "state": ("state",),
    "fail_code": ("failCode",),
    "fail_message": ("failMsg",),
    "credits": ("creditsConsumed", "consumeCredits", "credits_consumed", "consume_credits"),
    "remaining_credits": ("remainedCredits", "remainingCredits"),
    "created_at": ("createTime",),
    "updated_at": ("updateTime",),
    "completed_at": ("completeTime",),
}


def decode_record(data: Mapping[str, object]) -> TaskRecord:
    """Return the record in an envelope's ``data``, whichever of the key sets it has."""
    found: dict[str, object] = {"task_id": ""}
    for name, keys in _KEYS.items():
        for key in keys:
            if (value := data.get(key)) is not None:
                found[name] = value
                break
    found["urls"], found["result_object"] = read_result(data)
    found["created_at"] = created_at = read_time(found.get("created_at"))
    found["completed_at"] = completed_at = read_time(found.get("completed_at"))
    found["duration_s"] = _duration_s(created_at, completed_at, data.get("costTime"))
    found["raw"] = _without_address(data)
    return _structure(found, TaskRecord)


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
    inner = value.get("resultObject")
    if not urls and isinstance(value.get("data"), list):
        urls = _urls_in([item.get("audio_url") for item in value["data"] if isinstance(item, dict)])
    if isinstance(inner, dict) and inner:
        return urls, inner
    return urls, value if any(content for key, content in value.items() if key not in _NO_CONTENT) else None


def _urls_in(value: object) -> tuple[str, ...]:
    candidates = value if isinstance(value, list | tuple) else (value,)
    return tuple(url for url in candidates if is_url(url))


def _parsed(text: str) -> object:
    try:
        return jsontext.parse(text)
    except jsontext.NotJson:
        return None


def _without_address(data: Mapping[str, object]) -> dict[str, object]:
    """Return *data* without the secret last part of a callback address, wherever one may stand."""
    return _mask_url({key: _mask(value) for key, value in data.items()})


def _mask(value: object) -> object:
    if isinstance(value, str) and "callBackUrl" in value:
        return without_mac(value)
    return _mask_url(value) if isinstance(value, dict) else value


def without_mac(text: str) -> str:
    """Return JSON text without the secret last parts of the callback addresses in it."""
    return _MAC_IN_JSON.sub(r"\1***", text)


def _mask_url(found: dict[str, object]) -> dict[str, object]:
    url = found.get("callBackUrl")
    return {**found, "callBackUrl": _MAC_IN_URL.sub("***", url)} if isinstance(url, str) else found


def is_url(value: object) -> bool:
    """Tell whether *value* is an http(s) URL in one line."""
    return isinstance(value, str) and value.startswith(("https://", "http://")) and not _CONTROL.search(value)


def clean_text(value: object) -> str:
    """Return text of the service fit for a message: one line, without control characters, bounded."""
    return _CONTROL.sub(" ", read_text(value))[:_MAX_MESSAGE]


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
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def read_number(value: object) -> float | None:
    """Return a finite number, also from its digits; anything else is None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
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
        return datetime.fromtimestamp(number / 1000 if number >= 1e11 else number, tz=UTC)
    except (ValueError, OverflowError, OSError):
        return None


_converter = cattrs.Converter(detailed_validation=False)
_converter.register_structure_hook(TaskState, lambda value, _: read_state(value))
_converter.register_structure_hook(str, lambda value, _: clean_text(value))
_converter.register_structure_hook(float | None, lambda value, _: read_number(value))
_converter.register_structure_hook(
    datetime | None, lambda value, _: value if isinstance(value, datetime) else read_time(value)
)
_as_is = override(struct_hook=lambda value, _: value)
_structure = make_dict_structure_fn(
    TaskRecord, _converter, urls=_as_is, result_object=_as_is, raw=_as_is, _cattrs_detailed_validation=False
)
