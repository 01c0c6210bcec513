"""Stops creates after several unknown outcomes in a row."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from ..errors import CreatesHalted

UNKNOWN_IN_A_ROW = 3

HALT_S = 60.0


class CircuitBreaker:
    """Refuses creates while the service seems to be out: an outage must not cost a whole batch.

    After a pause one create may probe whether the service answers again; any answer closes the breaker.
    """

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self._unknown_in_a_row = 0
        self._halted_until = 0.0

    def check(self) -> None:
        """Let a create pass.

        Raises:
            CreatesHalted: Nothing was sent.
        """
        if self._unknown_in_a_row < UNKNOWN_IN_A_ROW:
            return
        if self._now() < self._halted_until:
            left = timedelta(seconds=self._halted_until - self._now())
            raise CreatesHalted(self._unknown_in_a_row, datetime.now(UTC) + left)
        self._halted_until = self._now() + HALT_S

    def record_answer(self) -> None:
        """Note that the service answered."""
        self._unknown_in_a_row = 0

    def record_unknown(self) -> None:
        """Note that nobody knows what became of a create."""
        self._unknown_in_a_row += 1
        self._halted_until = self._now() + HALT_S
