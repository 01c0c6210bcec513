"""Digests a request, so that one ref is never used for two different ones."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from .._validation import name_what_has_no_json
from ..errors import InvalidRequest
from .request import TaskRequest


def fingerprint(request: TaskRequest) -> bytes:
    """Return a digest of model, input and the files in it; equal requests have equal digests.

    Reads the files, so call it from a thread.

    Raises:
        InvalidRequest: A file cannot be read, or the input has no JSON form.
    """

    def digest(value: object) -> object:
        if not isinstance(value, Path):
            raise TypeError(f"{type(value).__name__} has no JSON form")
        status = value.stat()
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return {"sha256": _digest_of(value, version)}

    fields = {"model": request.model, "input": dict(request.input), "callback_url": request.callback_url}
    try:
        text = json.dumps(fields, default=digest, sort_keys=True)
    except OSError as exc:
        raise InvalidRequest(f"cannot read {exc.filename}: {exc.strerror}") from None
    except (TypeError, ValueError, RecursionError) as exc:
        named = name_what_has_no_json("input", request.input, files=(Path,))
        raise InvalidRequest(named or f"input has no JSON form: {exc}") from None
    return hashlib.sha256(text.encode()).digest()


@lru_cache(maxsize=256)
def _digest_of(path: Path, version: tuple[int, ...]) -> str:
    """Return the digest of a file; thousands of requests may share one, which is read once per version."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
