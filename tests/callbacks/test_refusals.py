"""Tests what is said of callbacks that are refused or never come: once a minute, with what to check."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from conftest import FAST, HMAC_KEY, OpenSession
from support.clock import eventually

from kie_async import CallbackReceiver, Sandbox
from kie_async.callbacks.address import callback_mac
from kie_async.callbacks.base import Delivery
from kie_async.callbacks.silence import ENDS_WITHOUT_CALLBACK, SILENCE_S, WARN_EVERY_S, CallbackSilence
from kie_async.wire.redaction import MACS_ONLY
from kie_async.wire.signatures import sign

INTENT, SECRET, TASK, KEY, NOW = "0123456789abcdef" * 2, b"a secret", "task_12345678", "k", 1_700_000_000
MAC = callback_mac(INTENT, secret=SECRET)
BODY = b'{"code":200,"data":{"taskId":"task_12345678","state":"waiting"}}'


class Inbox:
    """A session that knows one intent."""

    callback_secrets: Sequence[bytes] = (SECRET,)

    redactor = MACS_ONLY

    def __init__(self) -> None:
        self.tasks: dict[str, str] = {INTENT: TASK}

    def owner_of(self, intent_id: str) -> str | None:
        return self.tasks.get(intent_id)

    async def find_noted(self, intent_id: str) -> str | None:
        return None

    async def accept(self, delivery: Delivery) -> None:
        pass

    def note_rejection(self, reason: str) -> None:
        pass


def signed(at: int = NOW, key: str = KEY) -> dict[str, str]:
    return {
        "X-Webhook-Timestamp": str(at),
        "X-Webhook-Signature": sign(TASK, str(at), key=key.encode()),
    }


@pytest.fixture
def clock_of_receiver() -> list[float]:
    return [float(NOW)]


@pytest.fixture
def receiver(clock_of_receiver: list[float]) -> CallbackReceiver:
    receiver = CallbackReceiver([KEY], now=lambda: clock_of_receiver[0])
    receiver.attach(Inbox())
    return receiver


OTHER_INTENT = "f" * 32
RIGHT = f"{INTENT}/{MAC}"
ROWS: dict[str, tuple[str, dict[str, str], bytes, str, str]] = {
    "wrong key": (RIGHT, signed(key="other"), BODY, "WARNING", "wrong signature; a genuine address carried"),
    "advice for a wrong key": (RIGHT, signed(key="other"), BODY, "WARNING", "check hmac_keys and the clock"),
    "clock": (RIGHT, signed(NOW - 400), BODY, "WARNING", "check the clock"),
    "no signature": (RIGHT, {}, BODY, "WARNING", "is the HMAC key set at kie.ai/settings"),
    "odd timestamp": (RIGHT, {**signed(), "X-Webhook-Timestamp": "1e9"}, BODY, "WARNING", "proxy"),
    "another worker's": (
        f"{OTHER_INTENT}/{callback_mac(OTHER_INTENT, secret=SECRET)}",
        signed(),
        BODY,
        "WARNING",
        "another worker",
    ),
    "another account's": (f"{INTENT}/{'a' * 26}", signed(), BODY, "WARNING", "callback_secrets"),
    "unreadable": (RIGHT, signed(), b"", "WARNING", "check the proxy"),
    "encoding": (
        RIGHT,
        {**signed(), "Content-Encoding": "br"},
        b"\x0b",
        "WARNING",
        "unknown content encoding",
    ),
    "a stranger": ("wp-login.php", {}, BODY, "INFO", "wrong address (further"),
}


@pytest.mark.parametrize(("tail", "headers", "body", "level", "words"), ROWS.values(), ids=list(ROWS))
async def test_each_kind_is_said_once_a_minute_with_what_to_check(
    receiver: CallbackReceiver,
    clock_of_receiver: list[float],
    caplog: pytest.LogCaptureFixture,
    tail: str,
    headers: dict[str, str],
    body: bytes,
    level: str,
    words: str,
) -> None:
    caplog.set_level(logging.INFO, "kie_async")
    for _ in range(50):
        assert (await receiver.feed(tail, headers, body)).status >= 400

    (record,) = caplog.records
    assert record.levelname == level
    assert words in record.getMessage()
    assert MAC not in caplog.text

    clock_of_receiver[0] += 61
    assert (await receiver.feed(tail, headers, body)).status >= 400
    assert len(caplog.records) == 2


async def test_a_stranger_does_not_hide_a_genuine_refusal(
    receiver: CallbackReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kie_async")

    await receiver.feed("x/y", {}, BODY)
    await receiver.feed(f"{INTENT}/{'a' * 26}", {}, BODY)

    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


async def test_that_no_session_is_open_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kie_async")

    assert (await CallbackReceiver().feed(RIGHT, {}, BODY)).status == 503

    assert [record.levelname for record in caplog.records] == ["INFO"]


# --- those that never come ------------------------------------------------------------------------


def ends(silence: CallbackSilence, times: Sequence[float]) -> list[str]:
    return [warning for now in times if (warning := silence.note_end(now))]


class TestSilence:
    def test_five_ends_without_a_callback_are_a_warning(self) -> None:
        silence = CallbackSilence("https://bot.example.org/kie?code=s3cret")

        assert ends(silence, [1.0] * (ENDS_WITHOUT_CALLBACK - 1)) == []
        (warning,) = ends(silence, [1.0])
        assert warning.startswith(
            "no callback came for 5 tasks that ended; is https://bot.example.org/kie reachable?"
        )
        assert "s3cret" not in warning

    def test_it_is_said_again_once_a_minute(self) -> None:
        silence = CallbackSilence("https://bot.example.org")

        said = ends(silence, [float(second) for second in range(130)])

        assert len(said) == 3
        assert "for 125 tasks" in said[-1]
        assert WARN_EVERY_S == 60.0

    def test_a_callback_ends_the_silence(self) -> None:
        silence = CallbackSilence("https://bot.example.org")
        ends(silence, [1.0] * 4)
        silence.note_callback(2.0)

        assert ends(silence, [2.0 + SILENCE_S] * 4) == []
        assert len(ends(silence, [2.0 + SILENCE_S])) == 1

    def test_polls_that_were_the_faster_ones_are_no_silence(self) -> None:
        silence = CallbackSilence("https://bot.example.org")
        silence.note_callback(0.0)

        assert ends(silence, [1.0] * 100) == []


@pytest.mark.parametrize("lost", [1.0, 0.0], ids=["lost", "delivered"])
async def test_a_session_says_that_no_callback_comes(
    sandbox: Sandbox, open_session: OpenSession, caplog: pytest.LogCaptureFixture, lost: float
) -> None:
    sandbox.faults.drop_callbacks = lost
    receiver = CallbackReceiver([HMAC_KEY])
    async with receiver.serve("127.0.0.1", 0) as served:
        kie = await open_session(receiver=receiver, callback_url=served.url, poll=FAST)
        for _ in range(7):
            handle = await kie.create("sandbox/echo", {})
            sandbox.finish(handle.task_id)
            await handle
            if not lost:
                await _all_delivered(sandbox)
    said = [record.getMessage() for record in caplog.records if "no callback came" in record.getMessage()]
    assert len(said) == (1 if lost else 0)
    assert not said or f"is {served.url} reachable?" in said[0]


async def _all_delivered(sandbox: Sandbox) -> None:
    await eventually(lambda: len(sandbox.deliveries) == len(sandbox.tasks))


async def test_callbacks_that_are_refused_do_come(
    sandbox: Sandbox, open_session: OpenSession, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = CallbackReceiver(["wrong key"])
    async with wrong.serve("127.0.0.1", 0) as served_wrongly:
        kie = await open_session(receiver=wrong, callback_url=served_wrongly.url, poll=FAST)
        for _ in range(7):
            handle = await kie.create("sandbox/echo", {})
            sandbox.finish(handle.task_id)
            await handle
            await _all_delivered(sandbox)
    texts = [record.getMessage() for record in caplog.records]
    assert not [text for text in texts if "no callback came" in text]
    assert len([text for text in texts if "check hmac_keys and the clock" in text]) == 1
