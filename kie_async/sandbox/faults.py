"""The faults a sandbox can be given: probabilities, exact "the next N" counters, and gates.

Every fault is off by default and may be changed while the sandbox runs. Probabilities are drawn from the
sandbox's seeded generator; counters go down by one each time they strike.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import attrs


def _share(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must lie between 0 and 1, got {value!r}")


def _not_negative(_: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not value >= 0:
        raise ValueError(f"{attribute.name} must be zero or more, got {value!r}")


def _chance() -> Any:
    return attrs.field(default=0.0, validator=_share)


def _count() -> Any:
    return attrs.field(default=0, validator=_not_negative)


def _seconds() -> Any:
    return attrs.field(default=0.0, validator=_not_negative)


def _canned(answers: Any) -> list[tuple[int, bytes]]:
    return [
        (int(status), body.encode() if isinstance(body, str) else bytes(body)) for status, body in answers
    ]


@attrs.define(kw_only=True)
class Faults:
    """The faults of one sandbox; the fields are set one by one, before or while it runs."""

    # -- createTask ------------------------------------------------------------------------------
    lose_answer: float = _chance()
    """Share of creates whose task exists and is charged, but whose connection drops without an answer."""
    lose_answers_next: int = _count()
    """As ``lose_answer``, for exactly the next N tasks created."""
    drop_before_create_next: int = _count()
    """The next N bodies are read, nothing is created and the connection drops."""
    create_answers_next: list[tuple[int, bytes]] = attrs.field(factory=list, converter=_canned)
    """(HTTP status, body) pairs answered first, in order; nothing is created for them."""
    create_answer_delay_s: float = _seconds()
    """Seconds between the creation of a task and its answer."""
    create_answer_gate: asyncio.Event | None = None
    """Answers wait until it is set; their tasks exist already."""
    refuse_but_create_next: int = _count()
    """The next N tasks are created although the answer is code 422."""
    early_callback: float = _chance()
    """Share of tasks that succeed at once, their callback answered before the create is."""
    create_429_next: int = _count()
    constant_task_id: str | None = None
    """Id told in every create answer; only the first task really has it."""
    credits_error_as_500: bool = False
    """Too few credits is then code 500 "Credits insufficient" instead of 402."""

    # -- recordInfo ------------------------------------------------------------------------------
    query_answers_next: list[tuple[int, bytes]] = attrs.field(factory=list, converter=_canned)
    """(HTTP status, body) pairs answered first, in order."""
    query_answer_gate: asyncio.Event | None = None
    """Answers wait until it is set; the record is read after that."""
    query_reads_before_gate: bool = False
    """The record is read before the gate, so the answer can be stale when it leaves."""
    invisible_s: float = _seconds()
    """Seconds after its creation in which a task is not found: 422 "recordInfo is null"."""
    invisible_as_404: bool = False
    """Not found is then 404 "Task not found"."""
    query_429_next: int = _count()
    query_500_next: int = _count()
    query_html_502_next: int = _count()

    # -- the task --------------------------------------------------------------------------------
    fail_rate: float = _chance()
    fail_code: str = "500"
    fail_msg: str = "Internal Error, Please try again later."
    empty_result_rate: float = _chance()
    """Share of successes without a result URL. At 0 the two fields below apply to every success."""
    empty_results_for_s: float = _seconds()
    """Seconds after the end until the URL shows. 0 with no reads either: it never shows."""
    empty_result_looks: int = _count()
    """Reads of a successful record before the URL shows."""

    # -- callbacks -------------------------------------------------------------------------------
    duplicate_callbacks: int = _count()
    """Extra copies of every callback."""
    drop_callbacks: float = _chance()
    forge_callbacks: float = _chance()
    """Share of callbacks preceded by a forged one, its signature wrong or missing."""
    late_callback_s: float = _seconds()

    # -- the whole service -----------------------------------------------------------------------
    retry_after_s: float | None = attrs.field(default=None, validator=_not_negative)
    """Value of a Retry-After header on code 429; the live service was never seen to send one."""
    http_429: bool = False
    """Code 429 then comes with HTTP 429 instead of HTTP 200."""
    revoke_key: bool = False
    """Every authenticated call is then answered 401."""
    maintenance: bool = False
    """Every authenticated call is then answered 455."""

    def take(self, counter: str) -> bool:
        """Return whether *counter* is above zero, and count it down."""
        left: int = getattr(self, counter)
        if left > 0:
            setattr(self, counter, left - 1)
        return left > 0

    def change(self, fields: Mapping[str, Any]) -> None:
        """Set several fields, or none of them.

        Raises:
            ValueError: A field is unknown, is a gate, or has a value out of range.
        """
        known = attrs.fields_dict(type(self)).keys() - _GATES
        if unknown := fields.keys() - known:
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}")
        try:
            attrs.evolve(self, **fields)
        except TypeError as error:
            raise ValueError(str(error)) from error
        for name, value in fields.items():
            setattr(self, name, value)

    def shown(self) -> dict[str, Any]:
        """Return the fields as JSON can carry them, gates left out."""
        shown = {name: getattr(self, name) for name in attrs.fields_dict(type(self)) if name not in _GATES}
        for name in ("create_answers_next", "query_answers_next"):
            shown[name] = [[status, body.decode(errors="replace")] for status, body in shown[name]]
        return shown


_GATES = frozenset({"create_answer_gate", "query_answer_gate"})


def strikes(share: float, rng: random.Random) -> bool:
    """Return True for about *share* of the calls; 0 draws nothing, so seeds stay comparable."""
    return share > 0 and rng.random() < share
