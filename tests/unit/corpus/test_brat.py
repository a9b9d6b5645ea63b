"""BRAT's standoff: mentions in the text beside them, on any file system; what is no single range of it is told."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.formats.brat import find_text
from pipelines.corpus.formats.files import FormatOptions, find_files, read_records
from pipelines.corpus.ledger import LedgerEntry
from pipelines.corpus.records import CorpusError
from pipelines.corpus.text_config import TextConfig
from pipelines.ner.entities import Span

TEXT = "Angela Merkel visited\nNew\r\nYork 🗽 and Utrecht.\n"
ANNOTATIONS = (
    "T1\tPerson 0 13\tAngela Merkel\n"
    "T2\tCity 22 25;27 31\tNew York\n"  # cut where its line ends
    "T3\tCity 38 45\tUtrecht\n"
    "R1\tWent Arg1:T1 Arg2:T2\t\n"
    "E1\tVisit:T1 Whom:T2\n"
    "A1\tSure T1\n"
    "N1\tReference T3 Wikidata:Q803\tUtrecht\n"
    "#1\tAnnotatorNotes T3\tthe city\n"
    "*\tEquiv T2 T3\n\n"
)
SPANS = [Span(0, 13, "Person"), Span(22, 31, "City"), Span(38, 45, "City")]


@pytest.fixture
def read(tmp_path):
    """Write a text and its annotations, and read them."""

    def act(annotations, text=TEXT, **options):
        (tmp_path / "a.ann").write_bytes(annotations.encode())
        (tmp_path / "a.txt").write_bytes(text.encode())
        return list(read_records(str(tmp_path / "a.ann"), FormatOptions(**options)))

    return act


def test_mentions_are_read_with_the_text_and_all_else_is_passed_over(read, tmp_path):
    [record] = read(ANNOTATIONS)
    assert (record.text, record.spans) == (TEXT, SPANS)
    path = tmp_path / "a.ann"
    assert (record.record_id, record.doc_id, record.source) == (f"{path}:1", str(path), f"{path}:1")


@pytest.mark.parametrize("annotations", ["", "\n", "#1\tAnnotatorNotes T1\tnothing here\n"])
def test_text_without_mentions_is_one_without_entities(read, annotations):
    assert [record.spans for record in read(annotations)] == [[]]


@pytest.mark.parametrize(
    ("annotations", "reason", "told"),
    [
        (
            "T1\tPerson 0 6;14 21\tAngela visited\n",
            "discontinuous_span",
            "in pieces, 0 6;14 21, with ` Merkel `",
        ),
        ("T1\tPerson 0 6;0 6\tAngela Angela\n", "discontinuous_span", "0 6;0 6"),
        ("T1\tPerson 0 13\tAngela\n", "span_text_differs", "'Angela' but the text there is 'Angela Merkel'"),
        ("T1\tPerson 0 600\tAngela\n", "span_outside_text", "0..600"),
        ("T1\tPerson 0 13\tAngela Merkel\nT2\tName 0 6\tAngela\n", "overlapping_spans", "`Name` 0..6"),
        ("\nT1 Person 0 13 Angela Merkel\n", "bad_annotation", "line 2"),
        ("<GateDocument>\n", "bad_annotation", "<GateDocument>"),
        ("A line of no kind\n", "bad_annotation", "A line of no kind"),
        (f"T1\tPerson 0 {'9' * 5000}\tAngela\n", "bad_annotation", "T1"),
    ],
)
def test_what_is_no_range_of_the_text_rejects_the_document(read, annotations, reason, told):
    [entry] = read(annotations)
    assert (entry.outcome, entry.reason) == ("rejected", reason)
    assert told in entry.detail
    assert [record.text for record in read(annotations, spans_column="none")] == [TEXT]


def test_nested_mentions_leave_the_longest_on_request(read):
    dropped, record = read("T1\tName 0 6\tAngela\n" + ANNOTATIONS, overlapping_spans="keep_longest")
    assert isinstance(dropped, LedgerEntry)
    assert (dropped.outcome, dropped.detail) == ("repaired", "`Name` 0..6 was dropped: `Person` 0..13 is kept")
    assert record.spans == SPANS


def test_pieces_that_touch_are_one_mention(read):
    [record] = read("T1\tPerson 0 3;3 6\tAng ela\n")
    assert record.spans == [Span(0, 6, "Person")]


def test_empty_text_rejects_its_document_alone(read):
    [entry] = read("", text="")
    assert (entry.outcome, entry.reason) == ("rejected", "no_text")


def test_annotations_without_their_extension_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Ada is here.\n")
    with pytest.raises(CorpusError, match="the file cannot be BRAT's"):
        list(read_records(str(path), FormatOptions(format="brat")))


def test_links_to_one_store_are_read_as_what_they_are_called(tmp_path):
    """As caches have them: the names lead to contents, and all empty annotations to one."""
    store, folder = tmp_path / "store", tmp_path / "corpus"
    store.mkdir()
    folder.mkdir()
    for name, content in (("0", ""), ("1", "Ada in Oslo"), ("2", "Bob in Rome")):
        (store / name).write_text(content)
    for name, target in (("a.ann", "0"), ("a.txt", "1"), ("b.ann", "0"), ("b.txt", "2")):
        (folder / name).symlink_to(store / target)
    found = find_files([str(folder)])
    assert found == [str(folder / "a.ann"), str(folder / "b.ann")]
    assert [record.text for path in found for record in read_records(path)] == ["Ada in Oslo", "Bob in Rome"]


def test_another_format_reads_the_texts_and_not_the_annotations(tmp_path):
    for name in ("a.ann", "a.txt", "b.txt"):
        (tmp_path / name).write_text("T1\tPer 0 3\tAda\n" if name == "a.ann" else "Ada\n")
    assert find_files([str(tmp_path)], "text") == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert find_files([str(tmp_path)], "brat") == [str(tmp_path / "a.ann"), str(tmp_path / "b.txt")]


def test_missing_text_is_told_with_its_name(tmp_path):
    path = tmp_path / "a.ann"
    path.write_text("")
    for name in (str(path), f"file://{path}"):
        with pytest.raises(CorpusError, match="there is no text beside the annotations") as caught:
            list(read_records(name))
        assert str(tmp_path / "a.txt") in str(caught.value.value)


def test_folder_and_glob_give_each_document_once_and_texts_alone_as_they_are(tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    for name in ("a.ann", "a.txt", "b.txt", "c.ann.gz", "c.txt.gz"):
        content = TEXT.encode() if ".txt" in name else b""
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    wanted = [str(folder / name) for name in ("a.ann", "b.txt", "c.ann.gz")]
    assert find_files([str(tmp_path)]) == find_files([f"{folder}/*"]) == wanted
    assert find_files([f"file://{tmp_path}"]) == [f"file://{path}" for path in wanted]
    assert sorted(find_files([f"{folder}/*.txt", f"{folder}/*.ann"])) == [wanted[0], wanted[1]]
    assert find_files([f"{folder}/a.txt"]) == [f"{folder}/a.txt"]
    for path in (wanted[2], f"file://{wanted[2]}"):
        assert [record.text for record in read_records(path)] == [TEXT]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("x.ann/a.ann", "x.ann/a.txt"),
        ("a.ANN", "a.TXT"),
        ("a.ann.zst", "a.txt.zst"),
        ("s3://bucket/a.ann?region=x.ann", "s3://bucket/a.txt?region=x.ann"),
        ("a.annual.txt", "a.annual.txt"),
        ("a.jsonl", "a.jsonl"),
    ],
)
def test_text_of_annotations_has_the_same_name(path, text):
    assert find_text(path) == text


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip), min_size=1))
def test_any_mentions_come_back_as_they_were_written(tmp_path_factory, mentions):
    folder = tmp_path_factory.mktemp("brat")
    text, lines, spans = "", [], []
    for number, mention in enumerate(mentions):
        mention = mention.strip()
        spans.append(Span(len(text), len(text) + len(mention), "X"))
        lines.append(f"T{number}\tX {len(text)} {len(text) + len(mention)}\t{mention}\n")
        text += f"{mention} | "
    (folder / "a.txt").write_text(text, encoding="utf-8", newline="")
    (folder / "a.ann").write_text("".join(lines), encoding="utf-8", newline="")
    [record] = read_records(str(folder / "a.ann"))
    assert (record.text, record.spans) == (text, spans)


def test_text_that_nobody_marked_is_no_empty_file_for_pretraining(tmp_path):
    (tmp_path / "a.ann").write_text("")
    (tmp_path / "a.txt").write_text("Ada in Oslo")
    assert TextConfig(train=[str(tmp_path)]).find_file_problems() == []
    (tmp_path / "a.txt").write_text("")
    [problem] = TextConfig(train=[str(tmp_path)]).find_file_problems()
    assert problem.where == str(tmp_path / "a.txt")
