"""Keeps the ids of paid tasks that could not be committed, as JSON lines in a file beside the journal."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from .exclusive_rename import rename_exclusively

_START_OF_LINE = '{"intent_id"'

_MAX_LOGGED_LINES = 20

_MAX_LOGGED_CHARS = 200

_log = logging.getLogger("kie_async")


class RescueFile:
    """One such file. What was not read from it is neither overwritten nor deleted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, intent_id: str, task_id: str) -> None:
        """Write the ids of an intent and its task to the disk.

        Raises:
            OSError: They could not be written.
        """
        line = json.dumps({"intent_id": intent_id, "task_id": task_id}).encode() + b"\n"
        descriptor = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        with os.fdopen(descriptor, "ab+") as file:
            # A line that a full disk or a crash cut off must not take this one with it.
            if (end := file.seek(0, os.SEEK_END)) and _last_byte(file.fileno(), end) != b"\n":
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> bytes | None:
        """Return what is in the file; None if it is not there or cannot be read, which is logged."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            _log.error("rescued ids in %s cannot be read (%s); they stay there", self.path, exc)
            return None

    def put_away(self, content: bytes, unused: Sequence[str]) -> None:
        """Delete the file if all of its *content* was used, else keep it under a name that is free.

        A file that cannot be put away stays, and is read again at the next open: that does no harm.
        """
        try:
            if self.path.read_bytes() != content:
                return  # it has grown since
            if not unused:
                self.path.unlink()
                return
            kept = self._rename_to_unused()
        except OSError as exc:
            _log.error("rescued ids in %s cannot be put away: %s", self.path, exc)
            return
        lines = [repr(line[:_MAX_LOGGED_CHARS]) for line in unused[:_MAX_LOGGED_LINES]]
        words = "%d rescued ids could not be put into the journal; they are in %s: %s"
        _log.error(words, len(unused), kept, ", ".join(lines))

    def _rename_to_unused(self) -> Path:
        for number in count(1):
            kept = self.path.with_suffix(".unused" if number == 1 else f".unused.{number}")
            try:
                rename_exclusively(self.path, kept)
            except FileExistsError:
                continue
            return kept
        raise AssertionError  # there are always more numbers


def split_lines(content: bytes) -> list[str]:
    """Return the lines that are not blank; one that was written behind a torn one is cut off from it."""
    lines = []
    for line in content.decode(errors="replace").split("\n"):
        torn, start, rest = line.rpartition(_START_OF_LINE)
        is_glued = decode_line(line) is None and decode_line(start + rest) is not None
        lines += [torn, start + rest] if is_glued else [line]
    return [line for line in lines if line.strip()]


def decode_line(line: str) -> tuple[str, str] | None:
    """Return intent id and task id; None if the line is cut off or not ours."""
    try:
        found = json.loads(line)
        intent_id, task_id = found["intent_id"], found["task_id"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    is_text = isinstance(intent_id, str) and isinstance(task_id, str)
    return (intent_id, task_id) if is_text and intent_id and task_id else None


def _last_byte(descriptor: int, size: int) -> bytes:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1)
