"""Holds keys so that no repr, log line or pickle shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from .errors import InvalidRequest


class Secret(bytes):
    """A key or a callback secret: bytes to sign with, text to send, and stars as its repr."""

    # Bytes themselves, with no `__dict__`: no attribute holds the key where `vars` would show it.
    __slots__ = ()

    def __new__(cls, value: str | bytes) -> Self:
        return super().__new__(cls, value.encode() if isinstance(value, str) else value)

    def reveal(self) -> str:
        """Return the text of the secret, for the one header that carries it."""
        return self.decode()

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("a secret is neither copied nor pickled")


def as_secrets(keys: Iterable[str | bytes], *, field: str = "hmac_keys") -> tuple[Secret, ...]:
    """Return keys as secrets.

    Raises:
        InvalidRequest: A key is empty, which would accept what anyone signs, or is no text and no bytes.
    """
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise InvalidRequest(f"{field} must be a list of keys: {field}=[KEY]")
    keys = tuple(keys)
    if not all(isinstance(key, str | bytes) for key in keys):
        raise InvalidRequest(f"{field} must hold text or bytes")
    if not all(keys):
        raise InvalidRequest(f"{field} holds an empty key; an empty key would accept what anyone signs")
    return tuple(map(Secret, keys))
