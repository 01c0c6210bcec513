"""The price table: what the service publishes that a task of a model costs, in credits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

import attrs

from .media import LOCAL_MEDIA, LocalMedia, is_media_field, leaves

USD_PER_CREDIT = 0.005

UNKNOWN_VARIANT = "unknown"
"""Of a task whose input is not known any more."""


@attrs.frozen
class ModelPrice:
    """What a model costs: for a task, or for each second of its audio that has begun."""

    credits: float
    is_per_s: bool = False
    longest_s: float | None = None
    """The longest audio it takes, where that is said."""
    field: str = ""
    """The field of the input that the price depends on."""
    credits_by_value: Mapping[str, float] = {}

    def credits_for(self, input: Mapping[str, Any]) -> float:
        """Return the credits for one task, or one second, of this input."""
        value = input.get(self.field)
        return self.credits_by_value.get(value, self.credits) if isinstance(value, str) else self.credits

    def variant_of(self, input: Mapping[str, Any]) -> str:
        """Return what in an input decides the price; nothing if it is the price of most."""
        if not self.field:
            return ""
        value = input.get(self.field)
        is_listed = isinstance(value, str) and value in self.credits_by_value
        return str(value) if is_listed else "" if input else UNKNOWN_VARIANT


@attrs.frozen
class ListedPrice:
    """What the table says of one task."""

    credits: float | None
    """None where the seconds decide and are not known."""
    most: float | None
    """The price of the longest audio that the model takes, or of the task itself; None if nobody says it."""
    is_per_s: bool = False
    variant: str = ""
    """What in its input decides the price."""


MODEL_PRICES: Mapping[str, ModelPrice] = {
    "kling/v1-avatar-standard": ModelPrice(8.0, is_per_s=True, longest_s=15.0),
    "kling/ai-avatar-v1-pro": ModelPrice(16.0, is_per_s=True, longest_s=15.0),
    "kling/ai-avatar-standard": ModelPrice(8.0, is_per_s=True, longest_s=300.0),
    "kling/ai-avatar-pro": ModelPrice(16.0, is_per_s=True, longest_s=300.0),
    "infinitalk/from-audio": ModelPrice(
        *(3.0, True, 15.0), field="resolution", credits_by_value={"480p": 3.0, "720p": 12.0}
    ),
    "omnihuman-1-5": ModelPrice(27.0, is_per_s=True, longest_s=60.0),
    "veed/fabric-1": ModelPrice(18.0, is_per_s=True),
    "volcengine/video-to-video-lip-sync": ModelPrice(8.0, is_per_s=True),
    "nano-banana-2": ModelPrice(8.0, field="resolution", credits_by_value={"2K": 12.0, "4K": 18.0}),
    "nano-banana-pro": ModelPrice(18.0, field="resolution", credits_by_value={"4K": 24.0}),
    "gpt-image-2-text-to-image": ModelPrice(
        6.0, field="resolution", credits_by_value={"2K": 10.0, "4K": 16.0}
    ),
    "seedream/4.5-text-to-image": ModelPrice(6.5),
    "z-image": ModelPrice(0.8),
    "flux-2/pro-text-to-image": ModelPrice(5.0, field="resolution", credits_by_value={"2K": 7.0}),
}
"""As seen on `TABLE_DATE`; they change, and what tasks took counts more than they do.

Sources: https://kie.ai/pricing, and for the longest audio https://docs.kie.ai/market/kling/ai-avatar-standard
"""


TABLE_DATE = date(2026, 10, 7)


def list_price(model: str, input: Mapping[str, Any], audio_s: float | None) -> ListedPrice:
    """Return what the table says of a task, given the seconds of its audio as far as they are known."""
    price = MODEL_PRICES.get(model)
    if price is None:
        return ListedPrice(None, None)
    listed, variant = price.credits_for(input), price.variant_of(input)
    if not price.is_per_s:
        return ListedPrice(listed, listed, variant=variant)
    most = None if price.longest_s is None else listed * price.longest_s
    in_all = None if audio_s is None else listed * math.ceil(audio_s)
    return ListedPrice(in_all, most, is_per_s=True, variant=variant)


def find_audio(input: Mapping[str, Any]) -> list[str | LocalMedia]:
    """Return the audio of an input, in the order of its fields: URLs as text, and local media."""
    return [
        value
        for _, name, value in leaves(input)
        if "audio" in name and is_media_field(name) and isinstance(value, (str, *LOCAL_MEDIA))
    ]
