"""Results come down whole or not at all, from public hosts only, under names made here."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ipaddress
import json
import os
import random
import re
import resource
import socket
import ssl
import stat
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from support.raw_server import Asked, NoWait, RawServer, http, silence
from support.tables import together

from kie_async import DownloadFailed, InvalidRequest, Network, ResultExpired
from kie_async._secrets import Secret
from kie_async.files import downloads as downloads_module
from kie_async.files.addresses import may_connect
from kie_async.files.downloads import Downloads
from kie_async.http.transport import USER_AGENT, Transport

FILM = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00" + bytes(range(256))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
ID = "0123456789abcdef0123456789abcdef"
BOMB = gzip.compress(bytes(5_000_000), 1)
SIGNED = "/a?token=canary&sig=canary"


def make(*, allow_loopback: bool = True, **options: Any) -> Downloads:
    return Downloads(allow_loopback=allow_loopback, **{"rng": NoWait(), **options})


def timeout(*, total: float = 60.0, connect: float = 10.0, stall: float = 60.0) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total, sock_connect=connect, sock_read=stall)


@pytest.fixture
async def downloads() -> AsyncIterator[Downloads]:
    downloads = make()
    yield downloads
    await downloads.aclose()


def lying_in(folder: Path) -> dict[str, bytes | None]:
    """Return all that lies in *folder*, hidden files too; a folder in it is None."""
    if not folder.exists():
        return {}
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  what is waited for happens elsewhere
            await asyncio.sleep(0.001)


async def fails(downloads: Downloads, url: str, folder: Path, error: type[Exception] = DownloadFailed) -> str:
    """Return the words of the error that fetching *url* must end in; nothing may be left on the disk."""
    with pytest.raises(error) as caught:
        await downloads.download([url], folder, task_id=ID)
    assert type(caught.value) is error
    assert not lying_in(folder)
    return str(caught.value)


# --- what arrives ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (FILM, ".mp4"),
        (PNG, ".png"),
        (b"ID3\x04" + bytes(50), ".mp3"),
        (b"{}", ".webm"),
        (FILM * 10_000, ".mp4"),
    ],
)
async def test_a_file_arrives_whole_its_ending_chosen_by_its_content(
    downloads: Downloads, tmp_path: Path, content: bytes, ending: str
) -> None:
    lie = "Content-Type: text/html" if ending == ".mp4" else "Content-Type: video/webm"
    async with RawServer(http(content, 200, lie)) as server:
        (path,) = await downloads.download([server.url + "/a.webp"], tmp_path / "new" / "er", task_id=ID)
    assert path == tmp_path / "new" / "er" / f"{ID}-1{ending}"
    assert lying_in(path.parent) == {path.name: content}


@pytest.mark.parametrize(
    ("content_type", "ending"),
    [
        ("text/plain; charset=utf-8", ".txt"),
        ("application/json", ".json"),
        ("text/vtt", ".vtt"),
        ("Audio/X-WAV", ".wav"),
        ("model/gltf-binary", ".glb"),
        ("application/octet-stream", ".bin"),
        ("application/x-msdownload", ".bin"),
        ("text/x-python", ".bin"),
        ("", ".bin"),
    ],
)
async def test_where_the_content_says_nothing_the_type_does(
    downloads: Downloads, tmp_path: Path, content_type: str, ending: str
) -> None:
    async with RawServer(http(b"1 2 3", 200, f"Content-Type: {content_type}")) as server:
        url = server.url + "/a.exe"
        (path,) = await downloads.download([url], tmp_path, task_id=ID)
    assert path.name == f"{ID}-1{ending}"


async def test_the_kind_is_recognized_although_the_first_byte_comes_alone(
    downloads: Downloads, tmp_path: Path
) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(http(b"", 200, length=len(FILM)))
        for at in range(12):
            writer.write(FILM[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.write(FILM[12:])

    async with RawServer(drip) as server:
        (path,) = await downloads.download([server.url], tmp_path, task_id=ID)
    assert lying_in(tmp_path) == {f"{ID}-1.mp4": FILM}
    assert path.name == f"{ID}-1.mp4"


async def test_several_files_come_in_the_order_of_their_urls(downloads: Downloads, tmp_path: Path) -> None:
    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(http(FILM))

    async with RawServer(late) as first, RawServer(http(PNG)) as second:
        paths = await downloads.download([first.url, second.url, second.url], str(tmp_path), task_id=ID)
    assert [path.name for path in paths] == [f"{ID}-1.mp4", f"{ID}-2.png", f"{ID}-3.png"]
    assert sorted(lying_in(tmp_path)) == [path.name for path in paths]


async def test_no_urls_are_no_files(downloads: Downloads, tmp_path: Path) -> None:
    assert await downloads.download([], tmp_path, task_id=ID) == []


@pytest.mark.parametrize(
    "claimed",
    [
        "../../etc/passwd",
        "/abs/olute",
        ".bashrc",
        "CON",
        "a\\..\\b",
        "x" * 300,
        "\"; filename*=UTF-8''%2e%2e%2fetc",
        "%00",
        f"{ID}-1.exe",
    ],
)
async def test_no_name_of_the_server_reaches_the_disk(
    downloads: Downloads, tmp_path: Path, claimed: str
) -> None:
    disposition = f'Content-Disposition: attachment; filename="{claimed}"'
    async with RawServer(http(FILM, 200, disposition)) as server:
        await downloads.download([f"{server.url}/{claimed}"], tmp_path / "in", task_id=ID)
    assert lying_in(tmp_path / "in") == {f"{ID}-1.mp4": FILM}
    assert list(lying_in(tmp_path)) == ["in"]


@pytest.mark.parametrize("task_id", ["", "../x", "a/b", "a\\b", "a.b", "a b", "a\0", "x" * 129, "é", "a\n"])
async def test_a_task_id_that_is_no_name_is_refused(
    downloads: Downloads, tmp_path: Path, task_id: str
) -> None:
    with pytest.raises(InvalidRequest, match="task_id"):
        await downloads.download(["https://files.example/x"], tmp_path / "in", task_id=task_id)
    assert not lying_in(tmp_path)


# --- what is asked --------------------------------------------------------------------------------


async def test_the_request_says_who_asks_and_carries_nothing_else(
    downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    answer = http(FILM, 200, "Set-Cookie: id=1; Path=/")
    async with RawServer(answer) as server:
        await downloads.download([server.url + "/a", server.url + "/b"], tmp_path, task_id=ID)
        await downloads.download([server.url + "/c"], tmp_path / "again", task_id=ID)
    for asked in server.asked:
        names = {line.partition(":")[0].lower() for line in asked.head.splitlines()[1:] if line}
        assert names == {"host", "user-agent", "accept", "accept-encoding"}
        assert asked.header("User-Agent") == USER_AGENT
        assert asked.header("Accept-Encoding") == "identity"


@pytest.mark.parametrize(
    ("tail", "sent"),
    [
        ("/a%2Fb/c.mp4?X-Sig=a%2Bb%2F%3D&t=1:2", "/a%2Fb/c.mp4?X-Sig=a%2Bb%2F%3D&t=1:2"),
        ("/a%20b?k=%7E~", "/a%20b?k=%7E~"),
        ("/a b/ф.mp4", "/a%20b/%D1%84.mp4"),
        ("/a#fragment", "/a"),
    ],
)
async def test_a_signed_address_is_sent_as_it_was_written(
    downloads: Downloads, tmp_path: Path, tail: str, sent: str
) -> None:
    async with RawServer(http(FILM)) as server:
        await downloads.download([server.url + tail], tmp_path, task_id=ID)
    assert server.asked[0].path == sent


# --- redirects ------------------------------------------------------------------------------------


def moved(to: str, status: int = 302) -> bytes:
    return http(b"<html>moved</html>", status, f"Location: {to}", "Set-Cookie: id=1")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed(downloads: Downloads, tmp_path: Path, status: int) -> None:
    async with RawServer(http(FILM)) as last:
        async with RawServer(moved("/b", status), moved("?c=%2F"), moved(last.url + "/d")) as first:
            await downloads.download([first.url + "/a"], tmp_path, task_id=ID)
    assert [asked.path for asked in first.asked] == ["/a", "/b", "/b?c=%2F"]
    assert [asked.path for asked in last.asked] == ["/d"]
    assert not any(asked.header("Cookie") or asked.header("Referer") for asked in first.asked + last.asked)


async def test_a_fourth_redirect_is_not(downloads: Downloads, tmp_path: Path) -> None:
    async with RawServer(moved("/again")) as server:
        words = await fails(downloads, server.url, tmp_path)
    assert "redirected more than 3 times" in words
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("file:///etc/passwd", "not https"),
        ("ftp://127.0.0.1/x", "not https"),
        ("http://files.example/x", "not https"),
        ("http://169.254.169.254/latest/meta-data", "not https"),
        ("http://10.0.0.1/", "not https"),
        ("//10.0.0.1/", "not https"),
        ("https://169.254.169.254/latest/meta-data", "not a public address"),
        ("https://10.0.0.1/", "not a public address"),
        ("https://[fe80::1]/", "not a public address"),
        ("https://[64:ff9b::a00:1]/", "not a public address"),
        ("https://0.0.0.0/", "not a public address"),
        ("https://2130706433/", "InvalidUrl"),
        ("http://me:secret@127.0.0.1/", "user name or password"),
        ("https://me@files.example/", "user name or password"),
        ("https://[::1/", "not a URL"),
        ("https://files.example:99999/", "ValueError"),
        ("https://", "broken exchange"),
    ],
)
async def test_every_hop_is_checked(downloads: Downloads, tmp_path: Path, target: str, words: str) -> None:
    async with RawServer(moved(target)) as server:
        assert words in await fails(downloads, server.url, tmp_path)
    assert len(server.asked) == 1  # and refused for good, not tried again


async def test_a_redirect_to_nowhere_fails(downloads: Downloads, tmp_path: Path) -> None:
    async with RawServer(http(b"", 302)) as server:
        assert "HTTP 302" in await fails(downloads, server.url, tmp_path)
    assert len(server.asked) == 1


# --- the inside of a network ----------------------------------------------------------------------

PUBLIC = ["8.8.8.8", "1.1.1.1", "104.16.132.229", "2606:4700::6810:84e5", "2a00:1450:4001:81b::200e"]
PUBLIC += ["64:ff9b::808:808", "64:ff9b::6810:84e5"]  # NAT64 of the addresses above
PRIVATE = [
    "127.0.0.1 127.8.8.8 ::1",
    "0.0.0.0 0.1.2.3 ::",
    "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.100.100.200 198.18.0.1",
    "169.254.169.254 169.254.0.1 fe80::1 fe80::1%eth0 fd00:ec2::254 fc00::1 fec0::1",
    "192.0.0.192 168.63.129.16 192.0.2.1 203.0.113.1 240.0.0.1 255.255.255.255",
    "224.0.0.1 239.255.255.250 ff02::1 ff0e::1",
    "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:8.8.8.8 ::127.0.0.1 ::ffff:0:7f00:1",
    "64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b::a00:1 64:ff9b::c612:1 64:ff9b:1::a00:1 64:ff9b:1::808:808",
    "2002:7f00:1:: 2002:a9fe:a9fe::1 2001:0:7f00:1::1 2001:db8::1 100::1",
    "2130706433 0x7f.1 127.1 0177.0.0.1 localhost files.example 127.0.0.1.",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_connected_to(address: str) -> None:
    assert may_connect(address, allow_loopback=False)
    assert may_connect(address, allow_loopback=True)


@together("address", [address for line in PRIVATE for address in line.split()] + [""])
def test_a_private_address_may_not(address: str) -> None:
    assert not may_connect(address, allow_loopback=False)


def test_this_machine_is_open_where_the_service_is_on_it() -> None:
    assert may_connect("127.0.0.1", allow_loopback=True)
    assert may_connect("::1", allow_loopback=True)
    assert not may_connect("10.0.0.1", allow_loopback=True)
    assert not may_connect("0.0.0.0", allow_loopback=True)  # noqa: S104  never bound


ALLOWED = [
    ("198.18.0.56", ["198.18.0.0/15"], True),
    ("64:ff9b::c612:38", ["198.18.0.0/15"], True),
    ("fdfe:dcba:9876::5", ["fdfe:dcba:9876::/64"], True),
    ("10.1.2.3", ["198.18.0.0/15", "10.1.2.3/32"], True),
    ("127.0.0.1", ["127.0.0.0/8"], True),
    ("198.20.0.1", ["198.18.0.0/15"], True),  # public anyway
    ("10.1.2.4", ["198.18.0.0/15", "10.1.2.3/32"], False),
    ("169.254.169.254", ["198.18.0.0/15"], False),
    ("::ffff:10.0.0.1", ["198.18.0.0/15"], False),
    ("files.example", ["0.0.0.0/0", "::/0"], False),
]


@together(("address", "networks", "may"), ALLOWED)
def test_a_network_of_the_users_own_is_let_in(address: str, networks: list[str], may: bool) -> None:
    allow = tuple(map(ipaddress.ip_network, networks))
    assert may_connect(address, allow_loopback=False, allow=allow) is may


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1"])
async def test_a_host_can_be_tried_before_anything_is_fetched(host: str) -> None:
    for allow_loopback in (True, False):
        downloads = make(allow_loopback=allow_loopback)
        refusal = await downloads.find_refusal(host)
        await downloads.aclose()
        assert bool(refusal) is not (allow_loopback and host != "10.0.0.1")
        assert not refusal or "is not a public address; if it is of your network: Network(allow=" in refusal


async def test_what_the_user_allows_is_connected_to_and_nothing_else(tmp_path: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("files.example").configure_cert(tls)
    async with RawServer(http(FILM), tls=tls) as server:
        port = server.url.rpartition(":")[2]
        network = Network(allow=["127.0.0.0/8"], resolver=Rebinding(["127.0.0.1"]))
        downloads = make(allow_loopback=False, network=network)
        words = await fails(downloads, f"https://files.example:{port}/x", tmp_path)
        assert "certificate verify failed" in words  # the name is still the one that is proven
        await downloads.aclose()


async def test_the_refusal_of_a_fake_address_names_the_whole_network(tmp_path: Path) -> None:
    downloads = make(allow_loopback=False, network=Network(resolver=Rebinding(["198.18.0.56"])))
    words = await fails(downloads, "https://files.example/x", tmp_path)
    assert "198.18.0.56 is not a public address" in words
    assert "Network(allow=['198.18.0.0/15'])" in words
    await downloads.aclose()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "127.0.0.1.",
        "①②⑦.0.0.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1%25lo]",
    ],
)
async def test_no_spelling_of_this_machine_gets_through(tmp_path: Path, host: str) -> None:
    async with RawServer(http(FILM)) as server:
        port = server.url.rpartition(":")[2]
        downloads = make(allow_loopback=False, timeout=timeout(connect=1.0))
        await fails(downloads, f"https://{host}:{port}/x", tmp_path)
        await downloads.aclose()
    assert server.connections == 0


class Rebinding(AbstractResolver):
    """Answers with one list of addresses after the other, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["127.0.0.1", "::1"], ["169.254.169.254"], ["10.0.0.1", "fd00::1"]]
)
async def test_a_name_that_leads_inside_is_refused_at_the_socket(
    tmp_path: Path, addresses: list[str]
) -> None:
    resolver = Rebinding(addresses)
    async with RawServer(http(FILM)) as server:
        port = server.url.rpartition(":")[2]
        downloads = make(allow_loopback=False, network=Network(resolver=resolver))
        words = await fails(downloads, f"https://files.example:{port}/x", tmp_path)
        await downloads.aclose()
    network = addresses[0]
    assert words == (
        f"{ID}-1: cannot connect to files.example:{port} ({addresses[0]} is not a public address; "
        f"if it is of your network: Network(allow=['{network}']))"
    )
    assert server.connections == 0
    assert resolver.asked == 1  # refused for good


async def test_a_name_that_sounds_like_this_machine_is_still_checked(tmp_path: Path) -> None:
    downloads = make(network=Network(resolver=Rebinding(["10.0.0.1"])))
    assert "not a public address" in await fails(downloads, "http://localhost:1/x", tmp_path)
    await downloads.aclose()


async def test_of_several_addresses_only_the_harmless_are_tried(tmp_path: Path) -> None:
    downloads = make(network=Network(resolver=Rebinding(["10.0.0.1", "127.0.0.1", "169.254.169.254"])))
    async with RawServer(http(FILM)) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        async with asyncio.timeout(2):
            await downloads.download([url], tmp_path, task_id=ID)
    assert lying_in(tmp_path) == {f"{ID}-1.mp4": FILM}
    await downloads.aclose()


async def test_a_name_that_changes_its_mind_is_checked_at_each_connection(tmp_path: Path) -> None:
    resolver = Rebinding(["127.0.0.1"], ["10.0.0.1"])
    downloads = make(network=Network(resolver=resolver))
    async with RawServer(http(FILM)) as server, RawServer(http(FILM)) as other:
        first, second = (each.url.replace("127.0.0.1", "localhost") for each in (server, other))
        server.answers = [moved(second)]
        assert "not a public address" in await fails(downloads, first, tmp_path)
    assert (server.connections, other.connections, resolver.asked) == (1, 0, 2)
    await downloads.aclose()


@pytest.mark.parametrize(
    ("url", "allow_loopback"),
    [
        ("http://127.0.0.1:1/x", False),
        ("http://files.example/x", False),
        ("http://files.example/x", True),
        ("http://localhost.files.example/x", True),
        ("http://0x7f.1/x", True),
        ("http://10.0.0.1/x", True),
        ("HTTP://127.0.0.1:1/x", False),
        ("//files.example/x", False),
        ("files.example/x", False),
        ("file:///etc/passwd", True),
        ("data:video/mp4,xx", True),
        ("", True),
    ],
)
async def test_only_https_is_asked_for(tmp_path: Path, url: str, allow_loopback: bool) -> None:
    downloads = make(allow_loopback=allow_loopback)
    assert await fails(downloads, url, tmp_path) == f"{ID}-1: the address is not https"
    await downloads.aclose()


@pytest.mark.parametrize("name", ["127.0.0.1", "files.example"])
async def test_a_certificate_is_checked(downloads: Downloads, tmp_path: Path, name: str) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(name).configure_cert(tls)
    async with RawServer(http(FILM), tls=tls) as server:
        words = await fails(downloads, server.url, tmp_path)
    assert "certificate verify failed" in words
    assert not server.asked


# --- on the disk ----------------------------------------------------------------------------------


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
async def test_a_file_is_private_until_it_is_complete(
    downloads: Downloads, tmp_path: Path, mask: int, mode: int
) -> None:
    gate = asyncio.Event()

    async def halves(writer: asyncio.StreamWriter) -> None:
        writer.write(http(FILM * 2000, 200)[:400_000])
        await gate.wait()
        writer.write(http(FILM * 2000, 200)[400_000:])

    async with RawServer(halves) as server:
        with umask(mask):
            fetching = asyncio.create_task(downloads.download([server.url], tmp_path, task_id=ID))
            await eventually(lambda: any(path.stat().st_size for path in tmp_path.iterdir()))
        ((name, _),) = lying_in(tmp_path).items()
        assert name.startswith(f".{ID}-1.")
        assert name.endswith(".part")
        assert mode_of(tmp_path / name) == 0o600
        gate.set()
        (path,) = await fetching
    assert mode_of(path) == mode
    assert lying_in(tmp_path) == {path.name: FILM * 2000}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_complete_file_is_not_fetched_again(downloads: Downloads, tmp_path: Path) -> None:
    async with RawServer(http(FILM), http(PNG), http(b"", 404)) as server:
        urls = [server.url + "/a", server.url + "/b"]
        first = await downloads.download(urls, tmp_path, task_id=ID)
        assert await downloads.download(urls, tmp_path, task_id=ID) == first
    assert len(server.asked) == 2


def lay(folder: Path, name: str, kind: str) -> Path:
    """Put something in the way."""
    path = folder / name
    if kind == "file":
        path.write_bytes(b"mine")
    elif kind == "empty file":
        path.touch()
    elif kind == "link":
        (folder / "precious").write_bytes(b"precious")
        path.symlink_to(folder / "precious")
    elif kind == "dangling link":
        path.symlink_to(folder / "nowhere")
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["empty file", "link", "dangling link"])
async def test_what_is_no_result_gives_way_and_a_link_is_not_followed(
    downloads: Downloads, tmp_path: Path, kind: str
) -> None:
    path = lay(tmp_path, f"{ID}-1.mp4", kind)
    async with RawServer(http(FILM)) as server:
        assert await downloads.download([server.url], tmp_path, task_id=ID) == [path]
    left = lying_in(tmp_path)
    assert left.pop(path.name) == FILM
    assert left == ({"precious": b"precious"} if kind == "link" else {})
    assert not path.is_symlink()


async def test_a_folder_under_the_name_is_an_error(downloads: Downloads, tmp_path: Path) -> None:
    lay(tmp_path, f"{ID}-1.mp4", "folder")
    async with RawServer(http(FILM)) as server:
        with pytest.raises(DownloadFailed, match=r"cannot write to .*: Is a directory"):
            await downloads.download([server.url], tmp_path, task_id=ID)
    assert lying_in(tmp_path) == {f"{ID}-1.mp4": None}
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", [f"{ID}-1.srt", f"{ID}-1.mp4.bak", f"{ID}-10.mp4", f"{ID}-1", "x.mp4"])
async def test_other_files_of_a_like_name_are_left_alone(
    downloads: Downloads, tmp_path: Path, name: str
) -> None:
    lay(tmp_path, name, "file")
    async with RawServer(http(FILM)) as server:
        await downloads.download([server.url], tmp_path, task_id=ID)
    assert lying_in(tmp_path) == {name: b"mine", f"{ID}-1.mp4": FILM}


async def test_a_poster_beside_a_film_is_not_taken_for_it(downloads: Downloads, tmp_path: Path) -> None:
    async with RawServer(http(FILM)) as server:
        urls = [server.url + "/film.mp4?token=.jpg"]
        (film,) = await downloads.download(urls, tmp_path, task_id=ID)
        lay(tmp_path, f"{ID}-1.jpg", "file")
        assert await downloads.download(urls, tmp_path, task_id=ID) == [film]
        # The other way round the URL decides.
        lay(tmp_path, f"{ID}-2.mp4", "file")
        image = lay(tmp_path, f"{ID}-2.png", "file")
        assert (await downloads.download([*urls, server.url + "/b.PNG"], tmp_path, task_id=ID))[1] == image
    assert len(server.asked) == 1


async def test_two_downloads_of_one_result_do_not_meet(downloads: Downloads, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def later(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(http(FILM))

    async with RawServer(later) as server:
        fetching = [
            asyncio.create_task(downloads.download([server.url], tmp_path, task_id=ID)) for _ in range(5)
        ]
        await eventually(lambda: len(server.asked) == 5)
        gate.set()
        assert await asyncio.gather(*fetching) == [[tmp_path / f"{ID}-1.mp4"]] * 5
    assert lying_in(tmp_path) == {f"{ID}-1.mp4": FILM}


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond *size*, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("content", [FILM * 4, FILM * 4000])
async def test_a_full_disk_is_said_at_once(downloads: Downloads, tmp_path: Path, content: bytes) -> None:
    async with RawServer(http(content)) as server:
        with room_for(700), pytest.raises(DownloadFailed, match=r"cannot write to .*: File too large"):
            await downloads.download([server.url], tmp_path, task_id=ID)
    assert not lying_in(tmp_path)
    assert len(server.asked) == 1  # fetching it again makes no room


async def test_a_folder_that_cannot_be_is_an_error(downloads: Downloads, tmp_path: Path) -> None:
    lay(tmp_path, "file", "file")
    for folder, words in {"file": "File exists", "file/in": "Not a directory", "a" * 300: "too long"}.items():
        with pytest.raises(DownloadFailed, match=f"cannot write to .*: .*{words}"):
            await downloads.download(["https://files.example/x"], tmp_path / folder, task_id=ID)


# --- broken bodies --------------------------------------------------------------------------------


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        writer.write(FILM * 100)
        await writer.drain()


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.write(http(FILM, length=10_000))
    await writer.drain()
    writer.transport.abort()


BROKEN = [
    pytest.param(http(FILM, length=len(FILM) + 1), "ClientPayloadError", id="truncated"),
    pytest.param(http(FILM, length=len(FILM) - 1), "broken", id="longer than it says"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n" + FILM[:16] + b"\r\n",
        "ClientPayloadError",
        id="chunks without end",
    ),
    pytest.param(http(b""), "empty", id="empty"),
    pytest.param(http(b"<html>", 200, "Content-Type: text/html; charset=utf-8"), "a web page", id="page"),
    pytest.param(http(b"", 500), "HTTP 500", id="500"),
    pytest.param(http(b"", 502), "HTTP 502", id="502"),
    pytest.param(http(b"", 429), "HTTP 429", id="429"),
    pytest.param(b"no http at all\r\n\r\n", "broken", id="no http"),
    pytest.param(http(FILM, 200, "X: " + "y" * 100_000), "broken", id="huge header"),
    pytest.param(cut, "closed the connection", id="closed"),
    pytest.param(reset, "", id="reset"),
]


@pytest.mark.parametrize(("answer", "words"), BROKEN)
async def test_a_broken_answer_is_asked_for_again(
    downloads: Downloads, tmp_path: Path, answer: Any, words: str
) -> None:
    async with RawServer(answer, answer, answer, http(FILM)) as server:
        await downloads.download([server.url], tmp_path, task_id=ID)
    assert lying_in(tmp_path) == {f"{ID}-1.mp4": FILM}
    assert len(server.asked) == 4


@pytest.mark.parametrize(("answer", "words"), BROKEN)
async def test_four_broken_answers_are_a_failure(
    downloads: Downloads, tmp_path: Path, answer: Any, words: str
) -> None:
    async with RawServer(answer) as server:
        said = await fails(downloads, server.url, tmp_path)
    assert said.startswith(f"{ID}-1: ")
    assert words in said
    assert len(server.asked) in {4, 8}  # aiohttp itself asks again where a connection ends without a word


@pytest.mark.parametrize(
    ("status", "error"), [(403, ResultExpired), (404, ResultExpired), (410, ResultExpired)]
)
async def test_what_is_gone_is_gone(
    downloads: Downloads, tmp_path: Path, status: int, error: type[Exception]
) -> None:
    async with RawServer(http(b"<html>", status)) as server:
        words = await fails(downloads, server.url, tmp_path, error)
    assert words == f"{ID}-1: the service no longer has the file (HTTP {status})"
    assert len(server.asked) == (2 if status == 403 else 1)  # and once more as from the service's page


# --- refused by the host, and had all the same ---------------------------------------------------


class Files:
    """A host of results and the API beside it; a link is good if its host says so."""

    def __init__(
        self,
        statuses: list[int],
        fresh: bytes | Callable[[str], object] = b"",
        *,
        wants_referer: bool = False,
    ) -> None:
        self.statuses = list(statuses)
        self.fresh = fresh
        self.wants_referer = wants_referer
        self.paths: list[str] = []
        self.referers: list[str | None] = []

    async def __call__(self, server: RawServer) -> bytes:
        asked = server.asked[-1]
        self.paths.append(asked.path)
        if asked.path.startswith("/api/"):
            assert asked.header("Authorization") == "Bearer key"
            assert json.loads(asked.body)["url"].endswith("/a?sig=canary")
            return self.fresh if isinstance(self.fresh, bytes) else said(self.fresh(server.url))
        assert asked.header("Authorization") is None
        self.referers.append(asked.header("Referer"))
        if self.wants_referer and asked.header("Referer") != "https://kie.ai/":
            return http(b"<html>", 403)
        status = 200 if asked.path == "/fresh" else self.statuses.pop(0)
        return http(FILM) if status == 200 else http(b"<html>", status, "Content-Type: text/html")


def said(data: object, code: int = 200, status: int = 200) -> bytes:
    return http(json.dumps({"code": code, "msg": "words", "data": data}).encode(), status)


def link(url: str) -> object:
    return url + "/fresh"


ALWAYS = 9
PAGE = http(b"<html>Just a moment...</html>", 403, "Content-Type: text/html")
REFUSED_LINKS: list[tuple[str, Files, str, int]] = [
    ("403, then not", Files([403, 200]), "", 0),
    ("403 but from the page", Files([200], wants_referer=True), "", 0),
    ("403 for ever, fresh link", Files([403] * ALWAYS, link), "", 1),
    ("404, fresh link", Files([404], link), "", 1),
    ("410, fresh link in an object", Files([410], lambda url: {"downloadUrl": url + "/fresh"}), "", 1),
    ("404, fresh link wants the page", Files([404], link, wants_referer=True), "", 1),
    ("404, no fresh link", Files([404] * ALWAYS, said(None, 422)), "code 422", 1),
    ("404, no link for it", Files([404] * ALWAYS, said(None, 404)), "code 404", 1),
    ("404, fresh link 404", Files([404] * ALWAYS, lambda url: url + "/other"), "under a fresh link too", 1),
    ("404, busy, then there", Files([404, 404, 200], said(None, 429)), "", 2),
    ("404, a page, then there", Files([404, 200], PAGE), "", 1),
    ("404, unreadable, then there", Files([404, 200], http(b"?")), "", 1),
]


@pytest.mark.parametrize(
    ("name", "files", "words", "fresh"), REFUSED_LINKS, ids=[r[0] for r in REFUSED_LINKS]
)
async def test_a_file_is_given_up_only_when_a_fresh_link_fails_too(
    tmp_path: Path, name: str, files: Files, words: str, fresh: int
) -> None:
    server = RawServer()

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(await files(server))

    server.answers = [answer]
    async with server:
        api = Transport(server.url, Secret("key"), connections=2)
        downloads = make(api=api)
        fetching = downloads.download([server.url + "/a?sig=canary"], tmp_path, task_id=ID)
        if words:
            with pytest.raises(ResultExpired, match=words) as caught:
                await fetching
            assert type(caught.value) is ResultExpired
            assert "canary" not in str(caught.value)
        else:
            assert await fetching == [tmp_path / f"{ID}-1.mp4"]
            assert lying_in(tmp_path) == {f"{ID}-1.mp4": FILM}
        await downloads.aclose()
        await api.aclose()
    assert sum(path.startswith("/api/") for path in files.paths) == fresh


async def test_a_fresh_link_that_never_comes_is_no_end(tmp_path: Path) -> None:
    async with RawServer(http(b"", 404)) as host, RawServer(http(b"", 503)) as service:
        api = Transport(service.url, Secret("key"), connections=2)
        downloads = make(api=api)
        words = await fails(downloads, host.url, tmp_path)
        await downloads.aclose()
        await api.aclose()
    assert "HTTP 404, and no fresh link came: code 503" in words
    assert len(service.asked) == 4


# --- the rest of a file ---------------------------------------------------------------------------

LONG = FILM + os.urandom(500_000)


class Host:
    """Sends a file in pieces: each connection breaks after so many bytes of it."""

    def __init__(self, content: bytes, *breaks: int, how: str = "") -> None:
        self.content = content
        self.breaks = list(breaks)
        self.how = how
        self.begins: list[int] = []

    def __call__(self, asked: Asked) -> bytes:
        content, size = self.content, len(self.content)
        if self.how == "another file" and self.begins:
            content = self.content = PNG * 2000
            size = len(content)
        wanted = asked.header("Range")
        tag = f'"{len(self.begins)}"' if self.how == "new tags" else '"one"'
        headers = [] if self.how == "no validator" else [f"ETag: {tag}"]
        if self.how == "dates":
            headers = ["Last-Modified: Sat, 28 Nov 2026 10:00:00 GMT"]
        begin, status = 0, 200
        if wanted and self.how not in {"no ranges", "another file"}:
            begin, status = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]), 206  # type: ignore[index]
            if self.how == "416":
                self.how = ""
                self.begins.append(-1)
                return http(b"", 416)
            shown = begin - 1 if self.how == "wrong place" else begin
            total = size + 1 if self.how == "wrong total" else "*" if self.how == "no total" else size
            headers.append(f"Content-Range: bytes {shown}-{size - 1}/{total}")
        self.begins.append(begin)
        end = begin + self.breaks.pop(0) if self.breaks else size
        return http(content[begin:end], status, *headers, length=size - begin)


GOES_ON: list[tuple[str, list[int]]] = [
    ("", [0, 1000, 301_000]),
    ("dates", [0, 1000, 301_000]),
    ("no validator", [0, 1000, 301_000]),
    ("no total", [0, 1000, 301_000]),
    ("no ranges", [0, 0, 0]),
    ("416", [0, -1, 0, 300_000]),
]


@pytest.mark.parametrize(("how", "begins"), GOES_ON, ids=[how or "plain" for how, _ in GOES_ON])
async def test_a_download_goes_on_where_it_broke_off(
    downloads: Downloads, tmp_path: Path, how: str, begins: list[int]
) -> None:
    host = Host(LONG, 1000, 300_000, how=how)
    async with serving(host) as server:
        await downloads.download([server.url], tmp_path, task_id=ID)
    assert lying_in(tmp_path) == {f"{ID}-1.mp4": LONG}
    assert host.begins == begins


@pytest.mark.parametrize("how", ["new tags", "wrong place", "wrong total", "another file"])
async def test_the_rest_of_another_file_is_never_put_behind(
    downloads: Downloads, tmp_path: Path, how: str
) -> None:
    host = Host(LONG, 1000, how=how)
    async with serving(host) as server:
        (path,) = await downloads.download([server.url], tmp_path, task_id=ID)
    assert lying_in(tmp_path) == {path.name: host.content}
    assert path.suffix == (".png" if how == "another file" else ".mp4")
    assert host.begins[0] == host.begins[-1] == 0


async def test_as_long_as_a_large_file_comes_on_it_is_not_given_up(
    downloads: Downloads, tmp_path: Path
) -> None:
    content = FILM + os.urandom(10_000_000)
    host = Host(content, *[1_200_000] * 8)
    async with serving(host) as server:
        await downloads.download([server.url], tmp_path, task_id=ID)
    assert lying_in(tmp_path) == {f"{ID}-1.mp4": content}
    assert len(host.begins) == 9


async def test_a_redirected_download_goes_on_too(downloads: Downloads, tmp_path: Path) -> None:
    host = Host(LONG, 1000)
    async with serving(host) as last, RawServer(moved(last.url + "/b")) as first:
        await downloads.download([first.url], tmp_path, task_id=ID)
    assert lying_in(tmp_path) == {f"{ID}-1.mp4": LONG}
    assert host.begins == [0, 1000]


@contextlib.asynccontextmanager
async def serving(host: Host) -> AsyncIterator[RawServer]:
    server = RawServer()

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(host(server.asked[-1]))

    server.answers = [answer]
    async with server:
        yield server


# --- as bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["", "no ranges"])
async def test_a_file_can_be_read_as_bytes(downloads: Downloads, how: str) -> None:
    async with serving(Host(LONG, 1000, how=how)) as server:
        assert await downloads.read(server.url, max_bytes=len(LONG)) == LONG


@pytest.mark.parametrize("answer", [http(FILM), http(FILM, length=10_000_000), "endless"])
async def test_what_is_read_is_bounded(downloads: Downloads, answer: Any) -> None:
    async with RawServer(endless if answer == "endless" else answer) as server:
        with pytest.raises(DownloadFailed, match="the file has more than 100 bytes"):
            await downloads.read(server.url, max_bytes=100)
    assert len(server.asked) == 1


async def test_a_file_can_be_streamed_over_a_broken_connection(downloads: Downloads) -> None:
    async with serving(Host(LONG, 1000, 300_000)) as server:
        blocks = [block async for block in downloads.stream(server.url)]
    assert b"".join(blocks) == LONG
    assert len(blocks) > 2


async def test_what_was_streamed_cannot_be_taken_back(downloads: Downloads) -> None:
    got = bytearray()
    async with serving(Host(LONG, 1000, how="no ranges")) as server:
        stream = downloads.stream(server.url)
        got += await anext(stream)
        with pytest.raises(DownloadFailed, match="does not send the rest alone"):
            await anext(stream)
    assert got == LONG[:1000]


async def test_a_stream_that_is_left_gives_its_connection_back(downloads: Downloads) -> None:
    before = asyncio.all_tasks()
    async with RawServer(endless) as server:
        for _ in range(20):
            async with contextlib.aclosing(downloads.stream(server.url)) as blocks:
                async for _ in blocks:
                    break
    assert asyncio.all_tasks() == before


async def test_closing_ends_a_stream_and_a_read(tmp_path: Path) -> None:
    downloads = make(timeout=timeout(stall=30), rng=random.Random())

    async def begin(writer: asyncio.StreamWriter) -> None:
        writer.write(http(LONG, length=10_000_000))
        await asyncio.sleep(60)

    async with RawServer(begin) as server:
        reading = asyncio.create_task(downloads.read(server.url, max_bytes=10**8))
        stream = downloads.stream(server.url)
        assert len(await anext(stream)) > 200_000
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        await downloads.aclose()
        async with asyncio.timeout(2):
            for work in (reading, waiting):
                with pytest.raises(DownloadFailed):
                    await work


@pytest.mark.parametrize("status", [204, 206, 300, 304, 400, 401, 405, 416, 451])
async def test_any_other_status_fails_at_once(downloads: Downloads, tmp_path: Path, status: int) -> None:
    async with RawServer(http(b"", status)) as server:
        assert await fails(downloads, server.url, tmp_path) == f"{ID}-1: HTTP {status}"
    assert len(server.asked) == 1


@pytest.mark.parametrize("answer", [endless, http(FILM, length=300_001)], ids=["endless", "announced"])
async def test_a_file_may_have_just_so_many_bytes(tmp_path: Path, answer: Any) -> None:
    downloads = make(max_bytes=300_000)
    async with RawServer(answer) as server:
        assert "more than 300000 bytes" in await fails(downloads, server.url, tmp_path)
    assert len(server.asked) == 1
    await downloads.aclose()


async def test_just_so_many_bytes_are_not_too_many(tmp_path: Path) -> None:
    downloads = make(max_bytes=len(FILM))
    async with RawServer(http(FILM)) as server:
        await downloads.download([server.url], tmp_path, task_id=ID)
    await downloads.aclose()


@pytest.mark.parametrize("encoding", ["gzip", "GZIP ", "x-gzip", "deflate"])
async def test_a_bomb_is_not_unpacked(downloads: Downloads, tmp_path: Path, encoding: str) -> None:
    async with RawServer(http(BOMB, 200, f"Content-Encoding: {encoding}")) as server:
        assert "packed" in await fails(downloads, server.url, tmp_path)
    assert len(server.asked) == 1


async def test_an_encoding_that_is_none_does_not_matter(downloads: Downloads, tmp_path: Path) -> None:
    async with RawServer(http(FILM, 200, "Content-Encoding: aws-chunked")) as server:
        await downloads.download([server.url], tmp_path, task_id=ID)
    assert lying_in(tmp_path) == {f"{ID}-1.mp4": FILM}


async def stall(writer: asyncio.StreamWriter) -> None:
    writer.write(http(FILM, length=10_000))
    await asyncio.sleep(60)


async def trickle(writer: asyncio.StreamWriter) -> None:
    writer.write(http(FILM, length=10_000))
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [silence, stall, trickle])
async def test_a_body_that_stalls_is_given_up(tmp_path: Path, answer: Any) -> None:
    downloads = make(timeout=timeout(stall=0.05, total=0.12))
    async with RawServer(answer, http(FILM)) as server:
        await downloads.download([server.url], tmp_path, task_id=ID)
    async with RawServer(answer) as server:
        assert await fails(downloads, server.url, tmp_path / "other") == f"{ID}-1: timed out"
    assert lying_in(tmp_path / "other") == {}
    await downloads.aclose()


async def test_time_in_the_queue_is_not_counted(tmp_path: Path) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.08)
        writer.write(http(FILM))

    downloads = make(timeout=timeout(total=0.3))
    async with RawServer(slow) as server:
        paths = await downloads.download([server.url] * 40, tmp_path, task_id=ID)
    assert len(set(paths)) == 40 == len(server.asked)
    await downloads.aclose()


# --- nothing stays behind -------------------------------------------------------------------------


async def test_one_failure_of_several_spares_the_others_and_leaves_nothing_behind(
    downloads: Downloads, tmp_path: Path
) -> None:
    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(http(FILM))

    before = asyncio.all_tasks()
    async with RawServer(late) as good, RawServer(http(b"", 404)) as gone, RawServer(http(b"", 400)) as bad:
        with pytest.raises(ResultExpired, match=rf"^{ID}-2: "):
            await downloads.download([good.url, gone.url, good.url, bad.url], tmp_path, task_id=ID)
        assert asyncio.all_tasks() == before
        assert lying_in(tmp_path) == {f"{ID}-1.mp4": FILM, f"{ID}-3.mp4": FILM}


@pytest.mark.parametrize("wait_s", [0.0, 0.001, 0.005, 0.02, 0.05])
async def test_a_cancelled_download_leaves_nothing_behind(
    downloads: Downloads, tmp_path: Path, wait_s: float
) -> None:
    before = asyncio.all_tasks()
    async with RawServer(endless) as server:
        fetching = asyncio.create_task(downloads.download([server.url] * 3, tmp_path, task_id=ID))
        await asyncio.sleep(wait_s)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert not lying_in(tmp_path)
    assert asyncio.all_tasks() == before


async def test_a_cancel_waits_for_the_thread_that_holds_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun, gate = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait(5)
        raise OSError(28, "No space left on device")

    working = asyncio.create_task(downloads_module._on_disk(tmp_path, work))
    await eventually(begun.is_set)
    working.cancel()
    await asyncio.sleep(0.01)
    assert not working.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert not caplog.records


async def test_closing_ends_a_download_soon(tmp_path: Path) -> None:
    downloads = make(timeout=timeout(stall=30), rng=random.Random())
    async with RawServer(stall) as server:
        fetching = asyncio.create_task(downloads.download([server.url], tmp_path, task_id=ID))
        await eventually(lambda: bool(server.asked))
        await asyncio.sleep(0.01)
        await downloads.aclose()
        async with asyncio.timeout(2):
            with pytest.raises(DownloadFailed, match="the session closed"):
                await fetching
        async with asyncio.timeout(0.2):  # and none begins: there is no waiting between attempts
            await fails(downloads, server.url, tmp_path)
    assert not lying_in(tmp_path)
    assert len(server.asked) == 1


# --- what errors say ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        http(b"", 404),
        http(b"", 500),
        http(FILM, length=10_000),
        moved("/next?token=canary"),
        moved("http://files.example/?token=canary"),
        moved("https://10.0.0.1/?token=canary"),
        moved("https://2130706433/?token=canary"),
        moved("https://me:canary@files.example/"),
        b"canary\r\n\r\n",
        cut,
        endless,
    ],
)
async def test_no_error_shows_what_signs_an_address(tmp_path: Path, answer: Any) -> None:
    downloads = make(max_bytes=300_000)
    async with RawServer(answer) as server:
        url = server.url + SIGNED
        with pytest.raises(DownloadFailed) as caught:
            await downloads.download([url], tmp_path, task_id=ID)
    seen: set[int] = set()
    error: BaseException | None = caught.value
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        assert "canary" not in str(error) + repr(error) + repr(error.args) + repr(vars(error))
        error = error.__cause__ or error.__context__
    assert "canary" not in "".join(traceback.format_exception(caught.value))
    await downloads.aclose()


# --- under another name ----------------------------------------------------------------------------


async def test_several_files_of_a_named_result_get_a_number_and_one_does_not(
    downloads: Downloads, tmp_path: Path
) -> None:
    async with RawServer(http(FILM, 200), http(FILM, 200), http(FILM, 200)) as server:
        urls = [f"{server.url}/a", f"{server.url}/b"]
        both = await downloads.download(urls, tmp_path, task_id=ID, name="anna")
        (one,) = await downloads.download(urls[:1], tmp_path, task_id="another", name="otto")
    assert {path.name for path in both} == {"anna-1.mp4", "anna-2.mp4"}
    assert one.name == "otto.mp4"


async def test_a_named_file_is_found_again_under_whichever_name_it_has(
    downloads: Downloads, tmp_path: Path
) -> None:
    async with RawServer(http(FILM, 200)) as server:
        first = await downloads.download([server.url], tmp_path, task_id=ID, name="anna")
        for name in ("anna", "otto", None):
            assert await downloads.download([server.url], tmp_path, task_id=ID, name=name) == first


async def test_a_ref_that_reads_like_the_file_of_another_task_is_not_taken_for_it(
    downloads: Downloads, tmp_path: Path
) -> None:
    async with RawServer(http(FILM, 200), http(PNG, 200)) as server:
        (sly,) = await downloads.download([server.url], tmp_path, task_id="sly", name=f"{ID}-1")
        (own,) = await downloads.download([server.url], tmp_path, task_id=ID, name="anna")
    assert (sly.name, own.name) == (f"{ID}-1.mp4", "anna.png")


async def test_many_tasks_that_want_one_name_at_once_get_one_each(
    downloads: Downloads, tmp_path: Path
) -> None:
    async with RawServer(*[http(FILM, 200)] * 8) as server:
        fetching = [
            downloads.download([server.url], tmp_path, task_id=f"task-{n}", name="anna") for n in range(8)
        ]
        paths = [path for (path,) in await asyncio.gather(*fetching)]
    assert len({path.name.casefold() for path in paths}) == 8
    assert [path.name for path in paths].count("anna.mp4") == 1
    assert all(path.read_bytes() == FILM for path in paths)
