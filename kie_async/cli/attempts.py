"""Names the attempts a journal knows of one ref: those whose ref passed on get a number, ``anna (1)``."""

from __future__ import annotations

from collections import Counter

from ..journal.intents import Intent


class AttemptNames:
    """Gives each intent of a journal its name, asked in the order they were planned."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def name(self, intent: Intent) -> str:
        """Return its ref, or the one it had and which attempt it was; "" if it never had any."""
        if not intent.is_superseded:
            return intent.ref or ""
        self._counts[intent.former_ref or ""] += 1
        return f"{intent.former_ref} ({self._counts[intent.former_ref or '']})"
