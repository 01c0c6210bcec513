"""What is remembered of every intent to pay, and of what became of it."""

from __future__ import annotations

from typing import Protocol

import attrs

from .models import TaskRecord


@attrs.frozen(kw_only=True)
class Intent:
    """One wish to create one task: written down before the first byte leaves."""

    intent_id: str
    model: str
    ref: str | None = None
    body: bytes = attrs.field(default=b"", repr=False)


class Journal(Protocol):
    """The record a session keeps. Every call returns when what it says is as durable as it gets.

    A call that cannot be kept raises `JournalError`.
    """

    is_durable: bool
    """Whether a restart would find what was noted."""

    async def plan(self, intent: Intent) -> None:
        """Note an intent; nothing was sent."""

    async def sending(self, intent_id: str) -> None:
        """Note that the body is about to leave; called inside the hook before the first byte."""

    async def unsent(self, intent_id: str) -> None:
        """Take `sending` back: it is proven that no task was created."""

    async def created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Note the id of the task an intent became."""

    async def ended(self, intent_id: str, state: str, reason: str) -> None:
        """Note that an intent was refused, not created, is unknown or written off."""

    async def settled(self, intent_id: str, record: TaskRecord) -> None:
        """Note the terminal record of the intent's task."""

    async def aclose(self) -> None:
        """Finish what was begun and let go."""


class ForgetfulJournal:
    """The journal of a session without a path: a crash forgets paid tasks, so it notes nothing."""

    is_durable = False

    async def plan(self, intent: Intent) -> None:
        """Note nothing."""

    async def sending(self, intent_id: str) -> None:
        """Note nothing."""

    async def unsent(self, intent_id: str) -> None:
        """Note nothing."""

    async def created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Note nothing."""

    async def ended(self, intent_id: str, state: str, reason: str) -> None:
        """Note nothing."""

    async def settled(self, intent_id: str, record: TaskRecord) -> None:
        """Note nothing."""

    async def aclose(self) -> None:
        """Hold nothing to let go."""
