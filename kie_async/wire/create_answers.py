"""Judges the answer to a create: what it proves, and which task it may name without a clean yes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from .._json import MAX_JSON_BYTES, NotJson, salvage_json
from ..errors import ApiError, RateLimited
from ..models import TASK_ID
from .codes import CreateVerdict, create_verdict, error_for, error_for_page
from .envelope import Envelope, WireResponse, read_envelope
from .values import is_task_id, read_text

_SALVAGED_ID = re.compile(rb'"task_?[iI]d"\s*:\s*"([A-Za-z0-9_-]{1,128})"')

_SALVAGED_CODE = re.compile(rb'\s*\{\s*"code"\s*:\s*(\d{3})\s*,')

_QUOTE = rb"""(?:\\*["']|&quot;|&#34;)?"""

_NAMED_ID = re.compile(
    rb"task[_-]?ids?%b\s*[:=>]\s*\[?%b([A-Za-z0-9_-]{1,128})(?=[^A-Za-z0-9_-])" % (_QUOTE, _QUOTE),
    re.IGNORECASE,
)
"""An id in anything that can be read: JSON in a page, a form, a query, XML. What follows it shows its end."""

_NO_IDS = frozenset({"", "null", "none", "undefined", "true", "false", "string"})

_ID_NAMES = ("taskid", "taskids", "id", "recordid", "jobid", "generationid")

_OF_THE_REQUEST = frozenset({"param", "paramjson", "input", "request", "body"})
"""Where an answer may echo what was asked for, ids of earlier tasks among it."""

_MIN_BARE_ID = 8


@attrs.frozen(kw_only=True)
class CreateAnswer:
    """What one attempt to create proved, and what else its answer said."""

    verdict: CreateVerdict
    task_id: str = ""
    error: ApiError | None = None
    candidate_task_id: str = ""
    """An id that the answer names without a clean yes: perhaps a task that is paid."""


def decode_create(
    response: WireResponse | None, *, sent: bool, partial: bytes = b"", raw_answer: bytes = b""
) -> CreateAnswer:
    """Judge an attempt to create; *partial* is what came of a body that broke off.

    *raw_answer* is all that came, head included: it proves nothing, and may name a task where HTTP was
    broken. Never raises: whatever the bytes are, the verdict is one of five.
    """
    if response is None:
        verdict = create_verdict(sent=sent, http_status=None, code=None, task_id=None)
        return CreateAnswer(verdict=verdict, candidate_task_id=_one_id(_SALVAGED_ID, raw_answer))
    body = response.body or partial
    found = read_envelope(body, response.redactor)
    code, task_id = _salvage_create(body) if isinstance(found, str) else (found.code, _created_id(found.data))
    verdict = create_verdict(sent=sent, http_status=response.status, code=code, task_id=task_id)
    if verdict is CreateVerdict.CREATED:
        return CreateAnswer(verdict=verdict, task_id=task_id or "")
    candidate = task_id or _find_candidate(body) or ("" if body else _one_id(_SALVAGED_ID, raw_answer))
    if verdict is CreateVerdict.HELD_BACK and candidate and isinstance(found, Envelope):
        verdict = CreateVerdict.UNKNOWN  # a limit that names a task: sent again, it may be paid twice
    error = None
    if verdict in {CreateVerdict.REFUSED, CreateVerdict.HELD_BACK}:
        error = _error_of_create(response, None if isinstance(found, str) else found, code, candidate)
        if verdict is CreateVerdict.HELD_BACK and not isinstance(error, RateLimited):
            error = error_for(response.status, error.message, response.status, response.retry_after_s)
    return CreateAnswer(verdict=verdict, task_id=task_id or "", error=error, candidate_task_id=candidate)


def _error_of_create(
    response: WireResponse, envelope: Envelope | None, code: int | None, candidate: str
) -> ApiError:
    is_no = code is not None and not 200 <= code < 300 and (envelope is None or envelope.is_of_the_service)
    if not is_no or code is None:
        shown = response.status if response.status != 200 or code is None else code
        return error_for_page(shown, response.retry_after_s)
    message = envelope.message if envelope is not None else ""
    if candidate and candidate not in message:
        message = f"{message} (the answer names task {candidate})".strip()
    return error_for(code, message, response.status, response.retry_after_s)


def _created_id(data: object) -> str | None:
    """Return the id in a create's answer, in one of the shapes that are documented or were seen."""
    if isinstance(data, dict):
        data = data.get("taskId") or data.get("task_id")
    return str(data) if is_task_id(data) else None


def _salvage_create(body: bytes) -> tuple[int | None, str | None]:
    """Return code and task id of an answer that broke off, if both are beyond doubt."""
    code, ids = _SALVAGED_CODE.match(body), set(_SALVAGED_ID.findall(body))
    if code is None or body.count(b'"code"') != 1 or len(ids) != 1:
        return None, None
    return int(code[1]), ids.pop().decode()


def _find_candidate(body: bytes) -> str:
    """Return the id that an answer to a create names in any way, nothing if it names none or several."""
    if len(body) > MAX_JSON_BYTES:
        return _find_id_in_text(body)
    try:
        top = salvage_json(body)[0]
        data = top.get("data") if isinstance(top, dict) else None
        # Of several under one name the first counts, those in the data before those around it.
        found = [*_name_ids(data, "data"), *_name_ids(top)]
    except (NotJson, RecursionError):
        return _find_id_in_text(body)
    if isinstance(top, str):
        return _find_id_in_text(top.encode())
    return next((task_id for name in _ID_NAMES for given, task_id in found if given == name), "")


def _find_id_in_text(text: bytes) -> str:
    return _one_id(_NAMED_ID, text[:MAX_JSON_BYTES])


def _one_id(pattern: re.Pattern[bytes], text: bytes) -> str:
    ids = {found.decode() for found in pattern.findall(text)}
    ids = {found for found in ids if found.lower() not in _NO_IDS}
    return ids.pop() if len(ids) == 1 else ""


def _name_ids(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names and ids in a value."""
    if isinstance(value, list):
        for item in value:
            yield from _name_ids(item, name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            plain = key.replace("_", "").replace("-", "").lower()
            if plain not in _OF_THE_REQUEST:
                yield from _name_ids(inner, plain)
    elif name in _ID_NAMES or name == "data":
        text = read_text(value).strip()
        if text.startswith(("{", "[", '"')):  # JSON in JSON
            text = _find_id_in_text(text.encode("utf-8", "replace"))
        is_bare = name == "data" and (len(text) < _MIN_BARE_ID or not any(map(str.isdigit, text)))
        if TASK_ID.fullmatch(text) and text.lower() not in _NO_IDS and not is_bare:
            yield ("taskid" if name == "data" else name), text
