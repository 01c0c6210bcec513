"""Checks arguments of the user; every error names the field."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from .errors import InvalidRequest
from .models import TASK_ID

_BLANK_OR_CONTROL = re.compile(r"[\x00-\x20\x7f]")

_PROBE_BYTES = 1024 * 1024
"""What must fit on a disk that results are to be saved on."""

_USER = re.compile(r"//[^/]*@")


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
    return repr(_USER.sub("//***@", url.split("?")[0])[:80])


def check_above_zero(field: str, value: object) -> None:
    """Refuse a number that is not above zero.

    Raises:
        InvalidRequest: The message names *field*.
    """
    # A bool is an int to Python, and nan is neither above zero nor below: hence `not value > 0`.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidRequest(f"{field} must be a number above zero, got {value!r}")


def check_count(field: str, value: int) -> None:
    """Refuse anything but a whole number of at least one.

    Raises:
        InvalidRequest: The message names *field*.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequest(f"{field} must be a whole number of at least 1, got {value!r}")


def is_loopback(url: str) -> bool:
    """Return whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def check_origin(field: str, url: str) -> str:
    """Return the URL of an API without its trailing slash; the key is sent there, so https is a must.

    Raises:
        InvalidRequest: It has a query, or is neither https nor this machine.
    """
    check_url(field, url)
    if "?" in url or "#" in url:
        raise InvalidRequest(f"{field} must have no query and no fragment: paths are put behind it")
    if not url.lower().startswith("https://") and not is_loopback(url):
        raise InvalidRequest(f"{field} must be https (the API key is sent there), got {_shown(url)}")
    return url.rstrip("/")


def check_callback_url(url: str, *, allow_insecure: bool) -> str:
    """Return a callback URL without its trailing slash, if the service can reach it safely.

    Raises:
        InvalidRequest: It has a query, or is not public https.
    """
    check_url("callback_url", url)
    parts = urlsplit(url)
    if "?" in url or "#" in url:
        raise InvalidRequest("callback_url must have no query and no fragment: an address is put behind it")
    if not allow_insecure and (parts.scheme.lower() != "https" or not _is_public(parts.hostname or "")):
        raise InvalidRequest(
            f"callback_url must be https on a public host, got {_shown(url)}; "
            "for tests on one machine pass allow_insecure_callbacks=True"
        )
    return url.rstrip("/")


def _is_public(host: str) -> bool:
    if _is_ip(host):
        return ipaddress.ip_address(host).is_global
    host = host.strip(".")
    return "." in host and not host.endswith((".local", ".localhost", ".internal", ".lan"))


def _is_ip(host: str) -> bool:
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
    """Return the API key, from ``KIE_API_KEY`` if none is given.

    Raises:
        InvalidRequest: There is none, or it cannot be one.
    """
    key = (os.environ.get("KIE_API_KEY", "") if api_key is None else api_key).strip()
    if not key:
        raise InvalidRequest("api_key is missing: pass KieSession(api_key) or set KIE_API_KEY")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequest("api_key holds characters that no key has; copy it again from kie.ai/api-key")
    return key


def check_path(field: str, path: object) -> None:
    """Refuse what cannot name a file or a folder.

    Raises:
        InvalidRequest: The message names *field*.
    """
    if not isinstance(path, str | os.PathLike) or not str(path) or "\0" in str(path):
        raise InvalidRequest(f"{field} must be a path, got {str(path)[:80]!r}")


def try_to_write(folder: Path) -> None:
    """Make *folder* if need be, and write a file there that is gone again: before money is spent for more.

    Raises:
        OSError: It cannot be made or written to, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{secrets.token_hex(8)}.part"
    try:
        with probe.open("xb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
