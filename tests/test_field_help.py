"""``help()`` of the public values: the fields and what they mean."""

from __future__ import annotations

import copy
import pickle
import pydoc
from typing import Any

import attrs
import pytest

import kie_async
from kie_async import Budget, Rate
from kie_async._field_help import read_field_texts

VALUES = [
    value
    for name in kie_async.__all__
    if isinstance(value := getattr(kie_async, name), type) and attrs.has(value)
]


def help_of(value: type) -> str:
    return pydoc.render_doc(value, renderer=pydoc.plaintext)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__name__)
class TestEveryPublicValue:
    def test_says_what_each_field_means(self, value: type[Any]) -> None:
        text = " ".join(help_of(value).replace("|", " ").split())
        for field in attrs.fields(value):
            if not field.name.startswith("_"):
                assert " ".join(read_field_texts(value)[field.name].split()) in text, field.name

    def test_shows_nothing_that_was_generated(self, value: type[Any]) -> None:
        assert "attrs" not in help_of(value)
        assert "__eq__" not in help_of(value)


def test_help_of_a_small_value_is_short() -> None:
    assert len(help_of(Budget).splitlines()) < 30


def test_without_the_source_the_fields_are_named_all_the_same() -> None:
    source = """
import attrs
from kie_async._field_help import ShowsFields

@attrs.frozen
class V(metaclass=ShowsFields):
    one: int
"""
    names: dict[str, Any] = {"__name__": "made_here"}
    exec(source, names)  # noqa: S102  (a class without a file)
    assert "one" in help_of(names["V"])


def test_values_are_copied_and_pickled_as_ever() -> None:
    rate = Rate(3, per_s=2.0)
    assert copy.deepcopy(rate) == pickle.loads(pickle.dumps(rate)) == attrs.evolve(rate)  # noqa: S301
