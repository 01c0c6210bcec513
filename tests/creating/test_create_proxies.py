"""Behind a proxy a create is as safe as without: the proxy's own answers come before the gate."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import Any

import attrs
import pytest
from support import create_situations
from support.create_faults import (
    BODY,
    Fault,
    Notes,
    Word,
    creating,
    creation,
    judge,
    objection,
    rows,
    word_for,
)
from support.create_situations import Situation, protest, see, situations
from support.misbehaving import TASK_ID, Misbehaving, answer, certified, created, nobody, says, trusting
from support.proxies import KINDS, Proxy, resets, status
from support.proxies import says as proxy_says
from support.tables import each, together

from kie_async import KieSession, Network, TransportError
from kie_async.config import Limits, PollSchedule

try:
    import aiohttp_socks  # noqa: F401
except ImportError:
    KINDS = tuple(kind for kind in KINDS if kind != "socks5")

OK = answer(created())
pytestmark = pytest.mark.usefixtures("leaks")


def forgive_asyncio() -> None:
    """Take it for no leak that asyncio 3.11 trips over its own feet when TLS within TLS breaks."""
    loop = asyncio.get_running_loop()
    report = loop.get_exception_handler()
    assert report is not None

    def forgive(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "SSLProtocol._abort" not in str(context.get("exception")):
            report(loop, context)

    loop.set_exception_handler(forgive)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_table_of_faults_holds_behind_a_proxy(kind: str) -> None:
    chosen = [fault for fault in rows() if "TLS" in fault.over]
    if kind == "https":
        # In TLS within TLS asyncio may lose why a handshake failed: such a create is tried again.
        chosen = [fault for fault in chosen if Word.HOPELESS not in fault.may_end]
        forgive_asyncio()
    async with Proxy(kind) as proxy:

        async def check(row: tuple[Fault, str]) -> None:
            fault, way = row
            # Two handshakes more than the table reckons with, four rows at once.
            times = {"timeout_s": fault.timeout_s * 4, "connect_timeout_s": fault.connect_timeout_s * 4}
            found = await judge(attrs.evolve(fault, **times), way, proxy.network)
            assert not objection(fault, found, way=way)

        ways = [(fault, way) for fault in chosen for way in fault.ways if way.startswith("TLS")]
        await each(ways, check, at_once=4)
    assert proxy.asked


@pytest.mark.parametrize("kind", KINDS)
async def test_the_situations_hold_behind_a_proxy(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_situations, "TURNS", 120)  # a connection takes more of them
    async with Proxy(kind) as proxy:
        # What ends a connection at once is still on its way through the proxy when the next body leaves.
        chosen = [situation for situation in situations() if not situation.is_at_once]

        async def check(row: tuple[Situation, str]) -> None:
            assert not protest(row[0], await see(*row, proxy.network), row[1])

        for may_share in (True, False):
            rows = [row for row in product(chosen, ("TLS", "TLS, kept")) if row[0].may_share is may_share]
            await each(rows, check, at_once=4 if may_share else 1)
    assert proxy.asked


HTTP_FAULTS: dict[str, Any] = {
    "a status of its own 403": proxy_says(status(403)),
    "a login is missing": proxy_says(status(407, "Proxy-Authenticate: Basic\r\n")),
    "the service's words 200 in a 401": proxy_says(status(401)),
    "bad gateway": proxy_says(status(502)),
    "a task, in a 500": proxy_says(answer(created(), 500)),
    "a redirect": proxy_says(status(302, "Location: http://127.0.0.1/\r\n")),
    "closes": proxy_says(b""),
    "resets": resets,
    "says nothing": proxy_says(b"", hangs=True),
    "garbage": proxy_says(b"\x00\x01\x02 no proxy\r\n\r\n"),
    "agrees and closes": proxy_says(b"HTTP/1.1 200 OK\r\n\r\n"),
    "agrees and says nothing": proxy_says(b"HTTP/1.1 200 OK\r\n\r\n", hangs=True),
    "agrees and answers itself": proxy_says(b"HTTP/1.1 200 OK\r\n\r\n" + OK),
    "half a head": proxy_says(b"HTTP/1.1 200 OK\r\nX: "),
}
SOCKS_FAULTS: dict[str, Any] = {
    "refuses": proxy_says(b"\x05\x02\x00\x01" + bytes(6)),
    "closes": proxy_says(b""),
    "resets": resets,
    "says nothing": proxy_says(b"", hangs=True),
    "garbage": proxy_says(status(400)),
    "agrees and closes": proxy_says(b"\x05\x00\x00\x01" + bytes(6)),
    "agrees and answers itself": proxy_says(b"\x05\x00\x00\x01" + bytes(6) + OK),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_a_proxy_says_itself_nothing_is_sent(kind: str) -> None:
    faults = SOCKS_FAULTS if kind == "socks5" else HTTP_FAULTS

    async def check(name: str) -> None:
        notes = Notes()
        async with Misbehaving(says(OK), tls=certified()) as server, Proxy(kind, fault=faults[name]) as proxy:
            async with creating(server.url, network=proxy.network, connect_timeout_s=0.5) as transport:
                [end] = await asyncio.gather(creation(transport, journal=notes).run(), return_exceptions=True)
        assert word_for(end) == Word.NOT_SENT, end
        assert end.__cause__ is end.__context__ is None
        assert not server.connections
        assert notes.notes[-1:] != ["sending"]

    await each(list(faults), check, at_once=4)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_tunnel_cut_at_any_byte_is_unknown_once_the_body_may_have_left(kind: str) -> None:
    if kind == "https":
        forgive_asyncio()
    ends = []

    async def check(max_bytes: int) -> None:
        async with (
            Misbehaving(says(OK), tls=certified()) as server,
            Proxy(kind, max_bytes=max_bytes) as proxy,
            creating(server.url, network=proxy.network) as transport,
        ):
            [end] = await asyncio.gather(creation(transport).run(), return_exceptions=True)
        word = Word.CREATED if end == TASK_ID else word_for(end)
        ends.append(word)
        assert word in {Word.CREATED, Word.UNKNOWN} if server.bodies else word != Word.CREATED

    await each(range(50, 1800, 70), check, at_once=4)
    assert {Word.NOT_SENT, Word.UNKNOWN, Word.CREATED} <= set(ends)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_proxy_that_is_not_there_is_named_and_nothing_is_sent(kind: str) -> None:
    with nobody() as port:
        network = Network(proxy=f"{kind}://127.0.0.1:{port}", ssl=trusting())
        async with creating("https://127.0.0.1:1", network=network) as transport:
            with pytest.raises(TransportError, match=r"cannot connect to the .*proxy"):
                await creation(transport).run()


@together("kind", KINDS)
async def test_a_proxy_gets_its_login_and_never_the_key(kind: str) -> None:
    async with (
        Misbehaving(says(OK), tls=certified()) as server,
        Proxy(kind, login="ada:p%40ss") as proxy,
        creating(server.url, network=proxy.network) as transport,
    ):
        assert await creation(transport).run() == TASK_ID
    assert server.bodies == [BODY]
    [head] = proxy.heads
    assert ("ada:p@ss" if kind == "socks5" else "\r\nProxy-Authorization: Basic YWRhOnBAc3M=") in head
    assert "\r\nAuthorization" not in head
    assert "roxy" not in server.heads[0]


async def test_a_whole_session_goes_through_its_proxy(sandbox: Any) -> None:
    """A sandbox has no TLS, which SOCKS does not mind."""
    if "socks5" not in KINDS:
        pytest.skip("needs aiohttp-socks")
    async with Proxy("socks5") as proxy:
        async with KieSession(
            "sandbox-key",
            base_url=sandbox.url,
            network=proxy.network,
            limits=Limits(),
            poll=PollSchedule.fixed(0.05),
        ) as kie:
            handle = await kie.create("sandbox/echo", {})
            sandbox.finish(handle.task_id)
            await handle
    assert set(proxy.asked) == {sandbox.url.removeprefix("http://")}
