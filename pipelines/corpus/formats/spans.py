"""Gold spans as annotation tools write them, to checked `Span`s."""

import ast
import io
import json
import re
import tokenize
from bisect import bisect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from pipelines.corpus.formats.options import Overlaps
from pipelines.ner.entities import Span

Repair = tuple[str, str]
"""(reason, detail) of something that was mended."""

_START_NAMES = ("start", "start_offset", "start_char")
_END_NAMES = ("end", "end_offset", "end_char")
_LABEL_NAMES = ("label", "labels", "type", "entity", "tag")


class RowError(ValueError):
    """Why one row cannot become a record; the reader turns it into a ledger entry."""

    def __init__(self, reason: str, detail: str) -> None:
        """Give a stable code and a sentence with the value met."""
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def read_span_list(
    value: Any, text: str, name: str = "spans", overlaps: Overlaps = "reject_record"
) -> tuple[list[Span], list[Repair]]:
    """Spans of characters of `text`, checked, trimmed of white space, without duplicates, sorted."""
    spans, repairs = [], []
    for item in as_list(value, "bad_spans", f"the column of spans, `{name}`,"):
        span = _read_span(item, len(text), "characters")
        _check_mention(item, text[span.start : span.end])
        trimmed = _trim(span, text)
        if trimmed != span:
            detail = f"{_show(span)} {text[span.start : span.end]!r} became {trimmed.start}..{trimmed.end}"
            repairs.append(("trimmed_span", f"{detail}: white space at its edge"))
        spans.append(trimmed)
    return _settle(spans, repairs, overlaps)


def read_word_span_list(
    value: Any, num_words: int, name: str = "spans", overlaps: Overlaps = "reject_record"
) -> tuple[list[Span], list[Repair]]:
    """Spans of words (half-open), checked, without duplicates, sorted."""
    items = as_list(value, "bad_spans", f"the column of spans, `{name}`,")
    return _settle([_read_span(item, num_words, "words") for item in items], [], overlaps)


_ADJACENT = re.compile(r"""['"]\s*[bBrRuU]?['"]""")
"""Two strings without a comma between them, or an empty one."""


def as_list(value: Any, reason: str, name: str) -> list[Any]:
    """A list from a list, tuple, array, or a string that holds a list as JSON, Python or numpy writes it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parse_list(value, reason, name)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    raise RowError(reason, f"{name} should be a list, not {_describe(value)}")


def _parse_list(value: str, reason: str, name: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        try:
            return _parse_literal(value.strip())
        except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
            raise RowError(reason, f"{name} should be a JSON list: {error}: {_shorten(value)}") from error


def _parse_literal(value: str) -> Any:
    """A list as Python writes it, or as numpy does: without commas, where Python would join the strings to one."""
    if not _ADJACENT.search(value):
        with suppress(SyntaxError):
            return ast.literal_eval(value)
    layout = (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)
    tokens = [one for one in tokenize.generate_tokens(io.StringIO(value).readline) if one.type not in layout]
    is_numpy = value[-1] == "]" and all(one.type in (tokenize.STRING, tokenize.NUMBER) for one in tokens[1:-1])
    for one, following in pairwise(tokens):
        touches = one.end == following.start
        if one.type == following.type == tokenize.STRING and (touches or not is_numpy):
            raise ValueError("a comma is missing between two strings")
    return [ast.literal_eval(one.string) for one in tokens[1:-1]] if is_numpy else ast.literal_eval(value)


def check_unicode(text: str, name: str) -> str:
    """The text, unless it holds a lone surrogate, which no UTF-8 can carry."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"{name} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
        raise RowError("invalid_unicode", detail) from error
    return text


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or numpy; truth values are not."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _read_span(item: Any, length: int, unit: str) -> Span:
    start, end, label = _take_apart(item)
    for offset in (start, end):
        if not is_integer(offset):
            raise RowError("bad_offset", f"offsets are integers, not {offset!r} (in {_shorten(item)})")
    if not isinstance(label, str) or not label.strip():
        raise RowError("empty_label", f"the span {start}..{end} has no label: {label!r}")
    span = Span(int(start), int(end), check_unicode(label, "a label").strip())
    if not 0 <= start < end <= length:
        why = "is empty or runs backwards" if start >= end else f"does not lie within the {length} {unit}"
        raise RowError("span_outside_text", f"{_show(span)} {why}")
    return span


def _take_apart(item: Any) -> tuple[Any, Any, Any]:
    """(start, end, label) of a span as a list or an object."""
    if hasattr(item, "tolist"):
        item = item.tolist()
    if isinstance(item, Mapping):
        values = [_first(item, names) for names in (_START_NAMES, _END_NAMES, _LABEL_NAMES)]
    elif isinstance(item, list | tuple) and len(item) == 3:
        values = list(item)
    else:
        raise RowError("bad_spans", f"a span is [start, end, label] or an object with these, not {_shorten(item)}")
    start, end, label = values
    if isinstance(label, list | tuple) and len(label) == 1:
        label = label[0]
    return start, end, label


def _first(item: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((item[name] for name in names if item.get(name) is not None), None)


def _check_mention(item: Any, found: str) -> None:
    """Objects may repeat the mention; another one means that the offsets count something else than code points."""
    told = item.get("text") if isinstance(item, Mapping) else None
    if isinstance(told, str) and "".join(told.split()) != "".join(found.split()):
        detail = f"the span says {told!r} but the text there is {found!r}; offsets count Unicode code points"
        raise RowError("span_text_differs", detail)


def _trim(span: Span, text: str) -> Span:
    mention = text[span.start : span.end]
    start = span.start + len(mention) - len(mention.lstrip())
    end = span.start + len(mention.rstrip())
    if start >= end:
        raise RowError("blank_span", f"{_show(span)} covers only white space: {mention!r}")
    return Span(start, end, span.label)


def _settle(spans: list[Span], repairs: list[Repair], overlaps: Overlaps) -> tuple[list[Span], list[Repair]]:
    """Sorted and without duplicates; of those that overlap the longest, where they do not reject the record."""
    result: list[Span] = []
    for span in sorted(spans):
        if result and span == result[-1]:
            repairs.append(("duplicate_span", f"{_show(span)} was given twice"))
        elif result and span.start < result[-1].end and overlaps == "reject_record":
            detail = f"{_show(result[-1])} and {_show(span)} overlap; `reader.overlapping_spans` can keep the longest"
            raise RowError("overlapping_spans", detail)
        else:
            result.append(span)
    return _keep_longest(result, repairs), repairs


def _keep_longest(spans: Sequence[Span], repairs: list[Repair]) -> list[Span]:
    """Of sorted spans those that overlap no longer one that is kept; of equally long ones the first."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda one: one.start - one.end):
        place = bisect(kept, span)
        around = kept[max(0, place - 1) : place + 1]
        other = next((one for one in around if one.start < span.end and span.start < one.end), None)
        if other is None:
            kept.insert(place, span)
        else:
            repairs.append(("overlapping_spans", f"{_show(span)} was dropped: {_show(other)} is kept"))
    return kept


def _show(span: Span) -> str:
    return f"`{span.label}` {span.start}..{span.end}"


def _describe(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {_shorten(value)}"


def _shorten(value: Any, limit: int = 80) -> str:
    shown = repr(value)
    return shown if len(shown) <= limit else f"{shown[:limit]}…"
