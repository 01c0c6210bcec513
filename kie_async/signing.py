"""Formulas of trust: the address of an intent, and the service's callback signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache

from .errors import CallbackRejected, InvalidRequest
from .states import TASK_ID

_INTENT = re.compile(r"[0-9a-f]{32}")
_MAC = re.compile(r"[a-z2-7]{26}")
_AS_DIGITS = bytes.maketrans(b"abcdefghijklmnopqrstuvwxyz234567", b"0123456789abcdefghijklmnopqrstuv")
_MAC_BYTES = 17
"""What 26 characters of base32 cover: 130 bits, the last byte a quarter."""
_BLOCK = 64
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_TIMESTAMP = re.compile(r"0|[1-9][0-9]{0,10}")


class Key(bytes):
    """A secret in bytes that no repr, format or vars shows."""

    def __repr__(self) -> str:
        return "Key(***)"

    __str__ = __repr__


def new_intent_id() -> str:
    """Return a fresh intent id: 128 random bits in hexadecimal."""
    return secrets.token_hex(16)


def derive_callback_secret(api_key: str) -> bytes:
    """Return the secret that every process of one account agrees on without talking."""
    return Key(hmac.digest(api_key.encode(), b"kie_async callback v1", "sha256"))


def address_mac(intent_id: str, *, secret: bytes) -> str:
    """Return the last part of an intent's callback address: 130 bits in lower-case base32."""
    return base64.b32encode(_address_digest(intent_id, secret))[:26].decode().lower()


def _address_digest(intent_id: str, secret: bytes) -> bytes:
    return _hmac(secret, b"cb1." + intent_id.encode())[:_MAC_BYTES]


def is_address(intent_id: str, mac: str, *, callback_secrets: Iterable[bytes]) -> bool:
    """Tell whether *mac* belongs to *intent_id* under any of the secrets; each is tried.

    The mac given is turned into bits, which costs a tenth of spelling the right one.
    """
    if not _INTENT.fullmatch(intent_id) or not _MAC.fullmatch(mac):
        return False
    given = int(mac.encode().translate(_AS_DIGITS), 32).to_bytes(_MAC_BYTES, "big")
    matches = [
        hmac.compare_digest(_bits(_address_digest(intent_id, secret)), given) for secret in callback_secrets
    ]
    return any(matches)


def _bits(digest: bytes) -> bytes:
    """Return the first 130 bits of a digest, moved to the right end."""
    return (int.from_bytes(digest, "big") >> 6).to_bytes(_MAC_BYTES, "big")


def _hmac(key: bytes, message: bytes) -> bytes:
    """Return HMAC-SHA256, at a third of the price of `hmac.digest`: the key is scheduled once.

    Source: https://www.rfc-editor.org/rfc/rfc2104 section 4
    """
    inner, outer = _begun(key)
    inner, outer = inner.copy(), outer.copy()
    inner.update(message)
    outer.update(inner.digest())
    return outer.digest()


@lru_cache(maxsize=64)
def _begun(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """Return both hashes of HMAC, their pads taken in."""
    block = (hashlib.sha256(key).digest() if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
    return hashlib.sha256(block.translate(_INNER)), hashlib.sha256(block.translate(_OUTER))


def as_keys(keys: Iterable[str | bytes], *, field: str = "hmac_keys") -> tuple[bytes, ...]:
    """Return keys as bytes.

    Raises:
        InvalidRequest: A key is empty, which would accept what anyone signs, or is no text and no bytes.
    """
    if isinstance(keys, str | bytes):
        raise InvalidRequest(f"{field} must be a list of keys: {field}=[KEY]")
    keys = tuple(keys)
    if not all(isinstance(key, str | bytes) for key in keys):
        raise InvalidRequest(f"{field} must hold text or bytes")
    encoded = tuple(Key(key.encode() if isinstance(key, str) else key) for key in keys)
    if not all(encoded):
        raise InvalidRequest(f"{field} holds an empty key; an empty key would accept what anyone signs")
    return encoded


def sign(task_id: str, timestamp: str, *, key: bytes) -> str:
    """Return the signature of a callback: base64 of HMAC-SHA256 over ``taskId.timestamp``.

    Source: https://docs.kie.ai/common-api/webhook-verification
    """
    return base64.b64encode(_hmac(key, f"{task_id}.{timestamp}".encode())).decode()


def verify(
    task_id: str, timestamp: str, signature: str, *, keys: Sequence[bytes], now: float, tolerance_s: float
) -> None:
    """Check the signature of a callback.

    The timestamp is unix seconds in plain digits; the clocks may differ by *tolerance_s* either way.
    The encoded signatures are compared, since base64 has several spellings of the same bytes.

    Raises:
        CallbackRejected: With the reason and the status to answer.
    """
    if not _TIMESTAMP.fullmatch(timestamp):
        raise CallbackRejected("malformed timestamp")
    if not TASK_ID.fullmatch(task_id):
        raise CallbackRejected("malformed task id", 400)
    given = signature.encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(sign(task_id, timestamp, key=key).encode(), given) for key in keys]
    if not any(matches):
        raise CallbackRejected("wrong signature")
    if not abs(now - int(timestamp)) <= tolerance_s:
        raise CallbackRejected("stale timestamp")
