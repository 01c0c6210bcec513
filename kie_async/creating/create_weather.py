"""What keeps the creates of a session waiting, each said once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..errors import KieError
from ..limits.long_wait import LongWait
from ..limits.weather import NO_SINK, Condition, Outage, WeatherSink
from ..wire.codes import CreateVerdict

LASTING_S = 30.0
"""Limits are met and lifted all the time: only one that holds creates back for so long is worth a line."""


class Room(Protocol):
    """Knows whether a create would have a slot."""

    @property
    def has_room(self) -> bool:
        """Tell whether a slot is free."""


class CreateWeather:
    """The outages and the waits that creates share."""

    def __init__(
        self,
        *,
        api: str = "the service",
        uploads: str = "the upload host",
        max_in_flight: int = 0,
        room: Room | None = None,
        now: Callable[[], float],
        sink: WeatherSink = NO_SINK,
    ) -> None:
        self.unreachable = Outage(
            "unreachable",
            f"creates at {api}",
            "nothing was sent; they are tried again until it can be reached",
            now=now,
            sink=sink,
        )
        self.held_back = Outage(
            "held back",
            f"creates at {api}",
            "the service holds them back and nothing was created; they are sent again after a pause",
            now=now,
            sink=sink,
        )
        self.uploads = Outage(
            "uploads",
            f"uploads to {uploads}",
            "nothing was created; what waits for them is not sent before they are done",
            now=now,
            sink=sink,
        )
        self._max_in_flight = max_in_flight
        self._room = room
        self.turn_wait = LongWait(self._say_what_for)
        self._no_answer = Condition("no answer", sink)
        self.answer_wait = LongWait(
            f"creates at {api} have no answer; what has left may be paid and is never sent again",
            long_s=LASTING_S,
            condition=self._no_answer,
        )

    def _say_what_for(self) -> str:
        if self._room is not None and not self._room.has_room:
            slots = f"{self._max_in_flight} tasks are unsettled, as max_in_flight allows"
            return f"creates wait for a slot: {slots}"
        return "creates wait for their turn at the rate limit, or for a connection"

    def record(self, verdict: CreateVerdict, error: KieError | None, reason: str, begun_at: float) -> None:
        """Take in what became of an attempt that began at *begun_at*."""
        if verdict is CreateVerdict.NOT_SENT:
            self.unreachable.record_failure(reason, begun_at=begun_at)
            return
        self.unreachable.record_success()
        if verdict is not CreateVerdict.UNKNOWN:
            self._no_answer.end("creates are answered again")
        if verdict is CreateVerdict.HELD_BACK:
            self.held_back.record_failure(str(error), begun_at=begun_at, at_least_s=LASTING_S)
        elif verdict is not CreateVerdict.UNKNOWN:
            self.held_back.record_success()
