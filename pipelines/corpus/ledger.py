"""What happened to every record: kept, repaired or rejected, why, and in which line of which file."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.records import CorpusError, Record

Outcome = Literal["kept", "repaired", "rejected"]

LEDGER_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("record_id", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("count", pa.int64()),
    ]
)
NOT_ACCEPTED = "not_accepted"
"""Why a record is rejected that its annotator has turned down: left out on purpose, and so no mistake of the corpus."""
_SHOWN_ENTRIES = 10
_DETAIL_LIMIT = 200


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One thing that happened to one record."""

    source: str
    """`path:line`, where to look."""
    record_id: str
    outcome: Outcome
    reason: str = ""
    """A short stable code, e.g. `too_few_columns`."""
    detail: str = ""
    """A sentence for people, with the value met."""

    def render(self) -> str:
        """`path:line: reason: detail`, on one line."""
        detail = self.detail if len(self.detail) <= _DETAIL_LIMIT else f"{self.detail[:_DETAIL_LIMIT]}…"
        return f"{self.source}: {self.reason}" + (f": {detail}" if detail else "")


@dataclass(frozen=True)
class LedgerCounts:
    """How many records met which outcome."""

    kept: int
    """Records that go on, the repaired ones among them."""
    repaired: int
    """Records that go on, changed; a record with several repairs counts once."""
    rejected: int
    reasons: dict[str, int]
    """Reason → entries with it, the most frequent first."""

    @property
    def total(self) -> int:
        """All records that were met."""
        return self.kept + self.rejected


class Ledger:
    """A log of records that adds up: build one a file or block, then merge.

    Records that go on are only counted; repairs and rejections are kept as entries. A repaired record is added as its
    repair entries and as the record itself, just as `read_records` yields them.
    """

    def __init__(self, entries: Iterable[LedgerEntry] = (), num_kept: int = 0) -> None:
        """Begin with entries, and a count of records that go on."""
        self.entries: list[LedgerEntry] = []
        self.num_kept = num_kept
        for entry in entries:
            self.add(entry)

    def add(self, item: LedgerEntry | Record) -> None:
        """Log an entry, or a record that goes on."""
        if isinstance(item, Record) or item.outcome == "kept":
            self.num_kept += 1
        else:
            self.entries.append(item)

    def merge(self, other: "Ledger") -> None:
        """Take over everything that another ledger holds."""
        self.num_kept += other.num_kept
        self.entries.extend(other.entries)

    def __add__(self, other: "Ledger") -> "Ledger":
        """A new ledger with what both hold."""
        result = Ledger()
        result.merge(self)
        result.merge(other)
        return result

    def __eq__(self, other: object) -> bool:
        """Equal counts and equal entries in the same order."""
        return isinstance(other, Ledger) and (self.num_kept, self.entries) == (other.num_kept, other.entries)

    __hash__ = None  # type: ignore[assignment]

    def rejected(self) -> list[LedgerEntry]:
        """The entries of rejected records, in order."""
        return [entry for entry in self.entries if entry.outcome == "rejected"]

    def counts(self) -> LedgerCounts:
        """Records by outcome, entries by reason."""
        rejected = self.rejected()
        gone = {entry.record_id for entry in rejected}
        repaired = {entry.record_id for entry in self.entries if entry.outcome == "repaired"} - gone
        reasons = Counter(entry.reason for entry in self.entries)
        return LedgerCounts(self.num_kept, len(repaired), len(rejected), dict(reasons.most_common()))

    def to_table(self) -> pa.Table:
        """Entries as rows, and one row that holds the count of kept records; concatenated tables add up."""
        rows = [
            {
                "source": entry.source,
                "record_id": entry.record_id,
                "outcome": entry.outcome,
                "reason": entry.reason,
                "detail": entry.detail,
                "count": 1,
            }
            for entry in self.entries
        ]
        if self.num_kept:
            rows.append({"outcome": "kept", "count": self.num_kept})
        return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)

    @classmethod
    def from_table(cls, table: pa.Table) -> "Ledger":
        """The inverse of `to_table`, also of several tables concatenated."""
        ledger = cls()
        for row in table.select(LEDGER_SCHEMA.names).to_pylist():
            count = row.pop("count")
            if row["outcome"] == "kept":
                ledger.num_kept += count
            else:
                ledger.entries.append(LedgerEntry(**row))
        return ledger

    def write_parquet(self, path: str | Path) -> None:
        """Write `to_table` as a Parquet file; the file appears whole or not at all."""
        part = f"{path}.part"
        pq.write_table(self.to_table(), part)
        os.replace(part, path)

    def check(self, max_bad_fraction: float) -> None:
        """Raise CorpusError if the share of bad records is above the limit; the message shows the first ten.

        Those that an annotator has turned down are rejected without being bad.
        """
        bad = [entry for entry in self.rejected() if entry.reason != NOT_ACCEPTED]
        shown = [entry.render() for entry in bad[:_SHOWN_ENTRIES]]
        check_bad_fraction(len(bad), self.num_kept + len(bad), "records", shown, max_bad_fraction)

    def render(self) -> str:
        """Totals in a few lines of text."""
        counts = self.counts()
        head = f"{counts.total:,} records: {counts.kept:,} kept"
        head += f" ({counts.repaired:,} of them repaired)" if counts.repaired else ""
        lines = [f"{head}, {counts.rejected:,} rejected"]
        for outcome in ("repaired", "rejected"):
            reasons = Counter(entry.reason for entry in self.entries if entry.outcome == outcome)
            lines += [f"  {outcome} {reason}: {count:,}" for reason, count in reasons.most_common()]
        return "\n".join(lines)


def check_bad_fraction(num_bad: int, total: int, noun: str, shown: Sequence[str], max_bad_fraction: float) -> None:
    """Raise CorpusError if a larger share than the limit cannot be used; it shows these entries of the ledger."""
    if num_bad <= max_bad_fraction * total:
        return
    lines = [f"{num_bad:,} of {total:,} {noun} cannot be used:", *(f"    {entry}" for entry in shown)]
    if num_bad > len(shown):
        lines.append(f"    … and {num_bad - len(shown):,} more")
    raise CorpusError(
        "\n".join(lines),
        rule=f"at most {max_bad_fraction:.2%} of the {noun} may be rejected (`max_bad_fraction`)",
        value=f"{num_bad / total:.2%}",
        remedy=f"mend the {noun} named above, or raise `max_bad_fraction` to go on without them",
    )
