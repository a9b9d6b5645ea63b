"""What one setting may be in a search: a range of numbers, or values to choose from; as it is read and written."""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from pipelines.ner.errors import UserError

Value = bool | int | float | str | None
KINDS = ("uniform", "loguniform", "randint", "lograndint", "times")
SIGNIFICANT_DIGITS = 4
"""Of sampled numbers, so that they can be read and written down."""
_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*\((.*)\)\s*", re.DOTALL)
_SYNTAX = "a list of values, or one of " + ", ".join(f"`{kind}(low, high)`" for kind in KINDS)


class SpaceError(UserError):
    """A search space that cannot be meant."""


@dataclass(frozen=True)
class Domain:
    """What one setting may be: numbers from `low` to `high`, or one of `choices`."""

    kind: str
    """One of `KINDS`, or `choice`."""
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Value, ...] = ()

    @property
    def is_log(self) -> bool:
        """Whether a step is a factor."""
        return self.kind in ("loguniform", "lograndint", "times")

    @property
    def is_integer(self) -> bool:
        """Whether only whole numbers are meant."""
        return self.kind in ("randint", "lograndint")

    def list_ends(self) -> list[Value]:
        """The values by which the domain is checked: all choices, or both ends."""
        if self.kind == "choice":
            return list(self.choices)
        if self.kind == "times":
            return []  # known when the recipe's own value is
        return [int(self.low), int(self.high)] if self.is_integer else [self.low, self.high]

    def tidy(self, value: Value) -> Value:
        """A value brought into the domain, with as many digits as can be read."""
        if self.kind == "choice" or not isinstance(value, int | float):
            return value
        inside = min(max(value, self.low), self.high)
        if self.is_integer:
            return round(inside)
        return min(max(float(f"{inside:.{SIGNIFICANT_DIGITS}g}"), self.low), self.high)

    def shorten(self) -> "Domain":
        """With ends of as many digits as can be read."""
        low, high = (float(f"{end:.{SIGNIFICANT_DIGITS}g}") for end in (self.low, self.high))
        return replace(self, low=low, high=high)

    def describe(self) -> str:
        """As it is written."""
        if self.kind == "choice":
            return ", ".join(render_value(choice) for choice in self.choices)
        return f"{self.kind}({self.low:g}, {self.high:g})"


def render_value(value: Any) -> str:
    """A value as it is written in YAML and on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.{SIGNIFICANT_DIGITS}g}" if isinstance(value, float) else str(value)


def parse_domain(path: str, texts: Sequence[str]) -> Domain:
    """The domain of a setting that texts describe. Raises SpaceError."""
    if len(texts) == 1:
        match = _CALL.fullmatch(texts[0])
        if match:
            return _parse_range(path, match[1], match[2], texts[0])
    parsed: list[Any] = []
    for text in texts:
        try:
            one = yaml.safe_load(text)
        except yaml.YAMLError:
            one = text
        parsed += one if isinstance(one, list) else [one]
    if any(not isinstance(one, bool | int | float | str | None) for one in parsed):
        raise SpaceError("a domain cannot be read", where=f"`space.{path}`", rule=_SYNTAX, value=" ".join(texts))
    choices = tuple(dict.fromkeys((type(one), one) for one in map(_read_scalar, parsed)))
    if len(choices) < 2:
        raise SpaceError(
            "one value is nothing to search",
            where=f"`space.{path}`",
            rule=_SYNTAX,
            value=" ".join(texts) or None,
            remedy=f"give more values, or set `--{path}` itself",
        )
    return Domain("choice", choices=tuple(value for _, value in choices))


def _read_scalar(value: Value) -> Value:
    """YAML reads `1e-4` as text; here it is a number."""
    if isinstance(value, str):
        try:
            return float(value) if re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value) else value
        except ValueError:
            return value
    return value


def _parse_range(path: str, kind: str, arguments: str, text: str) -> Domain:
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        remedy = f"did you mean `{near[0]}({arguments})`?" if near else None
        raise SpaceError("no such domain", where=f"`space.{path}`", rule=_SYNTAX, value=text, remedy=remedy)
    try:
        low, high = (float(part) for part in arguments.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    log = kind in ("loguniform", "lograndint", "times")
    rules = [
        ("two numbers, low < high", low < high and math.isfinite(low) and math.isfinite(high)),
        ("above 0, for it is searched in its logarithm", not log or low > 0),
        ("whole numbers", "int" not in kind or (low == round(low) and high == round(high))),
    ]
    for rule, holds in rules if math.isfinite(low) and math.isfinite(high) else rules[:1]:
        if not holds:
            raise SpaceError("a domain that cannot be", where=f"`space.{path}`", rule=rule, value=text)
    return Domain(kind, low, high)
