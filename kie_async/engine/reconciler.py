"""Whether a delivery names the task that an intent without one became.

It is believed only after recordInfo, read with the API key, shows our own callback URL in the task's
parameters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from enum import Enum
from typing import Protocol

import attrs

from ..callbacks.address import is_valid_mac
from ..errors import (
    ApiError,
    CreateOutcomeUnknown,
    InvalidRequest,
    JournalError,
    RateLimited,
    ServerError,
    TransportError,
)
from ..handle import TaskHandle
from ..models import TaskRecord
from ..wire.codes import is_invisible

_GAP_S = 1.0

_WAITS_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)

_log = logging.getLogger("kie_async")


class Phase(Enum):
    """How far an intent has come without a task id."""

    CREATING = "creating"
    UNKNOWN = "unknown"
    REJECTED = "rejected"


@attrs.define(eq=False)
class Pending:
    """An intent without a task id."""

    handle: TaskHandle
    phase: Phase = Phase.CREATING
    held: TaskRecord | None = None
    """A delivery that outran the create answer; one per intent."""
    is_held_signed: bool = False
    is_adopting: bool = False
    is_awaited: bool = True
    """False for one read from a journal that nobody has asked for yet."""
    error: CreateOutcomeUnknown | None = None


class Adopt(Protocol):
    """Binds an intent to a task whose record fits."""

    async def __call__(self, handle: TaskHandle, record: TaskRecord, *, adopted_by: str) -> None:
        """Bind it, or raise what keeps it from being bound."""


class Reconciler:
    """Looks into what deliveries claim, one intent at a time, and has it bound if it is true.

    *confirm* reads recordInfo: the record and the callback URL in its ``param``.
    """

    def __init__(
        self,
        *,
        adopt: Adopt,
        confirm: Callable[[str], Awaitable[tuple[TaskRecord, str | None]]],
        is_pending: Callable[[str], bool],
        note_rejection: Callable[[str], None],
        callback_secrets: Sequence[bytes],
        spawn: Callable[[Coroutine[object, object, None]], object],
    ) -> None:
        self._adopt = adopt
        self._confirm = confirm
        self._is_pending = is_pending
        self._note_rejection = note_rejection
        self._callback_secrets = callback_secrets
        self._spawn = spawn

    def consider(self, pending: Pending) -> None:
        """Begin to adopt, unless the create answer may still come or an adoption is on its way."""
        if pending.phase is not Phase.CREATING and pending.held is not None and not pending.is_adopting:
            pending.is_adopting = True
            self._spawn(self._try_all(pending))

    async def _try_all(self, pending: Pending) -> None:
        try:
            while pending.held is not None and self._is_pending(pending.handle._intent_id):
                record, pending.held = pending.held, None
                await self._try(pending, record.task_id)
                if self._is_pending(pending.handle._intent_id):
                    await asyncio.sleep(_GAP_S)  # a flood of deliveries must not become one of queries
        finally:
            pending.is_adopting = False

    async def _try(self, pending: Pending, task_id: str) -> None:
        """Bind an intent to the task a delivery named, if the service's own record proves it."""
        handle = pending.handle
        found = await self._confirmed(task_id)
        if found is None or not self._is_pending(handle._intent_id):
            return
        record, url = found
        if url is None or not self._is_address_of(handle, url) or not fits(handle, record):
            self._note_rejection("adoption of another task")
            return
        try:
            await self._adopt(handle, record, adopted_by="callback")
        except (InvalidRequest, JournalError) as exc:
            _log.error("task %s could not be adopted: %s", task_id, exc)

    async def _confirmed(self, task_id: str) -> tuple[TaskRecord, str | None] | None:
        for wait_s in _WAITS_S:
            await asyncio.sleep(wait_s)
            try:
                return await self._confirm(task_id)
            except (TransportError, RateLimited, ServerError) as exc:
                _log.info("task %s could not be read for adoption yet: %s", task_id, exc)
            except ApiError as exc:
                if not is_invisible(exc.code, exc.message):
                    _log.warning("task %s cannot be adopted: %s", task_id, exc)
                    return None
        return None

    def _is_address_of(self, handle: TaskHandle, url: str) -> bool:
        front, _, mac = url.rpartition("/")
        is_ours = is_valid_mac(handle._intent_id, mac, callback_secrets=self._callback_secrets)
        return is_ours and front.endswith("/" + handle._intent_id)


def fits(handle: TaskHandle, record: TaskRecord) -> bool:
    """Tell whether a record can be of the task the handle asked for."""
    return not handle._model or not record.model or record.model == handle._model
