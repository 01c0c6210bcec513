"""Distributions of how long the sandbox's tasks take, drawn from a seeded random generator."""

from __future__ import annotations

import math
import random
from typing import Any, Protocol

import attrs


class Durations(Protocol):
    """Anything that draws the length of the next task."""

    def draw(self, rng: random.Random) -> float | None:
        """Return seconds from create to end, or None for a task that never ends by itself."""
        ...


def _not_negative(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{attribute.name} must be zero or more and finite, got {value!r}")


def _positive(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{attribute.name} must be above zero and finite, got {value!r}")


@attrs.frozen
class Fixed:
    """Every task takes the same time."""

    s: float = attrs.field(validator=_not_negative)
    """Seconds, 0 or more."""

    def draw(self, rng: random.Random) -> float:
        """Return the fixed number of seconds."""
        return self.s


@attrs.frozen
class Uniform:
    """Any length between two bounds is as likely as any other."""

    low_s: float = attrs.field(validator=_not_negative)
    high_s: float = attrs.field(validator=_not_negative)

    def __attrs_post_init__(self) -> None:
        if self.high_s < self.low_s:
            raise ValueError(f"high_s {self.high_s!r} is below low_s {self.low_s!r}")

    def draw(self, rng: random.Random) -> float:
        """Return seconds between ``low_s`` and ``high_s``."""
        return rng.uniform(self.low_s, self.high_s)


@attrs.frozen
class Lognormal:
    """Most tasks near the median, a few far longer, as generation services behave."""

    median_s: float = attrs.field(validator=_positive)
    sigma: float = attrs.field(validator=_not_negative)
    """Spread of the logarithm; 0.42 puts one task in twenty above twice the median."""

    def draw(self, rng: random.Random) -> float:
        """Return seconds above zero."""
        return rng.lognormvariate(math.log(self.median_s), self.sigma)


@attrs.frozen
class Never:
    """No task ends until ``Sandbox.finish`` says so."""

    def draw(self, rng: random.Random) -> None:
        """Return None."""
        return


_SHAPES: dict[str, tuple[type[Fixed | Uniform | Lognormal | Never], int]] = {
    "fixed": (Fixed, 1),
    "uniform": (Uniform, 2),
    "lognormal": (Lognormal, 2),
    "never": (Never, 0),
}


def parse_durations(text: str) -> Durations:
    """Read ``fixed:0.5``, ``uniform:60:240``, ``lognormal:120:0.42`` or ``never``.

    Raises:
        ValueError: The text is none of these.
    """
    name, *numbers = text.split(":")
    shape, count = _SHAPES.get(name, (Never, -1))
    if len(numbers) != count:
        raise ValueError(f"{text!r} is not fixed:S, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA or never")
    return shape(*map(float, numbers))
