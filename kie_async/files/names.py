"""Makes names of result files out of a template and what is known of a task; safe on every file system."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from string import Formatter

from ..errors import InvalidRequest

FIELDS = ("ref", "task_id", "index", "model")
"""What a template may name."""

_MOST_BYTES = 120
"""Of a name without its ending. File systems take 255; the temporary name of a download is longer by 24."""

_TAIL_CHARS = 8
"""Of a task id, to tell apart what would have one name."""

# Windows refuses more than others do, and people move their files; ":" is a stream there, "%" no problem.
_UNSAFE = re.compile(
    r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]'
)

_RESERVED = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(?= *(\.|$))", re.IGNORECASE
)

_WIDTH = re.compile(r"0?[0-9]{0,2}")


def check_template(field: str, template: object, fields: tuple[str, ...] = FIELDS) -> None:
    """Refuse what is no template of a file's name.

    Raises:
        InvalidRequest: The message names *field* and what it may hold.
    """
    known = ", ".join(f"{{{name}}}" for name in fields)
    if not isinstance(template, str) or not template.strip():
        raise InvalidRequest(f"{field} must be the name of a file, in which {known} may stand")
    try:
        parts = list(Formatter().parse(template))
    except ValueError as exc:
        raise InvalidRequest(f"{field} {template!r}: {exc}; a brace that is meant is written twice") from None
    for _, name, width, conversion in parts:
        if name is not None and name not in fields:
            raise InvalidRequest(f"{field} {template!r} names {{{name}}}; there is {known}")
        if conversion or (width and not (name == "index" and _WIDTH.fullmatch(width))):
            raise InvalidRequest(f"{field} {template!r}: only {{index}} takes a width, such as {{index:03}}")


def fill(template: str, fields: Mapping[str, str | int]) -> str:
    """Return the name that a checked template makes, safe; "" if nothing of it is left."""
    return make_safe(template.format_map(fields))


def make_safe(name: str) -> str:
    """Return a name that every file system takes, no path, nothing hidden; "" if nothing is left.

    An ending that follows it makes it no less safe.
    """
    text = _UNSAFE.sub("_", unicodedata.normalize("NFC", name))
    text = _shortened(text.strip().lstrip(". "), _MOST_BYTES).rstrip(". ")
    return f"_{text}" if _RESERVED.match(text) else text


def candidates(name: str, task_id: str, at: int, count: int) -> Iterator[str]:
    """Yield the names that one of so many files of a task may get, the best first; *at* counts from 1."""
    number = "" if count == 1 else f"-{at}"
    if name:
        yield f"{name}{number}"
        yield f"{name}-{task_id[-_TAIL_CHARS:].lstrip('-')}{number}"
    yield f"{task_id}{number}"
    yield from (f"{task_id}{number}-{again}" for again in itertools.count(2))


def key_of(name: str) -> str:
    """Return what is equal for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _shortened(text: str, most_bytes: int) -> str:
    return text.encode()[:most_bytes].decode(errors="ignore")
