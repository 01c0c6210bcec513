"""Decodes callbacks, and answers to all calls but creates. Pure: no clock, no network.

An answer's ``code`` speaks of the call, a callback's of the task; both come in the same envelope.
"""

from __future__ import annotations

import logging

import attrs

from .._json import NotJson, decode_object, salvage_json
from ..errors import AnswerUnreadable, ApiError, CallbackRejected
from ..models import TaskRecord, TaskState, UploadedFile
from .codes import TASK_FAILURE_CODES
from .envelope import WireResponse, decode_answer, read_answer, read_envelope
from .records import decode_record, failed_record
from .redaction import MACS_ONLY, Redactor
from .values import is_task_id, is_url, read_instant, read_number, read_text, read_url

_log = logging.getLogger("kie_async")

_CALLBACK_NAMES = ("callBackUrl", "callbackUrl", "callback_url")


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
        envelope = read_answer(response)
    except ApiError as exc:
        if response.status != 200 or exc.code not in TASK_FAILURE_CODES:
            raise
        return failed_record(task_id, exc.code, exc.message)
    if (data := decode_object(envelope.data)) is None:
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
    if not ids or not all(map(is_task_id, ids)):
        raise CallbackRejected("malformed task id", 400)
    if ids.count(ids[0]) != len(ids):
        raise CallbackRejected("ids disagree", 400)
    record = decode_record(data if data.get("taskId") else {**data, "taskId": ids[0]})
    if record.state is not TaskState.UNKNOWN and (envelope.code == 200) == (record.state is TaskState.FAIL):
        return attrs.evolve(record, state=TaskState.UNKNOWN)
    return record
