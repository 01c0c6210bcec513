"""What a task is given: the plain request, and the typed inputs that become one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import attrs

from .._field_help import ShowsFields
from .._json import name_what_has_no_json
from .._validation import check_url
from ..errors import InvalidRequest
from .media import LOCAL_MEDIA, check_no_paths_as_text, own_media

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?")

_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")


def _check_model(_: object, __: attrs.Attribute[Any], model: str) -> None:
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise InvalidRequest(f"model must look like 'family/name', got {model!r}")


def _check_input(_: object, __: attrs.Attribute[Any], value: Mapping[str, Any]) -> None:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"input must be a mapping of the model's fields, got {type(value).__name__}")
    check_no_paths_as_text(value)
    if named := name_what_has_no_json("input", value, files=LOCAL_MEDIA):
        raise InvalidRequest(named)


def _check_ref(_: object, __: attrs.Attribute[Any], ref: str | None) -> None:
    if ref is not None and (not isinstance(ref, str) or not ref.strip() or len(ref) > 512):
        raise InvalidRequest(f"ref must be a text of 1 to 512 characters that is not blank, got {ref!r:.600}")
    if ref is not None and _HALF_CHARACTER.search(ref):
        raise InvalidRequest(f"ref must be valid unicode, got {ref!r}")


def _check_callback_url(_: object, __: attrs.Attribute[Any], url: str | None) -> None:
    if url is not None:
        check_url("callback_url", url)


def _own(value: Any, path: str = "") -> Any:
    """Return *value* with its mappings and lists copied: what the caller does to his stays his."""
    if isinstance(value, str):  # most are, and this check is faster than the next
        return value
    if isinstance(value, (dict, Mapping)):
        return {key: _own(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        owned = [_own(inner, f"{path}[{at}]") for at, inner in enumerate(value)]
        return owned if isinstance(value, list) else tuple(owned)
    return own_media(value, path)


def _frozen_input(value: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return cast(Mapping[str, Any], _own(value))
    except RecursionError:
        raise InvalidRequest("input is nested too deeply") from None


@attrs.frozen(kw_only=True)
class TaskRequest(metaclass=ShowsFields):
    """What the caller asks for, before a task exists."""

    model: str = attrs.field(validator=_check_model)
    """The model's id, such as `kling/v1-avatar-standard`."""
    input: Mapping[str, Any] = attrs.field(
        repr=False, hash=False, converter=_frozen_input, validator=_check_input
    )
    """The model's own fields, sent as they are. Local media at any depth are uploaded first and become URLs:
    a `pathlib.Path`, bytes, a binary stream, which is read from its beginning. An `UploadedFile` becomes its
    URL. Text is never read as a path; where a path stands in the place of a URL, it is refused."""
    ref: str | None = attrs.field(default=None, validator=_check_ref)
    """The caller's own key, such as the id of an order or a message: one ref, one paid task, for as long as
    the journal lives. The same ref with the same request is the same task, with another one a `RefConflict`;
    a request that was surely refused or never sent frees it, and `kie.batch(retry_failed=True)` makes one
    that failed again under it. Without a journal it is forgotten when the task ends."""
    callback_url: str | None = attrs.field(default=None, repr=False, validator=_check_callback_url)
    """A callback address of the caller's own: sent untouched, and the task is then only polled here."""


@runtime_checkable
class TypedInput(Protocol):
    """Anything that can say what it asks for as a `TaskRequest`."""

    def as_request(self, *, ref: str | None = None) -> TaskRequest:
        """Return the request for this input; *ref* is `TaskRequest.ref`."""
        ...


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
