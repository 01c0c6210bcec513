"""No secret shows: not in an error or its locals, not in a repr, a pickle or a log, whatever goes wrong.

The secrets are the API key, the HMAC key, the callback secret, and the last part of a callback address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import attrs
import pytest
from conftest import NO_LIMITS
from support.create_faults import Fault, Notes, rows
from support.misbehaving import (
    Misbehaving,
    answer,
    breaks_off,
    certified,
    closes_on_accept,
    created,
    html,
    never_reads,
    refused,
    resets_on_accept,
    says,
    trusting,
)
from support.tables import each

from kie_async import CallbackReceiver, KieError, KieSession, Network, TaskHandle, TransportError
from kie_async._secrets import Secret
from kie_async.callbacks.address import callback_mac
from kie_async.creating.create_transport import CreateTransport
from kie_async.http.transport import Transport
from kie_async.journal.intents import Intent
from kie_async.wire.requests import encode_credits

KEY = "kie-canary-api-key"
HMAC_KEY = "canary-hmac-key"
CALLBACK_SECRET = b"canary-callback-secret"
PROMPT = "a lighthouse"


class Plans(Notes):
    """A journal that knows whose callback addresses must not show: those the session made."""

    def __init__(self, commit: Any = None) -> None:
        super().__init__(commit)
        self.planned: list[str] = []

    def follow(self, tracker: Any) -> None:
        begin = tracker.begin

        def noted(intent: Intent, *more: Any) -> Any:
            self.planned.append(intent.intent_id)
            return begin(intent, *more)

        tracker.begin = noted

    @property
    def macs(self) -> list[str]:
        return [callback_mac(intent_id, secret=CALLBACK_SECRET) for intent_id in self.planned]


# --- everything that may show something -----------------------------------------------------------


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all that hangs on it, what ``from None`` hides too."""
    left, seen = [error], set[int]()
    while left:
        found = left.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        left += [found.__cause__, found.__context__]
        left += getattr(found, "exceptions", [])


def without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the test that caught the error: it knows the secrets."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def shown_by_error(error: BaseException) -> str:
    """Return what an error tracker would get to see of an error: all locals of all frames."""
    texts: list[str] = []
    for found in chain(error):
        trace = without_our_frames(found.__traceback__)
        texts += traceback.TracebackException(type(found), found, trace, capture_locals=True).format()
        texts += [repr(found), str(found), repr(found.args), repr(vars(found))]
        texts.append(pickled(found))
    return "\n".join(texts)


def shown_by(thing: object) -> str:
    """Return what the reprs of an object and of its fields show, and what its pickle holds."""
    return "\n".join([f"{thing!r} {thing!s} {thing}", *map(repr, fields_of(thing)), pickled(thing)])


def fields_of(thing: object) -> list[object]:
    if attrs.has(type(thing)):
        return [getattr(thing, field.name) for field in attrs.fields(type(thing)) if field.repr]  # type: ignore[arg-type]
    if hasattr(thing, "__dict__"):
        return [vars(thing)]
    slots = getattr(type(thing), "__slots__", ())
    return [getattr(thing, name, None) for name in slots if not name.startswith("__")]


def pickled(thing: object) -> str:
    try:
        return pickle.dumps(thing).decode("latin-1")
    except Exception:
        return ""  # what cannot be pickled gives nothing away


def shown_by_logs(records: list[logging.LogRecord]) -> str:
    """Return what logs show; of our own errors in them, the locals too."""
    formatter, texts = logging.Formatter(), list[str]()
    for record in records:
        texts.append(formatter.format(record))
        texts.append(repr(record.args))
        if record.name == "kie_async" and record.exc_info and record.exc_info[1]:
            texts.append(shown_by_error(record.exc_info[1]))
    return "\n".join(texts)


def secrets_in(text: str, macs: list[str]) -> list[str]:
    return [secret for secret in (KEY, HMAC_KEY, CALLBACK_SECRET.decode(), *macs) if secret in text]


def test_the_walk_finds_what_it_searches() -> None:
    def holds_it() -> None:
        address = f"https://bot.example.org/kie/1/{KEY}"
        raise ValueError(len(address))

    def hides_it() -> None:
        try:
            exec(compile("holds_it()", "elsewhere", "exec"), {"holds_it": holds_it})  # noqa: S102
        except ValueError:
            raise TransportError("nothing to see") from None

    with pytest.raises(TransportError) as caught:
        exec(compile("hides_it()", "elsewhere", "exec"), {"hides_it": hides_it})  # noqa: S102
    assert secrets_in(shown_by_error(caught.value), []) == [KEY]


# --- creates --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
async def talkative(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Let everybody log everything: asyncio logs each callback it runs."""
    caplog.set_level(logging.DEBUG)
    for name in ("asyncio", "aiohttp", "aiohttp.client", "aiohttp.internal", "kie_async"):
        caplog.set_level(logging.DEBUG, logger=name)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    yield
    loop.set_debug(False)


@asynccontextmanager
async def failing_session(fault: Fault, over: str, journal: Plans) -> AsyncIterator[KieSession]:
    """Open a session for which everything goes wrong in the way of *fault*."""
    scheme = "https" if over == "TLS" else "http"
    tls = certified(fault.certificate) if over == "TLS" and fault.certificate else None
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(Misbehaving(fault.server, tls=tls))
        port = stack.enter_context(fault.place()) if fault.place else server.port
        url = f"{scheme}://{fault.host}:{port}"
        kie = await stack.enter_async_context(
            KieSession(
                KEY,
                base_url=url if fault.host == "127.0.0.1" else "http://127.0.0.1:1",
                callback_url="https://bot.example.org/kie",
                callback_secrets=[CALLBACK_SECRET],
                receiver=CallbackReceiver([HMAC_KEY]),
                journal=journal,
                limits=NO_LIMITS,
                task_timeout_s=0.1,
            )
        )
        engine: Any = kie._engine
        transport = CreateTransport(
            url,
            Secret(KEY),
            connections=1,
            timeout_s=min(fault.timeout_s, 1.0),
            connect_timeout_s=fault.connect_timeout_s,
            network=Network(ssl=trusting()),
        )
        stack.push_async_callback(engine.calls.transport.aclose)  # the session closes the other one
        engine.calls.transport = transport
        journal.follow(engine.tracker)
        yield kie


async def outcome_and_parts(fault: Fault, over: str, journal: Plans) -> tuple[TaskHandle | KieError, str]:
    """Return how a create ended, and what the session and its parts showed meanwhile."""
    async with failing_session(fault, over, journal) as kie:
        engine: Any = kie._engine
        outcome: TaskHandle | KieError
        try:
            outcome = await kie.create("test/echo", {"prompt": PROMPT})
        except KieError as exc:
            outcome = exc
        parts = (
            kie,
            engine,
            engine.creator,
            engine.calls,
            engine.calls.transport,
            engine.queries,
        )
        return outcome, "".join(map(shown_by, parts))


@pytest.mark.parametrize("part", range(8))
async def test_no_fault_of_a_create_shows_a_secret(part: int, caplog: pytest.LogCaptureFixture) -> None:
    macs: list[str] = []

    async def check(fault: Fault) -> None:
        journal = Plans(fault.commit)
        outcome, shown = await outcome_and_parts(fault, fault.over[0], journal)
        shown += shown_by_error(outcome) if isinstance(outcome, KieError) else shown_by(outcome)
        assert "test/echo" in shown  # the walk sees what a create holds
        assert len(journal.macs) == 1
        assert not secrets_in(shown, journal.macs)
        macs.extend(journal.macs)

    chosen = rows()[part::8]
    await each(chosen, check, at_once=4)
    assert len(caplog.records) > 10 * len(chosen)
    assert not secrets_in(shown_by_logs(caplog.records), macs)


async def test_a_create_that_is_given_up_shows_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    fault = Fault(id="A25", what="given up", ends=frozenset(), server=breaks_off(b"", "hang"), timeout_s=0.3)
    journal = Plans()
    async with failing_session(fault, "plain", journal) as kie:
        creating = asyncio.create_task(kie.create("test/echo", {"prompt": PROMPT}))
        await asyncio.sleep(0.1)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await creating
        await asyncio.sleep(0.5)
    assert not secrets_in(shown_by_error(caught.value), journal.macs)
    assert not secrets_in(shown_by_logs(caplog.records), journal.macs)


async def test_a_create_that_has_no_json_form_shows_no_callback_address() -> None:
    fault = Fault(id="-", what="never sent", ends=frozenset(), server=never_reads)
    journal = Plans()
    async with failing_session(fault, "plain", journal) as kie:
        with pytest.raises(KieError) as caught:
            await kie.create("test/echo", {"prompt": object()})
    assert not secrets_in(shown_by_error(caught.value), journal.macs)


# --- calls that cost nothing ----------------------------------------------------------------------

QUERY_FAULTS = {
    "closed": closes_on_accept,
    "reset": resets_on_accept,
    "hangs": never_reads,
    "garbage": says(b"SSH-2.0\r\n\r\n"),
    "two lengths": says(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
    "cut": breaks_off(answer(b"{", length=99), "close"),
    "bad gzip": says(answer(b"{}", headers="Content-Encoding: gzip\r\n")),
    "bad chunk": says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"),
}


@pytest.mark.parametrize("behave", QUERY_FAULTS.values(), ids=QUERY_FAULTS)
async def test_no_fault_of_a_query_shows_the_key(behave: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with Misbehaving(behave) as server:
        transport = Transport(server.url, Secret(KEY), connections=1, timeout_s=0.3)
        with pytest.raises(TransportError) as caught:
            await transport.send(encode_credits())
        shown = shown_by(transport)
        await transport.aclose()
    assert list(chain(caught.value)) == [caught.value]
    assert not secrets_in(shown + shown_by_error(caught.value) + shown_by_logs(caplog.records), [])


@pytest.mark.parametrize("raw", [html(502), answer(refused(401)), answer(created("x" * 999))])
async def test_an_error_of_the_service_shows_no_key(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with Misbehaving(says(raw)) as server, KieSession(KEY, base_url=server.url) as kie:
        with pytest.raises(KieError) as caught:
            await kie._engine.queries.read_record("task_1")  # type: ignore[union-attr]
        shown = shown_by(kie)
    assert not secrets_in(shown + shown_by_error(caught.value) + shown_by_logs(caplog.records), [])


# --- the things themselves ------------------------------------------------------------------------


def test_a_secret_shows_itself_to_nobody_but_who_asks() -> None:
    secret = Secret(KEY)
    assert f"{secret!r} {secret} {secret:}" == "Secret(***) Secret(***) Secret(***)"
    with pytest.raises(TypeError):
        vars(secret)
    assert pickled(secret) == ""
    assert secret.reveal() == KEY


def signing_session() -> tuple[KieSession, CallbackReceiver]:
    receiver = CallbackReceiver([HMAC_KEY])
    url = "https://bot.example.org/kie"
    kie = KieSession(KEY, callback_url=url, callback_secrets=[CALLBACK_SECRET], receiver=receiver)
    return kie, receiver


async def test_a_session_shows_no_secret_before_it_is_open_and_after_it_is_closed() -> None:
    kie, receiver = signing_session()
    shown = shown_by(kie) + repr(receiver) + str(receiver)
    async with kie:
        pass
    assert not secrets_in(shown + shown_by(kie), [])


async def test_the_parts_that_sign_and_verify_show_none_of_their_keys() -> None:
    kie, receiver = signing_session()
    async with kie:
        engine: Any = kie._engine
        assert not secrets_in(
            shown_by(receiver) + shown_by(engine.inbox) + shown_by(engine.settings.callbacks), []
        )


@pytest.mark.parametrize(
    "given", [{"api_key": KEY + "\n\x00"}, {"api_key": KEY, "base_url": "http://kie.example"}]
)
def test_a_session_that_cannot_be_made_shows_no_key(given: dict[str, Any]) -> None:
    with pytest.raises(KieError) as caught:
        KieSession(**given)
    for found in chain(caught.value):
        assert KEY not in f"{found!r} {found} {found.args}"
