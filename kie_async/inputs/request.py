"""What a task is given: the plain request, and the typed inputs that become one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Protocol, cast, runtime_checkable

import attrs

from .._validation import check_url, name_what_has_no_json
from ..errors import InvalidRequest
from ..models import UploadedFile

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?")


@runtime_checkable
class _Readable(Protocol):
    def read(self, size: int, /) -> object: ...


_FILES = (PurePath, bytes, bytearray, memoryview, _Readable, UploadedFile)
"""What an upload may turn into a URL; whether it does is decided there."""

_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")


def _check_model(_: object, __: attrs.Attribute[Any], model: str) -> None:
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise InvalidRequest(f"model must look like 'family/name', got {model!r}")


def _check_input(_: object, __: attrs.Attribute[Any], value: Mapping[str, Any]) -> None:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"input must be a mapping of the model's fields, got {type(value).__name__}")
    if named := name_what_has_no_json("input", value, files=_FILES):
        raise InvalidRequest(named)


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
    if isinstance(value, str):  # most are, and this check is faster than the next
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
    """What the caller asks for, before a task exists."""

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
