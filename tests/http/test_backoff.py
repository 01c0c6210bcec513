"""Requests that cost nothing are sent again a few times, after growing delays or those the service sets."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from support.raw_server import NoWait
from support.tables import together

from kie_async import (
    AnswerUnreadable,
    AuthenticationError,
    InvalidRequest,
    KieError,
    Maintenance,
    NotFound,
    RateLimited,
    ServerError,
    TransportError,
)
from kie_async.http.backoff import MAX_ATTEMPTS, delays, read_retry_after, retry

PASSING = [
    TransportError("x"),
    AnswerUnreadable("x"),
    ServerError(500, "x"),
    RateLimited(429, "x"),
    Maintenance(455, "x"),
]
LASTING = [InvalidRequest("x"), AuthenticationError(401, "x"), NotFound(404, "x"), RuntimeError("x")]


class Ends:
    """Ends each call in the next of *outcomes*, the last one for ever."""

    def __init__(self, *outcomes: Exception | str) -> None:
        self.outcomes = outcomes
        self.calls = 0

    async def __call__(self) -> str:
        outcome = self.outcomes[min(self.calls, len(self.outcomes) - 1)]
        self.calls += 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the delays that are asked for; none of them passes."""
    asked: list[float] = []

    async def sleep(delay_s: float) -> None:
        asked.append(delay_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return asked


# --- again, and no more ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
async def test_what_may_pass_is_tried_again(error: KieError) -> None:
    send = Ends(error, error, "ok")
    assert await retry(send, rng=NoWait()) == "ok"
    assert send.calls == 3


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
async def test_the_last_attempt_ends_in_its_own_error(error: KieError) -> None:
    last = TransportError("the last")
    send = Ends(*[error] * (MAX_ATTEMPTS - 1), last)
    with pytest.raises(TransportError) as caught:
        await retry(send, rng=NoWait())
    assert caught.value is last
    assert caught.value.__context__ is None
    assert send.calls == MAX_ATTEMPTS == 4


@pytest.mark.parametrize("error", LASTING, ids=lambda error: type(error).__name__)
async def test_any_other_error_is_raised_at_once(error: Exception) -> None:
    send = Ends(error)
    with pytest.raises(type(error)):
        await retry(send, rng=NoWait())
    assert send.calls == 1


@pytest.mark.parametrize("attempts", [1, 2, 7])
async def test_attempts_can_be_more_or_fewer(attempts: int) -> None:
    send, retries = Ends(TransportError("x")), list[None]()
    with pytest.raises(TransportError):
        await retry(send, rng=NoWait(), attempts=attempts, on_retry=lambda: retries.append(None))
    assert (send.calls, len(retries)) == (attempts, attempts - 1)


async def test_a_retry_is_counted_after_its_delay() -> None:
    send, retries = Ends(RateLimited(429, "x", 429, 30.0)), list[None]()
    trying = asyncio.create_task(retry(send, rng=NoWait(), on_retry=lambda: retries.append(None)))
    await asyncio.sleep(0.01)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await trying
    assert (send.calls, len(retries)) == (1, 0)
    assert caught.value.__context__ is None


# --- how long between two -------------------------------------------------------------------------


async def test_delays_grow(slept: list[float]) -> None:
    with pytest.raises(TransportError):
        await retry(Ends(TransportError("x")), rng=random.Random(1))
    assert slept == list(itertools.islice(delays(random.Random(1)), 3))


@pytest.mark.parametrize("keeps_backoff", [False, True])
async def test_a_longer_retry_after_replaces_a_delay(slept: list[float], keeps_backoff: bool) -> None:
    send = Ends(RateLimited(429, "x", 429, 7.0), "ok")
    await retry(send, rng=random.Random(1), keeps_backoff=keeps_backoff)
    assert slept == [7.0]


@pytest.mark.parametrize("asked_s", [0.0, 0.01])
async def test_a_shorter_retry_after_is_heeded_unless_the_backoff_is_kept(
    slept: list[float], asked_s: float
) -> None:
    error = RateLimited(429, "x", 429, asked_s)
    await retry(Ends(error, "ok"), rng=random.Random(1))
    await retry(Ends(error, "ok"), rng=random.Random(1), keeps_backoff=True)
    assert slept == [asked_s, next(delays(random.Random(1)))]


async def test_a_retry_after_does_not_use_up_a_delay(slept: list[float]) -> None:
    await retry(Ends(RateLimited(429, "x", 429, 7.0), TransportError("x"), "ok"), rng=random.Random(1))
    assert slept == [7.0, next(delays(random.Random(1)))]


RETRY_AFTER: dict[str, float | None] = {
    "0": 0.0,
    "7": 7.0,
    " 7 ": 7.0,
    "1.5": 1.5,
    "60": 60.0,
    "61": 60.0,
    "999999999999": 60.0,
    "9999999999999": None,
    "-1": None,
    "+1": None,
    "1e3": None,
    "1.2.3": None,
    "inf": None,
    "nan": None,
    "": None,
    ".": None,
    "7s": None,
    "0x7": None,
    "٧": None,
    "²": None,
    "Wed, 21 Oct 2026 07:28:00 GMT": None,
}


@together(("value", "seconds"), RETRY_AFTER.items())
def test_retry_after_is_read_as_seconds_up_to_a_minute(value: str, seconds: float | None) -> None:
    assert read_retry_after({"Retry-After": value}) == seconds


def test_without_the_header_there_is_no_retry_after() -> None:
    assert read_retry_after({}) is None


def test_delays_double_with_jitter_up_to_a_ceiling_for_ever() -> None:
    found = list(itertools.islice(delays(random.Random(1)), 3000))
    for number, delay_s in enumerate(found):
        whole = min(0.5 * 2.0 ** min(number, 100), 30.0)
        assert whole / 2 <= delay_s <= whole


def test_delays_can_begin_and_end_elsewhere() -> None:
    found = list(itertools.islice(delays(random.Random(1), first_s=1.0, ceiling_s=4.0), 10))
    assert 0.5 <= found[0] <= 1.0
    assert max(found) <= 4.0
