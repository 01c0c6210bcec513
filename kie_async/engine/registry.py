"""The tables of tasks that somebody waits for, by task id, intent and ref, and of ends that were counted."""

from __future__ import annotations

from collections import OrderedDict

from ..errors import InvalidRequest
from ..handle import TaskHandle

REMEMBERED = 10_000
"""Settled and refused intents whose late callbacks are still understood."""


class TaskRegistry:
    """Who is in flight, and for a while who was. A plain table: it changes no handle."""

    def __init__(self) -> None:
        self._by_task: dict[str, TaskHandle] = {}
        self._by_intent: dict[str, TaskHandle] = {}
        self._by_ref: dict[str, tuple[TaskHandle, bytes]] = {}
        """With the fingerprint of what was asked for: the same ref must mean the same."""
        self._settled: OrderedDict[str, str] = OrderedDict()

    @property
    def handles(self) -> list[TaskHandle]:
        """Return all handles in flight."""
        return list(self._by_task.values())

    def __len__(self) -> int:
        return len(self._by_task)

    def by_task(self, task_id: str) -> TaskHandle | None:
        """Return the handle in flight for a task."""
        return self._by_task.get(task_id)

    def by_intent(self, intent_id: str) -> TaskHandle | None:
        """Return the handle in flight for an intent whose callbacks come here."""
        return self._by_intent.get(intent_id)

    def by_ref(self, ref: str) -> tuple[TaskHandle, bytes] | None:
        """Return the handle in flight for a ref, and the fingerprint of what was asked for."""
        return self._by_ref.get(ref)

    def settled_task(self, intent_id: str) -> str | None:
        """Return the task id of an intent that settled not too long ago."""
        return self._settled.get(intent_id)

    def add(self, handle: TaskHandle, *, fingerprint: bytes, expects_callback: bool) -> None:
        """Take in a handle that has its task.

        Raises:
            InvalidRequest: The task belongs to another handle.
        """
        if handle.task_id in self._by_task:
            raise InvalidRequest(f"task {handle.task_id} belongs to another handle already")
        self._by_task[handle.task_id] = handle
        if handle.intent_id and expects_callback:  # else nobody will ask for it
            self._by_intent[handle.intent_id] = handle
        if handle.ref is not None:
            self._by_ref.setdefault(handle.ref, (handle, fingerprint))  # a ghost finds its ref taken

    def check_free(self, task_id: str, intent_id: str) -> None:
        """Refuse to bind a create to a task that came from another one.

        Raises:
            InvalidRequest: It did.
        """
        known = self.by_task(task_id)
        if known is not None and known.intent_id not in {"", intent_id}:
            raise InvalidRequest(f"task {task_id} belongs to another handle already")

    def remove(self, handle: TaskHandle) -> None:
        """Take a handle out; its intent is remembered for late callbacks."""
        if self._by_task.get(handle.task_id) is handle:
            del self._by_task[handle.task_id]
        if handle.ref is not None and (known := self._by_ref.get(handle.ref)) and known[0] is handle:
            del self._by_ref[handle.ref]
        if self._by_intent.pop(handle.intent_id, None) is not None:
            self.note_settled(handle.intent_id, handle.task_id)

    def note_settled(self, intent_id: str, task_id: str) -> None:
        """Remember the task of an intent that settled, for late callbacks."""
        self._settled[intent_id] = task_id
        if len(self._settled) > REMEMBERED:
            self._settled.popitem(last=False)


class CountedEnds:
    """Which ends were counted, so that none is counted twice. A plain table."""

    def __init__(self) -> None:
        self._ended_before: set[str] = set()
        """Tasks in flight whose end the journal has, though not fit to be read: they are counted already."""
        self._counted: OrderedDict[str, None] = OrderedDict()
        """The last tasks whose end was counted: attached again, or bound late, they end once more."""

    def begin(self, task_id: str) -> None:
        """Take in that a task is in flight from now on, perhaps again."""
        if task_id in self._counted:
            self._ended_before.add(task_id)

    def note_ended(self, task_id: str) -> None:
        """Take in that a task in flight ended before, says the journal."""
        self._ended_before.add(task_id)

    def count(self, task_id: str) -> bool:
        """Take in the end of a task in flight; tell whether it counts."""
        if task_id in self._ended_before:
            return False
        self._counted[task_id] = None
        if len(self._counted) > REMEMBERED:
            self._counted.popitem(last=False)
        return True

    def forget(self, task_id: str) -> None:
        """Take in that a task is in flight no more."""
        self._ended_before.discard(task_id)
