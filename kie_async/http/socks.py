"""Makes connections through a SOCKS proxy, with aiohttp-socks; whatever fails there is an `OSError` here."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp_socks import ProxyConnector, ProxyType
from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError
from python_socks.async_.asyncio import Proxy

from .connector import TypedConnector


class _SocksConnector(TypedConnector, ProxyConnector):
    """A connection through the proxy is there, TLS included, before a request is handed to it.

    Only names are left to aiohttp-socks; its own TLS cannot be cancelled midway, aiohttp's can.
    """

    def __init__(self, goal: dict[str, Any], **options: Any) -> None:
        super().__init__(**goal, **options)
        self._goal = goal

    async def _wrap_create_connection(self, *args: Any, addr_infos: Any, **options: Any) -> Any:
        host, port = addr_infos[0][4][:2]
        failure: OSError
        try:
            proxy = Proxy(**self._goal)
            sock = await proxy.connect(
                dest_host=host, dest_port=port, timeout=options["timeout"].sock_connect
            )
            return await self._wrap_existing_connection(*args, sock=sock, **options)
        except ProxyTimeoutError:
            failure = TimeoutError("the SOCKS proxy did not answer in time")
        except ProxyConnectionError:
            failure = OSError(None, "cannot connect to the SOCKS proxy")
        except ProxyError as exc:
            failure = OSError(None, f"the SOCKS proxy refused the connection ({exc})")
        raise failure


def make_socks_connector(proxy: str, options: dict[str, Any]) -> aiohttp.TCPConnector:
    """Return a connector of aiohttp whose every connection goes through *proxy*, which resolves the names."""
    parts = urlsplit(proxy)
    goal = {
        "host": parts.hostname or "",
        "port": parts.port or 0,
        "proxy_type": ProxyType.SOCKS4 if parts.scheme == "socks4" else ProxyType.SOCKS5,
        "username": unquote(parts.username or "") or None,
        "password": unquote(parts.password or "") or None,
        "rdns": True,
    }
    return _SocksConnector(goal, **options)
