"""Brings a journal up to date with what a former process left: rescued ids, and creates on their way."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import attrs

from ..errors import JournalError
from .notes import wall_ms
from .rescue_file import RescueFile, decode_line, split_lines
from .sqlite_queries import bind_task


@attrs.frozen
class Rescued:
    """What a rescue file held at open, and which lines of it could not be used."""

    file: RescueFile
    content: bytes
    unused: list[str]


def use_rescued(db: sqlite3.Connection, paths: Iterable[Path]) -> list[Rescued]:
    """Bind what the rescue files name, and return them; those that are not there are left out."""
    rescued = [_use_rescued(db, RescueFile(path)) for path in paths]
    return [found for found in rescued if found is not None]


def end_what_was_on_its_way(db: sqlite3.Connection) -> None:
    """Say of creates that were on their way what is known of them now: nothing, or that none was sent."""
    db.execute("UPDATE intent SET state = 'UNKNOWN', reason = 'crash' WHERE state = 'SENDING'")
    db.execute("UPDATE intent SET state = 'NOT_CREATED', reason = 'never sent' WHERE state = 'PLANNED'")


def _use_rescued(db: sqlite3.Connection, file: RescueFile) -> Rescued | None:
    """Bind what a rescue file names; return None if there is nothing to be read."""
    if (content := file.read()) is None:
        return None
    unused = [line for line in split_lines(content) if not _bind_rescued(db, line)]
    return Rescued(file, content, unused)


def _bind_rescued(db: sqlite3.Connection, line: str) -> bool:
    """Bind the intent of a rescued line to its task; tell whether that was possible."""
    if (ids := decode_line(line)) is None:
        return False
    intent_id, task_id = ids
    try:
        bind_task(db, task_id, wall_ms(), "rescue", intent_id)
    except (JournalError, UnicodeError):  # of another journal, or text that SQLite cannot hold
        return False
    return True


def put_away(rescued: list[Rescued]) -> None:
    """Remove the rescue files that were read, but for what could not be used."""
    for found in rescued:
        found.file.put_away(found.content, found.unused)
