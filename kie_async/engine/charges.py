"""Joins what is known of the price of a create: its model, the seconds of its audio, the price table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from ..inputs.prices import list_price
from ..journal.intents import Intent
from ..limits.prices import Charge


def charge_of(model: str, input: Mapping[str, Any], audio_s: float | None = None) -> Charge:
    """Return what is known of the price of a create before it is sent."""
    listed = list_price(model, input, audio_s)
    return Charge(model, audio_s, listed.credits, listed.most, is_per_s=listed.is_per_s)


def charge_of_noted(intent: Intent, input: Mapping[str, Any]) -> Charge:
    """Return what is known of the price of a former session's create, whose *input* may be lost."""
    charge = charge_of(intent.model, input, intent.audio_s)
    return attrs.evolve(charge, reserved=intent.expected_credits or 0.0)
