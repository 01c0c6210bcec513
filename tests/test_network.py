"""The way through the network: what `Network` takes, where the key goes, which of the environment counts."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp.abc import AbstractResolver
from conftest import FAST, OpenSession
from support import proxies
from support.create_faults import KEY
from support.misbehaving import Misbehaving, answer, authority, certified, says, trusting
from support.proxies import Proxy
from support.tables import together

from kie_async import (
    CallbackReceiver,
    DownloadFailed,
    InvalidRequest,
    KieSession,
    Network,
    Sandbox,
    TaskRecord,
    TaskResult,
    TransportError,
)
from kie_async._secrets import Secret
from kie_async._validation import check_proxy
from kie_async.engine import settings as settings_module
from kie_async.http.transport import Transport
from kie_async.wire.requests import encode_credits

CREDITS = answer({"code": 200, "msg": "success", "data": 42})
MP4 = answer(b"\0\0\0\x18ftypisom\0\0\2\0isommp42" + b"x" * 100, headers="Content-Type: video/mp4\r\n")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KIE_PROXY", "SSL_CERT_FILE", "KIE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


class Answers(AbstractResolver):
    """A resolver that answers as it is told, or raises."""

    def __init__(self, answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        self.asked.append(host)
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers

    async def close(self) -> None:
        raise AssertionError("it is the user's to close")


LOCAL = [{"hostname": "x", "host": "127.0.0.1", "port": 0, "family": socket.AF_INET, "proto": 0, "flags": 0}]

# --- what is taken ---------------------------------------------------------------------------------


@together(
    ("field", "value", "words"),
    [
        ("proxy", 8080, "proxy must be the URL"),
        ("proxy", "", "proxy must look like"),
        ("proxy", "proxy.corp:8080", "proxy must look like"),
        ("proxy", "ftp://proxy.corp:8080", "proxy must look like"),
        ("proxy", "http://", "proxy must look like"),
        ("proxy", "http://proxy.corp:99999", "proxy is not a URL"),
        ("proxy", "http://proxy.corp:8080/path", "proxy must end with the port"),
        ("proxy", "http://proxy.corp:8080?x=1", "proxy must end with the port"),
        ("proxy", "http://proxy.corp :8080", "without blanks"),
        ("proxy", "socks5://proxy.corp", "must name the port"),
        ("ssl", False, "ssl must be an ssl.SSLContext, got bool"),
        ("ssl", "ca.pem", "ssl must be an ssl.SSLContext, got str"),
        ("ssl", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "ssl must be a context for clients"),
        ("allow", "10.0.0.0/8", "allow must be a list of networks"),
        ("allow", 5, "allow must be a list of networks"),
        ("allow", ["10.0.0.0/99"], "allow must hold networks"),
        ("allow", ["10.0.0.1/8"], "allow must hold networks"),
        ("allow", [5], "allow must hold networks"),
        ("allow", ["sandbox"], "allow must hold networks"),
        ("allow_http_to", "sandbox", "allow_http_to must be a list of host names"),
        ("allow_http_to", ["http://sandbox"], "allow_http_to must hold host names"),
        ("allow_http_to", ["sandbox:8800"], "allow_http_to must hold host names"),
        ("allow_http_to", ["*"], "allow_http_to must hold host names"),
        ("allow_http_to", [""], "allow_http_to must hold host names"),
        ("allow_http_to", [None], "allow_http_to must hold host names"),
        ("resolver", 5, "resolver must be an aiohttp resolver"),
        ("resolver", Answers, "resolver must be an aiohttp resolver"),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, value: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        Network(**{field: value})  # type: ignore[arg-type]


@together("proxy", ["http://p:1", "https://p.corp", "HTTP://user:pw@p:1/", "http://[::1]:8080"])
def test_a_proxy_is_taken(proxy: str) -> None:
    assert Network(proxy=proxy).proxy == proxy


def test_a_socks_proxy_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kie_async._validation.find_spec", lambda _: None)
    with pytest.raises(InvalidRequest, match=r"pip install 'kie_async\[socks\]'"):
        Network(proxy="socks5://127.0.0.1:1080")


def test_it_is_frozen_and_in_one_form() -> None:
    private = ipaddress.ip_network("fd00::/8")
    network = Network(allow=["10.0.0.0/8", private], allow_http_to=["SandBox.", "[::1]"])
    assert network.allow == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
    assert network.allow_http_to == ("sandbox", "::1")
    assert network == attrs.evolve(network)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        network.proxy = "http://p:1"  # type: ignore[misc]


@together(
    "proxy", ["http://ada:s3cret@p:1", "ftp://ada:s3cret@p:1", "http://ada:s3cret@p:1/x", "http://a:s3cret@"]
)
def test_no_password_of_a_proxy_is_shown(proxy: str) -> None:
    try:
        shown = repr(Network(proxy=proxy))
    except InvalidRequest as exc:
        shown = str(exc)
    assert "s3cret" not in shown


@together(
    ("address", "is_allowed"),
    [("198.18.0.56", True), ("198.20.0.1", False), ("fd00::1", True), ("fe80::1%eth0", False), ("x", False)],
)
def test_an_address_is_allowed_by_its_network(address: str, is_allowed: bool) -> None:
    network = Network(allow=["198.18.0.0/15", "fd00::/8"])
    assert network.allows_address(address) is is_allowed


# --- the environment -------------------------------------------------------------------------------


def made(**options: Any) -> Any:
    """Return what a session was given, read and checked."""
    return KieSession("k", **options)._settings


@together("given", ["http://p:1", ' "http://p:1"\n', "'http://p:1'"])
def test_the_proxy_of_the_environment_is_ours_alone(given: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            patch.setenv(name, "http://other:1")
        assert made().network.proxy is None
        patch.setenv("KIE_PROXY", given)
        assert made().network.proxy == "http://p:1"
        assert made(network=Network(proxy="http://given:1")).network.proxy == "http://given:1"
        assert made(base_url="http://127.0.0.1:8800").network.proxy is None


@together(
    ("name", "value", "words"),
    [
        ("KIE_PROXY", "proxy.corp", "KIE_PROXY must look like"),
        ("KIE_BASE_URL", "http://api.kie.ai", "KIE_BASE_URL must be https"),
        ("KIE_BASE_URL", "api.kie.ai", "KIE_BASE_URL must be an absolute"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "SSL_CERT_FILE names '/nowhere/ca.pem'"),
        ("SSL_CERT_FILE", __file__, "SSL_CERT_FILE names"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        with pytest.raises(InvalidRequest, match=words):
            made()


@together(
    "given", ["https://api.kie.ai", " https://api.kie.ai\n", '"https://API.kie.ai:443/api/v1/"', "", "  "]
)
def test_every_way_to_write_the_service_leads_to_both_its_hosts(given: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIE_BASE_URL", given)
        settings = made()
    assert (settings.base_url, settings.upload_url) == ("https://api.kie.ai", "https://kieai.redpandaai.co")


async def test_certificates_of_the_environment_are_trusted_beside_the_usual_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(pem))
    monkeypatch.setattr(settings_module, "is_loopback", lambda _: False)
    async with Misbehaving(says(CREDITS), tls=certified()) as server:
        async with KieSession(KEY, base_url=server.url) as kie:
            with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
                await kie.credits()
        monkeypatch.setenv("SSL_CERT_FILE", f"'{pem}'")
        async with KieSession(KEY, base_url=server.url) as kie:
            assert await kie.credits() == 42
            assert kie._settings.network.ssl is made().network.ssl  # read once


# --- where requests go -----------------------------------------------------------------------------


async def test_all_that_is_https_goes_through_the_proxy(leaks: None, tmp_path: Path) -> None:
    async with (
        Misbehaving(says(CREDITS), tls=certified()) as server,
        Misbehaving(says(MP4), tls=certified()) as files,
        Proxy() as proxy,
        KieSession(KEY, base_url=server.url, network=proxy.network) as kie,
    ):
        assert await kie.credits() == 42
        result = TaskResult(record=TaskRecord(task_id="t", urls=(files.url + "/v.mp4",)))
        [path] = await kie.download(result, tmp_path)
        assert sorted(proxy.asked) == sorted(f"127.0.0.1:{place.port}" for place in (server, files))
    assert path.name == "t-1.mp4"
    assert "Authorization" not in files.heads[0]


async def test_plain_http_goes_past_an_http_proxy_which_would_read_the_key(sandbox: Sandbox) -> None:
    async with (
        Proxy() as proxy,
        KieSession("sandbox-key", base_url=sandbox.url, network=proxy.network) as kie,
    ):
        await kie.credits()
    assert not proxy.connections


@together("host", ["10.0.0.1", "169.254.169.254", "[::1]", "[fd00::1]"])
async def test_a_proxy_is_not_asked_for_private_addresses(host: str, tmp_path: Path) -> None:
    async with Proxy() as proxy, KieSession(KEY, network=proxy.network) as kie:
        result = TaskResult(record=TaskRecord(task_id="t", urls=(f"https://{host}/v.mp4",)))
        with pytest.raises(DownloadFailed, match="not a public address"):
            await kie.download(result, tmp_path)
    assert not proxy.connections


@together(
    ("status", "words"),
    [
        (407, r"the proxy refused the connection \(HTTP 407; check its user name and password\)"),
        (502, r"the proxy refused the connection \(HTTP 502\)"),
    ],
)
async def test_what_a_proxy_refuses_is_said_to_be_the_proxys(status: int, words: str) -> None:
    async with Proxy(fault=proxies.says(proxies.status(status))) as proxy:
        transport = Transport("https://127.0.0.1:1", Secret(KEY), connections=1, network=proxy.network)
        with pytest.raises(TransportError, match=words):
            await transport.send(encode_credits())
        await transport.aclose()


# --- names -----------------------------------------------------------------------------------------


@together(
    ("answers", "words"),
    [
        (TypeError("no text"), "the resolver raised TypeError: no text"),
        (KeyError("x"), "the resolver raised KeyError"),
        (OSError(11, "no such name"), "no such name"),
        (None, "the resolver raised TypeError"),
        ([{"address": "1.2.3.4"}], "the resolver raised KeyError"),
        ([{"host": 5}], "the resolver raised TypeError"),
        ([], "the resolver found no address"),
    ],
)
async def test_what_a_resolver_does_wrong_is_a_transport_error(answers: Any, words: str) -> None:
    resolver = Answers(answers)
    transport = Transport("https://api.test", Secret(KEY), connections=1, network=Network(resolver=resolver))
    with pytest.raises(TransportError, match=words):
        await transport.send(encode_credits())
    await transport.aclose()
    assert "api.test" in resolver.asked


async def test_a_sandbox_in_another_container_works(
    leaks: None, sandbox: Sandbox, open_session: OpenSession, receiver: CallbackReceiver, tmp_path: Path
) -> None:
    """Its name leads to an address that is not public: here to this machine, which is not named loopback."""
    port = sandbox.url.rpartition(":")[2]
    resolver = Answers(LOCAL)
    network = Network(allow_http_to=["sandbox"], resolver=resolver)
    async with receiver.serve("127.0.0.1", 0) as served:
        kie = await open_session(
            base_url=f"http://Sandbox:{port}",
            network=network,
            receiver=receiver,
            callback_url=served.url,
            poll=attrs.evolve(FAST, first_s=30),
        )
        handle = await kie.create("sandbox/echo", {"result_urls": [f"http://sandbox:{port}/x.mp4"]})
        sandbox.finish(handle.task_id)
        await asyncio.wait_for(handle, 5)
        async with Misbehaving(says(MP4)) as files:
            url = f"http://sandbox:{files.port}/v.mp4"
            result = TaskResult(record=TaskRecord(task_id="t", urls=(url,)))
            [path] = await kie.download(result, tmp_path)
            other = TaskResult(record=TaskRecord(task_id="u", urls=(url.replace("sandbox", "other"),)))
            with pytest.raises(DownloadFailed, match="not https"):
                await kie.download(other, tmp_path)
            sly = TaskResult(record=TaskRecord(task_id="w", urls=(f"https://other:{files.port}/v.mp4",)))
            with pytest.raises(DownloadFailed, match="not a public address"):
                await kie.download(sly, tmp_path)
    assert path.name == "t-1.mp4"


async def test_a_network_that_is_allowed_may_be_downloaded_from(tmp_path: Path) -> None:
    async with Misbehaving(says(MP4), tls=certified()) as files:
        network = Network(ssl=trusting(), allow=["127.0.0.0/8"])
        async with KieSession(KEY, network=network) as kie:
            result = TaskResult(record=TaskRecord(task_id="t", urls=(files.url + "/v.mp4",)))
            assert await kie.download(result, tmp_path)
        async with KieSession(KEY, network=Network(ssl=trusting())) as kie:
            with pytest.raises(DownloadFailed, match="not a public address"):
                await kie.download(result, tmp_path / "other")


def test_a_proxy_is_checked_by_the_name_it_was_given_by() -> None:
    with pytest.raises(InvalidRequest, match="KIE_PROXY"):
        check_proxy("KIE_PROXY", "x")
