"""Rows (JSON objects, CSV lines, Arrow and pandas rows) to records.

Three kinds are understood: `text` with spans, `words` with tags, and either alone. Spans are `[start, end, label]` or
objects, as doccano, Label Studio, Prodigy and spaCy write them; offsets count Unicode code points.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipelines.corpus.formats.conll import is_tag
from pipelines.corpus.formats.options import NO_COLUMN, FormatOptions
from pipelines.corpus.formats.spans import (
    Repair,
    RowError,
    as_list,
    check_unicode,
    is_integer,
    read_span_list,
    read_word_span_list,
)
from pipelines.corpus.ledger import NOT_ACCEPTED, LedgerEntry
from pipelines.corpus.records import Record
from pipelines.ner.entities import Span

__all__ = ["Found", "RowError", "annotate", "read_checked", "read_row", "to_record"]

_NOT_ACCEPTED = ("reject", "ignore")
_LABEL_STUDIO_SPANS = ("labels", "hypertextlabels", "paragraphlabels")
"""Results that mark text; the latter two by places in HTML or a dialogue, for which the record is rejected."""


Found = tuple[Record, list[LedgerEntry]]
"""A record, and the entries of what was repaired in it."""


def read_row(row: Any, source: str, options: FormatOptions) -> Iterator[Record | LedgerEntry]:
    """The row's repairs and its record, or the entry that rejects it."""
    return read_checked(lambda: to_record(row, source, options), source)


def read_checked(make: Callable[[], Found], source: str) -> Iterator[Record | LedgerEntry]:
    """The repairs and the record of one that may raise RowError, or the entry that rejects it."""
    try:
        record, repairs = make()
    except RowError as error:
        detail = error.detail.encode("utf-8", "backslashreplace").decode("utf-8")  # it may quote what is not Unicode
        yield LedgerEntry(source, source, "rejected", error.reason, detail)
    else:
        yield from repairs
        yield record


def annotate(
    text: str, read_mentions: Callable[[], Sequence[Any]], source: str, doc_id: str, options: FormatOptions
) -> Found:
    """The record of a text whose mentions stand apart from it; they are not looked at where no gold is wanted.

    Raises RowError if there can be none.
    """
    check_unicode(text, "the text")
    spans: list[Span] | None = None
    repairs: list[Repair] = []
    if options.spans_names():
        spans, repairs = read_span_list(read_mentions(), text, "annotations", options.overlapping_spans)
    return Record(source, doc_id, source, text=text, spans=spans), _note(repairs, source)


def to_record(row: Any, source: str, options: FormatOptions | None = None) -> Found:
    """The record of a row and the entries of what was repaired in it. Raises RowError if there can be none."""
    options = options or FormatOptions()
    row = _to_mapping(row, options)
    if options.spans_names() and row.get("answer") in _NOT_ACCEPTED:
        raise RowError(NOT_ACCEPTED, f"the annotator's `answer` (of Prodigy) is `{row['answer']}`")
    text_name, words_name = _find(row, options.text_names(), blank=True), _find(row, options.words_names())
    if words_name and (not text_name or _prefers_words(row, text_name, words_name, options)):
        content, repairs = _read_words(row, words_name, options)
    elif text_name:
        content, repairs = _read_text(row, text_name, options)
    else:
        raise RowError("no_text", _describe_missing(row, options))
    doc_id = _read_doc_id(row, source, options)
    extra = {name: _check_extra(row[name], f"`{name}`") for name in options.extra_columns if name in row}
    return Record(record_id=source, doc_id=doc_id, source=source, extra=extra, **content), _note(repairs, source)


def _note(repairs: Sequence[Repair], source: str) -> list[LedgerEntry]:
    return [LedgerEntry(source, source, "repaired", reason, detail) for reason, detail in repairs]


def _read_text(row: Mapping[str, Any], name: str, options: FormatOptions) -> tuple[dict[str, Any], list[Repair]]:
    text = row[name]
    if not isinstance(text, str):
        raise RowError("bad_text", f"`{name}` should be a string, not {type(text).__name__} {text!r:.80}")
    check_unicode(text, f"`{name}`")
    spans_name = _find(row, options.spans_names())
    if spans_name:
        spans, repairs = read_span_list(row[spans_name], text, spans_name, options.overlapping_spans)
        return {"text": text, "spans": spans}, repairs
    tags_name = _find(row, options.tags_names())
    if tags_name and _holds(row[tags_name], lambda item: isinstance(item, str) and is_tag(item)):
        detail = f"`{tags_name}` holds tags, but no column holds the words they belong to"
        raise RowError("tags_without_words", detail)
    return {"text": text}, []


def _read_words(row: Mapping[str, Any], name: str, options: FormatOptions) -> tuple[dict[str, Any], list[Repair]]:
    words = as_list(row[name], "bad_words", f"`{name}`")
    for word in words:
        if not isinstance(word, str):
            raise RowError("bad_words", f"every word is a string, not {type(word).__name__} {word!r:.80}")
        if not word.strip(" \t\r\n"):
            raise RowError("empty_word", f"`{name}` holds an empty word: {word!r}")
        check_unicode(word, f"`{name}`")
    tags_name = _find(row, options.tags_names())
    if tags_name:
        tags = [_to_tag(tag, options.label_names) for tag in as_list(row[tags_name], "bad_tags", f"`{tags_name}`")]
        if len(tags) != len(words):
            raise RowError("length_mismatch", f"{len(words)} words under `{name}`, {len(tags)} tags in `{tags_name}`")
        return {"words": words, "tags": tags}, []
    spans_name = _find(
        row, [name for name in options.spans_names() if name in ("entities", "spans", options.spans_column)]
    )
    if spans_name:
        spans, repairs = read_word_span_list(row[spans_name], len(words), spans_name, options.overlapping_spans)
        return {"words": words, "spans": spans}, repairs
    return {"words": words}, []


def _to_tag(tag: Any, label_names: Sequence[str]) -> str:
    if isinstance(tag, str):
        if not tag.strip():
            raise RowError("empty_tag", f"a tag is empty: {tag!r}")
        return check_unicode(tag, "a tag")
    if not is_integer(tag):
        raise RowError("bad_tags", f"a tag is a string or a number, not {type(tag).__name__} {tag!r:.80}")
    if not label_names:
        raise RowError("no_label_names", f"the tag {tag} is a number and no names are given; set `label_names`")
    if not 0 <= tag < len(label_names):
        raise RowError("unknown_tag_id", f"the tag {tag} has no name; `label_names` has 0 to {len(label_names) - 1}")
    return str(label_names[tag])


def _read_doc_id(row: Mapping[str, Any], source: str, options: FormatOptions) -> str:
    name = _find(row, options.id_names())
    return check_unicode(str(row[name]), f"`{name}`") if name else source


def _check_extra(value: Any, name: str) -> Any:
    """A further cell, of which every string, however deep, can be written."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            check_unicode(item, name)
        elif isinstance(item, Mapping):
            left += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            left += item
    return value


def _prefers_words(row: Mapping[str, Any], text_name: str, words_name: str, options: FormatOptions) -> bool:
    """Of a row that has text and words: whether the words carry the gold, or alone hold anything."""
    if options.text_column or options.spans_column not in (None, NO_COLUMN):
        return False
    if _is_blank(row[text_name]) and _holds(
        row[words_name], lambda item: isinstance(item, str) and not _is_blank(item)
    ):
        return True
    if options.spans_column:
        return False
    name = _find(row, options.tags_names())
    return bool(name) and _holds(row[name], lambda item: isinstance(item, str) or is_integer(item))


def _holds(value: Any, is_kind: Callable[[Any], bool]) -> bool:
    """Whether a value is a filled list of which every item is of a kind."""
    try:
        items = as_list(value, "", "")
    except RowError:
        return False
    return bool(items) and all(is_kind(item) for item in items)


def _find(row: Mapping[str, Any], names: Sequence[str], *, blank: bool = False) -> str:
    """The first name whose cell is filled, or an empty name."""
    return next((name for name in names if row.get(name) is not None and (blank or not _is_blank(row[name]))), "")


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _to_mapping(row: Any, options: FormatOptions) -> Mapping[str, Any]:
    """Rows of spaCy and Label Studio in the common shape; others as they are."""
    if isinstance(row, list | tuple) and len(row) == 2 and isinstance(row[1], Mapping):
        return {"text": row[0], **row[1]}
    if not isinstance(row, Mapping):
        raise RowError(
            "bad_row", f"a row is an object or spaCy's [text, {{...}}], not {type(row).__name__} {row!r:.80}"
        )
    if isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list):
        return _from_label_studio(row, has_gold=bool(options.spans_names()))
    return row


def _from_label_studio(task: Mapping[str, Any], *, has_gold: bool) -> Mapping[str, Any]:
    """A task of Label Studio's JSON export."""
    if not has_gold:
        return {"id": task.get("id"), **task["data"]}
    done = [one for one in task["annotations"] if isinstance(one, Mapping) and not one.get("was_cancelled")]
    if len(done) > 1:
        raise RowError("several_annotations", f"the task has {len(done)} annotations; export one of them")
    results = as_list(done[0].get("result"), "bad_spans", "`result`") if done else []
    labelled = [one for one in results if isinstance(one, Mapping) and one.get("type", "labels") in _LABEL_STUDIO_SPANS]
    values = [one.get("value") for one in labelled]
    return {"id": task.get("id"), **task["data"], **({"entities": values} if done else {})}


def _describe_missing(row: Mapping[str, Any], options: FormatOptions) -> str:
    wanted = ", ".join(f"`{name}`" for name in (*options.text_names(), *options.words_names()))
    found = ", ".join(f"`{name}`" for name in row) or "none"
    return f"none of {wanted} is filled; the columns are {found}"
