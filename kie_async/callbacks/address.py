"""Makes and checks the callback address of an intent: ``{intent}/{mac}`` below the mount. Pure."""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from collections.abc import Iterable

from .._secrets import Secret
from ..wire.signatures import hmac_sha256

_INTENT_ID = re.compile(r"[0-9a-f]{32}")

_MAC = re.compile(r"[a-z2-7]{26}")

_MAC_BYTES = 17
"""What 26 characters of base32 cover: 130 bits, of the last byte a quarter."""

_BASE32_AS_INT_DIGITS = bytes.maketrans(
    b"abcdefghijklmnopqrstuvwxyz234567", b"0123456789abcdefghijklmnopqrstuv"
)


def new_intent_id() -> str:
    """Return a fresh intent id: 128 random bits in hexadecimal."""
    return secrets.token_hex(16)


def derive_callback_secret(api_key: str) -> Secret:
    """Return the secret that every process of one account agrees on without talking."""
    return Secret(hmac.digest(api_key.encode(), b"kie_async callback v1", "sha256"))


def callback_mac(intent_id: str, *, secret: bytes) -> str:
    """Return the last part of an intent's callback address: 130 bits in lower-case base32."""
    return base64.b32encode(_mac_digest(intent_id, secret))[:26].decode().lower()


def address_below(url: str, path_tail: str) -> str:
    """Return *url* with a path put behind its own, before its query: some hosts want a code there."""
    front, question_mark, query = url.partition("?")
    return f"{front.rstrip('/')}/{path_tail}{question_mark}{query}"


def path_parts(path: str) -> list[str]:
    """Return the parts of a path; proxies add slashes at its end and double those within."""
    return [part for part in path.split("/") if part]


def split_address(path_tail: str) -> tuple[str, str]:
    """Return the intent and the mac that a path consists of; empty ones if it has other parts.

    A query is passed over: some servers hand out the target of a request with it.
    """
    intent_id, _, rest = path_tail.partition("?")[0].strip("/").partition("/")
    mac = rest.lstrip("/")
    return (intent_id, mac) if mac and "/" not in mac else ("", "")


def has_form_of_address(intent_id: str, mac: str) -> bool:
    """Return whether somebody's session may have made this address; strangers seldom come upon its form."""
    return bool(_INTENT_ID.fullmatch(intent_id) and _MAC.fullmatch(mac))


def is_valid_mac(intent_id: str, mac: str, *, callback_secrets: Iterable[bytes]) -> bool:
    """Return whether *mac* belongs to *intent_id* under any of the secrets."""
    if not has_form_of_address(intent_id, mac):
        return False
    # Every delivery comes through here: reading the given mac costs a tenth of spelling the right one.
    given = int(mac.encode().translate(_BASE32_AS_INT_DIGITS), 32).to_bytes(_MAC_BYTES, "big")
    # No early end: the time this takes must not show which secret fits.
    matches = [
        hmac.compare_digest(_mac_bits(_mac_digest(intent_id, secret)), given) for secret in callback_secrets
    ]
    return any(matches)


def _mac_digest(intent_id: str, secret: bytes) -> bytes:
    return hmac_sha256(secret, b"cb1." + intent_id.encode())[:_MAC_BYTES]


def _mac_bits(digest: bytes) -> bytes:
    """Return the first 130 bits of a digest, moved to the right end."""
    return (int.from_bytes(digest, "big") >> 6).to_bytes(_MAC_BYTES, "big")
