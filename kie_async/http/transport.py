"""Sends one request that costs nothing over HTTP and turns every network failure into a `TransportError`.

The key goes to one origin: redirects are not followed, and no proxy is used but that of a `Network`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, cast

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from .._json import MAX_JSON_BYTES, MAX_RECORD_BYTES
from .._secrets import Secret
from ..config import Network
from ..errors import TransportError
from ..wire.envelope import WireResponse
from ..wire.redaction import Redactor
from ..wire.requests import WireRequest
from .backoff import read_retry_after
from .connector import TypedConnector

USER_AGENT = "kie_async/0.1 (+https://pypi.org/project/kie-async)"

QUERY_TIMEOUT_S = 30.0

CONNECT_TIMEOUT_S = 10.0

# aiohttp's own limits would lose an id behind a long policy or many cookies; a stranger's host keeps to them.
AIOHTTPS_HEADER_BYTES, AIOHTTPS_HEADERS = 8190, 128

MAX_HEADER_BYTES, MAX_HEADERS = 2**18, 2000

# Longer than the widest poll interval: no new handshake for every poll.
KEEP_ALIVE_S = 75.0

# When a loop ends without `aclose`, a garbage collector finalizes in an order of its own: held here, an HTTP
# session outlives the part that owns it, which says what goes on and then closes it.
_open_sessions: set[aiohttp.ClientSession] = set()

EXCHANGE_FAILURES = (aiohttp.ClientError, aiohttp.InvalidURL, OSError, TimeoutError, ValueError, RuntimeError)
"""What an exchange with a misbehaving peer can end in, and nothing wider."""


def describe_failure(exc: BaseException) -> str:
    """Return what went wrong in words that hold no header, no key and no query of a URL."""
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        hint = "; check its user name and password" if exc.status == 407 else ""
        return f"the proxy refused the connection (HTTP {exc.status}{hint})"
    if isinstance(exc, aiohttp.ClientConnectorError):
        why = exc.strerror or type(exc.os_error).__name__
        if exc.errno and why.startswith("Connect call failed"):  # asyncio's words leave out the reason
            why = os.strerror(exc.errno)
        is_proxy = isinstance(exc, aiohttp.ClientProxyConnectionError)
        return f"cannot connect to {'the proxy' if is_proxy else f'{exc.host}:{exc.port}'} ({why})"
    if isinstance(exc, TimeoutError):
        return "timed out"
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    if isinstance(exc, OSError) and exc.strerror and "://" not in exc.strerror:
        return exc.strerror
    return f"broken exchange ({type(exc).__name__})"


class _UserResolver(AbstractResolver):
    """Asks the resolver of a user, and turns whatever it does wrong into an `OSError`."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            found = await self._resolver.resolve(host, port, family)
            if checked := [_checked(answer, host, port) for answer in found]:
                return checked
            failure = "the resolver found no address"
        except OSError:
            raise
        except Exception as exc:
            failure = f"the resolver raised {type(exc).__name__}: {exc}"
        raise OSError(None, failure)

    async def close(self) -> None:
        """Close nothing: it is the user's."""


def _checked(answer: ResolveResult, host: str, port: int) -> ResolveResult:
    """Return an answer with all that aiohttp reads from it."""
    address = answer["host"]
    if not isinstance(address, str):
        raise TypeError("an address is no text")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(
        hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST
    )


class _TunnelConnector(TypedConnector):
    """Makes connections through an HTTP proxy, and hands out none that has ended already."""

    async def _start_tls_connection(self, *args: Any, **options: Any) -> Any:
        made = await super()._start_tls_connection(*args, **options)
        # uvloop returns one without TLS when an HTTPS proxy hangs up: a body given to it would count as sent.
        if made[0].is_closing():
            raise aiohttp.ClientOSError(None, "the proxy closed the connection")
        return made


async def resolve(network: Network, host: str) -> list[str]:
    """Return the addresses of a host, as a connection made the way a `Network` says would find them.

    Raises:
        OSError: There are none, or none came in time.
    """
    given = network.resolver
    resolver = aiohttp.DefaultResolver() if given is None else _UserResolver(given)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return [found["host"] for found in await resolver.resolve(host, 443)]
    except TimeoutError:
        raise OSError(None, "no answer in time") from None
    finally:
        await resolver.close()


def make_connector(
    network: Network,
    *,
    limit: int,
    keep_alive_s: float = KEEP_ALIVE_S,
    connection_type: type[ResponseHandler] = ResponseHandler,
    socket_factory: Callable[[aiohttp.AddrInfoType], socket.socket] | None = None,
) -> aiohttp.TCPConnector:
    """Return what makes connections the way a `Network` says; one idle for at most *keep_alive_s* is reused.

    *socket_factory* opens sockets that lead to a host itself, never one that leads to a proxy.
    """
    options: dict[str, Any] = {"limit": limit, "ssl": network.ssl or True, "connection_type": connection_type}
    options |= {"keepalive_timeout": keep_alive_s} if keep_alive_s else {"force_close": True}
    if network.is_socks:
        # Not at the top: it comes with the extra ``socks``, which `Network` has found.
        from .socks import make_socks_connector

        return make_socks_connector(cast(str, network.proxy), options)
    if network.resolver is not None:
        options["resolver"] = _UserResolver(network.resolver)
    if network.proxy is not None:
        return _TunnelConnector(**options)
    return TypedConnector(socket_factory=socket_factory, **options)


def open_http_session(
    connector: aiohttp.TCPConnector,
    *,
    timeout: aiohttp.ClientTimeout,
    proxy: str | None = None,
    is_for_service: bool = False,
) -> aiohttp.ClientSession:
    """Return an HTTP session that keeps no cookies and reads no environment; all goes through *proxy*.

    One *is_for_service* reads answers however long their headers: an id or an end may stand behind them.
    """
    http = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=proxy,
        trust_env=False,  # a proxy or netrc of the environment must not get the key
        headers={"User-Agent": USER_AGENT},
        timeout=timeout,
        max_line_size=MAX_HEADER_BYTES if is_for_service else AIOHTTPS_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES if is_for_service else AIOHTTPS_HEADER_BYTES,
        max_headers=MAX_HEADERS if is_for_service else AIOHTTPS_HEADERS,
    )
    _open_sessions.add(http)
    return http


async def close_http_session(http: aiohttp.ClientSession) -> None:
    """Close an HTTP session and all its connections."""
    _open_sessions.discard(http)
    await http.close()


def close_http_session_nowait(http: aiohttp.ClientSession) -> None:
    """Close an HTTP session whose event loop has ended: nothing can be awaited, and no warning is wanted."""
    _open_sessions.discard(http)
    if http.connector is not None:
        # Stepped by hand, since no loop runs; it has nothing to wait for: all transports are gone.
        for _ in http.connector.close().__await__():
            break


async def read_body(
    answer: aiohttp.ClientResponse, into: bytearray, *, max_bytes: int = MAX_JSON_BYTES
) -> None:
    """Read a body into *into*, up to one byte more than whoever parses it takes."""
    content = answer.content
    while len(into) <= max_bytes and not content.at_eof():
        into += (await content.readany())[: max_bytes + 1 - len(into)]


class Transport:
    """Sends one request that costs nothing and reads its answer."""

    def __init__(
        self,
        base_url: str,
        key: Secret,
        *,
        connections: int,
        timeout_s: float = QUERY_TIMEOUT_S,
        connect_timeout_s: float | None = None,
        network: Network = Network(),  # noqa: B008  (frozen)
        redactor: Redactor | None = None,
    ) -> None:
        """Make one; *connect_timeout_s* bounds also a proxy's answer, and the wait for a connection."""
        self._base_url = base_url
        self._key = key
        self._redactor = redactor or Redactor([key])
        self._timeout = aiohttp.ClientTimeout(
            total=timeout_s, connect=connect_timeout_s, sock_connect=CONNECT_TIMEOUT_S
        )
        self._http = open_http_session(
            make_connector(network, limit=connections),
            timeout=self._timeout,
            proxy=network.http_proxy_for(base_url),
            is_for_service=True,
        )

    async def send(
        self, request: WireRequest, *, form: aiohttp.FormData | None = None, timeout_s: float | None = None
    ) -> WireResponse:
        """Send *request* once; *form* takes the place of its body, *timeout_s* that of the usual timeout.

        Raises:
            TransportError: No complete answer came; the message holds no secret.
        """
        failure = ""
        target = f"{request.path}?{request.query}" if request.query else request.path
        url = URL(self._base_url + target, encoded=True)
        body = bytearray()
        timeout = self._timeout
        if timeout_s is not None:
            timeout = aiohttp.ClientTimeout(
                total=timeout_s, connect=timeout.connect, sock_connect=CONNECT_TIMEOUT_S
            )
        try:
            async with self._http.request(
                request.method,
                url,
                data=request.body if form is None else form,
                headers=headers_for(self._key, json=form is None),
                allow_redirects=False,
                timeout=timeout,
            ) as answer:
                await read_body(
                    answer, body, max_bytes=MAX_RECORD_BYTES if answer.status == 200 else MAX_JSON_BYTES
                )
                return WireResponse(
                    status=answer.status,
                    body=bytes(body),
                    retry_after_s=read_retry_after(answer.headers),
                    redactor=self._redactor,
                )
        except EXCHANGE_FAILURES as exc:
            failure = describe_failure(exc)
        # Raised outside the except block: aiohttp's error would carry the key along in its context.
        raise TransportError(f"{request.method} {request.path}: {failure}")

    async def aclose(self) -> None:
        """Close all connections."""
        await close_http_session(self._http)

    def close_nowait(self) -> None:
        """Close without an event loop."""
        close_http_session_nowait(self._http)


def headers_for(key: Secret, *, json: bool) -> dict[str, str]:
    """Return the headers of a call to the API, the key in them."""
    headers = {"Authorization": f"Bearer {key.reveal()}"}
    if json:
        headers["Content-Type"] = "application/json"
    return headers
