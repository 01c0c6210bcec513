"""Says in errors of ours what the driver or the server said."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import JournalAway, JournalError, JournalFull
from .base import RefTaken, TaskAlreadyBound

if TYPE_CHECKING:
    import asyncpg

_AWAY_STATES = re.compile("08|28|57P|57014|53[^1]00|58030|25006|25P0[34]")
"""SQLSTATEs of a server that is shutting down, starting, full of connections, short of memory, read-only
after a failover, lets this role in no more, or ended a statement: by a limit of its settings, or by a person.
https://www.postgresql.org/docs/current/errcodes-appendix.html"""

_FULL_STATE, _UNIQUE_STATE, _ZERO_BYTE_STATE = "53100", "23505", "22021"


def error_from(exc: Exception, label: str) -> JournalError:
    """Return the error of ours for one of the driver; what it says of a DSN may hold the password."""
    import asyncpg

    if isinstance(exc, JournalError):
        return exc
    if isinstance(exc, UnicodeError) or type(exc) is asyncpg.DataError:  # of the driver; it repeats the text
        return JournalError(f"{label} cannot hold this text")
    if isinstance(exc, asyncpg.PostgresError):
        return _error_from_server(exc, label)
    if isinstance(exc, (asyncpg.exceptions.ClientConfigurationError, ValueError, OverflowError)):
        return JournalError(
            "the URL of the journal is not as it must be: postgresql://user@host/database, with a port up to "
            "65535, a known sslmode and the files that needs; nor may a variable PG... say otherwise"
        )
    # The driver calls its own error what comes of a server that ends a connection in the middle.
    if isinstance(exc, (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        why = "no answer in time" if isinstance(exc, TimeoutError) else _first_line(exc)
        return JournalAway(f"{label} cannot be reached: {why}")
    if isinstance(exc, RuntimeError) and "different loop" in str(exc):
        return JournalError(f"the pool of {label} belongs to another event loop; make it on this one")
    raise exc


def _error_from_server(exc: asyncpg.PostgresError, label: str) -> JournalError:
    why, state = _first_line(exc), exc.sqlstate or ""
    if state == _FULL_STATE:
        return JournalFull(f"the disk of {label} is full: {why}")
    if state == _UNIQUE_STATE and exc.constraint_name == "intent_ref_key":
        return RefTaken("another worker was faster with this ref; nothing was sent")
    if state == _UNIQUE_STATE and exc.constraint_name == "intent_task_id_key":
        return TaskAlreadyBound("the task belongs to another intent")
    if state == _ZERO_BYTE_STATE:
        return JournalError(f"{label} cannot hold this text: {why}")
    if _AWAY_STATES.match(state):
        return JournalAway(f"{label} cannot be reached: {why}")
    return JournalError(f"{label} refused: {why}")


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200]
