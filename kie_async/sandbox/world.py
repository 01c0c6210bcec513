"""The state of the pretended service, without any I/O: its key, limits, credits and tasks."""

from __future__ import annotations

import math
import random
import time
import uuid
from collections import Counter
from typing import Any

import attrs

from . import bodies
from .catalogue import ModelRule, Refusal, check_input, rule_for, unusable_media
from .durations import Durations
from .faults import Faults, strikes
from .files import FileStore
from .tasks import Delivery, EndState, KeySet, SandboxTask, encode_param
from .window import Window

_UNAUTHORIZED = (
    "Unauthorized – Authentication failed. "
    "Please check that your Authorization and Content-Type headers are correctly set."
)
_TOO_OFTEN = "Your call frequency is too high. Please try again later."
_MAINTENANCE = "The server is currently being maintained, please try again later~"
_SUFFIXES = {"image": "png", "audio": "mp3"}


@attrs.define(kw_only=True)
class World:
    """One account of the pretended service."""

    api_key: str | None = attrs.field(repr=False)
    durations: Durations
    rng: random.Random
    balance: float
    credits_per_s: float
    windows: dict[str, Window]
    """The limits of the key, by endpoint."""
    task_query_limit: tuple[int, float] | None
    """The limit of queries of one task."""
    key_set: KeySet
    faults: Faults
    tasks: dict[str, SandboxTask] = attrs.field(factory=dict)
    counts: Counter[str] = attrs.field(factory=Counter)
    deliveries: list[Delivery] = attrs.field(factory=list)
    files: FileStore = attrs.field(factory=FileStore)
    _task_windows: dict[str, Window] = attrs.field(factory=dict)

    def judge_arrival(
        self, endpoint: str, authorization: str, now: float, *, task_id: str | None = None
    ) -> Refusal | None:
        """Return why a call is refused before its content matters, or None.

        Only calls with a right key count against the limits, a query against that of its task too.
        """
        scheme, _, key = authorization.partition(" ")
        is_known = key == self.api_key if self.api_key is not None else bool(key.strip())
        if self.faults.revoke_key or scheme != "Bearer" or not is_known:
            return Refusal(401, _UNAUTHORIZED)
        if self.faults.maintenance:
            return Refusal(455, _MAINTENANCE)
        if f"{endpoint}_429_next" in _COUNTERS and self.faults.take(f"{endpoint}_429_next"):
            return Refusal(429, _TOO_OFTEN)
        windows = [window for window in (self.windows.get(endpoint), self._task_window(task_id)) if window]
        if not all(window.has_room(now) for window in windows):
            return Refusal(429, _TOO_OFTEN)
        for window in windows:
            window.admit(now)
        return None

    def _task_window(self, task_id: str | None) -> Window | None:
        if self.task_query_limit is None or task_id not in self.tasks:
            return None
        return self._task_windows.setdefault(task_id, Window(*self.task_query_limit))

    def create(self, request: Any) -> SandboxTask:
        """Create a task from a parsed createTask body and take its hold from the balance.

        Raises:
            Refusal: The request is malformed, the model unknown, or the credits do not suffice.
        """
        if not isinstance(request, dict):
            raise Refusal(400, "The request body is not a JSON object")
        rule = rule_for(request.get("model"))
        given = check_input(rule, request.get("input"))
        callback_url = request.get("callBackUrl") or None
        if not isinstance(callback_url, str | None):
            raise Refusal(422, "callBackUrl must be a string")
        hold = self._hold(rule, given)
        task = self._new_task(request["model"], given, callback_url, hold)
        task.result = self._result_of(task, rule)
        self.tasks[task.task_id] = task
        self.counts["create.created"] += 1
        return task

    def _hold(self, rule: ModelRule, input: dict[str, Any]) -> float:
        hold = self._price(rule, input)
        if hold > self.balance:
            if self.faults.credits_error_as_500:
                raise Refusal(500, "Credits insufficient")
            raise Refusal(402, "Insufficient credits")
        self.balance -= hold
        return hold

    def _price(self, rule: ModelRule, input: dict[str, Any]) -> float:
        if rule.kind != "avatar":
            return rule.credits
        for name in ("image_url", "audio_url"):
            if self.files.is_ours(input[name]) and self.files.find(input[name]) is None:
                raise unusable_media()
        voice = self.files.find(input["audio_url"])
        if voice is None or voice.length_s is None:
            return rule.credits
        return math.ceil(voice.length_s) * self.credits_per_s

    def _new_task(
        self, model: str, input: dict[str, Any], callback_url: str | None, hold: float
    ) -> SandboxTask:
        wanted = self.faults.constant_task_id
        return SandboxTask(
            task_id=wanted if wanted and wanted not in self.tasks else uuid.uuid4().hex,
            model=model,
            input=input,
            callback_url=callback_url,
            param=encode_param(model, input, callback_url, key_set=self.key_set),
            created_ms=time.time_ns() // 1_000_000,
            created_at=time.monotonic(),
            duration_s=self.durations.draw(self.rng),
            held=hold,
            credits=float(hold),
        )

    def _result_of(self, task: SandboxTask, rule: ModelRule) -> dict[str, Any]:
        if rule.kind == "echo" and "result_object" in task.input:
            return {"resultObject": task.input["result_object"]}
        if rule.kind == "echo" and "result_urls" in task.input:
            return {"resultUrls": task.input["result_urls"]}
        suffix = _SUFFIXES.get(rule.kind, "mp4")
        return {"resultUrls": [f"{self.files.origin}/files/results/{task.task_id}.{suffix}"]}

    def end(
        self, task: SandboxTask, state: EndState, *, fail_code: str | None = None, fail_msg: str | None = None
    ) -> bool:
        """End *task*; a failure gives its credits back. Return False if it had ended before."""
        if task.end_state is not None:
            return False
        task.end_state, task.ended_at = state, time.monotonic()
        task.completed_ms = time.time_ns() // 1_000_000
        if state == "fail":
            task.fail_code = self.faults.fail_code if fail_code is None else fail_code
            task.fail_msg = self.faults.fail_msg if fail_msg is None else fail_msg
            task.credits = 0.0
            self.balance += task.held
        else:
            task.is_empty = self._draw_empty()
        task.remained_credits = self.balance
        return True

    def _draw_empty(self) -> bool:
        faults = self.faults
        if faults.empty_result_rate:
            return strikes(faults.empty_result_rate, self.rng)
        return bool(faults.empty_results_for_s or faults.empty_result_looks)

    def draw_end(self) -> EndState:
        """Return how the next task to end will end."""
        return "fail" if strikes(self.faults.fail_rate, self.rng) else "success"

    def read_record(self, task_id: str, now: float) -> bytes:
        """Return the recordInfo answer for *task_id* at *now*, seconds on the monotonic clock.

        Raises:
            Refusal: 422 or 404, no such task, or one that is not visible yet.
        """
        task = self.tasks.get(task_id)
        if task is None or now - task.created_at < self.faults.invisible_s:
            if self.faults.invisible_as_404:
                raise Refusal(404, "Task not found")
            raise Refusal(422, "recordInfo is null")
        if task.end_state is not None:
            task.reads += 1
        return self._encoded_record(task, now)

    def _encoded_record(self, task: SandboxTask, now: float) -> bytes:
        state, shows_result = task.state_at(now), self.shows_result(task, now)
        if task.cached is None or task.cached[0] != (state, shows_result):
            shown = bodies.record(task, state, shows_result=shows_result, key_set=self.key_set)
            body = bodies.encode_envelope(200, "success", shown, key_set=self.key_set)
            task.cached = (state, shows_result), body
        return task.cached[1]

    def shows_result(self, task: SandboxTask, now: float) -> bool:
        """Return whether the result's URL is out yet."""
        if not task.is_empty or task.ended_at is None:
            return True
        for_s, reads = self.faults.empty_results_for_s, self.faults.empty_result_looks
        if not for_s and not reads:
            return False
        return task.reads > reads and now - task.ended_at >= for_s

    def callback_body(self, task: SandboxTask) -> bytes:
        """Return the genuine callback of *task* as it would leave now."""
        shows_result = self.shows_result(task, time.monotonic())
        return bodies.callback(task, shows_result=shows_result, key_set=self.key_set)


_COUNTERS = frozenset(name for name in attrs.fields_dict(Faults) if name.endswith("_next"))
