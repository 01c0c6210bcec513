"""Takes secrets out of what the service sends: API key, webhook keys, macs of callback addresses. Pure.

Every text of the service goes through one `Redactor` before anything keeps it: errors, records, the journal.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from .._secrets import Secret

_STARS = "***"

_MIN_SECRET = 8
"""A shorter secret is not looked for: it would be cut out of words, ids and URLs that merely contain it."""

_ESCAPE = r"\\{1,15}u"

_find_code_point = re.compile(r"\\u").search
"""Takes half the time of ``in``, and every answer and every callback is searched."""

_SLASH = r"(?:\\{0,15}/|%2[fF]|\\{1,15}u002[fF])"

_MAC_END = r"(?![0-9A-Za-z_-]|\.[0-9A-Za-z])"
"""A mac ends its part of a path and has no ending of a file: results lie at such paths too."""

# Each begins at the slash before the mac, which is found fast; the intent id before it is checked afterwards.
_MAC, _QUOTED_MAC, _MAC_BEHIND_CODE_POINT = (
    re.compile(rf"{slash}([a-z2-7]{{26}}){_MAC_END}") for slash in ("/", "%2[fF]", r"\\u002[fF]")
)

_INTENT_ID = re.compile(r"[0-9a-f]{32}")

_INTENT_LENGTH, _MAX_BACKSLASHES = 32, 31

_HEX_DIGIT = rf"(?:[0-9a-f]|{_ESCAPE}00(?:3[0-9]|6[1-6]))"

_BASE32_DIGIT = rf"(?:[a-z2-7]|{_ESCAPE}00(?:3[2-7]|6[1-9a-fA-F]|7[0-9aA]))"

_PART_BEGINS = r"(?:(?<![0-9A-Za-z])|(?<=u002[fF])|(?<=%2[fF]))"

_ESCAPED_MAC = re.compile(rf"({_PART_BEGINS}{_HEX_DIGIT}{{32}}{_SLASH}){_BASE32_DIGIT}{{26}}{_MAC_END}")


_URL_SAFE = str.maketrans("+/", "-_")

_ESCAPED_ALONE = re.compile(r'["/\\]')
"""What JSON may escape by a backslash alone."""

_NEVER_PLAIN = re.compile(r'["/\\\x00-\x1f]')
"""What JSON may or must write otherwise than as itself, without a code point."""


class Redactor:
    """Replaces secrets by stars, in whatever way JSON or a URL can spell them, however deeply JSON is nested.

    The mac of a callback address is known by its form, ``{32 hex}/{26 base32}``, under any key.
    """

    __slots__ = ("_encoded", "_has_special", "_secrets", "_shortest_encoded")

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        plain = dict.fromkeys(text for secret in secrets if len(text := _text_of(secret)) >= _MIN_SECRET)
        self._secrets = tuple((text, _spelled_any_way(text), _ESCAPED_ALONE.search(text)) for text in plain)
        self._has_special = any(map(_NEVER_PLAIN.search, plain))
        self._encoded = tuple(dict.fromkeys(form for text in plain for form in _encodings_of(text)))
        self._shortest_encoded = min(map(len, self._encoded), default=0)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)} secrets>"

    def text(self, text: str) -> str:
        """Return *text* without the secrets, in hex and base64 too; it may be JSON, or hold some."""
        if len(text) < _MIN_SECRET:
            return text
        has_escapes = "\\" in text
        has_code_points = has_escapes and bool(_find_code_point(text))
        unquoted = unquote(text) if "%" in text else ""
        for secret, spelling, is_escaped_alone in self._secrets:
            if secret in text:
                text = text.replace(secret, _STARS)
            if has_code_points or (has_escapes and is_escaped_alone) or secret in unquoted:
                text = spelling.sub(_STARS, text)
        if len(text) >= self._shortest_encoded:
            for encoded in self._encoded:
                text = text.replace(encoded, _STARS)
        text = _without_plain_macs(text)
        if not has_code_points:
            return text
        return _ESCAPED_MAC.sub(rf"\1{_STARS}", _MAC_BEHIND_CODE_POINT.sub(_without_mac, text))

    def json(self, body: bytes) -> str | None:
        """Return JSON without the secrets; None if it takes `tree` to find what may be hidden in it.

        Hardly any JSON of the service has code points or a secret: all others are clean as they are, and macs
        are cut out of the whole at once, which takes a fifth of the time. Hex and base64 are not looked for:
        that would take a third more, and it is a no, which goes through `tree`, that echoes what it refuses.
        """
        try:
            text = body.decode()
        except UnicodeDecodeError:
            return None
        if _find_code_point(text) or (self._has_special and "\\" in text):
            return None
        for secret, _, _ in self._secrets:
            if secret in text:
                return None
        return _without_plain_macs(text)

    def tree(self, value: object) -> object:
        """Return a value read from JSON with every text and every key in it without the secrets."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            text, tree = self.text, self.tree
            return {key if len(key) < _MIN_SECRET else text(key): tree(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.tree(inner) for inner in value]
        return value


MACS_ONLY = Redactor()
"""Knows no secret, only what the mac of a callback address looks like."""


def without_mac(text: str) -> str:
    """Return JSON text without the secret last parts of the callback addresses in it."""
    return MACS_ONLY.text(text)


def _without_plain_macs(text: str) -> str:
    """Return text without the macs that are spelled without code points."""
    text = _MAC.sub(_without_mac, text)
    return _QUOTED_MAC.sub(_without_mac, text) if "%" in text else text


def _without_mac(found: re.Match[str]) -> str:
    text, end = found.string, found.start()
    begin = max(0, end - _MAX_BACKSLASHES)
    while text.endswith("\\", begin, end):
        end -= 1
    is_ours = _INTENT_ID.fullmatch(text, max(0, end - _INTENT_LENGTH), end)
    return found[0].removesuffix(found[1]) + _STARS if is_ours else found[0]


def _text_of(secret: Secret) -> str:
    """Return a secret as text; one that is no text cannot stand in an answer."""
    try:
        return secret.reveal()
    except UnicodeDecodeError:
        return ""


def _encodings_of(secret: str) -> Iterator[str]:
    """Yield a secret in hex and in base64, wherever it stands in what was encoded.

    Of base64 only the characters that the secret alone decides.
    """
    raw = secret.encode()
    yield from (raw.hex(), raw.hex().upper())
    for before in range(3):
        form = b64encode(bytes(before) + raw)[(0, 2, 3)[before] :].rstrip(b"=").decode()
        is_cut = (before + len(raw)) % 3
        yield from (cut := form[:-1] if is_cut else form, cut.translate(_URL_SAFE))


def _spelled_any_way(secret: str) -> re.Pattern[str]:
    """Return what finds a secret in JSON within JSON, or in a URL: each character as itself or escaped."""
    return re.compile("".join(map(_spellings_of, secret)))


def _spellings_of(character: str) -> str:
    units = character.encode("utf-16-be").hex()
    escaped = "".join(f"{_ESCAPE}(?i:{units[at : at + 4]})" for at in range(0, len(units), 4))
    quoted = "".join(f"%(?i:{byte:02x})" for byte in character.encode())
    escapable = r"\\{1,15}" if character in '"/\\' else ""
    return rf"(?:{re.escape(character)}|{quoted}|{escaped}" + (
        f"|{escapable}{re.escape(character)})" if escapable else ")"
    )
