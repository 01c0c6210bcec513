"""Stands for a delivery whose body was too large or broken: all it says is that its task has news."""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

from ..errors import CallbackRejected
from ..models import TaskRecord
from .base import Delivery

_READABLE_ID = re.compile(rb'"task_?[iI]d"\s*:\s*"([A-Za-z0-9_-]{1,128})"')


@attrs.frozen(kw_only=True)
class UnreadDelivery:
    """A request to a right address, of whose body nothing can be taken as it stands."""

    intent_id: str
    body: bytes = attrs.field(repr=False)
    """What was kept of it."""
    is_large: bool
    """Whether that is the beginning only, and the id may stand behind it."""
    verify_signature: Callable[[str], None] | None = attrs.field(repr=False)
    """Checks the signature for a task id; None where there are no keys."""

    def delivery_for(self, task_id: str) -> Delivery:
        """Return a delivery without a state, so that the task is polled; *task_id* is "" while it has none.

        Raises:
            CallbackRejected: No id can be read where one is needed, or the signature is not of this task.
        """
        ids: set[bytes] = set(_READABLE_ID.findall(self.body))
        if len(ids) == 1:
            task_id = ids.pop().decode()
        elif not self.is_large or not task_id:
            raise CallbackRejected("unreadable body", 400)
        if self.verify_signature is not None:
            self.verify_signature(task_id)
        return Delivery(
            intent_id=self.intent_id,
            record=TaskRecord(task_id=task_id),
            is_signed=self.verify_signature is not None,
        )
