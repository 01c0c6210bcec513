"""Decodes answers and callbacks of the service. Pure: no clock, no network.

An answer's ``code`` speaks of the call, a callback's of the task; both come in the same envelope.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping

import attrs

from .._json import MAX_JSON_BYTES, NotJson, decode_object, parse_json, salvage_json
from ..errors import AnswerUnreadable, ApiError, CallbackRejected, KieError, RateLimited
from ..models import TASK_ID, TaskRecord, TaskState, UploadedFile
from .codes import TASK_FAILURE_CODES, CreateVerdict, create_verdict, error_for, error_for_page
from .records import (
    clean_text,
    decode_record,
    failed_record,
    is_url,
    read_code,
    read_instant,
    read_number,
    read_text,
    read_url,
)
from .redaction import MACS_ONLY, Redactor

_log = logging.getLogger("kie_async")

_SALVAGED_ID = re.compile(rb'"task_?[iI]d"\s*:\s*"([A-Za-z0-9_-]{1,128})"')

_SALVAGED_CODE = re.compile(rb'\s*\{\s*"code"\s*:\s*(\d{3})\s*,')

_NAMED_ID = re.compile(
    rb"""task_?id\\*["']?\s*[:=]\s*\\*["']?([A-Za-z0-9_-]{1,128})(?=[^A-Za-z0-9_-])""", re.IGNORECASE
)
"""An id in anything that can be read: JSON in a page, a form, a query. What follows it shows its end."""

_NO_IDS = frozenset({"", "null", "none", "undefined", "true", "false", "string"})

_ID_NAMES = ("taskid", "id", "recordid", "jobid", "generationid")

_OF_THE_REQUEST = frozenset({"param", "paramjson", "input", "request", "body"})
"""Where an answer may echo what was asked for, ids of earlier tasks among it."""

_NOT_OF_THE_SERVICE = ("path", "error")
"""Keys of a no that a gateway or a web framework gives, which never saw the call as one of this API."""

_CALLBACK_NAMES = ("callBackUrl", "callbackUrl", "callback_url")

_STATUSES_OF_THEIR_OWN = frozenset({405, 408, 413, 415, 429, 431})
"""What a page under these says of the call is true whoever wrote it: a pause is wanted, or another form."""

_MIN_BARE_ID = 8


@attrs.frozen(kw_only=True)
class WireResponse:
    """One HTTP answer, read to its end."""

    status: int
    body: bytes = attrs.field(repr=False)
    retry_after_s: float | None = None
    redactor: Redactor = attrs.field(default=MACS_ONLY, repr=False, eq=False)
    """What takes the secrets of whoever asked out of all that is read from it."""


@attrs.frozen(kw_only=True)
class CreateAnswer:
    """What one attempt to create proved, and what else its answer said."""

    verdict: CreateVerdict
    task_id: str = ""
    error: ApiError | None = None
    candidate_task_id: str = ""
    """An id that the answer names without a clean yes: perhaps a task that is paid."""


@attrs.frozen(kw_only=True)
class Envelope:
    """An answer ``{code, msg, data}``, free of secrets."""

    code: int
    top: Mapping[str, object] = attrs.field(repr=False)
    losses: tuple[str, ...] = ()
    """What was broken in it and is left out."""

    @property
    def data(self) -> object:
        """Return what the answer holds."""
        return self.top.get("data")

    @property
    def message(self) -> str:
        """Return its words; older pages of the service's documentation write ``message``."""
        return clean_text(self.top.get("msg") or self.top.get("message"))

    @property
    def is_of_the_service(self) -> bool:
        """Tell whether a no in it is one of the service, and not of something before it."""
        return not any(key in self.top for key in _NOT_OF_THE_SERVICE)


def read_envelope(body: bytes, redactor: Redactor = MACS_ONLY, *, is_own: bool = False) -> Envelope | str:
    """Return the envelope in *body*, or why there is none: no error is raised where secrets are about.

    Of answers to our *own* queries, broken parts are left out; anything else must be flawless.
    """
    try:
        cleaned = redactor.json(body)
        text = body if cleaned is None else cleaned
        found, losses = salvage_json(text) if is_own else (parse_json(text), ())
        # What was left out may have stood within a secret.
        top = redactor.tree(found) if cleaned is None or losses else found
    except NotJson as exc:
        return f"the answer is not JSON: {exc}"
    except RecursionError:
        return "the answer is not JSON: nested too deeply"
    code = read_code(top.get("code")) if isinstance(top, dict) else None
    if code is None or not isinstance(top, dict):
        return "the answer has no code"
    return Envelope(code=code, top=top, losses=losses)


def decode_answer(response: WireResponse) -> object:
    """Return the ``data`` in the answer to a call that succeeded.

    Raises:
        ApiError: The service said no, by code; or it failed or wants a pause, by HTTP status.
        AnswerUnreadable: HTTP says yes and the body cannot be read; or it says no, and the service does not.
    """
    return _read_answer(response).data


def _read_answer(response: WireResponse) -> Envelope:
    """Return the envelope of a yes; see `decode_answer`."""
    found = read_envelope(response.body, response.redactor, is_own=True)
    status = response.status
    if isinstance(found, str) or not (found.is_of_the_service or found.code == 200):
        raise _unreadable(response, found if isinstance(found, str) else "a no that is none of the service")
    if found.code == status == 200:
        return found
    if found.code == 200 and status != 200:
        raise _unreadable(response, "code 200")
    if 200 <= found.code < 300:
        raise AnswerUnreadable(f"HTTP {status}, code {found.code}: neither a yes nor a no")
    raise error_for(found.code, found.message, status, response.retry_after_s)


def _unreadable(response: WireResponse, why: str) -> KieError:
    """Return the error for an answer that does not come from the service itself, or cannot be read."""
    status = response.status
    if status == 200:
        return AnswerUnreadable(why)
    if status in _STATUSES_OF_THEIR_OWN or status >= 500:
        return error_for_page(status, response.retry_after_s)
    return AnswerUnreadable(f"HTTP {status} without an answer of the service ({why})")


# --- createTask ----------------------------------------------------------------------------------


def decode_create(response: WireResponse | None, *, sent: bool, partial: bytes = b"") -> CreateAnswer:
    """Judge an attempt to create; *partial* is what came of a body that broke off.

    Never raises: whatever the bytes are, the verdict is one of five.
    """
    if response is None:
        return CreateAnswer(verdict=create_verdict(sent=sent, http_status=None, code=None, task_id=None))
    body = response.body or partial
    found = read_envelope(body, response.redactor)
    code, task_id = _salvage_create(body) if isinstance(found, str) else (found.code, _created_id(found.data))
    verdict = create_verdict(sent=sent, http_status=response.status, code=code, task_id=task_id)
    if verdict is CreateVerdict.CREATED:
        return CreateAnswer(verdict=verdict, task_id=task_id or "")
    candidate = task_id or _find_candidate(body)
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
    return str(data) if _is_task_id(data) else None


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
    ids = {found.decode() for found in _NAMED_ID.findall(text[:MAX_JSON_BYTES])}
    ids = {found for found in ids if found.lower() not in _NO_IDS}
    return ids.pop() if len(ids) == 1 else ""


def _name_ids(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names and ids in a value."""
    if isinstance(value, list):
        for item in value:
            yield from _name_ids(item, name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            plain = key.replace("_", "").lower()
            if plain not in _OF_THE_REQUEST:
                yield from _name_ids(inner, plain)
    elif name in _ID_NAMES or name == "data":
        text = read_text(value).strip()
        if text.startswith(("{", "[")):  # JSON in JSON
            text = _find_id_in_text(text.encode("utf-8", "replace"))
        is_bare = name == "data" and (len(text) < _MIN_BARE_ID or not any(map(str.isdigit, text)))
        if TASK_ID.fullmatch(text) and text.lower() not in _NO_IDS and not is_bare:
            yield ("taskid" if name == "data" else name), text


# --- recordInfo ----------------------------------------------------------------------------------


def decode_query(response: WireResponse, task_id: str) -> TaskRecord:
    """Return the record in an answer of recordInfo.

    Envelope codes 501 and 531 speak of the task: it failed. Source:
    https://docs.kie.ai/market/common/get-task-detail

    Raises:
        ApiError: The service said no.
        AnswerUnreadable: There is no record, or one of another task.
    """
    try:
        envelope = _read_answer(response)
    except ApiError as exc:
        if response.status != 200 or exc.code not in TASK_FAILURE_CODES:
            raise
        return failed_record(task_id, exc.code, exc.message)
    if not isinstance(data := envelope.data, dict):
        raise AnswerUnreadable("the answer holds no record")
    record = decode_record(data)
    if record.task_id != task_id:
        raise AnswerUnreadable("the answer holds the record of another task")
    if envelope.losses:
        level = logging.WARNING if record.state.is_terminal else logging.INFO
        _log.log(level, "the record of task %s was broken; left out: %s", task_id, ", ".join(envelope.losses))
    return record


def decode_confirmation(response: WireResponse, task_id: str) -> tuple[TaskRecord, str | None]:
    """Return the record in an answer of recordInfo, and the callback URL the task was created with.

    Raises:
        ApiError: The service said no.
        AnswerUnreadable: There is no record, or one of another task.
    """
    return decode_query(response, task_id), _callback_url(response.body)


def _callback_url(body: bytes) -> str | None:
    """Return the callback address in a record with its mac, which stands in nothing else that is decoded."""
    try:
        top = salvage_json(body)[0]
    except NotJson:
        return None
    data = top.get("data") if isinstance(top, dict) else None
    if not isinstance(data, dict):
        return None
    for place in (decode_object(data.get("param")), decode_object(data.get("paramJson")), data):
        for name in _CALLBACK_NAMES:
            if place and isinstance(url := place.get(name), str):
                return url
    return None


# --- the rest ------------------------------------------------------------------------------------


def decode_credits(response: WireResponse) -> float:
    """Return the balance in credits.

    Raises:
        ApiError: The service said no.
        AnswerUnreadable: There is no number in the answer.
    """
    balance = read_number(decode_answer(response))
    if balance is None:
        raise AnswerUnreadable("the answer holds no balance")
    return balance


def decode_upload(response: WireResponse) -> UploadedFile:
    """Return the uploaded file; the service documents two shapes of it.

    Raises:
        ApiError: The service said no.
        AnswerUnreadable: There is no URL in the answer.
    """
    data = decode_answer(response)
    if not isinstance(data, dict):
        data = {}
    url = read_url(data.get("downloadUrl") or data.get("fileUrl"))
    if not url:
        raise AnswerUnreadable("the answer holds no URL of the uploaded file")
    size = read_number(data.get("fileSize"))
    return UploadedFile(
        url=url,
        name=read_text(data.get("fileName")),
        size=None if size is None else int(size),
        mime_type=read_text(data.get("mimeType")),
        uploaded_at=read_instant(data.get("uploadedAt") or data.get("uploadTime")),
        expires_at=read_instant(data.get("expiresAt")),
    )


def decode_fresh_link(response: WireResponse) -> str:
    """Return the fresh link in an answer of download-url.

    Raises:
        ApiError: The service said no: it has no such file.
        AnswerUnreadable: There is no URL in the answer.
    """
    data = decode_answer(response)
    if isinstance(data, dict):
        data = data.get("downloadUrl") or data.get("download_url") or data.get("url")
    if not is_url(data):
        raise AnswerUnreadable("the answer holds no link")
    return str(data)


def decode_callback(body: bytes, redactor: Redactor = MACS_ONLY) -> TaskRecord:
    """Return the record in a delivery, as the sender claims it.

    The id may stand in four places and must be the same in all. A code and a state that
    contradict each other read as no state at all, so that recordInfo is asked.

    Raises:
        CallbackRejected: The body is unreadable, or its ids disagree.
    """
    envelope = read_envelope(body, redactor)
    if isinstance(envelope, str):
        raise CallbackRejected("unreadable body", 400)
    top, data = envelope.top, envelope.data
    if not isinstance(data, dict):
        data = {}
    places = (data.get("taskId"), data.get("task_id"), top.get("taskId"), top.get("task_id"))
    ids = [place for place in places if place is not None]
    if not ids or not all(map(_is_task_id, ids)):
        raise CallbackRejected("malformed task id", 400)
    if ids.count(ids[0]) != len(ids):
        raise CallbackRejected("ids disagree", 400)
    record = decode_record(data if data.get("taskId") else {**data, "taskId": ids[0]})
    if record.state is not TaskState.UNKNOWN and (envelope.code == 200) == (record.state is TaskState.FAIL):
        return attrs.evolve(record, state=TaskState.UNKNOWN)
    return record


def _is_task_id(value: object) -> bool:
    return isinstance(value, str) and TASK_ID.fullmatch(value) is not None
