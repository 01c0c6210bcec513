"""Lets ``help()`` of a class of values show its fields and what they mean, not what attrs generated."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterable
from typing import Any


class ShowsFields(type):
    """The metaclass of public values: their help is what stands in their source."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        if isinstance(slots := namespace.get("__slots__"), tuple):
            # help() takes the text of a field from here, if it finds a dict.
            cls.__slots__ = FieldTexts(cls, slots)

    def __dir__(cls) -> list[str]:
        """Return the names worth reading: help() lists no others."""
        return [name for name in super().__dir__() if not name.startswith("_")]


class FieldTexts(dict[str, str | None]):
    """The docstrings of a class's fields, which are read from its source when they are asked for."""

    def __init__(self, described: type, names: Iterable[str]) -> None:
        super().__init__(dict.fromkeys(names))
        self._described = described

    def __getitem__(self, name: str) -> str | None:
        return read_field_texts(self._described).get(name)


def read_field_texts(described: type) -> dict[str, str]:
    """Return the docstring below each field of a class; nothing where its source is not at hand."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(described)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
