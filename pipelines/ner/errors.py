"""The shape of every message about a user's mistake."""

from collections.abc import Iterable, Iterator
from operator import attrgetter


class UserError(ValueError):
    """A mistake of the user: what is wrong, where, the rule, the value met, and the remedy.

    Doors print it without a traceback and exit with code 2. Rooms raise their own subclasses.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        rule: str | None = None,
        value: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.where, self.rule, self.value, self.remedy = what, where, rule, value, remedy
        super().__init__(self.render())

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling: workers raise these too."""
        return _rebuild, (type(self), self.what, self.where, self.rule, self.value, self.remedy)

    def render(self) -> str:
        """The message, one fact per line."""
        lines = [self.what]
        for name in ("where", "rule", "value", "remedy"):
            fact = getattr(self, name)
            if fact is not None:
                lines.append(f"  {name + ':':<8}{_shorten(fact)}")
        return "\n".join(lines)


class UserErrors(UserError):
    """Several mistakes, told together."""

    def __init__(self, errors: list[UserError]) -> None:
        self.errors = errors
        super().__init__(f"{len(errors)} mistakes:" if len(errors) > 1 else "one mistake:")

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling, with every mistake."""
        return UserErrors, (self.errors,)

    def render(self) -> str:
        """All messages, numbered."""
        return "\n".join([self.what, *(f"{i}. {error.render()}" for i, error in enumerate(self.errors, 1))])


def iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on; also where Ray wraps what a worker raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        cause = getattr(error, "cause", None)
        error = cause if isinstance(cause, BaseException) else error.__cause__


def tell_first_line(error: BaseException) -> str:
    """What an error says, in its first line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def find_wrong_values(
    kind: type[UserError],
    settings: object,
    checks: Iterable[tuple[str, str, bool]],
    room: str = "",
    what: str = "a value out of range",
) -> list[UserError]:
    """A mistake for each setting that breaks its rule.

    Args:
        checks: name, dotted where it lies deeper; rule; whether it is kept.
        room: what the names begin with where the user gives them.
    """
    return [
        kind(what, where=f"`{room}{name}`", rule=rule, value=attrgetter(name)(settings))
        for name, rule, holds in checks
        if not holds
    ]


def raise_all(errors: list[UserError]) -> None:
    """Raise nothing, the one error, or all of them as one."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserErrors(errors)


def _shorten(fact: object, limit: int = 400) -> str:
    text = str(fact)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _rebuild(cls: type[UserError], what: str, where: str, rule: str, value: object, remedy: str) -> UserError:
    return cls(what, where=where, rule=rule, value=value, remedy=remedy)
