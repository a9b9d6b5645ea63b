"""The ledger: counters that add, survive Parquet, and stop a run that loses too much."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.ledger import LEDGER_SCHEMA, NOT_ACCEPTED, Ledger, LedgerEntry
from pipelines.corpus.records import CorpusError, Record

entries = st.builds(
    LedgerEntry,
    source=st.integers(1, 99).map("a.conll:{}".format),
    record_id=st.integers(1, 9).map("a.conll:{}".format),
    outcome=st.sampled_from(["repaired", "rejected"]),
    reason=st.sampled_from(["illegal_tags", "too_few_columns"]),
    detail=st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
)
ledgers = st.builds(Ledger, st.lists(entries, max_size=6), st.integers(0, 5))


def reject(line: int, detail: str = "`word` has 1 of at least 2 columns") -> LedgerEntry:
    return LedgerEntry(f"a.conll:{line}", f"a.conll:{line}", "rejected", "too_few_columns", detail)


def repair(record_id: str, reason: str = "trimmed_span") -> LedgerEntry:
    return LedgerEntry(record_id, record_id, "repaired", reason)


def test_counts_a_record_with_two_repairs_once():
    ledger = Ledger()
    for item in (repair("a:1"), repair("a:1", "duplicate_span"), Record("a:1", "a:1", "a:1", text="x"), reject(2)):
        ledger.add(item)
    counts = ledger.counts()
    assert (counts.kept, counts.repaired, counts.rejected, counts.total) == (1, 1, 1, 2)
    assert counts.reasons == {"trimmed_span": 1, "duplicate_span": 1, "too_few_columns": 1}


def test_counts_does_not_call_a_record_repaired_that_was_rejected_later():
    ledger = Ledger([repair("a:1"), LedgerEntry("a:1", "a:1", "rejected", "illegal_tags")])
    assert (ledger.counts().repaired, ledger.counts().rejected) == (0, 1)


def test_kept_entries_are_counted_and_not_stored():
    ledger = Ledger([LedgerEntry("a:1", "a:1", "kept")] * 3)
    assert (ledger.num_kept, ledger.entries) == (3, [])


@given(ledgers)
def test_table_round_trip_keeps_entries_and_counters(ledger):
    assert Ledger.from_table(ledger.to_table()) == ledger


@given(ledgers, ledgers)
def test_concatenated_tables_equal_the_sum(one, other):
    table = pa.concat_tables([one.to_table(), other.to_table()])
    assert Ledger.from_table(table) == one + other


@given(ledgers, ledgers)
def test_plus_leaves_its_operands_alone(one, other):
    sizes = len(one.entries), one.num_kept, len(other.entries), other.num_kept
    total = one + other
    assert (len(one.entries), one.num_kept, len(other.entries), other.num_kept) == sizes
    assert total.num_kept == one.num_kept + other.num_kept


def test_write_parquet_leaves_one_file_that_reads_back(tmp_path):
    ledger = Ledger([reject(3)], num_kept=7)
    ledger.write_parquet(tmp_path / "ledger.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.parquet"]
    table = pq.read_table(tmp_path / "ledger.parquet")
    assert table.schema.names == LEDGER_SCHEMA.names
    assert Ledger.from_table(table) == ledger


def test_check_passes_at_the_limit_and_for_nothing_at_all():
    Ledger([reject(1)], num_kept=99).check(0.01)
    Ledger().check(0.0)
    with pytest.raises(CorpusError):
        Ledger([reject(1)], num_kept=98).check(0.01)


def test_what_an_annotator_has_turned_down_is_not_bad():
    """Usual exports of Prodigy hold a good part of such rows."""
    turned_down = [LedgerEntry(f"a:{line}", f"a:{line}", "rejected", NOT_ACCEPTED) for line in range(60)]
    Ledger(turned_down, num_kept=40).check(0.0)
    ledger = Ledger([*turned_down, reject(1)], num_kept=40)
    ledger.check(0.03)
    with pytest.raises(CorpusError, match="1 of 41 records cannot be used"):
        ledger.check(0.02)
    assert ledger.counts().rejected == 61


def test_check_shows_the_first_ten_with_file_line_and_reason():
    with pytest.raises(CorpusError) as caught:
        Ledger([reject(line) for line in range(1, 13)], num_kept=12).check(0.25)
    message = str(caught.value)
    assert message.startswith("12 of 24 records cannot be used:")
    assert "a.conll:10: too_few_columns: `word` has 1 of at least 2 columns" in message
    assert "a.conll:11" not in message
    assert "… and 2 more" in message
    assert "25.00%" in message
    assert "50.00%" in message


def test_check_shortens_a_very_long_detail():
    with pytest.raises(CorpusError) as caught:
        Ledger([reject(1, "x" * 10_000)]).check(0.0)
    assert len(str(caught.value)) < 1_000


def test_render_tells_totals_by_outcome_and_reason():
    ledger = Ledger([repair("a:1"), reject(2), reject(3)], num_kept=1_000)
    assert ledger.render().splitlines() == [
        "1,002 records: 1,000 kept (1 of them repaired), 2 rejected",
        "  repaired trimmed_span: 1",
        "  rejected too_few_columns: 2",
    ]
