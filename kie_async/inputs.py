"""What a task is given: the plain request, and the typed inputs that become one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import attrs

from .checks import check_url
from .errors import InvalidRequest

AvatarModel = Literal[
    "kling/v1-avatar-standard", "kling/ai-avatar-v1-pro", "kling/ai-avatar-standard", "kling/ai-avatar-pro"
]
AVATAR_MODELS: tuple[AvatarModel, ...] = (
    "kling/v1-avatar-standard",
    "kling/ai-avatar-v1-pro",
    "kling/ai-avatar-standard",
    "kling/ai-avatar-pro",
)
MAX_PROMPT = 5000
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?")
_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def _check_model(_: object, __: attrs.Attribute[Any], model: str) -> None:
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise InvalidRequest(f"model must look like 'family/name', got {model!r}")


def _check_input(_: object, __: attrs.Attribute[Any], value: Mapping[str, Any]) -> None:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"input must be a mapping of the model's fields, got {type(value).__name__}")


def _check_ref(_: object, __: attrs.Attribute[Any], ref: str | None) -> None:
    if ref is not None and (not isinstance(ref, str) or not ref.strip() or len(ref) > 512):
        raise InvalidRequest(f"ref must be a text of 1 to 512 characters that is not blank, got {ref!r}")
    if ref is not None and _HALF_CHARACTER.search(ref):
        raise InvalidRequest(f"ref must be valid unicode, got {ref!r}")


def _check_callback_url(_: object, __: attrs.Attribute[Any], url: str | None) -> None:
    if url is not None:
        check_url("callback_url", url)


def _own(value: Any) -> Any:
    """Return *value* with its mappings and lists copied: what the caller does to his stays his."""
    if isinstance(value, str):  # told apart sooner than a mapping, and most are
        return value
    if isinstance(value, Mapping):
        return {key: _own(inner) for key, inner in value.items()}
    return [_own(inner) for inner in value] if isinstance(value, list) else value


def _frozen_input(value: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return cast(Mapping[str, Any], _own(value))
    except RecursionError:
        raise InvalidRequest("input is nested too deeply") from None


@attrs.frozen(kw_only=True)
class TaskRequest:
    """The caller's wish, before an id exists."""

    model: str = attrs.field(validator=_check_model)
    input: Mapping[str, Any] = attrs.field(
        repr=False, hash=False, converter=_frozen_input, validator=_check_input
    )
    """The model's own fields, sent as they are. A `pathlib.Path` as a value is uploaded first."""
    ref: str | None = attrs.field(default=None, validator=_check_ref)
    """The caller's own key for this task, unique in a journal."""
    callback_url: str | None = attrs.field(default=None, repr=False, validator=_check_callback_url)
    """A callback address of the caller's own: sent untouched, and the task is then only polled here."""


@runtime_checkable
class TypedInput(Protocol):
    """Anything that can say what it asks for as a `TaskRequest`."""

    def as_request(self, *, ref: str | None = None) -> TaskRequest:
        """Return the request for this input."""
        ...


def _media(value: str | Path) -> str | Path:
    """Return a URL as text and a local file as a path."""
    return Path(value) if isinstance(value, str) and not _SCHEME.match(value) and value.strip() else value


def _check_media(_: object, attribute: attrs.Attribute[Any], value: str | Path) -> None:
    if not isinstance(value, Path):
        check_url(attribute.name, value)


def _check_prompt(_: object, __: attrs.Attribute[Any], prompt: str) -> None:
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt must be text, got {type(prompt).__name__}; use '' for none")
    if len(prompt) > MAX_PROMPT:
        raise InvalidRequest(f"prompt must have at most {MAX_PROMPT} characters, got {len(prompt)}")


def _check_avatar_model(_: object, __: attrs.Attribute[Any], model: str) -> None:
    if model not in AVATAR_MODELS:
        raise InvalidRequest(f"model must be one of {', '.join(AVATAR_MODELS)}, got {model!r}")


@attrs.frozen(kw_only=True)
class KlingAvatar:
    """A portrait and a voice that become a talking-head video.

    Source: https://docs.kie.ai/market/kling/v1-avatar-standard

    Raises:
        InvalidRequest: A field is out of its range; the message names it.
    """

    image_url: str | Path = attrs.field(converter=_media, validator=_check_media)
    """An http(s) URL the service can fetch, or a local JPEG, PNG or WebP file of at most 10 MB."""
    audio_url: str | Path = attrs.field(converter=_media, validator=_check_media)
    """An http(s) URL the service can fetch, or a local MP3, WAV, AAC, M4A or OGG file."""
    prompt: str = attrs.field(default="", repr=False, validator=_check_prompt)
    """What the face should express; at most 5000 characters. Sent even when empty, as the model wants."""
    model: AvatarModel = attrs.field(default="kling/v1-avatar-standard", validator=_check_avatar_model)

    def as_request(self, *, ref: str | None = None) -> TaskRequest:
        """Return the request for this input.

        Raises:
            InvalidRequest: The ref is blank.
        """
        fields = {"image_url": self.image_url, "audio_url": self.audio_url, "prompt": self.prompt}
        return TaskRequest(model=self.model, input=fields, ref=ref)


def as_request(
    request: TaskRequest | TypedInput | str, input: Mapping[str, Any] | None = None, ref: str | None = None
) -> TaskRequest:
    """Return the one request that the forms `create` accepts all mean.

    Raises:
        InvalidRequest: The arguments do not fit together.
    """
    if isinstance(request, str):
        if input is None:
            raise InvalidRequest(f"input is missing: create({request!r}, {{...}})")
        return TaskRequest(model=request, input=input, ref=ref)
    if input is not None:
        raise InvalidRequest("input goes with a model name only; this request carries its own")
    if isinstance(request, TaskRequest):
        return request if ref is None else attrs.evolve(request, ref=ref)
    if isinstance(request, TypedInput):
        return request.as_request(ref=ref)
    raise InvalidRequest(
        f"request must be a TaskRequest, a typed input or a model name, got {type(request).__name__}"
    )


def fingerprint(request: TaskRequest) -> bytes:
    """Return what tells one request from another: a digest of model, input and the files in it.

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

    asked = {"model": request.model, "input": dict(request.input), "callback_url": request.callback_url}
    try:
        text = json.dumps(asked, default=digest, sort_keys=True)
    except OSError as exc:
        raise InvalidRequest(f"cannot read {exc.filename}: {exc.strerror}") from None
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest(f"input has no JSON form: {exc}") from None
    return hashlib.sha256(text.encode()).digest()


@lru_cache(maxsize=256)
def _digest_of(path: Path, version: tuple[int, ...]) -> str:
    """Return the digest of a file; thousands of requests may share one, which is read once per version."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
