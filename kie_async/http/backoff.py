"""Sends a request again after a failure, with jittered exponential delays, and reads Retry-After headers."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TypeVar

import backoff

from ..errors import KieError, RateLimited, ServerError, TransportError

MAX_RETRY_AFTER_S = 60.0

MAX_ATTEMPTS = 4
"""How often a request that costs nothing is sent, the first time included."""

_T = TypeVar("_T")

_log = logging.getLogger("kie_async")


async def retry(
    send: Callable[[], Awaitable[_T]],
    *,
    rng: random.Random,
    attempts: int = MAX_ATTEMPTS,
    keeps_backoff: bool = False,
    on_retry: Callable[[], None] | None = None,
) -> _T:
    """Return what *send* returns, called again after errors that may pass.

    Never for a create: each attempt could be paid for. A ``Retry-After`` of the service replaces our own
    delay; with *keeps_backoff* it can only lengthen it. *on_retry* is called before each further attempt.

    Raises:
        TransportError, ServerError, RateLimited: The last attempt ended in it.
        KieError: Any other error of *send*, at once.
    """
    growing = delays(rng)
    for _ in range(attempts - 1):
        try:
            return await send()
        except (TransportError, ServerError, RateLimited) as exc:
            delay_s = _delay_after(exc, growing, keeps_backoff=keeps_backoff)
            _log.debug("%s; trying again in %.1f s", exc, delay_s)
        # Outside the except block: what happens from here on must not carry the old error in its context.
        await asyncio.sleep(delay_s)
        if on_retry is not None:
            on_retry()
    return await send()


def _delay_after(error: KieError, growing: Iterator[float], *, keeps_backoff: bool) -> float:
    asked_s = error.retry_after_s if isinstance(error, RateLimited) else None
    if asked_s is None:
        return next(growing)
    return max(asked_s, next(growing)) if keeps_backoff else asked_s


def delays(rng: random.Random, *, first_s: float = 0.5, ceiling_s: float = 30.0) -> Iterator[float]:
    """Yield growing delays before each further attempt, jittered down to half."""
    waits = backoff.expo(base=2, factor=first_s, max_value=ceiling_s)
    next(waits)  # backoff's generators start with an empty value
    for wait_s in waits:
        yield wait_s * rng.uniform(0.5, 1.0)


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, at most 60; dates and nonsense are None."""
    value = headers.get("Retry-After", "").strip()
    # `float` would also take signs, exponents, nan and other scripts' digits, so the text is checked first.
    if not value.isascii() or not value.replace(".", "", 1).isdigit() or len(value) > 12:
        return None
    return min(float(value), MAX_RETRY_AFTER_S)
