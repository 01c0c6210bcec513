"""Makes connections through a SOCKS proxy, with aiohttp-socks; whatever fails there is an `OSError` here."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp_socks import ProxyConnectionError, ProxyConnector, ProxyError, ProxyTimeoutError, ProxyType


class _SocksConnector(ProxyConnector):
    """A connection through the proxy is there, TLS included, before a request is handed to it."""

    async def _wrap_create_connection(self, *args: Any, **options: Any) -> Any:
        failure: Exception
        try:
            return await super()._wrap_create_connection(*args, **options)
        except ssl.SSLCertVerificationError as exc:
            failure = aiohttp.ClientConnectorCertificateError(options["req"].connection_key, exc)
        except ssl.SSLError as exc:
            failure = aiohttp.ClientConnectorSSLError(options["req"].connection_key, exc)
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
    return _SocksConnector(
        host=parts.hostname or "",
        port=parts.port or 0,
        proxy_type=ProxyType.SOCKS4 if parts.scheme == "socks4" else ProxyType.SOCKS5,
        username=unquote(parts.username or "") or None,
        password=unquote(parts.password or "") or None,
        rdns=True,
        **options,
    )
