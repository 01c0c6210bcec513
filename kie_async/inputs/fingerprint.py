"""Digests a request, so that one ref is never used for two different ones."""

from __future__ import annotations

import hashlib
import json

from .._validation import name_what_has_no_json
from ..errors import InvalidRequest
from .media import LOCAL_MEDIA, digest_media
from .request import TaskRequest


def fingerprint(request: TaskRequest) -> bytes:
    """Return a digest of model, input and the files in it; equal requests have equal digests.

    Reads the files, so call it from a thread.

    Raises:
        InvalidRequest: A file cannot be read, or the input has no JSON form.
    """

    def digest(value: object) -> object:
        if not isinstance(value, LOCAL_MEDIA):
            raise TypeError(f"{type(value).__name__} has no JSON form")
        try:
            return {"sha256": digest_media(value)}
        except ValueError as exc:  # a stream that is closed
            raise OSError(None, str(exc)) from None

    fields = {"model": request.model, "input": dict(request.input), "callback_url": request.callback_url}
    try:
        text = json.dumps(fields, default=digest, sort_keys=True)
    except OSError as exc:
        raise InvalidRequest(f"cannot read {exc.filename or 'a stream'}: {exc.strerror or exc}") from None
    except (TypeError, ValueError, RecursionError) as exc:
        named = name_what_has_no_json("input", request.input, files=LOCAL_MEDIA)
        raise InvalidRequest(named or f"input has no JSON form: {exc}") from None
    return hashlib.sha256(text.encode()).digest()
