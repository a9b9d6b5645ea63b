"""Label schemes: labels to tags and back, spans to tags and back, which tag may follow which.

Tags are read in two ways. The conlleval reading (`read_spans`) accepts any sequence: an inside tag that continues
nothing starts an entity. The strict reading (`read_strict_spans`) accepts only entities written exactly as the scheme
demands; the rest is not an entity.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from pipelines.ner.entities import Span
from pipelines.ner.errors import UserError

OUTSIDE = "O"

# scheme → tag prefix → role: Begin, Inside, End, Single
SCHEMES: dict[str, dict[str, str]] = {
    "BIO": {"B": "B", "I": "I"},
    "IOB1": {"B": "B", "I": "I"},
    "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"},
    "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
    "IO": {"": "I"},
}
_LIKE_PREFIXED = re.compile(r"([BIESLUM])[-_](.+)|(.+)[-_]([BIESLUM])", re.IGNORECASE)
MANY_LABELS = 20
"""Of more, and one in ten words another, a column is rather text than labels."""
_ROLES = {prefix: role for roles in SCHEMES.values() for prefix, role in roles.items()}


class SchemeError(UserError):
    """Tags that fit no label scheme, or not the one given."""


def split_tag(tag: str) -> tuple[str, str]:
    """`B-PER` → (`B`, `PER`); `O` → (`O`, ``); a tag without a known prefix → (``, tag)."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, label = tag.partition("-")
    return (prefix, label) if dash and prefix in _ROLES and label else ("", tag)


@lru_cache(maxsize=65_536)
def parse_tag(tag: str, scheme: str) -> tuple[str, str]:
    """(role, label) of a tag under a scheme; the role is one of O, B, I, E, S."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if scheme == "IO":
        return "I", tag.removeprefix("I-")
    prefix, label = split_tag(tag)
    return SCHEMES[scheme].get(prefix, "I"), label


@dataclass(frozen=True)
class LabelScheme:
    """Tags in the order of the model's outputs, and the scheme that gives them meaning."""

    name: str
    tags: tuple[str, ...]

    @classmethod
    def from_labels(cls, labels: Iterable[str], name: str = "BIO") -> "LabelScheme":
        """The scheme over the sorted labels: `O` first, then every prefix of each label."""
        tags = [_join(prefix, label) for label in sorted(set(labels)) for prefix in SCHEMES[name]]
        return cls(name, (OUTSIDE, *tags))

    @classmethod
    def from_tags(cls, tags: Sequence[str], name: str | None = None) -> "LabelScheme":
        """The scheme of a foreign model, read off its tags. Raises SchemeError if they fit none, or seem misspelt."""
        seen = Counter(f"prefix:{split_tag(tag)[0]}" for tag in tags)
        seen["bare_letters"] = sum(tag in _ROLES for tag in tags)
        if any(split_tag(tag)[0] == "I" and f"B-{split_tag(tag)[1]}" not in tags for tag in tags):
            seen["inside_starts"] = 1  # without `B-PER` an entity can only begin with `I-PER`
        found = name or detect_scheme(seen)
        if found == "IO" and name is None:
            check_bare_labels(tags, len(tags), len(tags))  # each tag stands there once, however often it is used
        return cls(found, tuple(tags))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels, sorted."""
        return tuple(sorted({label for _, label in self.parsed if label}))

    @cached_property
    def parsed(self) -> tuple[tuple[str, str], ...]:
        """(role, label) of every tag; the role is one of O, B, I, E, S."""
        return tuple(parse_tag(tag, self.name) for tag in self.tags)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Tag → index."""
        return {tag: index for index, tag in enumerate(self.tags)}

    def allows(self, before: str | None, after: str | None) -> bool:
        """Whether tag `after` may follow tag `before`; None stands for the sequence's start or end."""
        role, label = parse_tag(before, self.name) if before is not None else (OUTSIDE, "")
        next_role, next_label = parse_tag(after, self.name) if after is not None else (OUTSIDE, "")
        same = label == next_label
        if self.name == "IO":
            return True
        if self.name == "IOB1":
            return next_role != "B" or (role in "BI" and same)
        if self.name == "BIO":
            return next_role != "I" or (role in "BI" and same)
        if role in "BI":
            return next_role in "IE" and same
        return next_role in "OBS"

    def legal_transitions(self) -> list[list[bool]]:
        """`[K, K]`: may the column's tag follow the row's."""
        return [[self.allows(before, after) for after in self.tags] for before in self.tags]

    def legal_starts(self) -> list[bool]:
        """`[K]`: may the tag begin a sequence."""
        return [self.allows(None, tag) for tag in self.tags]

    def legal_ends(self) -> list[bool]:
        """`[K]`: may the tag end a sequence."""
        return [self.allows(tag, None) for tag in self.tags]

    def to_tags(self, spans: Sequence[Span], num_words: int) -> list[str]:
        """Tags of non-overlapping spans over `num_words` words."""
        tags = write_tags(spans, num_words, self.name)
        if self.name == "IO":  # others' models may write `I-PER`
            return [f"I-{tag}" if tag not in self.ids and f"I-{tag}" in self.ids else tag for tag in tags]
        return tags

    def to_tag_ids(self, spans: Sequence[Span], num_words: int) -> list[int]:
        """As `to_tags`, as indices."""
        return [self.ids[tag] for tag in self.to_tags(spans, num_words)]


def write_tags(spans: Sequence[Span], num_words: int, scheme: str) -> list[str]:
    """Tags of non-overlapping spans over `num_words` words, in the scheme's own prefixes."""
    prefix_of = {role: prefix for prefix, role in SCHEMES[scheme].items()}
    tags = [OUTSIDE] * num_words
    for span in spans:
        length = span.end - span.start
        if scheme == "IOB1":
            adjacent = span.start > 0 and split_tag(tags[span.start - 1])[1] == span.label
            roles = ["B" if adjacent else "I"] + ["I"] * (length - 1)
        elif scheme in ("BIO", "IO"):
            roles = ["B" if scheme == "BIO" else "I"] + ["I"] * (length - 1)
        else:
            roles = ["S"] if length == 1 else ["B", *["I"] * (length - 2), "E"]
        tags[span.start : span.end] = [_join(prefix_of[role], span.label) for role in roles]
    return tags


def read_spans(tags: Sequence[str], scheme: str = "BIO") -> list[Span]:
    """Spans of any tag sequence, read as conlleval reads it: nothing labelled is lost."""
    spans: list[Span] = []
    start, previous, previous_label = 0, OUTSIDE, ""
    for index, tag in enumerate([*tags, OUTSIDE]):
        role, label = parse_tag(tag, scheme)
        starts = role != OUTSIDE and (
            role in "BS" or previous in "OES" or label != previous_label  # an entity cannot go on here
        )
        if previous != OUTSIDE and (role == OUTSIDE or starts):
            spans.append(Span(start, index, previous_label))
        if starts:
            start = index
        previous, previous_label = role, label
    return spans


def read_strict_spans(tags: Sequence[str], scheme: str) -> list[Span]:
    """Only the spans whose tags are exactly those the scheme demands (seqeval's strict mode)."""
    if scheme == "IO":
        return read_spans(tags, scheme)
    strict = []
    for span in read_spans(tags, scheme):
        expected = write_tags([Span(0, span.end - span.start, span.label)], span.end - span.start, scheme)
        if scheme == "IOB1" and span.start > 0 and parse_tag(tags[span.start - 1], scheme)[1] == span.label:
            expected[0] = _join("B", span.label)
        if list(tags[span.start : span.end]) == expected:
            strict.append(span)
    return strict


def count_illegal_tags(tags: Sequence[str], scheme: str) -> int:
    """How many tags may not stand where they stand; zero for a legal sequence."""
    checker = LabelScheme(scheme, ())
    sides = [None, *tags, None]
    return sum(not checker.allows(a, b) for a, b in pairwise(sides))


def observe_tags(tags: Sequence[str]) -> Counter[str]:
    """What a tag sequence shows of its scheme. Observations of sequences add; `detect_scheme` judges the sum."""
    seen: Counter[str] = Counter()
    previous = previous_label = ""
    for tag in tags:
        prefix, label = split_tag(tag)
        seen[f"prefix:{prefix}"] += 1
        seen["bare_letters"] += tag in _ROLES
        goes_on = label == previous_label and previous not in ("", OUTSIDE)
        if prefix == "I" and not goes_on:
            seen["inside_starts"] += 1
        if prefix == "B" and not goes_on:
            seen["begin_after_gap"] += 1
        previous, previous_label = prefix, label
    return seen


def detect_scheme(seen: Counter[str]) -> str:
    """The scheme that added observations show.

    Raises SchemeError for prefixes that no single scheme has, and where every tag is a prefix alone (`B I O`): read as
    bare labels, `B` and `I` would be two kinds of entity.
    """
    prefixes = {key.removeprefix("prefix:") for key in seen if key.startswith("prefix:") and seen[key]} - {OUTSIDE}
    if "" in prefixes and len(prefixes) > 1:
        raise SchemeError(
            "some tags have a scheme prefix and some have none",
            rule="every tag but `O` is a prefix, a dash and a label (`B-PER`), or every tag is a bare label",
            value=", ".join(sorted(f"`{prefix or '(none)'}`" for prefix in prefixes)),
            remedy="mend the tags, or set the scheme `IO`, which reads every tag as a bare label",
        )
    if prefixes == {""} and seen["bare_letters"] == seen["prefix:"]:
        raise SchemeError(
            "the tags are prefixes without a label",
            rule="every tag but `O` is a prefix, a dash and a label (`B-PER`), or every tag is a bare label",
            value="every tag is one of " + ", ".join(f"`{letter}`" for letter in sorted(_ROLES) if letter),
            remedy="write `B-ENTITY` for `B`, and so on; if they are labels, set the `scheme` `IO`",
        )
    if prefixes <= {""}:
        return "IO" if prefixes else "BIO"
    if prefixes <= {"B", "I"}:
        only_inside = "B" not in prefixes or not seen["begin_after_gap"]
        return "IOB1" if seen["inside_starts"] and only_inside else "BIO"
    for name in ("BIOES", "BILOU", "BMES"):
        if prefixes <= set(SCHEMES[name]):
            return name
    raise SchemeError(
        "the tags mix label schemes",
        rule="all tags of a corpus follow one scheme: " + ", ".join(SCHEMES),
        value="prefixes " + ", ".join(f"`{prefix}`" for prefix in sorted(prefixes)),
        remedy="convert the files to one scheme, or give them to separate runs",
    )


def check_bare_labels(tags: Iterable[str], num_bare: int, num_outside: int) -> None:
    """Raise SchemeError where tags without known prefixes are rather misspelt ones, or not tags at all.

    Args:
        num_bare: how many words have one of them.
        num_outside: how many words have the tag `O`. The letter may be a word, but not one in ten of all there are.
    """
    labels = sorted(set(tags) - {OUTSIDE})
    shown = ", ".join(f"`{label}`" for label in labels[:5])
    if _are_misspelt([label for label in labels if label != OUTSIDE.lower()]):
        raise SchemeError(
            "the prefixes of the tags are not understood",
            rule="a prefix in upper case, a dash and a label (`B-PER`), and `O`",
            value=shown,
            remedy="write the tags in that way; if they are bare labels, set the scheme `IO`",
        )
    if 10 * num_outside < len(labels) > max(MANY_LABELS, num_bare / 10):
        raise SchemeError(
            f"{'hardly any' if num_outside else 'no'} tag is `O`",
            rule="words outside of entities have the tag `O`",
            value=f"{len(labels)} others: {shown}",
            remedy="name the column of the tags: `reader.tag_column` (CoNLL, 0 is the first) or `reader.tags_column`; "
            "if it is the right one, set the scheme `IO`",
        )


def _are_misspelt(labels: Sequence[str]) -> bool:
    """Whether all labels look as if they had a prefix: some label with several, or none but those of BIO."""
    found = [_LIKE_PREFIXED.fullmatch(label) for label in labels]
    pairs = {((one[1] or one[4]).upper(), one[2] or one[3]) for one in found if one}
    is_bio = all(one and (one[1] or "").upper() in ("B", "I") for one in found)
    return all(found) and (is_bio or len({label for _, label in pairs}) < len(pairs))


def _join(prefix: str, label: str) -> str:
    return f"{prefix}-{label}" if prefix else label
