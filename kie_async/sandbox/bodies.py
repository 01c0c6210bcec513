"""Encodes the JSON bodies of answers and callbacks, in the key sets of 2026 and of 2025."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

from .tasks import KeySet, SandboxTask, State, encode_json

_ENDED_WELL = (200, "Playground task completed successfully.")
_ENDED_BADLY = (501, "Playground task failed.")
_FLAG_OF = {"success": 1, "fail": 3}
ABSENT: Any = object()
"""Data of an envelope that has no ``data`` key at all."""


def encode_envelope(code: int, msg: str, data: Any = None, *, key_set: KeySet = "2026") -> bytes:
    """Return ``{code, msg, data}``; pages of 2025 write ``message`` for ``msg``."""
    envelope: dict[str, Any] = {"code": code, "message" if key_set == "2025" else "msg": msg}
    if data is not ABSENT:
        envelope["data"] = data
    return encode_json(envelope).encode()


def record(task: SandboxTask, state: State, *, shows_result: bool, key_set: KeySet) -> dict[str, Any]:
    """Return ``data`` of recordInfo. Times are milliseconds since 1970, ``costTime`` is seconds.

    https://docs.kie.ai/market/common/get-task-detail
    """
    ok_word = "" if key_set == "2025" else None
    common = {
        "taskId": task.task_id,
        "model": task.model,
        "state": state,
        "param": task.param,
        "resultJson": _result_json(task, state, shows_result=shows_result),
        "failCode": ok_word if task.fail_code is None else task.fail_code,
        "failMsg": ok_word if task.fail_msg is None else task.fail_msg,
        "costTime": task.cost_s,
        "completeTime": task.completed_ms,
        "createTime": task.created_ms,
    }
    if key_set == "2025":
        return common | _extras_2025(task)
    return common | _extras_2026(task, state, shows_result=shows_result)


def _extras_2026(task: SandboxTask, state: State, *, shows_result: bool) -> dict[str, Any]:
    extras = {
        "creditsConsumed": task.credits,
        "operationType": task.model,
        "successFlag": _FLAG_OF.get(state, 0),
        "paramJson": task.param,
    }
    if state == "success":
        extras["response"] = _result(task, shows_result=shows_result)
    return extras


def _extras_2025(task: SandboxTask) -> dict[str, Any]:
    return {
        "updateTime": task.completed_ms or task.created_ms,
        "consumeCredits": task.credits,
        "remainedCredits": task.remained_credits,
    }


def _result(task: SandboxTask, *, shows_result: bool) -> dict[str, Any]:
    return task.result if shows_result else {"resultUrls": []}


def _result_json(task: SandboxTask, state: State, *, shows_result: bool) -> str:
    return encode_json(_result(task, shows_result=shows_result)) if state == "success" else ""


def callback(task: SandboxTask, *, shows_result: bool, key_set: KeySet) -> bytes:
    """Return the body posted when a task has ended. Failures carry no result, and in 2026 no times.

    https://docs.kie.ai/market/kling/v1-avatar-standard
    """
    has_succeeded = task.end_state == "success"
    code, msg = _ENDED_WELL if has_succeeded else _ENDED_BADLY
    full = record(task, task.end_state or task.state, shows_result=shows_result, key_set=key_set)
    full["updateTime"] = task.completed_ms
    wanted = _CALLBACK_KEYS[key_set, has_succeeded]
    shown = {name: full[name] for name in wanted if name in full}
    return encode_json({"code": code, "data": shown, "msg": msg}).encode()


_ALWAYS = ("taskId", "model", "state", "param")
_TIMES = ("costTime", "completeTime", "createTime", "updateTime")
_CALLBACK_KEYS: dict[tuple[KeySet, bool], tuple[str, ...]] = {
    ("2026", True): (*_ALWAYS, "resultJson", "failCode", "failMsg", *_TIMES, "creditsConsumed"),
    ("2026", False): (*_ALWAYS, "failCode", "failMsg", "costTime", "creditsConsumed"),
    ("2025", True): (*_ALWAYS, "resultJson", *_TIMES, "consumeCredits", "remainedCredits"),
    ("2025", False): (*_ALWAYS, "failCode", "failMsg", *_TIMES, "consumeCredits", "remainedCredits"),
}


def forged_callback(task: SandboxTask, *, as_success: bool) -> bytes:
    """Return a body an attacker who knows the task id might send."""
    lies = {"taskId": task.task_id, "model": task.model, "param": task.param, "creditsConsumed": 0.0}
    if as_success:
        urls = encode_json({"resultUrls": ["https://attacker.invalid/forged.mp4"]})
        data = lies | {"state": "success", "resultJson": urls, "failCode": None, "failMsg": None}
        return encode_json({"code": _ENDED_WELL[0], "data": data, "msg": _ENDED_WELL[1]}).encode()
    data = lies | {"state": "fail", "failCode": "500", "failMsg": "forged", "resultJson": None}
    return encode_json({"code": _ENDED_BADLY[0], "data": data, "msg": _ENDED_BADLY[1]}).encode()


def signature_headers(task_id: str, timestamp: int, *, hmac_key: str) -> dict[str, str]:
    """Return the two headers of a signed callback; *timestamp* is Unix time in seconds.

    The text ``taskId.timestamp`` is signed, the body is not.
    https://docs.kie.ai/common-api/webhook-verification
    """
    digest = hmac.new(hmac_key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    return {
        "X-Webhook-Timestamp": str(timestamp),
        "X-Webhook-Signature": base64.b64encode(digest).decode(),
    }
