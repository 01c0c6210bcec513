"""Digests a request, so that one ref is never used for two different ones."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from operator import itemgetter

from .._json import name_what_has_no_json
from ..errors import InvalidRequest
from .media import LOCAL_MEDIA, digest_media
from .request import TaskRequest

_WHOLE_BYTES = hashlib.sha256().digest_size
"""The first bytes are the digest of all, and the whole of a fingerprint that an older library noted."""

_FIELD_BYTES = 4

_MOST_FIELDS, _LONGEST_NAME = 32, 64


def fingerprint(request: TaskRequest) -> bytes:
    """Return a digest of model, input and the files in it; equal requests have equal digests.

    Behind it stand the names of the fields with a short digest of each, for `changed_fields`. Reads the
    files, so call it from a thread.

    Raises:
        InvalidRequest: A file cannot be read, or the input has no JSON form.
    """
    seen: dict[int, str] = {}

    def digest(value: object) -> object:
        if not isinstance(value, LOCAL_MEDIA):
            raise TypeError(f"{type(value).__name__} has no JSON form")
        try:
            if id(value) not in seen:
                seen[id(value)] = digest_media(value)
            return {"sha256": seen[id(value)]}
        except ValueError as exc:  # a stream that is closed
            raise OSError(None, str(exc)) from None

    fields = {"model": request.model, "input": dict(request.input), "callback_url": request.callback_url}
    try:
        text = json.dumps(fields, default=digest, sort_keys=True)
        parts = {name: json.dumps(value, default=digest, sort_keys=True) for name, value in _parts(request)}
    except OSError as exc:
        raise InvalidRequest(f"cannot read {exc.filename or 'a stream'}: {exc.strerror or exc}") from None
    except (TypeError, ValueError, RecursionError) as exc:
        named = name_what_has_no_json("input", request.input, files=LOCAL_MEDIA)
        raise InvalidRequest(named or f"input has no JSON form: {exc}") from None
    whole = hashlib.sha256(text.encode()).digest()
    return whole + b"".join(_encode_field(name, part) for name, part in parts.items())


def is_same(noted: bytes, given: bytes) -> bool:
    """Tell whether two fingerprints are of equal requests."""
    return noted[:_WHOLE_BYTES] == given[:_WHOLE_BYTES]


def changed_fields(noted: bytes, given: bytes) -> tuple[str, ...]:
    """Return the names of the fields that differ, as far as both fingerprints name their fields."""
    before, now = _read_fields(noted), _read_fields(given)
    if not before or not now:
        return ()
    return tuple(sorted(name for name in before | now if before.get(name) != now.get(name)))


def _parts(request: TaskRequest) -> Iterator[tuple[str, object]]:
    """Yield what is named when it changes; of the fields of the input, so many."""
    yield from itertools.islice(sorted(request.input.items(), key=itemgetter(0)), _MOST_FIELDS)
    yield from (("model", request.model), ("callback_url", request.callback_url))


def _encode_field(name: str, text: str) -> bytes:
    shown = name.encode(errors="replace")[:_LONGEST_NAME].replace(b"\0", b"?")
    return shown + b"\0" + hashlib.sha256(text.encode()).digest()[:_FIELD_BYTES]


def _read_fields(fingerprint: bytes) -> dict[str, bytes]:
    fields, rest = {}, fingerprint[_WHOLE_BYTES:]
    while rest:
        name, _, rest = rest.partition(b"\0")
        fields[name.decode(errors="replace")], rest = rest[:_FIELD_BYTES], rest[_FIELD_BYTES:]
    return fields
