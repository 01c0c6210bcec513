"""Logs refused callbacks: each reason once a minute, as a warning where somebody has to act."""

from __future__ import annotations

import logging
import math

LOG_EVERY_S = 60.0

NO_SESSION = "no session is open"
"""The reason that is usual when a process starts or ends."""

_CHECK_KEYS = "a genuine address carried a wrong signature: check hmac_keys and the clock"

_CHECK_HEADERS = (
    "a genuine address carried no usable signature: is the HMAC key set at kie.ai/settings, "
    "and does a proxy change the X-Webhook headers?"
)

_CHECK_CLOCK = "a genuine address carried a time far from this machine's: check the clock (NTP)"

_CHECK_BODY = "a genuine address carried a body that was changed on its way: check the proxy in front"

_ADVICE = {
    "wrong signature": _CHECK_KEYS,
    "missing signature": _CHECK_HEADERS,
    "signature header stands twice": _CHECK_HEADERS,
    "malformed timestamp": _CHECK_HEADERS,
    "stale timestamp": _CHECK_CLOCK,
    "intent is not known here": (
        "it belongs to another worker or to a task of before a restart; give each worker a callback_url "
        "of its own, or a journal and resume() after a restart"
    ),
    "the event loop of the session is blocked": "something on the session's event loop does not yield",
    "body too large": _CHECK_BODY,
    "body too slow": _CHECK_BODY,
    "unreadable body": _CHECK_BODY,
    "unknown content encoding": _CHECK_BODY,
    "malformed task id": _CHECK_BODY,
    "ids disagree": _CHECK_BODY,
    "id of another task": _CHECK_BODY,
}
"""What to check when a callback to a right address was refused for this reason."""

FOREIGN_ADDRESS = (
    "its address has the right form and another secret: another account, or worker, uses this URL too; "
    "with several API keys or while they are replaced, set callback_secrets"
)

_log = logging.getLogger("kie_async")


class RefusalLog:
    """Keeps strangers from filling a disk: what repeats within a minute is only counted."""

    def __init__(self) -> None:
        self._logged_at: dict[tuple[str, bool], float] = {}

    def note(self, reason: str, now: float, *, is_genuine: bool, advice: str = "") -> None:
        """Log a refusal; *is_genuine* if the address was right."""
        advice = advice or (_ADVICE.get(reason, "") if is_genuine else "")
        if now - self._logged_at.get((reason, bool(advice)), -math.inf) < LOG_EVERY_S:
            return
        self._logged_at[reason, bool(advice)] = now
        is_for_people = bool(advice) or (is_genuine and reason != NO_SESSION)
        level = logging.WARNING if is_for_people else logging.INFO
        words = f"{reason}; {advice}" if advice else reason
        _log.log(level, "callback refused: %s (further ones of this minute are only counted)", words)

    def note_unread(self, now: float) -> None:
        """Log that the body of a genuine callback could not be read, and what was done instead."""
        if now - self._logged_at.get(("", False), -math.inf) >= LOG_EVERY_S:
            self._logged_at["", False] = now
            _log.info("a callback's body was too large or unreadable: its task is polled at once")
