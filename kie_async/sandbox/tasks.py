"""Records of a task as the sandbox keeps it, and of one delivery of its callback; encodes their JSON."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, Literal

import attrs

State = Literal["waiting", "queuing", "generating", "success", "fail"]
EndState = Literal["success", "fail"]
KeySet = Literal["2026", "2025"]

_QUEUING_FROM, _GENERATING_FROM = 0.15, 0.3
"""Shares of a task's duration at which its state moves on."""


@attrs.define(kw_only=True, eq=False)
class SandboxTask:
    """A task as the sandbox knows it; its state follows from the clock until it ends."""

    task_id: str
    model: str
    input: dict[str, Any]
    callback_url: str | None
    param: str
    """The create request as recordInfo shows it, encoded once."""
    created_ms: int
    created_at: float
    """Seconds on the monotonic clock."""
    duration_s: float | None
    """None: it never ends by itself."""
    held: float
    """Credits taken from the balance at create."""
    credits: float
    """Credits the task costs as things stand: the hold, or 0 after a failure."""
    generating_at: float | None = None
    end_state: EndState | None = None
    ended_at: float | None = None
    completed_ms: int | None = None
    remained_credits: float | None = None
    """The balance when the task ended."""
    fail_code: str | None = None
    fail_msg: str | None = None
    result: dict[str, Any] = attrs.field(factory=dict)
    """What resultJson holds after a success."""
    is_empty: bool = False
    """The result's URL is held back by a fault."""
    reads: int = 0
    """Times its record was read after the end."""
    timer: asyncio.TimerHandle | None = attrs.field(default=None, repr=False)
    cached: tuple[tuple[State, bool], bytes] | None = attrs.field(default=None, repr=False)
    """The last recordInfo body and what it was encoded for."""

    @property
    def state(self) -> State:
        """The state right now."""
        return self.state_at(time.monotonic())

    @property
    def cost_s(self) -> int | None:
        """Whole seconds from create to end, as ``costTime`` gives them."""
        return None if self.ended_at is None else round(self.ended_at - self.created_at)

    def state_at(self, now: float) -> State:
        """Return the state at *now*, seconds on the monotonic clock."""
        if self.end_state is not None:
            return self.end_state
        if self.generating_at is not None and now >= self.generating_at:
            return "generating"
        if not self.duration_s:
            return "waiting"
        share = (now - self.created_at) / self.duration_s
        if share < _QUEUING_FROM:
            return "waiting"
        return "queuing" if share < _GENERATING_FROM else "generating"


@attrs.frozen(kw_only=True)
class Delivery:
    """One POST to a callback URL and what came of it."""

    task_id: str
    url: str
    kind: Literal["genuine", "duplicate", "forged", "manual"]
    status: int | None
    """HTTP status answered, or None when no answer came."""
    at: float
    """When it was sent: seconds on the monotonic clock."""
    headers: Mapping[str, str]
    body: bytes = attrs.field(repr=False)


def encode_json(value: object) -> str:
    """Return *value* as compact JSON, text left readable."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def encode_param(model: str, input: Mapping[str, Any], callback_url: str | None, *, key_set: KeySet) -> str:
    """Return the create request as the service echoes it.

    The live service encodes ``input`` twice, a string inside a string; the 2025 page shows an object.
    https://docs.kie.ai/market/common/get-task-detail
    """
    callback = {} if callback_url is None else {"callBackUrl": callback_url}
    if key_set == "2025":
        return encode_json({**callback, "model": model, "input": input})
    return encode_json({"input": encode_json(input), **callback, "model": model})
