"""Corpus files to a checked dataset of records, in parallel: one task a file, summed up block by block."""

import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, chdir, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from pipelines.corpus.formats.files import drop_repeats, find_files, read_records
from pipelines.corpus.formats.options import Format, FormatOptions
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import RECORD_SCHEMA, CorpusError, Record, to_table
from pipelines.corpus.summary import SHOWN_SOURCES, Summary
from pipelines.ner.entities import Span
from pipelines.ner.errors import UserError, raise_all
from pipelines.ner.labels import (
    OUTSIDE,
    SCHEMES,
    SchemeError,
    check_bare_labels,
    count_illegal_tags,
    detect_scheme,
    observe_tags,
    parse_tag,
    read_spans,
    split_tag,
    write_tags,
)

BLOCK_RECORDS = 1000
MAX_BLOCKS = 1000
"""Ray tasks for one pass; a task reads several files where there are more of them."""
SCHEME_FLAGS = "`--corpus.scheme`, or `--scheme` of `evaluate`"
UNREADABLE = "unreadable"
_STATUS = [("split", pa.string()), ("outcome", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
RAW_SCHEMA = pa.schema([*RECORD_SCHEMA, *_STATUS])


@dataclass(frozen=True)
class Corpus:
    """A corpus read and checked: its records by split, and what is known of them."""

    records: ray.data.Dataset
    """Rows as `RECORD_SCHEMA` with `split`; `spans` is filled in for text, and for words by `finish_records`."""
    summary: Summary
    scheme: str
    """Tag scheme of the files; BIO where they have character spans."""
    labels: dict[str, set[str]]
    """Split → labels."""
    num_records: dict[str, int]


def read_corpus(
    patterns: Mapping[str, Sequence[str]],
    reader: FormatOptions,
    *,
    scheme: str = "auto",
    max_bad_fraction: float = 0.01,
    split_off: Mapping[str, float] | None = None,
    needs_gold: bool = True,
) -> Corpus:
    """Read the files of each split.

    Args:
        patterns: split → paths, globs, folders or `hf:` ids.
        split_off: split → share of the training documents that it is made of (by hash of the document's id, or
            of what a record alone says).
        needs_gold: refuse records without gold.

    Raises:
        CorpusError: files missing or unreadable, too many bad records, mixed schemes; several at once if there are.
    """
    raw = read_raw(patterns, reader, split_off).materialize()
    summary = summarize(raw)
    summary.ledger.check(max_bad_fraction)
    check_records(summary, needs_gold=needs_gold)
    found_scheme = choose_scheme(summary, scheme)
    labels = {split: set(found) for split, found in summary.span_labels.items()}
    for split, tags in summary.raw_tags.items():
        labels.setdefault(split, set()).update(parse_tag(tag, found_scheme)[1] for tag in tags if tag != "O")
    num_records = {split: int(sum(map(len, hashes))) for split, hashes in summary.hashes.items()}
    return Corpus(keep_records(raw), summary, found_scheme, labels, num_records)


def read_raw(
    patterns: Mapping[str, Sequence[str]], reader: FormatOptions, split_off: Mapping[str, float] | None = None
) -> ray.data.Dataset:
    """All rows of the files, also those that tell of a rejection; nothing is read yet. Raises CorpusError."""
    files = find_all_files(patterns, reader.format)
    settings: dict[str, Any] = {"reader": replace(reader, extra_columns=()), "split_off": dict(split_off or {})}
    settings["folder"] = os.getcwd()
    raw = ray.data.from_items(files, override_num_blocks=min(len(files), MAX_BLOCKS))
    return raw.map_batches(_read_files, fn_kwargs=settings, batch_size=1, batch_format="pyarrow")


def summarize(raw: ray.data.Dataset) -> Summary:
    """What the files hold, added up over blocks. Raises CorpusError for files that cannot be read, all at once."""
    summary = Summary()
    for row in raw.map_batches(_summarize, batch_size=None, batch_format="pyarrow").iter_rows():
        summary.add(pickle.loads(row["summary"]))
    raise_all([CorpusError(**fields) for fields in summary.unreadable])
    return summary


def keep_records(raw: ray.data.Dataset) -> ray.data.Dataset:
    """The rows of `read_raw` that are records: `RECORD_SCHEMA` and `split`."""
    return raw.map_batches(_keep_records, batch_size=None, batch_format="pyarrow")


def finish_records(table: pa.Table, scheme: str) -> pa.Table:
    """Fill in the spans of records with tags, the tags of words with spans, and `num_illegal_tags`.

    Illegal tags are those that conlleval reads as if mended.
    """
    all_tags, spans, illegal = [], [], []
    columns = (table[name].to_pylist() for name in ("words", "tags", "spans"))
    for words, tags, given in zip(*columns, strict=True):
        if tags is None and words is not None and given is not None:
            tags = write_tags([Span(**span) for span in given], len(words), scheme)
        all_tags.append(tags)
        if tags is None:
            spans.append(given)
            illegal.append(0)
        else:
            found = read_spans(tags, scheme)
            spans.append([{"start": span.start, "end": span.end, "label": span.label} for span in found])
            illegal.append(count_illegal_tags(tags, scheme))
    for name, values in (("tags", all_tags), ("spans", spans)):
        field = RECORD_SCHEMA.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    return table.append_column("num_illegal_tags", pa.array(illegal, pa.int32()))


def check_records(summary: Summary, *, needs_gold: bool) -> None:
    """Raise CorpusError if there are no records, or if some lack the gold that they need."""
    if not summary.ledger.num_kept:
        raise CorpusError(
            "the corpus holds no records",
            rule="at least one record in all files together",
            remedy="give files that hold some; of a table every row below its names is one",
        )
    if needs_gold and summary.num_without_gold:
        more = " …" if summary.num_without_gold > len(summary.without_gold) else ""
        raise CorpusError(
            f"{summary.num_without_gold} records have no annotation",
            where=", ".join(summary.without_gold) + more,
            rule="each record has `entities`, `spans` or `label` beside its text, or `tags` beside its words; an empty "
            "list where there is no entity",
            value=f"{summary.num_without_gold} of {summary.ledger.num_kept} records",
            remedy="annotate them or leave them out; where a column is called otherwise, name it: "
            "`reader.spans_column` or `reader.tags_column`",
        )


def choose_scheme(summary: Summary, scheme: str) -> str:
    """The scheme given, or the one detected. Raises CorpusError that shows tags which do not fit, and where."""
    places = {tag: source for tags in summary.raw_tags.values() for tag, source in tags.items() if tag != OUTSIDE}
    try:
        found = detect_scheme(summary.tags_seen) if scheme == "auto" else scheme
        if found == "IO" and scheme == "auto":
            check_bare_labels(places, summary.tags_seen["prefix:"], summary.tags_seen[f"prefix:{OUTSIDE}"])
    except SchemeError as error:
        first_of = {split_tag(tag)[0]: tag for tag in sorted(places, reverse=True)}
        odd = {"": first_of[""]} if "" in first_of else first_of
        shown = "; ".join(f"`{tag}` in {places[tag]}" for tag in odd.values())
        what = "an unknown tag prefix" if "" in first_of and len(odd) < len(first_of) else error.what
        remedy = f"{error.remedy} ({SCHEME_FLAGS})"
        raise CorpusError(what, where=shown, rule=error.rule, value=error.value, remedy=remedy) from error
    prefixes = set(SCHEMES[found])
    strange = [tag for tag in sorted(places) if found != "IO" and split_tag(tag)[0] not in prefixes]
    if strange:
        raise CorpusError(
            f"a tag that the scheme {found} does not have",
            where=places[strange[0]],
            rule=f"prefixes of {found}: " + ", ".join(f"`{prefix}-`" for prefix in sorted(prefixes)),
            value=", ".join(f"`{tag}`" for tag in strange[:5]),
            remedy=f"mend the tags, or set the scheme; `IO` reads every tag as a bare label ({SCHEME_FLAGS})",
        )
    return found


def find_all_files(patterns: Mapping[str, Sequence[str]], file_format: Format = "auto") -> list[dict[str, str]]:
    """`path` and `split` of every file that the patterns mean. Raises CorpusError, or several at once."""
    errors: list[UserError] = []
    files = []
    for split, names in patterns.items():
        found: list[str] = []
        for name in names:
            try:
                found += find_files([name], file_format)
            except CorpusError as error:
                errors.append(error)
        files += [{"path": path, "split": split} for path in drop_repeats(found, file_format)]
    raise_all(errors)
    return files


def stand_in(folder: str) -> AbstractContextManager[None]:
    """Have relative names mean what they mean to the driver, whose working folder this is; if this machine has it."""
    return chdir(folder) if os.path.isdir(folder) else nullcontext()


def _read_files(batch: pa.Table, reader: FormatOptions, split_off: dict[str, float], folder: str) -> Iterator[pa.Table]:
    with stand_in(folder):
        for row in batch.to_pylist():
            yield from _read_file(row, reader, split_off)


def _read_file(row: dict[str, str], reader: FormatOptions, split_off: dict[str, float]) -> Iterator[pa.Table]:
    kept: list[Record] = []
    entries: list[LedgerEntry] = []
    try:
        for item in read_records(row["path"], reader):
            if isinstance(item, Record):
                kept.append(item)
            else:
                entries.append(item)
            if len(kept) >= BLOCK_RECORDS:
                yield _build_block(kept, entries, row, split_off)
                kept, entries = [], []
    except CorpusError as error:
        fields = {name: getattr(error, name) for name in ("what", "where", "rule", "value", "remedy")}
        detail = json.dumps({name: str(value) for name, value in fields.items() if value is not None})
        entries.append(LedgerEntry(row["path"], row["path"], "rejected", UNREADABLE, detail))
    yield _build_block(kept, entries, row, split_off)


def _build_block(
    kept: Sequence[Record],
    entries: Sequence[LedgerEntry],
    file: Mapping[str, str],
    split_off: dict[str, float],
) -> pa.Table:
    split, folder = file["split"], os.path.join(os.path.dirname(file["path"]), "")
    records = to_table(kept)
    splits = [_choose_split(_name_document(record, folder), split, split_off) for record in kept]
    ok = [["kept"] * len(kept), [None] * len(kept), [None] * len(kept)]
    for (name, kind), values in zip(_STATUS, [splits, *ok], strict=True):
        records = records.append_column(name, pa.array(values, kind))
    rows = [{**{name: getattr(entry, name) for name in LedgerEntry.__slots__}, "split": split} for entry in entries]
    return pa.concat_tables([records, pa.Table.from_pylist(rows, schema=RAW_SCHEMA)], promote_options="default")


def _name_document(record: Record, folder: str) -> str:
    """What a document's split is chosen by: its id without the folder that it lies in; a record alone by what it says.

    So copies of such a record come into one split.
    """
    if record.doc_id == record.record_id:
        return _join_content(record.text, record.words)
    return record.doc_id.removeprefix(folder)


def _join_content(text: str | None, words: Sequence[str] | None) -> str:
    return text if text is not None else "\x1f".join(words or ())


def _hash(content: str) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(content.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _choose_split(document: str, split: str, split_off: dict[str, float]) -> str:
    if split != "train" or not split_off:
        return split
    place = _hash(document) / 2**64
    for name, fraction in split_off.items():
        if place < fraction:
            return name
        place -= fraction
    return split


def _summarize(table: pa.Table) -> dict[str, Any]:
    summary = Summary()
    hashes: dict[str, list[int]] = {}
    for row in table.to_pylist():
        if row["outcome"] != "kept":
            if row["reason"] == UNREADABLE:
                summary.unreadable.append(json.loads(row["detail"]))
            else:
                names = ("source", "record_id", "outcome", "reason", "detail")
                summary.ledger.add(LedgerEntry(**{name: row[name] for name in names}))
            continue
        summary.ledger.num_kept += 1
        split, tags, spans, text = row["split"], row["tags"], row["spans"], row["text"]
        hashes.setdefault(split, []).append(_hash(_join_content(text, row["words"])))
        summary.num_texts += text is not None
        if tags is not None:
            summary.tags_seen += observe_tags(tags)
            places = summary.raw_tags.setdefault(split, {})
            for tag in tags:
                places.setdefault(tag, row["source"])
        elif spans is not None:
            summary.span_labels.setdefault(split, set()).update(span["label"] for span in spans)
        else:
            summary.num_without_gold += 1
            summary.without_gold = [*summary.without_gold, row["source"]][:SHOWN_SOURCES]
    summary.hashes = {split: [np.array(values, dtype=np.uint64)] for split, values in hashes.items()}
    return {"summary": [pickle.dumps(summary)]}


def _keep_records(table: pa.Table) -> pa.Table:
    kept = table.filter(pc.equal(table["outcome"], "kept"))
    return kept.drop_columns(["outcome", "reason", "detail"])
