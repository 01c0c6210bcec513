"""The law of task states, as data.

Two rules: a terminal state is never left, and late news is no news.
"""

from __future__ import annotations

import logging
import re
from enum import StrEnum

_log = logging.getLogger("kie_async")


class TaskState(StrEnum):
    """Where a task stands, in the service's own words; ``str()`` gives the wire word.

    Source: https://docs.kie.ai/market/common/get-task-detail
    """

    UNKNOWN = "unknown"
    """No state was read, or a word this version does not know. Counts as still running."""
    WAITING = "waiting"
    QUEUING = "queuing"
    GENERATING = "generating"
    SUCCESS = "success"
    FAIL = "fail"

    rank: int
    """How far the task has come: a state of a lower rank is older news."""
    is_terminal: bool
    """Whether the task has ended."""

    def __init__(self, word: str) -> None:
        self.rank = len(type(self).__members__)  # attributes: a look at a set of members costs ten times more
        self.is_terminal = word in {"success", "fail"}


TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What an id of the service looks like; anything else never goes into a URL or a signature."""

_WORDS = {state.value: state for state in TaskState}
_MAX_WORDS = 100
_logged: set[str] = set()


def read_state(word: object) -> TaskState:
    """Return the state a wire word names; an unknown word is logged once and counts as running."""
    if not isinstance(word, str):
        return TaskState.UNKNOWN
    state = _WORDS.get(word) or _WORDS.get(word.strip().lower())
    if state is not None:
        return state
    word = word[:64]
    if word not in _logged and len(_logged) < _MAX_WORDS:
        _logged.add(word)
        _log.warning("unknown task state %r counts as still running", word)
    return TaskState.UNKNOWN


def advance(current: TaskState, observed: TaskState) -> TaskState:
    """Return the state after *observed*; terminal states stay, a stale replica moves nothing back."""
    return current if current.is_terminal or observed.rank <= current.rank else observed
