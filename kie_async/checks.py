"""Checks of what a user gives, each naming the field."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import attrs

from .errors import InvalidRequest

_BLANK_OR_CONTROL = re.compile(r"[\x00-\x20\x7f]")


def above_zero(_: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    """Refuse a number that is not above zero; None passes where the field allows it.

    Raises:
        InvalidRequest: The message names the field.
    """
    if value is not None and not value > 0:  # also refuses nan
        raise InvalidRequest(f"{attribute.name} must be above zero, got {value!r}")


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
    """Return *url* for a message, without its query, which may hold a secret."""
    return repr(url.split("?")[0][:80]) if isinstance(url, str) else type(url).__name__
