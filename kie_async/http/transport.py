"""Sends one request that costs nothing over HTTP and turns every network failure into a `TransportError`.

The key goes to one origin: redirects are not followed, and no proxy or netrc of the environment is used.
"""

from __future__ import annotations

import os
import ssl

import aiohttp
from yarl import URL

from .._json import MAX_JSON_BYTES
from .._secrets import Secret
from ..errors import TransportError
from ..wire.requests import WireRequest
from ..wire.responses import WireResponse
from .backoff import read_retry_after

USER_AGENT = "kie_async/0.1 (+https://pypi.org/project/kie-async)"

QUERY_TIMEOUT_S = 30.0

CONNECT_TIMEOUT_S = 10.0

# Longer than the widest poll interval: no new handshake for every poll.
KEEP_ALIVE_S = 75.0

# When a loop ends without `aclose`, a garbage collector finalizes in an order of its own: held here, an HTTP
# session outlives the part that owns it, which says what goes on and then closes it.
_open_sessions: set[aiohttp.ClientSession] = set()

EXCHANGE_FAILURES = (aiohttp.ClientError, aiohttp.InvalidURL, OSError, TimeoutError, ValueError, RuntimeError)
"""What an exchange with a misbehaving peer can end in, and nothing wider."""


def describe_failure(exc: BaseException) -> str:
    """Return what went wrong in words that hold no header, no key and no query of a URL."""
    if isinstance(exc, aiohttp.ClientConnectorError):
        why = exc.strerror or type(exc.os_error).__name__
        if exc.errno and why.startswith("Connect call failed"):  # asyncio's words leave out the reason
            why = os.strerror(exc.errno)
        return f"cannot connect to {exc.host}:{exc.port} ({why})"
    if isinstance(exc, TimeoutError):
        return "timed out"
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    if isinstance(exc, OSError) and exc.strerror and "://" not in exc.strerror:
        return exc.strerror
    return f"broken exchange ({type(exc).__name__})"


def open_http_session(
    connector: aiohttp.TCPConnector, *, timeout: aiohttp.ClientTimeout
) -> aiohttp.ClientSession:
    """Return an HTTP session that keeps no cookies and reads no environment."""
    http = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # a proxy or netrc of the environment must not get the key
        headers={"User-Agent": USER_AGENT},
        timeout=timeout,
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


async def read_body(answer: aiohttp.ClientResponse, into: bytearray) -> None:
    """Read a body into *into*, up to one byte more than `parse_json` takes."""
    content = answer.content
    while len(into) <= MAX_JSON_BYTES and not content.at_eof():
        into += (await content.readany())[: MAX_JSON_BYTES + 1 - len(into)]


class Transport:
    """Sends one request that costs nothing and reads its answer."""

    def __init__(
        self,
        base_url: str,
        key: Secret,
        *,
        connections: int,
        timeout_s: float = QUERY_TIMEOUT_S,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._base_url = base_url
        self._key = key
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        self._http = open_http_session(
            aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEP_ALIVE_S, ssl=ssl_context or True),
            timeout=self._timeout,
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
            timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._http.request(
                request.method,
                url,
                data=request.body if form is None else form,
                headers=headers_for(self._key, json=form is None),
                allow_redirects=False,
                timeout=timeout,
            ) as answer:
                await read_body(answer, body)
                return WireResponse(
                    status=answer.status,
                    body=bytes(body),
                    retry_after_s=read_retry_after(answer.headers),
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
