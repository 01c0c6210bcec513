"""What a journal is: the record of every create that may cost money, and of what became of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from ..errors import JournalError
from ..limits.prices import TakenPrices
from ..models import TaskRecord
from .account import Account
from .intents import Claim, Intent, IntentState, Totals


class TaskAlreadyBound(JournalError):
    """The task of an intent is another intent's."""


class RefTaken(JournalError):
    """Another worker was faster: the ref is its intent's, and nothing was sent."""


class Journal(ABC):
    """Keeps every intent and what became of it.

    `list_`, `iterate_`, `load_` and `find_` read; `mark_` and `save_` write, and return only when what they
    noted is as durable as this journal makes it. A session relies on the order: SENDING is noted before the
    first byte leaves, an id before user code sees it, an end before a handle settles. Every call but
    `discard`, `recall` and `remember` raises `JournalError` when it cannot be done; then nothing of it was
    noted.
    """

    is_durable: bool = False
    """Whether a restart would find what was noted."""

    @property
    def path(self) -> Path | None:
        """Return the file it is kept in, for messages; None if there is none."""
        return None

    @abstractmethod
    async def open(self) -> list[Intent]:
        """Return the intents a former process left unknown, or rejected in words that leave doubt.

        Raises:
            JournalError: It cannot be opened or trusted.
            JournalLocked: Another session or process has it open.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was begun and let go; a second call does nothing."""

    async def check_account(self, account: Account) -> None:  # noqa: B027  (a journal may serve any)
        """Refuse every account but the one it belongs to, which is noted; called right after `open`.

        As long as it holds no task that may be paid, it belongs to nobody. By default it takes any account.

        Raises:
            JournalError: It belongs to another account or service; the message says to which.
        """

    # --- reading -------------------------------------------------------------------------------

    @abstractmethod
    async def find_by_ref(self, ref: str) -> Intent | None:
        """Return the intent that has a ref, unless the ref may be used again."""

    @abstractmethod
    async def list_unsettled(self) -> list[Intent]:
        """Return the intents with a task that was not seen to end."""

    @abstractmethod
    async def find_by_task(self, task_id: str) -> Intent | None:
        """Return the intent that became a task; a journal that forgets may not know it any more."""

    async def list_last_results(self, count: int) -> list[Intent]:
        """Return the last *count* intents whose task succeeded; a journal that forgets has none."""
        return []

    async def find_by_intent(self, intent_id: str) -> Intent | None:
        """Return an intent; one that forgets may not know it any more, and this base knows none."""
        return None

    @abstractmethod
    async def list_claims(self) -> list[Claim]:
        """Return what is claimed of intents that have no task, in the order it was noted."""

    async def iterate_settled(self, *, since_ms: int = 0, ref_prefix: str = "") -> AsyncIterator[Intent]:
        """Yield the intents whose task ended since then, the oldest end first; one that forgets has none."""
        forgotten: tuple[Intent, ...] = ()
        for intent in forgotten:
            yield intent

    @abstractmethod
    async def load_totals(self) -> Totals:
        """Return what was spent by all processes that had this journal."""

    @abstractmethod
    async def load_prices(self) -> Mapping[str, TakenPrices]:
        """Return what the tasks of each model took, of all processes that had this journal."""

    @abstractmethod
    async def load_durations(self) -> Mapping[str, object]:
        """Return what former processes learned of each model; what cannot be read is left out."""

    # --- writing -------------------------------------------------------------------------------

    @abstractmethod
    async def save_durations(self, learned: Mapping[str, object]) -> None:
        """Note what was learned of each model, in a form fit for JSON, in the place of what was noted."""

    @abstractmethod
    async def count_occurrence(self, key: bytes) -> int:
        """Count *key* and return how often it was counted since open; a journal that forgets says 1."""

    @abstractmethod
    async def mark_sending(self, intent: Intent) -> None:
        """Note that the body is about to leave; called before the first byte.

        The intent takes over the ref of one that never became a task. In the same step the intent that it
        replaces, if any, passes its ref on, and is written off if its outcome is unknown; that is taken back
        when this one is proven to have created nothing.

        Raises:
            JournalError: It could not be noted, was sent before, its ref is another's, or the intent that
                it replaces became a task that has not failed: do not send.
        """

    @abstractmethod
    async def mark_unsent(self, intent_id: str) -> None:
        """Take SENDING back: it is proven that no task was created."""

    @abstractmethod
    async def mark_created(self, intent_id: str, task_id: str, *, adopted_by: str = "") -> None:
        """Note the id of the task an intent became; saying it twice is no error.

        *adopted_by* says how the id was found, if not in the answer to the create.

        Raises:
            TaskAlreadyBound: The task belongs to another intent.
        """

    @abstractmethod
    async def save_claim(self, claim: Claim) -> None:
        """Note what is claimed of an intent; a stronger source takes the place of a weaker one."""

    @abstractmethod
    async def drop_claim(self, intent_id: str, task_id: str) -> None:
        """Forget a claim that was disproven."""

    async def mark_held(self, intent_id: str, credits: float) -> None:  # noqa: B027  (then it is expected)
        """Note what the service holds for the task of an intent, if that has not ended."""

    @abstractmethod
    async def mark_ended(
        self,
        intent_id: str,
        state: IntentState,
        *,
        reason: str = "",
        code: int | None = None,
    ) -> None:
        """Note that an intent was rejected, not created, is unknown or written off.

        Of one that was not created there may be no note: nothing was about to leave.
        """

    @abstractmethod
    async def mark_settled(self, intent_id: str, record: TaskRecord) -> None:
        """Note the terminal record of the intent's task.

        An end that was noted stays, unless it cannot be read: then the same end takes its place.
        """

    def discard(self, intent_id: str) -> None:  # noqa: B027  (only a journal that forgets has a use for it)
        """Forget an intent whose task has ended, if this journal forgets."""

    # --- small notes, which save work and are no part of the promise -----------------------------

    async def recall(self, key: str) -> object | None:
        """Return what was last remembered under *key*, None if that is nothing, too old or unreadable.

        A note from the future does not count: the clock that dated it was wrong. Never raises.
        """
        return None

    async def remember(self, key: str, note: object, *, for_s: float) -> None:  # noqa: B027  (it may forget)
        """Keep a small *note*, fit for JSON, in the place of the former one, for *for_s* by the wall clock.

        Only so many are kept: the oldest make room. What cannot be kept is logged. Never raises.
        """
