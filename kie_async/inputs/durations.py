"""The table of how long a task of a model takes, for the time before one was seen here."""

from __future__ import annotations

from collections.abc import Mapping

MODEL_DURATIONS_S: Mapping[str, float] = {
    "kling/v1-avatar-standard": 300.0,
    "kling/ai-avatar-v1-pro": 300.0,
    "kling/ai-avatar-standard": 300.0,
    "kling/ai-avatar-pro": 300.0,
    "nano-banana-2": 270.0,
    "gpt-image-2-text-to-image": 50.0,
    "grok-imagine/text-to-video": 130.0,
}
"""Seconds, as users of the service measured them until October 2026; for avatars with a short voice."""
