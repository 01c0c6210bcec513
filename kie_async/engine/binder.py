"""Binds handles to tasks: to each task one handle that is polled, and those that turn out to be of it too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from ..handle import TaskHandle
from ..inputs.request import TaskRequest
from ..journal.intents import Intent
from ..limits.admission import Admission
from ..limits.budget import BudgetLedger
from ..polling.entry import NEVER, PollEntry
from ..polling.poller import Poller
from .registry import CountedEnds, TaskRegistry


class BindSink(Protocol):
    """Takes in what was bound: the tracker."""

    def note_bound(self, handle: TaskHandle) -> None:
        """Take in that a handle has its task from now on."""


class HandleBinder:
    """Joins handles to tasks and begins to poll them; each task is polled for one handle alone."""

    def __init__(
        self,
        registry: TaskRegistry,
        ends: CountedEnds,
        poller: Poller,
        admission: Admission,
        ledger: BudgetLedger | None,
        sink: BindSink,
    ) -> None:
        self._registry = registry
        self._ends = ends
        self._poller = poller
        self._admission = admission
        self._ledger = ledger
        self._sink = sink
        self._followed: dict[str, TaskHandle] = {}
        """By intent: handles of tasks that are other workers' to poll."""
        self._twins: dict[str, list[TaskHandle]] = {}
        """By task: handles that were given out before it was known that they are of the same task."""

    def twins_of(self, task_id: str) -> Sequence[TaskHandle]:
        """Return the handles that go along with the one that is polled."""
        return self._twins.get(task_id, ())

    def take_twins(self, task_id: str) -> Sequence[TaskHandle]:
        """Return the handles that went along with the one that is settled now, and forget them."""
        return self._twins.pop(task_id, ())

    @property
    def followed(self) -> Mapping[str, TaskHandle]:
        """Return the handles of tasks that are other workers' to poll, by intent."""
        return self._followed

    def follow(self, handle: TaskHandle, intent: Intent) -> TaskHandle:
        """Join a handle to a task that another worker polls; return the one handle of that task here."""
        known = self._registry.by_task(intent.task_id)
        if known is not None and known is not handle:
            return self.bind_or_join(handle, intent, intent.task_id, expects_callback=False)
        handle.bind(intent.task_id)
        self._registry.add(handle, fingerprint=intent.fingerprint, expects_callback=False)
        self._poller.forget(entry_of(handle))
        handle.track(self._poller.track_deadline(intent.task_id, handle.deadline))
        self._followed[intent.intent_id] = handle
        self._sink.note_bound(handle)
        return handle

    def unfollow(self, handle: TaskHandle) -> bool:
        """Follow a handle's task no more; tell whether it was followed."""
        if self._followed.get(handle.intent_id) is not handle:
            return False
        del self._followed[handle.intent_id]
        return True

    def take_over(self, handle: TaskHandle, intent: Intent) -> None:
        """Poll from now on what was followed: it is this worker's task."""
        self.unfollow(handle)
        self._registry.remove(handle)
        expects = intent.expects_callback
        self.bind(handle, intent.task_id, intent.fingerprint, expects_callback=expects, at_once=True)

    def bind(
        self,
        handle: TaskHandle,
        task_id: str,
        fingerprint: bytes = b"",
        *,
        expects_callback: bool,
        at_once: bool = False,
        is_read: bool = False,
    ) -> None:
        """Join a handle to its task and begin to poll it; *is_read* says that its record was read just now.

        Raises:
            InvalidRequest: The task belongs to another handle.
        """
        before = handle.task_id
        handle.bind(task_id)
        try:
            self._registry.add(handle, fingerprint=fingerprint, expects_callback=expects_callback)
        except BaseException:
            handle.bind(before)
            raise
        if self._ledger is not None and handle.intent_id:
            self._ledger.note_tracked(handle.intent_id)
        former = entry_of(handle)
        self._poller.forget(former)
        read_at = NEVER if former is None else former.last_polled_at
        entry = self._poller.track(
            task_id,
            model=handle.model,
            deadline=handle.deadline,
            expects_callback=expects_callback,
            at_once=at_once,
            read_at=asyncio.get_running_loop().time() if is_read else read_at,
        )
        handle.track(entry)
        self._ends.begin(task_id)
        if self._ledger is not None and self._ledger.wants_price(handle.intent_id):
            self._poller.poll_soon(entry)
        self._sink.note_bound(handle)

    def bind_or_join(
        self,
        handle: TaskHandle,
        intent: Intent,
        task_id: str,
        *,
        expects_callback: bool,
        is_read: bool = False,
    ) -> TaskHandle:
        """Bind a handle to its task; if that was attached before, both are one from now on."""
        known = self._registry.by_task(task_id)
        if known is None:
            expects = expects_callback
            self.bind(handle, task_id, intent.fingerprint, expects_callback=expects, is_read=is_read)
            return handle
        if known is not handle and not handle.is_done:
            # Somebody may wait for it, so it goes along with the one that is polled.
            self._poller.forget(entry_of(handle))
            handle.bind(task_id)
            known.move_deadline(max(known.deadline, handle.deadline))
            self._twins.setdefault(task_id, []).append(handle)
            self._admission.transfer(handle, known)
        intent = attrs.evolve(intent, expects_callback=expects_callback)
        self.join(known, intent, handle.request, is_read=is_read)
        return known

    def go_along(self, handle: TaskHandle, known: TaskHandle) -> None:
        """Let a handle that has no task of its own go along with the one that its ref stands for."""
        handle.join(known.intent_id, known.ref, known.model, None)
        handle.move_deadline(known.deadline)
        handle.bind(known.task_id)
        if known.is_done:
            handle.settle_like(known)
        else:
            handle.observe_like(known)
            self._twins.setdefault(known.task_id, []).append(handle)

    def join(
        self,
        handle: TaskHandle,
        intent: Intent,
        request: TaskRequest | None = None,
        *,
        is_read: bool = False,
    ) -> None:
        """Say which create an attached task came from: its end is noted, its callbacks are known."""
        if intent.has_ended:
            self._ends.note_ended(handle.task_id)
        if handle.intent_id or handle.is_done:
            return
        self._registry.remove(handle)
        handle.join(intent.intent_id, intent.ref, intent.model, request)
        expects = intent.expects_callback
        if handle.is_settling:  # its end is just being noted: nothing is polled for any more
            self._registry.add(handle, fingerprint=intent.fingerprint, expects_callback=expects)
        else:
            self.bind(
                handle,
                handle.task_id,
                intent.fingerprint,
                expects_callback=expects,
                at_once=True,
                is_read=is_read,
            )


def entry_of(handle: TaskHandle) -> PollEntry | None:
    """Return what the poller knows of a handle; None while it polls nothing for it."""
    return handle.poll_entry if isinstance(handle.poll_entry, PollEntry) else None
