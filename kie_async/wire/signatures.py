"""Signs and verifies callbacks as the service does: HMAC-SHA256 over the task id and a timestamp. Pure."""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence
from functools import lru_cache

from ..errors import CallbackRejected
from ..models import TASK_ID

_TIMESTAMP = re.compile(r"0|[1-9][0-9]{0,10}")


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """Return HMAC-SHA256; the key is scheduled once, not for every message."""
    mac = _keyed_hmac(key).copy()
    mac.update(message)
    return mac.digest()


@lru_cache(maxsize=64)
def _keyed_hmac(key: bytes) -> hmac.HMAC:
    return hmac.new(key, digestmod="sha256")


def sign(task_id: str, timestamp: str, *, key: bytes) -> str:
    """Return the signature of a callback: base64 of HMAC-SHA256 over ``taskId.timestamp``.

    Source: https://docs.kie.ai/common-api/webhook-verification
    """
    return _signature(task_id, timestamp, key).decode()


def _signature(task_id: str, timestamp: str, key: bytes) -> bytes:
    return base64.b64encode(hmac_sha256(key, f"{task_id}.{timestamp}".encode()))


def verify(
    task_id: str, timestamp: str, signature: str, *, keys: Sequence[bytes], now: float, tolerance_s: float
) -> None:
    """Check the signature of a callback.

    The timestamp is unix seconds in plain digits; the clocks may differ by *tolerance_s* either way.

    Raises:
        CallbackRejected: With the reason and the status to answer.
    """
    if not _TIMESTAMP.fullmatch(timestamp):
        raise CallbackRejected("malformed timestamp")
    if not TASK_ID.fullmatch(task_id):
        raise CallbackRejected("malformed task id", 400)
    given = signature.encode("utf-8", "surrogatepass")
    # The encoded texts are compared: base64 has several spellings of the same bytes, and one is right.
    # No early end: the time this takes must not show which key fits.
    matches = [hmac.compare_digest(_signature(task_id, timestamp, key), given) for key in keys]
    if not any(matches):
        raise CallbackRejected("wrong signature")
    if not abs(now - int(timestamp)) <= tolerance_s:
        raise CallbackRejected("stale timestamp")
