"""What a journal is that several workers have open at once: whose an intent is, and what the others note."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import attrs

from ..config import Budget, Rate
from ..limits.rate_limiter import Permits
from .base import Journal
from .intents import Intent


@attrs.frozen(kw_only=True)
class StoredDelivery:
    """A callback that came to another worker than the one whose task it is of."""

    number: int
    """Which one it is, in the order in which they were stored."""
    intent_id: str
    task_id: str
    is_signed: bool
    record: str = attrs.field(repr=False)
    """What it says of the task, as JSON."""


class NewsSink(Protocol):
    """Takes in that other workers noted something."""

    def note_news(self, intent_id: str) -> None:
        """Take in that something of an intent was noted, by whatever worker."""

    def note_deliveries(self) -> None:
        """Take in that a delivery was stored for this worker."""

    def note_missed(self) -> None:
        """Take in that news may have been missed."""

    def note_gone(self) -> None:
        """Take in that another worker has been silent for its lease."""


class SharedJournal(Journal):
    """A journal of several workers. Each intent is one worker's, as long as that lives.

    `open` leaves the tasks of workers that are gone to `take_over`; of what it returns, this worker knows.
    """

    is_durable = True

    @abstractmethod
    def listen(self, sink: NewsSink) -> None:
        """Tell *sink* from now on what is noted; called once, after `open`."""

    @abstractmethod
    def share_creates(self, rate: Rate) -> Permits:
        """Return the permits of creates, which all workers share."""

    @property
    @abstractmethod
    def is_notified(self) -> bool:
        """Return whether the sink is sure to be told; else it has to read from time to time."""

    @property
    @abstractmethod
    def alive_workers(self) -> int:
        """Return how many workers were alive when last counted, this one included."""

    @abstractmethod
    def bound_spending(self, budget: Budget) -> None:
        """Let no create be noted as SENDING from now on that would exceed a budget, over all workers."""

    @abstractmethod
    async def read_intents(self, intent_ids: Sequence[str]) -> list[Intent]:
        """Return these intents as they stand now; those that are not there are left out."""

    @abstractmethod
    async def take_over(self) -> list[Intent]:
        """Make the open intents of workers that are gone this worker's, and return them.

        One that was SENDING is UNKNOWN from then on, and never sent again.
        """

    @abstractmethod
    async def save_delivery(self, delivery: StoredDelivery) -> None:
        """Store a delivery for the worker whose task it is of, and let that know."""

    @abstractmethod
    async def list_deliveries(self) -> list[StoredDelivery]:
        """Return what was stored for this worker, in the order it came."""

    @abstractmethod
    async def drop_deliveries(self, numbers: Sequence[int]) -> None:
        """Forget deliveries that were taken in."""

    @abstractmethod
    async def find_saver(self, task_id: str) -> str:
        """Return which host has saved the files of a task, and where; "" if none has."""

    @abstractmethod
    async def mark_saved(self, task_id: str, by: str) -> None:
        """Note that *by*, a host and a folder, has the files of a task."""

    @abstractmethod
    async def take_turn(self, key: str, for_s: float) -> bool:
        """Tell whether this worker may do what *key* stands for; nobody else may for *for_s* seconds."""

    @abstractmethod
    async def end_turn(self, key: str) -> None:
        """Let others have the turn of *key*."""
