"""Calls that cost nothing end in an answer or in one kind of error, soon; the key goes to one place."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.create_faults import KEY, LONG_HEADERS, Fault, rows
from support.create_situations import set_in_environment
from support.misbehaving import (
    TASK_ID,
    Behaviour,
    Misbehaving,
    Peer,
    answer,
    bomb,
    certified,
    nobody,
    refused,
    says,
    trickles,
    trusting,
)
from support.proxies import Proxy
from support.proxies import says as proxy_says
from support.tables import together

from kie_async import Network, TransportError
from kie_async._json import MAX_JSON_BYTES, MAX_RECORD_BYTES
from kie_async._secrets import Secret
from kie_async.http.transport import USER_AGENT, Transport, describe_failure
from kie_async.wire.envelope import WireResponse
from kie_async.wire.requests import WireRequest, encode_credits, encode_query

OK = answer({"code": 200, "msg": "success", "data": 42})
pytestmark = pytest.mark.usefixtures("leaks")


@asynccontextmanager
async def asking(url: str, **options: Any) -> AsyncIterator[Transport]:
    """Open and close a transport."""
    transport = Transport(url, Secret(KEY), connections=2, **({"timeout_s": 5.0} | options))
    try:
        yield transport
    finally:
        await transport.aclose()


async def ask(behave: Behaviour, **options: Any) -> WireResponse:
    """Ask a server for the balance."""
    async with Misbehaving(behave) as server, asking(server.url, **options) as transport:
        return await transport.send(encode_credits())


# --- what goes out, what comes back ----------------------------------------------------------------


async def test_an_answer_comes_back_whole() -> None:
    response = await ask(says(answer(refused(429), 429, "Retry-After: 7\r\n")))
    assert response.status == 429
    assert response.body == b'{"code": 429, "msg": "no", "data": null}'
    assert response.retry_after_s == 7


@pytest.mark.parametrize("headers", LONG_HEADERS.values(), ids=LONG_HEADERS)
async def test_no_long_header_hides_an_answer(headers: str) -> None:
    response = await ask(says(answer({"code": 200, "data": 42}, headers=headers)))
    assert response.body == b'{"code": 200, "data": 42}'


async def test_a_question_says_who_asks_and_for_what() -> None:
    async with Misbehaving(says(OK)) as server, asking(server.url) as transport:
        await transport.send(encode_query(TASK_ID))
    [head] = server.heads
    assert head.startswith(f"GET /api/v1/jobs/recordInfo?taskId={TASK_ID} HTTP/1.1\r\n")
    assert f"\r\nAuthorization: Bearer {KEY}\r\n" in head
    assert f"\r\nUser-Agent: {USER_AGENT}\r\n" in head


async def test_a_form_goes_out_under_its_own_type() -> None:
    form = aiohttp.FormData({"name": "face.png"})
    async with Misbehaving(says(OK)) as server, asking(server.url) as transport:
        await transport.send(WireRequest(method="POST", path="/upload"), form=form)
    assert "\r\nContent-Type: application/x-www-form-urlencoded\r\n" in server.heads[0]
    assert server.bodies == [b"name=face.png"]


async def test_questions_share_a_connection() -> None:
    async def answers_all(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK)

    async with Misbehaving(answers_all) as server, asking(server.url) as transport:
        for _ in range(5):
            await transport.send(encode_credits())
    assert server.connections == 1


async def test_a_connection_that_died_between_two_questions_goes_unnoticed() -> None:
    async with Misbehaving(says(OK)) as server, asking(server.url) as transport:
        for _ in range(3):
            assert (await transport.send(encode_credits())).status == 200
    assert server.connections == 3


# --- whatever the server does ----------------------------------------------------------------------


@together("fault", rows(), at_once=6)
async def test_a_question_ends_in_an_answer_or_a_transport_error(fault: Fault) -> None:
    tls = certified(fault.certificate) if "plain" not in fault.over and fault.certificate else None
    scheme = "http" if "plain" in fault.over else "https"
    began = time.monotonic()
    async with Misbehaving(fault.server, tls=tls) as server:
        with fault.place() if fault.place else nobody() as port:
            url = f"{scheme}://{fault.host}:{port if fault.place else server.port}"
            async with asking(url, timeout_s=0.3, network=Network(ssl=trusting())) as transport:
                [outcome] = await asyncio.gather(transport.send(encode_credits()), return_exceptions=True)
    assert time.monotonic() - began < 5
    assert isinstance(outcome, WireResponse | TransportError)
    if isinstance(outcome, TransportError):
        assert outcome.__cause__ is outcome.__context__ is None
        assert str(outcome).startswith("GET /api/v1/chat/credit: ")
        assert KEY not in str(outcome)
        assert "://" not in str(outcome)


@pytest.mark.parametrize(
    ("raw", "bound"),
    [
        (answer(b"x" * 40 * 2**20), MAX_RECORD_BYTES),
        (bomb(size=64 * 2**20), MAX_RECORD_BYTES),
        (answer(b"x" * 2 * 2**20, 500), MAX_JSON_BYTES),
    ],
    ids=["40 MB", "a bomb of 64 MB", "2 MB of error"],
)
async def test_a_body_is_read_up_to_a_bound(raw: bytes, bound: int) -> None:
    tracemalloc.start()
    try:
        response = await ask(says(raw))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(response.body) == bound + 1
    assert (
        peak < 3 * bound + 12 * 2**20 or aiohttp.__version__ == "3.14.0"
    )  # it unpacks half a bomb at a time


async def test_an_endless_body_ends() -> None:
    async def streams(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await peer.send(b"10000\r\n" + b"x" * 2**16 + b"\r\n")

    assert len((await ask(streams)).body) == MAX_RECORD_BYTES + 1


async def test_a_record_of_many_megabytes_is_read_whole() -> None:
    assert len((await ask(says(answer(b"x" * 5 * 2**20)))).body) == 5 * 2**20


async def test_a_body_that_trickles_is_not_waited_for() -> None:
    with pytest.raises(TransportError, match="timed out"):
        await ask(trickles(OK, 0.05), timeout_s=0.2)


# --- where the key goes ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_takes_the_key_nowhere(status: int) -> None:
    async with Misbehaving(says(OK)) as other:
        response = await ask(says(answer(b"", status, f"Location: {other.url}/x\r\n")))
    assert response.status == status
    assert not other.connections


async def test_a_proxy_that_answers_nothing_does_not_take_the_time_of_the_exchange() -> None:
    async with Proxy(fault=proxy_says(b"", hangs=True)) as proxy:
        given = {"network": proxy.network, "connect_timeout_s": 0.1, "timeout_s": 60.0}
        async with asking("https://api.kie.ai", **given) as transport, asyncio.timeout(5):
            with pytest.raises(TransportError, match="timed out"):
                await transport.send(encode_credits(), timeout_s=60.0)


async def test_cookies_are_not_kept() -> None:
    baked = answer(b"{}", headers="Set-Cookie: session=abc; Path=/\r\n")
    async with Misbehaving(says(baked)) as server, asking(server.url) as transport:
        for _ in range(2):
            await transport.send(encode_credits())
    assert len(server.heads) == 2
    assert not any("cookie" in head.lower() for head in server.heads)


async def test_the_environment_diverts_nothing(tmp_path: Path) -> None:
    async with Misbehaving(says(OK)) as proxy, Misbehaving(says(OK)) as server:
        with set_in_environment(tmp_path, proxy.url):
            async with asking(server.url) as transport:
                await transport.send(encode_credits())
    assert not proxy.connections
    [head] = server.heads
    assert f"Authorization: Bearer {KEY}" in head


@pytest.mark.parametrize("certificate", ["untrusted", "other host", "expired", "good"])
async def test_only_public_authorities_are_trusted_by_default(certificate: str) -> None:
    async with Misbehaving(says(OK), tls=certified(certificate)) as server, asking(server.url) as transport:
        with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
            await transport.send(encode_credits())
    assert not server.heads


async def test_an_authority_of_ones_own_is_trusted_when_it_is_given() -> None:
    async with Misbehaving(says(OK), tls=certified()) as server:
        async with asking(server.url, network=Network(ssl=trusting())) as transport:
            assert (await transport.send(encode_credits())).status == 200


# --- words -------------------------------------------------------------------------------

SECRET_URL = "https://user:pass@files.example/v.mp4?sig=5ecret"
FOREIGN = {
    "no address": aiohttp.InvalidURL(SECRET_URL),
    "a body not written": aiohttp.ClientOSError(32, f"Can not write request body for {SECRET_URL}"),
    "a strange answer": aiohttp.ClientPayloadError(f"{SECRET_URL} broke off"),
    "a timeout": TimeoutError(SECRET_URL),
    "a bug": RuntimeError(SECRET_URL),
    "hung up": aiohttp.ServerDisconnectedError(SECRET_URL),
}


@pytest.mark.parametrize("exc", FOREIGN.values(), ids=FOREIGN)
def test_a_description_holds_no_url(exc: Exception) -> None:
    words = describe_failure(exc)
    assert words
    assert not any(part in words for part in ("://", "5ecret", "pass", "files.example"))


async def test_a_description_says_where_and_why() -> None:
    with nobody() as port:
        async with asking(f"http://127.0.0.1:{port}") as transport:
            with pytest.raises(TransportError, match=rf"cannot connect to 127\.0\.0\.1:{port} \(.*refused"):
                await transport.send(encode_credits())


async def test_a_cancelled_question_leaves_nothing_behind() -> None:
    async def hangs(peer: Peer) -> None:
        await peer.request()
        await peer.hang()

    async with Misbehaving(hangs) as server, asking(server.url) as transport:
        asking_it = asyncio.create_task(transport.send(encode_credits()))
        await asyncio.sleep(0.05)
        asking_it.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking_it
