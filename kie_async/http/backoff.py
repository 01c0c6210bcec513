"""TODO"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import backoff

MAX_RETRY_AFTER_S = 60.0


def delays(rng: random.Random, *, first_s: float = 0.5, ceiling_s: float = 30.0) -> Iterator[float]:
    """Yield growing delays before each further attempt, jittered down to half."""
    waits = backoff.expo(base=2, factor=first_s, max_value=ceiling_s)
    next(waits)  # backoff's generators start with an empty value
    for wait_s in waits:
        yield wait_s * rng.uniform(0.5, 1.0)


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, at most 60; dates and nonsense are None."""
    value = headers.get("Retry-After", "").strip()
    if not value.isascii() or not value.replace(".", "", 1).isdigit() or len(value) > 12:
        return None
    return min(float(value), MAX_RETRY_AFTER_S)
