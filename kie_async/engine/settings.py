"""What a session was told, checked and frozen."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import attrs

from .._secrets import Secret
from ..callbacks.address import callback_mac, is_valid_mac
from ..callbacks.base import Delivery
from ..callbacks.receiver import CallbackReceiver
from ..config import Budget, Limits, PollSchedule
from ..events import SessionEvent
from ..journal.base import Journal


@attrs.frozen(kw_only=True)
class CallbackPolicy:
    """Where callbacks come to, how an address is proven to be ours, and what a delivery may say by itself."""

    url: str | None
    secrets: tuple[Secret, ...] = attrs.field(repr=False)
    """The first one makes new addresses; all are tried on those that are delivered to."""
    confirm: bool | None
    """None trusts signed deliveries only, True none, False all."""
    is_received: bool
    """Whether callbacks come to this session, and not to somebody else's server."""

    def address_of(self, intent_id: str) -> str | None:
        """Return the callback URL of an intent: the path is its address, the last part proves it is ours."""
        if self.url is None:
            return None
        return f"{self.url}/{intent_id}/{callback_mac(intent_id, secret=self.secrets[0])}"

    def is_address_of(self, intent_id: str, url: str) -> bool:
        """Tell whether a callback URL that the service shows is the one of this intent."""
        front, _, mac = url.rpartition("/")
        return front.endswith("/" + intent_id) and is_valid_mac(intent_id, mac, callback_secrets=self.secrets)

    def trusts(self, delivery: Delivery) -> bool:
        """Tell whether a delivery is trusted without asking the service."""
        return delivery.is_signed if self.confirm is None else not self.confirm


@attrs.frozen(kw_only=True)
class Settings:
    """What a session was told, checked."""

    key: Secret
    base_url: str
    upload_url: str
    receiver: CallbackReceiver | None
    callbacks: CallbackPolicy
    journal: str | Path | Journal | None
    max_in_flight: int
    limits: Limits
    poll: PollSchedule
    task_timeout_s: float
    budget: Budget | None
    on_event: Callable[[SessionEvent], None] | None
    rng: random.Random

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Return everything that must stand in no error, no record and no journal."""
        hmac_keys = self.receiver.hmac_keys if self.receiver is not None else ()
        return (self.key, *hmac_keys, *self.callbacks.secrets)
