"""Checks arguments of the user; every error names the field."""

from __future__ import annotations

import ipaddress
import os
import re
from importlib.util import find_spec
from typing import Any, TypeGuard
from urllib.parse import SplitResult, urlsplit

import attrs

from ._json import is_unicode
from .errors import InvalidRequest
from .models import TASK_ID

_BLANK_OR_CONTROL = re.compile(r"[\x00-\x20\x7f]")

_USER = re.compile(r"^([a-z0-9+.-]*://)?.*@", re.IGNORECASE | re.DOTALL)

_ENDPOINT = re.compile(r"/+api/v1(/.*)?$", re.IGNORECASE)

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")

_QUOTES = ('""', "''", "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}", "``")

_MAX_SECONDS_BITS = 1_000
"""A longer whole number is no float, and clocks count in those."""

_MAX_PORT = 65_535

_NO_PATH = re.compile(r"[\x00-\x20\x7f?#{}]|://")

_ADDRESS = re.compile(
    r"""[\s'"]*+(?:[a-z][a-z0-9+.:-]+:/|\w\w+:[^/\\]*@|(?:\S+\s+)*(?:host|dbname|user|password)\s*=)""",
    re.IGNORECASE,
)
"""The address of a database. A single letter before the colon is a drive."""

_DEFAULT_PORTS = {"http": 80, "https": 443}

_PROXY_SCHEMES = {"http", "https", "socks4", "socks5", "socks5h"}


def above_zero(_: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    """Refuse a number that is not above zero; None passes where it is the field's default.

    Raises:
        InvalidRequest: The message names the field.
    """
    if value is not None or attribute.default is not None:
        check_above_zero(attribute.name, value)


def whole_above_zero(_: object, attribute: attrs.Attribute[Any], value: int | None) -> None:
    """Refuse a count that is not a whole number above zero; None passes where it is the field's default.

    Raises:
        InvalidRequest: The message names the field.
    """
    above_zero(_, attribute, value)
    if value is not None and not isinstance(value, int):
        raise InvalidRequest(f"{attribute.name} must be a whole number, got {value!r}")


def check_url(field: str, url: object) -> None:
    """Refuse anything but an absolute http(s) URL without credentials in it.

    Raises:
        InvalidRequest: The message names *field*.
    """
    if not isinstance(url, str) or _BLANK_OR_CONTROL.search(url):
        raise InvalidRequest(f"{field} must be an http(s) URL without blanks, got {_shown(url)}")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InvalidRequest(f"{field} is not a URL: {_shown(url)}") from None
    if parts.scheme.lower() not in {"http", "https"} or not parts.hostname:
        raise InvalidRequest(f"{field} must be an absolute http(s) URL, got {_shown(url)}")
    if parts.username is not None:
        raise InvalidRequest(f"{field} must not carry a user name or password")


def _shown(url: object) -> str:
    """Return *url* for a message, without its query and its password, which are secrets."""
    if not isinstance(url, str):
        return type(url).__name__
    url, _, query = url.partition("?")
    # Passwords hold slashes and question marks where they were pasted as they are.
    return repr(hide_password(f"{url}@" if "@" in query and "@" not in url else url)[:80])


def hide_password(url: str) -> str:
    """Return a URL with stars in place of user name and password."""
    return _USER.sub(r"\1***@", url)


def check_kind(field: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Refuse what is not of a kind; *what* says in words which one is wanted.

    Raises:
        InvalidRequest: The message names *field*.
    """
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise InvalidRequest(f"{field} must be {what}, got {got}")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value counts seconds or shares; a bool is an int to Python, and may be too long."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() <= _MAX_SECONDS_BITS
    return isinstance(value, float)


def check_above_zero(field: str, value: object) -> None:
    """Refuse a number that is not above zero.

    Raises:
        InvalidRequest: The message names *field*.
    """
    # Not a number is neither above zero nor below: hence `not ... > 0`.
    if not is_number(value) or not value > 0:
        raise InvalidRequest(f"{field} must be a number above zero, got {_brief(value)}")


def _brief(value: object) -> str:
    """Return *value* for a message; Python writes no whole number that is very long."""
    is_long = isinstance(value, int) and value.bit_length() > _MAX_SECONDS_BITS
    return "one that is too long" if is_long else repr(value)


def check_wait(field: str, value: object) -> None:
    """Refuse what is no number of seconds to wait; none at all and less ends the wait at once.

    Raises:
        InvalidRequest: The message names *field*.
    """
    if not is_number(value) or value != value:  # nan
        raise InvalidRequest(f"{field} must be a number of seconds, got {_brief(value)}")


def check_count(field: str, value: int) -> None:
    """Refuse anything but a whole number of at least one.

    Raises:
        InvalidRequest: The message names *field*.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequest(f"{field} must be a whole number of at least 1, got {value!r}")


def check_port(field: str, value: object) -> None:
    """Refuse what is no port to listen on; 0 takes a free one.

    Raises:
        InvalidRequest: The message names *field*.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_PORT:
        raise InvalidRequest(f"{field} must be a port, 0 to {_MAX_PORT}, got {_brief(value)}")


def check_mount(field: str, path: object) -> None:
    """Refuse what cannot stand before ``/{intent}/{mac}`` in the path of a request.

    Raises:
        InvalidRequest: The message names *field*.
    """
    if not isinstance(path, str) or _NO_PATH.search(path):
        raise InvalidRequest(f"{field} must be a plain path such as '/kie', got {path!r:.80}")


def is_loopback(url: str) -> bool:
    """Return whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or (is_ip_address(host) and ipaddress.ip_address(host).is_loopback)


def read_environment(name: str) -> str:
    """Return what an environment variable holds, without the blanks and quotes that files leave around it."""
    return strip_quotes(os.environ.get(name, ""))


def strip_quotes(text: str) -> str:
    """Return *text* without the blanks around it, and the quotes within those."""
    text = text.strip()
    is_quoted = len(text) > 1 and text[0] + text[-1] in _QUOTES
    return text[1:-1].strip() if is_quoted else text


def check_origin(field: str, url: str, *, http_hosts: tuple[str, ...] = ()) -> str:
    """Return the URL of an API in one form: what stands before ``/api/v1``, without a port that says nothing.

    The key is sent there, so https is a must but for this machine and *http_hosts*.

    Raises:
        InvalidRequest: It has a query, or is none of these.
    """
    check_url(field, url)
    if "?" in url or "#" in url:
        raise InvalidRequest(f"{field} must have no query and no fragment: paths are put behind it")
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(url) and host_of(url) not in http_hosts:
        raise InvalidRequest(
            f"{field} must be https (the API key is sent there), got {_shown(url)}; a sandbox elsewhere is "
            "named by network=Network(allow_http_to=[...])"
        )
    return _origin(parts) + _ENDPOINT.sub("", parts.path).rstrip("/")


def _origin(parts: SplitResult) -> str:
    """Return scheme, host and port so that equal origins are equal texts."""
    host = (parts.hostname or "").rstrip(".")
    host = f"[{host}]" if ":" in host else host
    is_default = parts.port in (None, _DEFAULT_PORTS[parts.scheme])
    return f"{parts.scheme}://{host}" + ("" if is_default else f":{parts.port}")


def host_of(url: str) -> str:
    """Return the host of a URL in lower case, without the dot that may end it."""
    return (urlsplit(url).hostname or "").rstrip(".")


def read_host(field: str, host: object) -> str:
    """Return a host name or an IP address in the form that `host_of` gives.

    Raises:
        InvalidRequest: It is something else, such as a URL or a host with a port.
    """
    name = host.strip("[]") if isinstance(host, str) else ""
    if not is_ip_address(name) and not _HOST_NAME.fullmatch(name.rstrip(".")):
        raise InvalidRequest(f"{field} must hold host names without scheme and port, got {host!r}")
    return name.lower().rstrip(".")


def check_proxy(field: str, url: object) -> None:
    """Refuse what is not the URL of a proxy, and a SOCKS proxy where the library for it is missing.

    Raises:
        InvalidRequest: The message names *field* and shows no password.
    """
    if not isinstance(url, str) or _BLANK_OR_CONTROL.search(url):
        raise InvalidRequest(f"{field} must be the URL of a proxy, without blanks; got {_shown(url)}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidRequest(f"{field} is not a URL: {_shown(url)}") from None
    if parts.scheme not in _PROXY_SCHEMES or not parts.hostname:
        raise InvalidRequest(
            f"{field} must look like http://host:port, https://... or socks5://..., got {_shown(url)}"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidRequest(f"{field} must end with the port, got {_shown(url)}")
    if parts.scheme.startswith("socks"):
        if not port:
            raise InvalidRequest(f"{field} must name the port of the SOCKS proxy, got {_shown(url)}")
        if find_spec("aiohttp_socks") is None:
            raise InvalidRequest(f"{field}: a SOCKS proxy needs: pip install 'kie_async[socks]'")


def check_callback_url(url: str, *, allow_insecure: bool) -> str:
    """Return a callback URL without the slashes that end its path, if the service can reach it safely.

    Raises:
        InvalidRequest: It has a fragment, or is not public https.
    """
    check_url("callback_url", url)
    parts = urlsplit(url)
    if "#" in url:
        raise InvalidRequest("callback_url must have no fragment: the service would not send it")
    if not allow_insecure and (parts.scheme.lower() != "https" or not _is_public(parts.hostname or "")):
        raise InvalidRequest(
            f"callback_url must be https on a public host, got {_shown(url)}; "
            "for tests on one machine pass allow_insecure_callbacks=True"
        )
    path, _, query = url.partition("?")
    return path.rstrip("/") + (f"?{query}" if query else "")


def _is_public(host: str) -> bool:
    if is_ip_address(host):
        return ipaddress.ip_address(host).is_global
    host = host.strip(".")
    return "." in host and not host.endswith((".local", ".localhost", ".internal", ".lan"))


def is_ip_address(host: str) -> bool:
    """Return whether a host is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_task_id(task_id: object) -> None:
    """Refuse what cannot be an id of the service: it goes into URLs.

    Raises:
        InvalidRequest: The message says which characters an id has.
    """
    if not isinstance(task_id, str) or not TASK_ID.fullmatch(task_id):
        raise InvalidRequest(f"task_id must be 1 to 128 letters, digits, - or _, got {str(task_id)[:40]!r}")


def read_key(api_key: str | None) -> str:
    """Return the API key, from ``KIE_API_KEY`` if none is given, without blanks and quotes around it.

    Raises:
        InvalidRequest: There is none, or it cannot be one.
    """
    field = "KIE_API_KEY" if api_key is None else "api_key"
    check_kind(field, "" if api_key is None else api_key, str, "text")
    key = read_environment(field) if api_key is None else strip_quotes(api_key)
    if not key:
        raise InvalidRequest(
            "api_key is missing: pass KieSession(api_key) or set KIE_API_KEY; a key is at https://kie.ai/api-key"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequest(f"{field} holds characters that no key has; copy it again from kie.ai/api-key")
    return key


def read_account(account: str | None) -> str | None:
    """Return the user's name for an account, without blanks around it; None if there is none.

    Raises:
        InvalidRequest: It is blank, or no text.
    """
    check_kind("account", account, (str, type(None)), "a name of your own for the account")
    if account is None:
        return None
    if not account.strip() or not is_unicode(account):
        raise InvalidRequest(f"account must be a name of your own for the account, got {account[:80]!r}")
    return account.strip()


def check_path(field: str, path: object) -> None:
    """Refuse what cannot name a file or a folder.

    Raises:
        InvalidRequest: The message names *field*.
    """
    if not isinstance(path, str | os.PathLike) or not str(path).strip() or not _names_a_file(str(path)):
        raise InvalidRequest(f"{field} must be a path, got {str(path)[:80]!r}")


def check_journal_path(path: object) -> None:
    """Refuse what cannot name a journal in a file, the address of a database too; the message has none of it.

    Raises:
        InvalidRequest: It cannot.
    """
    if _ADDRESS.match(str(path)):
        raise InvalidRequest(
            "journal is the address of a database, and not written as postgresql://user@host/database; "
            "it is not shown, since it may hold a password"
        )
    check_path("journal", path)


def _names_a_file(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeError:
        return False
