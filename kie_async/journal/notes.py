"""How a journal writes JSON and reads it again, and the small notes that save work and are no promise."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from .._json import is_unicode
from ..errors import JournalAway, JournalError, JournalFull
from ..models import TaskRecord

MOST_SMALL_NOTES = 10_000
"""How many a journal remembers: the uploads of a long night."""

MAX_REASON_CHARS = 500
"""Of the words in which a create was refused."""

_ECHOES_OF_THE_REQUEST = ("param", "paramJson")
"""Keys of a record under which the request comes back; they are kept only when bodies are."""

_LONGEST_S = 10 * 365 * 86_400.0

_log = logging.getLogger("kie_async")


def wall_ms() -> int:
    """Return the time of the wall clock, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def encode_note(note: object) -> str:
    """Return *note* as JSON text that UTF-8 can hold.

    Raises:
        JournalError: It has no JSON form, or is nested too deeply.
    """
    try:
        # Escapes take six bytes for a letter of two: a long text in Cyrillic would be three times as large.
        text = json.dumps(note, ensure_ascii=False)
        return text if is_unicode(text) else json.dumps(note)
    except (ValueError, TypeError, RecursionError) as exc:
        raise JournalError(f"this cannot be noted as JSON: {str(exc)[:200]}") from None


def encode_record(record: TaskRecord, *, keeps_request: bool) -> str:
    """Return a record as it is noted; without the request that the service shows in it, if that is not kept.

    Raises:
        JournalError: It has no JSON form.
    """
    raw = dict(record.raw) or {"taskId": record.task_id, "state": record.state.value}
    if not keeps_request:
        raw = {key: value for key, value in raw.items() if key not in _ECHOES_OF_THE_REQUEST}
    return encode_note(raw)


def decode_note(text: str) -> dict[str, object] | None:
    """Return the object in a note of our own, None if it cannot be read.

    The limits for answers of the service do not hold here: what was noted must be read, however large.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@attrs.frozen
class SmallNote:
    """What was remembered, and from when to when it holds, in milliseconds since the epoch."""

    text: str
    noted_ms: int
    expires_ms: int

    @classmethod
    def of(cls, note: object, *, for_s: float, now_ms: int) -> SmallNote:
        """Return *note* as it is kept.

        Raises:
            JournalError: It has no JSON form.
        """
        return cls(encode_note(note), now_ms, now_ms + int(min(for_s, _LONGEST_S) * 1000))

    def read(self, now_ms: int) -> object | None:
        """Return the note, None if it is too old, from the future or not to be read."""
        if not self.noted_ms <= now_ms < self.expires_ms:
            return None
        try:
            found: object = json.loads(self.text)
        except (ValueError, RecursionError):
            return None
        return found


@contextmanager
def log_failed_note(what: str) -> Iterator[None]:
    """Log a note that could not be written, where the next open finds SENDING or PLANNED: both are safe."""
    try:
        yield
    except JournalError as exc:
        # A full disk, or a database that is away, is said once for all that could not be noted.
        level = logging.INFO if isinstance(exc, JournalFull | JournalAway) else logging.ERROR
        _log.log(level, "%s could not be noted (%s); the next open will find out", what, exc)


@contextmanager
def log_lost_note(key: str) -> Iterator[None]:
    """Log a small note that could not be read or kept: work is done again, and nothing paid is lost."""
    try:
        yield
    except JournalError as exc:
        level = logging.INFO if isinstance(exc, JournalAway) else logging.WARNING
        _log.log(level, "the note %r could not be read or kept: %s", key, exc)
