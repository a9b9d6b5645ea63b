"""A search space over the dotted settings of `rayner train`, checked against the classes that hold them.

`uniform(0, 0.3)`, `loguniform(1e-5, 1e-3)`, `randint(1, 6)`, `lograndint(256, 4096)` (both ends included),
`times(0.3, 3)` (by such a factor around the recipe's own value, evenly in its logarithm), or values to choose from:
`[linear, crf]`.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from pipelines.ner.errors import UserError, raise_all

Value = bool | int | float | str | None
KINDS = ("uniform", "loguniform", "randint", "lograndint", "times")
SEARCHED = ("model", "encoding", "training", "parallel")
"""Groups of settings that make another model, or another time, on the same corpus."""
SEED = "training.seed"
"""Not searched: leaders are repeated with several."""
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


Space = dict[str, Domain]


def parse_space(given: Mapping[str, Sequence[str]], base: Any) -> Space:
    """The space that texts describe, over the settings of a configuration. Raises SpaceError, all of them at once.

    Args:
        given: dotted setting → the values or the expression, as texts.
        base: what has these settings: a dataclass of the groups `SEARCHED`.
    """
    types_by_path = dict(list_paths(base))
    problems: list[UserError] = []
    space: Space = {}
    for path, texts in given.items():
        try:
            if path not in types_by_path:
                raise _unknown_path(path, list(types_by_path), base)
            domain = _parse_domain(path, texts)
            _check_type(path, domain, types_by_path[path])
            space[path] = domain
        except SpaceError as error:
            problems.append(error)
    if not given:
        problems.append(
            SpaceError(
                "the search space is empty",
                where="`space`",
                rule="at least one setting of `rayner train` with what it may be",
                remedy="`--config quick`, or `--space.training.optimizer.learning_rate 'loguniform(5e-5, 5e-4)'`",
            )
        )
    raise_all(problems)
    return space


def resolve_space(space: Space, base_values: Mapping[str, float | None]) -> Space:
    """The space with every `times` turned into numbers around the recipe's own value. Raises SpaceError."""
    problems: list[UserError] = []
    resolved: Space = {}
    for path, domain in space.items():
        resolved[path] = domain
        if domain.kind == "times":
            value = base_values.get(path)
            if value:
                low, high = domain.low * value, domain.high * value
                whole = Domain("lograndint", max(1, math.ceil(low)), math.floor(high))
                resolved[path] = whole if isinstance(value, int) else Domain("loguniform", low, high).shorten()
                continue
            problems.append(
                SpaceError(
                    "nothing to multiply",
                    where=f"`space.{path}`",
                    rule="`times` needs a recipe with a value other than zero or null",
                    value=value,
                    remedy=f"give numbers: `--space.{path} 'loguniform(low, high)'`",
                )
            )
    raise_all(problems)
    return resolved


def list_paths(config: Any, prefix: str = "", groups: Sequence[str] = SEARCHED) -> Iterator[tuple[str, Any]]:
    """Every dotted setting in the groups, with its type."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not prefix and field.name not in groups:
            continue
        if dataclasses.is_dataclass(value):
            yield from list_paths(value, f"{prefix}{field.name}.")
        elif prefix and f"{prefix}{field.name}" != SEED:
            yield f"{prefix}{field.name}", hints[field.name]


def read_path(config: Any, path: str) -> Any:
    """The value of a dotted setting."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def apply_settings(config: Any, settings: Mapping[str, Value]) -> Any:
    """The configuration with other values of some dotted settings."""
    for path, value in settings.items():
        config = _replace_path(config, path.split("."), value)
    return config


def check_ends(space: Space, base: Any, find_problems: Callable[[Any], list[UserError]]) -> None:
    """Try every end and choice in the recipe; raise SpaceError for those that no recipe may have.

    A value is let pass if it goes together with some value of one other setting of the space.
    """
    before = {str(problem) for problem in find_problems(base)}
    others = [{path: value} for path, domain in space.items() for value in domain.list_ends()]

    def find_new(settings: Mapping[str, Value]) -> list[UserError]:
        return [one for one in find_problems(apply_settings(base, settings)) if str(one) not in before]

    problems: list[UserError] = []
    for path, domain in space.items():
        for value in domain.list_ends():
            found = find_new({path: value})
            if found and all(path in other or find_new({path: value, **other}) for other in others):
                problems += [_place(one, path) for one in found]
                if domain.kind != "choice":
                    break  # the other end says the same
    raise_all(problems)


def render_value(value: Any) -> str:
    """A value as it is written in YAML and on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.{SIGNIFICANT_DIGITS}g}" if isinstance(value, float) else str(value)


def _parse_domain(path: str, texts: Sequence[str]) -> Domain:
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


def _check_type(path: str, domain: Domain, hint: Any) -> None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = [option for option in options if option in (bool, int, float, str, type(None))]
    if not plain:
        raise SpaceError(
            "a setting that cannot be searched",
            where=f"`space.{path}`",
            rule="settings that hold a number, a text, a switch or null",
            value=str(hint),
        )
    if domain.kind != "choice":
        fits = float in plain or (int in plain and (domain.is_integer or domain.kind == "times"))
        wrong = None if fits else domain.describe()
    else:
        wrong = next((render_value(one) for one in domain.choices if not _fits(one, plain)), None)
    if wrong is not None:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
        remedy = "`randint(low, high)` gives whole numbers" if int in plain and domain.kind != "choice" else None
        raise SpaceError(
            "the type does not fit",
            where=f"`space.{path}`",
            rule=f"`{path}` is " + " or ".join(names[option] for option in plain),
            value=wrong,
            remedy=remedy,
        )


def _fits(value: Value, plain: Sequence[Any]) -> bool:
    if isinstance(value, bool):
        return bool in plain
    if isinstance(value, int):
        return int in plain or float in plain
    return type(value) in plain


def _unknown_path(path: str, known: list[str], base: Any) -> SpaceError:
    inside = [one for one in known if one.startswith(f"{path}.")]
    last = path.rsplit(".", 1)[-1]
    near = [one for one in known if one.rsplit(".", 1)[-1] == last]
    near = near or difflib.get_close_matches(path, known, n=3, cutoff=0.5)
    near = near or [one for one in known if difflib.get_close_matches(last, [one.rsplit(".", 1)[-1]], n=1, cutoff=0.7)]
    group = path.split(".")[0]
    remedy: str | None
    if path == SEED:
        what, remedy = "seeds are not searched", "leave it out: `search.num_seeds` repeats the leaders with several"
    elif group in {field.name for field in dataclasses.fields(base)} - set(SEARCHED):
        what, remedy = "a setting that is the same for all trials", f"set `--{path}` itself"
    elif inside:
        what, remedy = "a group of settings", "one of " + ", ".join(f"`{one}`" for one in inside[:6])
    else:
        what = "a search space over a setting that does not exist"
        remedy = "did you mean " + " or ".join(f"`--space.{one}`" for one in near[:3]) + "?" if near else None
    rule = "a dotted setting of `rayner train` in " + ", ".join(f"`{name}`" for name in SEARCHED)
    return SpaceError(what, where="`space`", rule=rule, value=path, remedy=remedy or "`rayner train --help` lists them")


def _place(problem: UserError, path: str) -> SpaceError:
    return SpaceError(
        f"the space holds what no recipe may have: {problem.what}",
        where=f"`space.{path}`",
        rule=problem.rule,
        value=problem.value,
        remedy=problem.remedy,
    )


def _replace_path(config: Any, names: Sequence[str], value: Value) -> Any:
    inner = value if len(names) == 1 else _replace_path(getattr(config, names[0]), names[1:], value)
    return replace(config, **{names[0]: inner})
