"""Checks one job of a jobs file: its ref, its model, the fields of its input and the files they name."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InvalidRequest
from ..files.local_media import kind_of
from ..files.media_types import HEAD_BYTES, check_media
from ..inputs.kling import AVATAR_MEDIA, AVATAR_MODELS, KlingAvatar
from ..inputs.request import TaskRequest
from ..sandbox.catalogue import MODELS
from .jobs_rows import FILE_SUFFIX, Row

_VALID_AVATAR: Mapping[str, Any] = {
    "image_url": "https://example.org/i.png",
    "audio_url": "https://example.org/a.mp3",
    "prompt": "",
}
"""The fields of an avatar, each with a value nothing is wrong with: so another can be judged alone."""

_KNOWN_MODELS = (*AVATAR_MODELS, *(model for model in MODELS if model not in AVATAR_MODELS))

_NEAR = 0.9
"""So alike are the ids of a model and of one that was mistyped; 1 is equal."""

_LONGEST_PATH = 1000

_ELSE = "If it is meant so, --as-it-stands sends it"

_T = TypeVar("_T")


def check_job(
    row: Row, claim: Callable[[str, int], int], folder: Path, as_it_stands: bool
) -> TaskRequest | None:
    """Return the request a row stands for; what is wrong with it is noted in it.

    *claim* returns the line of the first row that has a ref. What only looks mistaken is let through
    *as_it_stands*.
    """
    fields = dict(row.fields)
    ref, model = fields.pop("ref", None), fields.pop("model", None)
    if _check_key(row, "ref", ref, partial(TaskRequest, model="any", input={}, ref=ref)):
        line = claim(ref, row.line)
        if line != row.line:
            row.add_problem("ref", f"{ref!r} is the ref of line {line} already")
    is_model = _check_key(row, "model", model, partial(TaskRequest, model=model, input={}))
    fields = _read_files(row, fields, folder)
    if is_model and model in AVATAR_MODELS:
        fields = _check_avatar(row, model, fields, folder)
    elif not as_it_stands:
        _ask_about(row, model if is_model else "", fields, folder)
    for name, value in fields.items():
        _try_to_make(row, name, partial(TaskRequest, model="any", input={name: value}))
    return None if row.problems or row.absent else TaskRequest(model=model, input=fields, ref=ref)


def _read_files(row: Row, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields, with a path for each whose name says that it holds one."""
    fields = {}
    for name, value in given.items():
        if not name.endswith(FILE_SUFFIX):
            fields[name] = value
        elif not isinstance(value, str) or not (folder / value).is_file():
            row.add_problem(name, f"{value!r} is not a file")
        else:
            fields[name.removesuffix(FILE_SUFFIX)] = folder / value
    return fields


def _ask_about(row: Row, model: str, fields: Mapping[str, Any], folder: Path) -> None:
    """Note what the service would take as it stands, and somebody has hardly meant."""
    if (known := _nearly(model)) is not None:
        row.add_problem("model", f"{model!r} is not known here, did you mean {known!r}? {_ELSE}")
    for name, value in fields.items():
        if isinstance(value, str) and _is_name_of_file(value, folder):
            row.add_problem(
                name, f"{value!r} is a file here; a column {name}{FILE_SUFFIX} uploads it. {_ELSE}"
            )


def _nearly(model: str) -> str | None:
    """Return the known model whose id this one is but for a slip; another number is another version."""
    if model in _KNOWN_MODELS:
        return None
    near = get_close_matches(model.lower(), _KNOWN_MODELS, n=1, cutoff=_NEAR)
    if not near or _without_digits(near[0]) == _without_digits(model):
        return None
    return near[0]


def _without_digits(model: str) -> str:
    return re.sub(r"\d+", "", model)


def _is_name_of_file(text: str, folder: Path) -> bool:
    if not text.strip() or "\n" in text or len(text) > _LONGEST_PATH:
        return False
    try:
        return (folder / text).is_file()
    except (OSError, ValueError):  # too long a name, or no name at all
        return False


def forget_media() -> None:
    """Judge files anew: one may have been mended since."""
    _media_problem.cache_clear()


def _check_key(row: Row, name: str, value: object, make: Callable[[], object]) -> bool:
    """Return whether the ref or the model of a row is good; note what is wrong with it."""
    if name in row.absent:
        return False
    if value is None:
        row.add_problem(name, "missing")
        return False
    return _try_to_make(row, name, make) is not None


def _try_to_make(row: Row, name: str, make: Callable[[], _T]) -> _T | None:
    """Return what *make* makes, or note why that is refused."""
    try:
        return make()
    except InvalidRequest as exc:
        row.add_problem(name, str(exc).removeprefix(f"{name} "))
        return None


def _check_avatar(row: Row, model: str, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of an avatar, local files as paths; note every field that is wrong."""
    for name in given:
        if name not in _VALID_AVATAR:
            row.add_problem(name, f"{model} has no such field; it takes {', '.join(_VALID_AVATAR)}")
    fields: dict[str, Any] = {}
    for name in _VALID_AVATAR:
        if name not in given and name in AVATAR_MEDIA:
            if name not in row.absent:
                row.add_problem(name, "missing")
            continue
        # The class stops at the first wrong field; made once for each field, it finds them all.
        avatar = _try_to_make(row, name, partial(KlingAvatar, **{**_VALID_AVATAR, name: given.get(name, "")}))
        value = getattr(avatar, name, None)
        fields[name] = folder / value if isinstance(value, Path) else value
        if isinstance(value, Path) and (reason := _media_problem(fields[name], name)):
            row.add_problem(name, reason)
    return fields


@lru_cache(maxsize=4096)
def _media_problem(path: Path, field: str) -> str:
    """Return why a local file cannot be uploaded for a field of an avatar; nothing if it can."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            return f"{path} is not a file"
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            seen = kind_of(file, head, status.st_size, path, field)
            kind = check_media(str(path), head, status.st_size, seen)
    except InvalidRequest as exc:
        return str(exc)
    except (OSError, ValueError) as exc:
        return f"cannot read {path}: {getattr(exc, 'strerror', None) or exc}"
    family = AVATAR_MEDIA[field]
    return "" if kind.family == family else f"{path} is {kind.family}, not {family}, by its content"
