"""A search space over the dotted settings of `rayner train`, checked against the classes that hold them.

`uniform(0, 0.3)`, `loguniform(1e-5, 1e-3)`, `randint(1, 6)`, `lograndint(256, 4096)` (both ends included),
`times(0.3, 3)` (by such a factor around the recipe's own value, evenly in its logarithm), or values to choose from:
`[linear, crf]`.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.ner.errors import UserError, raise_all
from pipelines.tuning.domains import Domain, SpaceError, Value, parse_domain, render_value

SEARCHED = ("model", "encoding", "training", "parallel", "corpus.augmentation")
"""Groups of settings that make another model, or another time, on the same corpus."""
SEED = "training.seed"
"""Not searched: leaders are repeated with several."""
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
            domain = parse_domain(path, texts)
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
                if not isinstance(value, int) or whole.low <= whole.high:
                    continue
                problems.append(
                    SpaceError(
                        "no whole number between the ends",
                        where=f"`space.{path}`",
                        rule=f"a whole number from {low:g} to {high:g}, for the recipe has {value}",
                        value=f"times({domain.low:g}, {domain.high:g})",
                        remedy=f"give numbers: `--space.{path} 'randint(low, high)'`",
                    )
                )
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
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from list_paths(value, f"{path}.", groups)
        elif path.startswith(tuple(f"{group}." for group in groups)) and path != SEED:
            yield path, hints[field.name]


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
    elif group in {one.name for one in dataclasses.fields(base)} - set(SEARCHED) and not path.startswith(SEARCHED):
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
