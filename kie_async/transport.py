"""Requests that cost nothing, over HTTP. Foreign errors stop here; the key goes to one origin."""

from __future__ import annotations

import os
import random
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp
import backoff
from yarl import URL

from . import jsontext
from .errors import TransportError
from .wire import WireRequest, WireResponse

USER_AGENT = "kie_async/0.1 (+https://pypi.org/project/kie-async)"
QUERY_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 75.0  # longer than the widest poll interval: no new handshake for every poll
MAX_RETRY_AFTER_S = 60.0

FAILURES = (aiohttp.ClientError, aiohttp.InvalidURL, OSError, TimeoutError, ValueError, RuntimeError)
"""What an exchange with a misbehaving peer can end in, and nothing wider."""


class Secret:
    """A text that no repr, format or vars shows."""

    __slots__ = ("reveal",)

    def __init__(self, text: str) -> None:
        self.reveal: Callable[[], str] = lambda: text

    def __repr__(self) -> str:
        return "Secret(***)"


def delays(rng: random.Random, *, first_s: float = 0.5, ceiling_s: float = 30.0) -> Iterator[float]:
    """Yield growing delays before each further attempt, jittered down to half."""
    waits = backoff.expo(base=2, factor=first_s, max_value=ceiling_s)
    next(waits)  # backoff's generators start with an empty value
    for wait_s in waits:
        yield wait_s * rng.uniform(0.5, 1.0)


def describe(exc: BaseException) -> str:
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


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, at most 60; dates and nonsense are None."""
    value = headers.get("Retry-After", "").strip()
    if not value.isascii() or not value.replace(".", "", 1).isdigit() or len(value) > 12:
        return None
    return min(float(value), MAX_RETRY_AFTER_S)


def client_session(connector: aiohttp.TCPConnector, **options: Any) -> aiohttp.ClientSession:
    """Return an HTTP session that keeps no cookies and listens to no environment."""
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # a proxy or netrc of the environment must not get the key
        headers={"User-Agent": USER_AGENT},
        **options,
    )


async def read_bounded(answer: aiohttp.ClientResponse, into: bytearray) -> None:
    """Read a body into *into*, up to one byte more than `jsontext.parse` takes."""
    content = answer.content
    while len(into) <= jsontext.MAX_BYTES and not content.at_eof():
        into += (await content.readany())[: jsontext.MAX_BYTES + 1 - len(into)]


def let_go(http: aiohttp.ClientSession) -> None:
    """Close an HTTP session whose event loop has ended: nothing can be awaited, nothing is to be said."""
    if http.connector is not None:
        for _ in http.connector.close().__await__():  # has nothing to wait for: all transports are gone
            break


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
        self._http = client_session(
            aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEP_ALIVE_S, ssl=ssl_context or True),
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
        )

    async def send(self, request: WireRequest, *, form: aiohttp.FormData | None = None) -> WireResponse:
        """Send *request* once; *form* takes the place of its body.

        Raises:
            TransportError: No complete answer came; the message holds no secret.
        """
        failure = ""
        target = f"{request.path}?{request.query}" if request.query else request.path
        url = URL(self._base_url + target, encoded=True)
        body = bytearray()
        try:
            async with self._http.request(
                request.method,
                url,
                data=request.body if form is None else form,
                headers=headers_for(self._key, json=form is None),
                allow_redirects=False,
            ) as answer:
                await read_bounded(answer, body)
                return WireResponse(
                    status=answer.status,
                    body=bytes(body),
                    retry_after_s=read_retry_after(answer.headers),
                )
        except FAILURES as exc:
            failure = describe(exc)
        # Raised outside the except block: aiohttp's error would carry the key along in its context.
        raise TransportError(f"{request.method} {request.path}: {failure}")

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.close()

    def let_go(self) -> None:
        """Close without an event loop."""
        let_go(self._http)


def headers_for(key: Secret, *, json: bool) -> dict[str, str]:
    """Return the headers of a call to the API, the key in them."""
    headers = {"Authorization": f"Bearer {key.reveal()}"}
    if json:
        headers["Content-Type"] = "application/json"
    return headers
