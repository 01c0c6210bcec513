"""Decodes answers and callbacks of the service. Pure: no clock, no network.

An answer's ``code`` speaks of the call, a callback's of the task; both come in the same envelope.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from .._json import NotJson, decode_object, parse_json
from ..errors import AnswerUnreadable, ApiError, CallbackRejected, RateLimited
from ..models import TASK_ID, TaskRecord, TaskState, UploadedFile
from .codes import TASK_FAILURE_CODES, CreateVerdict, create_verdict, error_for
from .records import clean_text, decode_record, is_url, read_code, read_instant, read_number, read_text

_SALVAGED_ID = re.compile(rb'"task_?[iI]d"\s*:\s*"([A-Za-z0-9_-]{1,128})"')

_SALVAGED_CODE = re.compile(rb'\s*\{\s*"code"\s*:\s*(\d{3})\s*,')


@attrs.frozen(kw_only=True)
class WireResponse:
    """One HTTP answer, read to its end."""

    status: int
    body: bytes = attrs.field(repr=False)
    retry_after_s: float | None = None


@attrs.frozen(kw_only=True)
class CreateAnswer:
    """What one attempt to create proved, and what else its answer said."""

    verdict: CreateVerdict
    task_id: str = ""
    error: ApiError | None = None


def read_envelope(body: bytes) -> tuple[dict[str, object], int]:
    """Return the envelope ``{code, msg, data}`` in *body*, and its code.

    Raises:
        AnswerUnreadable: It is no JSON object with a whole number under ``code``.
    """
    try:
        top = parse_json(body)
    except NotJson as exc:
        raise AnswerUnreadable(f"the answer is not JSON: {exc}") from None
    code = read_code(top.get("code")) if isinstance(top, dict) else None
    if code is None or not isinstance(top, dict):
        raise AnswerUnreadable("the answer has no code")
    return top, code


def _read_message(envelope: Mapping[str, object]) -> str:
    """Return an envelope's words; older pages of the service's documentation write ``message``."""
    return clean_text(envelope.get("msg") or envelope.get("message"))


def decode_answer(response: WireResponse) -> object:
    """Return the ``data`` in the answer to a call that succeeded.

    Raises:
        ApiError: The service said no, by code or by HTTP status.
        AnswerUnreadable: HTTP says yes and the body cannot be read.
    """
    code, message = response.status, "no readable answer"
    try:
        envelope, said = read_envelope(response.body)
    except AnswerUnreadable:
        if response.status == 200:
            raise
    else:
        if said == response.status == 200:
            return envelope.get("data")
        if said != 200:
            code, message = said, _read_message(envelope)
    if 200 <= code < 300:
        raise AnswerUnreadable(f"HTTP {response.status}, code {code}: neither a yes nor a no")
    raise error_for(code, message, response.status, response.retry_after_s)


def decode_create(response: WireResponse | None, *, sent: bool, partial: bytes = b"") -> CreateAnswer:
    """Judge an attempt to create; *partial* is what came of a body that broke off.

    Never raises: whatever the bytes are, the verdict is one of five.
    """
    if response is None:
        return CreateAnswer(
            verdict=create_verdict(sent=sent, http_status=None, code=None, task_id=None), task_id=""
        )
    code, message, task_id = _read_create_body(response.body or partial)
    verdict = create_verdict(sent=sent, http_status=response.status, code=code, task_id=task_id)
    error = None
    if verdict in {CreateVerdict.REFUSED, CreateVerdict.HELD_BACK}:
        shown = response.status if code is None or 200 <= code < 300 else code
        error = error_for(shown, message, response.status, response.retry_after_s)
        if verdict is CreateVerdict.HELD_BACK and not isinstance(error, RateLimited):
            error = error_for(response.status, message, response.status, response.retry_after_s)
    return CreateAnswer(verdict=verdict, task_id=task_id or "", error=error)


def _read_create_body(body: bytes) -> tuple[int | None, str, str | None]:
    """Return code, message and task id of a create's answer, salvaged if it broke off."""
    try:
        envelope, said = read_envelope(body)
    except AnswerUnreadable:
        code, ids = _SALVAGED_CODE.match(body), set(_SALVAGED_ID.findall(body))
        if code is None or body.count(b'"code"') != 1 or len(ids) != 1:
            return None, "", None
        return int(code[1]), "", ids.pop().decode()
    data = envelope.get("data")
    if isinstance(data, dict):
        data = data.get("taskId") or data.get("task_id")
    return said, _read_message(envelope), str(data) if _is_task_id(data) else None


def decode_query(response: WireResponse, task_id: str) -> TaskRecord:
    """Return the record in an answer of recordInfo.

    Envelope codes 408, 501 and 531 speak of the task: it failed. Source:
    https://docs.kie.ai/market/common/get-task-detail

    Raises:
        ApiError: The service said no.
        AnswerUnreadable: There is no record, or one of another task.
    """
    return _decode_query(response, task_id)[0]


def decode_confirmation(response: WireResponse, task_id: str) -> tuple[TaskRecord, str | None]:
    """Return the record in an answer of recordInfo, and the callback URL the task was created with.

    Raises:
        ApiError: The service said no.
        AnswerUnreadable: There is no record, or one of another task.
    """
    record, data = _decode_query(response, task_id)
    param = decode_object(data.get("param") or data.get("paramJson"))
    url = param.get("callBackUrl") if param else None
    return record, url if isinstance(url, str) else None


def _decode_query(response: WireResponse, task_id: str) -> tuple[TaskRecord, Mapping[str, object]]:
    """Return the record in an answer of recordInfo, and what it was read from, address and all."""
    try:
        data = decode_answer(response)
    except ApiError as exc:
        if response.status != 200 or exc.code not in TASK_FAILURE_CODES:
            raise
        failed = TaskRecord(
            task_id=task_id, state=TaskState.FAIL, fail_code=str(exc.code), fail_message=exc.message
        )
        return failed, {}
    if not isinstance(data, dict):
        raise AnswerUnreadable("the answer holds no record")
    record = decode_record(data)
    if record.task_id != task_id:
        raise AnswerUnreadable("the answer holds the record of another task")
    return record, data


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
    url = (data.get("downloadUrl") or data.get("fileUrl")) if isinstance(data, dict) else None
    if not isinstance(data, dict) or not is_url(url):
        raise AnswerUnreadable("the answer holds no URL of the uploaded file")
    size = read_number(data.get("fileSize"))
    return UploadedFile(
        url=str(url),
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


def decode_callback(body: bytes) -> TaskRecord:
    """Return the record in a delivery, as the sender claims it.

    The id may stand in four places and must be the same in all. A code and a state that
    contradict each other read as no state at all, so that recordInfo is asked.

    Raises:
        CallbackRejected: The body is unreadable, or its ids disagree.
    """
    try:
        top, code = read_envelope(body)
    except AnswerUnreadable:
        raise CallbackRejected("unreadable body", 400) from None
    data = top.get("data")
    if not isinstance(data, dict):
        data = {}
    places = (data.get("taskId"), data.get("task_id"), top.get("taskId"), top.get("task_id"))
    ids = [place for place in places if place is not None]
    if not ids or not all(map(_is_task_id, ids)):
        raise CallbackRejected("malformed task id", 400)
    if ids.count(ids[0]) != len(ids):
        raise CallbackRejected("ids disagree", 400)
    record = decode_record(data if data.get("taskId") else {**data, "taskId": ids[0]})
    if record.state is not TaskState.UNKNOWN and (code == 200) == (record.state is TaskState.FAIL):
        return attrs.evolve(record, state=TaskState.UNKNOWN)
    return record


def _is_task_id(value: object) -> bool:
    return isinstance(value, str) and TASK_ID.fullmatch(value) is not None
