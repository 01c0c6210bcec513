"""Tests `CallbackReceiver.check`: what it says of each hop between the service and a receiver."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trustme
from support.delivering import MOUNTS, PATH, connect_to, post, served_alone

from kie_async import CallbackReceiver, InvalidRequest

Change = Callable[[bytes], bytes]


@pytest.mark.parametrize("name", MOUNTS)
@pytest.mark.parametrize("keys", [(), ("key",)], ids=["unsigned", "signed"])
async def test_it_arrives_at_every_mount_without_a_session(name: str, keys: tuple[str, ...]) -> None:
    receiver = CallbackReceiver(keys)
    async with MOUNTS[name](receiver) as mounted:
        for url in (mounted.url, mounted.url + "/", mounted.url + "?code=s3cret"):
            check = await receiver.check(url)
            assert check.is_ok, str(check)
            assert (check.failed_hop, check.url) == ("", url.partition("?")[0])
            assert "callbacks arrive as they were sent; but only this machine can reach it" in str(check)
        assert "s3cret" not in repr(check)


async def test_it_is_no_way_in_for_others(doorbell: CallbackReceiver) -> None:
    async with served_alone(doorbell) as mounted:
        await doorbell.check(mounted.url)
        answer = await post(mounted.port, f"{PATH}/{'0' * 32}/{'a' * 26}", [("X-Kie-Async-Check", "0" * 32)])
        assert answer.status == 503


@asynccontextmanager
async def proxy_to(port: int, change: Change, change_answer: Change = bytes) -> AsyncIterator[str]:
    """Pass requests on, changed; return the URL of the path."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        async with connect_to(port) as connection:
            await connection.send(change(head + await reader.readexactly(length)))
            answer = await connection.read_answer()
        writer.write(change_answer(f"{answer.head}\r\n\r\n".encode() + answer.body))
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATH}"


def without_header(name: bytes) -> Change:
    def change(request: bytes) -> bytes:
        return b"\r\n".join(line for line in request.split(b"\r\n") if not line.startswith(name))

    return change


PROXIES: dict[str, tuple[Change, Change, str, str]] = {
    "passes on": (bytes, bytes, "", "arrive as they were sent"),
    "cuts the path off": (lambda r: r.replace(b"POST /kie/", b"POST /"), bytes, "path", "cuts off or adds"),
    "adds a part": (lambda r: r.replace(b"POST /kie/", b"POST /kie/v1/"), bytes, "path", "cuts off or adds"),
    "upper case": (lambda r: r.replace(b"/kie/", b"/KIE/"), bytes, "path", "another path"),
    "drops a header": (without_header(b"X-Webhook-Signature"), bytes, "headers", "X-Webhook headers"),
    "writes the body anew": (lambda r: r.replace(b"\xc3\xa4", b"??"), bytes, "body", "another body"),
    "loses the answer": (
        bytes,
        lambda a: a.replace(b" 200 ", b" 502 ", 1),
        "answer",
        "became HTTP 502",
    ),
}


@pytest.mark.parametrize(("change", "change_answer", "hop", "words"), PROXIES.values(), ids=list(PROXIES))
async def test_it_says_what_a_proxy_changed(
    doorbell: CallbackReceiver, change: Change, change_answer: Change, hop: str, words: str
) -> None:
    async with served_alone(doorbell) as mounted, proxy_to(mounted.port, change, change_answer) as url:
        check = await doorbell.check(url)
    assert (check.failed_hop, check.is_ok) == (hop, not hop)
    assert words in check.message


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def stranger(serve: Serve, **options: ssl.SSLContext) -> AsyncIterator[int]:
    async with await asyncio.start_server(serve, "127.0.0.1", 0, **options) as server:
        yield server.sockets[0].getsockname()[1]


def answering(text: str) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text.encode())
        writer.close()
        await writer.wait_closed()

    return serve


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()
    await writer.wait_closed()


STRANGERS: dict[str, tuple[Serve, str, str]] = {
    "a page": (answering("HTTP/1.1 200 OK\r\n\r\n"), "path", "warning page of the tunnel"),
    "not found": (answering("HTTP/1.1 404 Not Found\r\n\r\n"), "path", "nothing is there"),
    "bad gateway": (answering("HTTP/1.1 502 Bad\r\n\r\n"), "path", "what is behind it does not"),
    "a login": (answering("HTTP/1.1 401 No\r\n\r\n"), "path", "asks for a login"),
    "a firewall": (answering("HTTP/1.1 403 No\r\n\r\n"), "path", "refuses strangers"),
    "teapot": (answering("HTTP/1.1 418 No\r\n\r\n"), "path", "HTTP 418"),
    "a redirect": (
        answering("HTTP/1.1 301 Moved\r\nLocation: https://www.example.org/kie?x=1\r\n\r\n"),
        "path",
        "redirects to https://www.example.org/kie:",
    ),
    "no HTTP": (answering("220 smtp.example.org\r\n\r\n"), "answer", "does not speak HTTP"),
    "closes": (answering(""), "answer", "closed without an answer"),
    "is silent": (_silent, "answer", "nothing came within 0.3 s"),
    "too long a head": (answering("HTTP/1.1 200 OK\r\n" + "a: b\r\n" * 20_000 + "\r\n"), "answer", ""),
}


@pytest.mark.parametrize(("serve", "hop", "words"), STRANGERS.values(), ids=list(STRANGERS))
async def test_it_says_what_answers_instead(
    doorbell: CallbackReceiver, serve: Serve, hop: str, words: str
) -> None:
    async with stranger(serve) as port:
        check = await doorbell.check(f"http://127.0.0.1:{port}/kie", timeout_s=0.3)
    assert check.failed_hop == hop
    assert words in check.message


async def test_nobody_listens(doorbell: CallbackReceiver) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        check = await doorbell.check(f"http://127.0.0.1:{taken.getsockname()[1]}/kie")
    assert check.failed_hop == "connection"
    assert "is the tunnel up" in check.message


async def test_a_host_without_a_name(doorbell: CallbackReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    check = await doorbell.check("https://bot.example.org/kie")
    assert check.failed_hop == "name"
    assert "Name or service not known" in check.message


async def test_a_certificate_that_nobody_trusts(doorbell: CallbackReceiver) -> None:
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    async with stranger(answering("HTTP/1.1 404 X\r\n\r\n"), ssl=theirs) as port:
        url = f"https://127.0.0.1:{port}/kie"
        check = await doorbell.check(url)
        assert check.failed_hop == "certificate"
        assert "mend the certificate" in check.message
        authority.configure_trust(ours)
        assert (await doorbell.check(url, ssl_context=ours)).failed_hop == "path"


@pytest.mark.parametrize("url", ["bot.example.org", "ftp://x.org", "https://u:p@x.org", "", None])
async def test_a_wrong_url_is_refused(doorbell: CallbackReceiver, url: str) -> None:
    with pytest.raises(InvalidRequest, match="url"):
        await doorbell.check(url)


async def test_the_receiver_may_be_served_in_another_thread(doorbell: CallbackReceiver) -> None:
    ready, stopping, urls = threading.Event(), threading.Event(), list[str]()

    async def serve() -> None:
        async with doorbell.serve("127.0.0.1", 0) as served:
            urls.append(served.url)
            ready.set()
            await asyncio.to_thread(stopping.wait, 30)

    serving = asyncio.create_task(asyncio.to_thread(asyncio.run, serve()))
    await asyncio.to_thread(ready.wait, 5)
    check = await doorbell.check(urls[0])
    stopping.set()
    await serving
    assert check.is_ok
