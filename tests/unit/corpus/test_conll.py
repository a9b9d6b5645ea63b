"""CoNLL columns: every word and tag as in the file, bad lines named, real corpora read whole."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.formats.conll import looks_like_conll, read_conll, split_columns
from pipelines.corpus.formats.files import FormatOptions, read_records
from pipelines.corpus.ledger import Ledger
from pipelines.corpus.records import CorpusError, Record

DATA = Path("../shared/data")


def read(text: str, source: str = "news.conll", **options):
    return list(read_conll(text.split("\n"), source, FormatOptions(**options)))


def read_words(text: str, **options):
    return [list(record.words) for record in read(text, **options)]


def read_one_rejected(text: str, **options):
    (entry,) = read(text, **options)
    assert entry.outcome == "rejected"
    return entry


def test_reads_words_and_tags_with_the_line_of_the_first_word():
    one, two = read("Angela\tB-PER\nMerkel\tI-PER\n\n\nvisited\tO")
    assert (one.words, one.tags) == (["Angela", "Merkel"], ["B-PER", "I-PER"])
    assert (one.record_id, one.source, one.doc_id, one.spans) == ("news.conll:1", "news.conll:1", "news.conll:1", None)
    assert two.record_id == "news.conll:5"


@pytest.mark.parametrize("separator", ["", " ", "\t", " \t \t", "\r"])
def test_lines_of_blanks_separate_sentences(separator):
    text = f"a\tO\n{separator}\nb\tO"
    assert [r.words for r in read_conll(text.split("\n"), "x", FormatOptions())] == [["a"], ["b"]]


def test_takes_lines_with_their_ends():
    assert [r.words for r in read_conll(["a O\r\n", "b O\n", "\r\n"], "x")] == [["a", "b"]]


def test_default_columns_are_first_and_last_of_four():
    (record,) = read("EU NNP B-NP B-ORG\nrejects VBZ B-VP O")
    assert (record.words, record.tags) == (["EU", "rejects"], ["B-ORG", "O"])


def test_columns_by_option_and_negative():
    (record,) = read("O 1 EU\nO 2 rejects", word_column=-1, tag_column=0)
    assert (record.words, record.tags) == (["EU", "rejects"], ["O", "O"])


def test_tabs_keep_words_with_spaces_whole():
    (record,) = read("New York\tB-LOC\nis\tO")
    assert record.words == ["New York", "is"]


def test_unicode_space_never_splits_and_words_stay_as_they_are():
    words = ["a\u00a0b", "\u3000", "\u200b", "e\u0301", "\u2028", "x\u0085y", "\u202eabc", "\x0c", "👩‍👩‍👧"]
    for delimiter in ("\t", " "):
        (record,) = read("\n".join(f"{word}{delimiter}O" for word in words))
        assert record.words == words


def test_aligned_tabs_and_spaces_fall_back_to_white_space():
    (record,) = read("EU\t\tB-ORG\nrejects \tO")
    assert (record.words, record.tags) == (["EU", "rejects"], ["B-ORG", "O"])


def test_a_given_delimiter_is_taken_at_its_word():
    assert read_words("New York,B-LOC\nis,O", delimiter="comma") == [["New York", "is"]]
    assert read_words("a b\tO", delimiter="whitespace", word_column=1) == [["b"]]
    assert read_one_rejected("a O", delimiter="tab").reason == "too_few_columns"


def test_an_unknown_delimiter_is_refused_with_the_choices():
    with pytest.raises(CorpusError, match=r"`tab`(.|\n)*`semikolon`"):
        read("a O", delimiter="semikolon")


def test_docstart_begins_documents():
    text = "x O\n\n-DOCSTART- -X- O O\n\na O\n\nb O\n\n-DOCSTART-\tO\nc O"
    assert [(r.words[0], r.doc_id) for r in read(text)] == [
        ("x", "news.conll:1"),
        ("a", "news.conll#doc1"),
        ("b", "news.conll#doc1"),
        ("c", "news.conll#doc2"),
    ]


def test_ontonotes_document_lines_are_marks():
    first, second = read(
        "#begin document (a); part 0\na O\n\n#end document\n#begin document (b); part 0\nb O\n#end document"
    )
    assert (first.doc_id, second.doc_id, second.words) == ("news.conll#doc1", "news.conll#doc2", ["b"])


def test_hash_with_a_tag_is_a_token():
    assert read_words("#\tO\nwin\tO\n#free\tO\n# \tO") == [["#", "win", "#free", "# "]]
    assert read_words("# O\nwin O") == [["#", "win"]]
    assert read_words("win O\n\n# O") == [["win"], ["#"]]
    assert read_words("a X O\n# X O\nb X O") == [["a", "#", "b"]]


def test_comments_are_left_out():
    assert read_words("# text = we want vitamin O\n# id 7\nwin O\n# O no tag\nnow O\n\n# only a comment") == [
        ["win", "now"]
    ]


UD = """\
# newdoc id = batch-0
# sent_id = batch-0-1
# text = 加藤泽男
1\t加藤\tB-PER\t-\t-
2\t泽男\tI-PER\t-\t-

# sent_id = batch-0-2
1\t于\tO\t-\t-
"""


def test_ud_style_is_detected():
    one, two = read(UD)
    assert (one.words, one.tags, one.record_id) == (["加藤", "泽男"], ["B-PER", "I-PER"], "news.conll:4")
    assert (two.words, two.doc_id) == (["于"], "news.conll#doc1")


def test_ud_style_without_comments_is_detected_by_extension():
    assert read("1\ta\tO\t-\t-\n", source="x.iob2")[0].words == ["a"]
    assert read("1\ta\tO\t-\t-\n", source="x.iob2.gz")[0].words == ["a"]


def test_ud_style_skips_ranges_and_empty_nodes():
    text = "# sent_id = 1\n1-2\tdas\t_\t-\t-\n1\tde\tO\t-\t-\n2\tas\tO\t-\t-\n2.1\t_\t_\t-\t-"
    assert read_words(text) == [["de", "as"]]


def test_ud_style_survives_a_damaged_first_sentence():
    bad, good = read("# sent_id = 1\n1\ta\tO\t-\t-\n2\tb\n\n1\tc\tO\t-\t-")
    assert (bad.reason, bad.source) == ("too_few_columns", "news.conll:3")
    assert good.words == ["c"]


def test_numbers_as_words_are_not_ud_style():
    assert read_words("# a comment\n1\tCD\tO\nMay\tNN\tO\n\n1\tCD\tO") == [["1", "May"], ["1"]]


def test_a_first_sentence_of_the_number_one_waits_for_the_next():
    text = "# newdoc\n# id 5\n1 CD O\n\n# newdoc\n# id 6\nEU NNP B-ORG\nrejects VBZ O"
    one, two = read(text)
    assert (one.words, one.doc_id) == (["1"], "news.conll#doc1")
    assert (two.words, two.doc_id) == (["EU", "rejects"], "news.conll#doc2")
    assert read_words("# id 5\n1\tEU\tB-ORG\n\n# id 6\n1\trejects\tO\n2\tit\tO") == [["EU"], ["rejects", "it"]]
    assert read_words("# id 5\n1\tEU\tB-ORG\n\n# id 6\n1\tsays\tO") == [["EU"], ["says"]]
    assert read_words("# id 5\n1 CD O") == [["1"]]


def test_numbered_words_are_read_without_comments_too():
    assert read_words("1\tEU\tB-ORG\n2\trejects\tO\n\n1\tIt\tO") == [["EU", "rejects"], ["It"]]
    assert read_words("1\tEU\tNNP\tB-ORG\n2\trejects\tVBZ\tO", tag_column=3) == [["EU", "rejects"]]
    for comment in ("", "# text = 1 2\n"):
        assert read_words(f"{comment}1\tCD\tX\tO\n2\tCD\tX\tO", word_column=0) == [["1", "2"]]


def test_words_that_happen_to_be_one_two_three_make_no_file_numbered():
    counted = "1 CD O\n2 CD O\n3 CD O\n\n"
    assert read_words(f"{counted}EU NNP B-ORG\nrejects VBZ O\n") == [["1", "2", "3"], ["EU", "rejects"]]
    assert read_words(f"{counted}1 CD O\n\nEU NNP B-ORG\n") == [["1", "2", "3"], ["1"], ["EU"]]


@pytest.mark.parametrize("comment", ["# sent_id = 1", "# text = Ada", "# newdoc"])
def test_comments_of_ud_number_a_file_of_one_word(comment):
    assert read_words(f"{comment}\n1\tAda\tB-PER\tO\n") == [["Ada"]]
    assert read_words("# id 5\n1 CD O\n") == [["1"]]


def test_damaged_line_of_a_hash_is_no_comment():
    entry = read_one_rejected("#\tNN\nwin\tNN\tO\n")
    assert entry.reason == "ragged_columns"


def test_numbered_words_whose_tags_stand_elsewhere_are_refused():
    with pytest.raises(CorpusError, match="first column numbers the words") as caught:
        read("1\tEU\tNNP\tB-ORG\n2\trejects\tVBZ\tO")
    assert "`word_column`" in caught.value.remedy


def test_a_word_without_its_number_rejects_its_sentence():
    *_, bad = read("1 Ada B-PER\n2 won O\n\n1 Ada B-PER\n2 won O\n\nEU NNP B-ORG")
    assert (bad.reason, bad.source) == ("no_number", "news.conll:7")
    assert "`word_column 0`" in bad.detail


def test_a_damaged_sentence_makes_no_file_numbered():
    bad, good = read("1 CD O\nMay\n\nEU NNP B-ORG")
    assert (bad.reason, good.words) == ("too_few_columns", ["EU"])


def test_comments_with_tabs_are_left_out_and_tokens_kept():
    assert read_words("# id 1f7ac9b8\tdomain=en\nthe _ _ O\nParis _ _ B-LOC") == [["the", "Paris"]]
    germeval = "#\tn-tv.de vom 26.02.2005 [2005-02-26] \n1\tSchartau\tB-PER\tO\n2\tsagte\tO\tO"
    assert read_words(germeval) == [["Schartau", "sagte"]]
    assert read_words("#\tO\nwin\tO") == [["#", "win"]]
    assert read_one_rejected("win\tX\tO\n#\tX").reason == "ragged_columns"
    assert read_one_rejected("#\tO\nwin\tX\tO").reason == "ragged_columns"


def test_lines_that_end_with_cr_alone_are_refused():
    with pytest.raises(CorpusError, match="end with CR alone") as caught:
        read("EU B-ORG\rrejects O\r\rPeter B-PER\r")
    assert (caught.value.where, "tr" in caught.value.remedy) == ("news.conll:1", True)


def test_conllu_without_a_tag_column_is_refused():
    line = "1\tdog\tdog\tNOUN\tNN\t_\t0\troot\t_\tO"
    with pytest.raises(CorpusError, match="no column for entities"):
        read(f"# sent_id = 1\n{line}")
    assert read_words(f"# sent_id = 1\n{line}", tag_column=9) == [["dog"]]


def test_a_line_with_one_column_rejects_its_sentence_alone():
    one, bad, two = read("a O\n\nb O\nbroken\nc O\n\nd O")
    assert (one.words, two.words) == (["a"], ["d"])
    assert (bad.source, bad.record_id, bad.reason) == ("news.conll:4", "news.conll:3", "too_few_columns")
    assert bad.detail == "`broken` has 1 of at least 2 columns"


@pytest.mark.parametrize(
    ("text", "options", "line", "reason"),
    [
        ("a\tO\nb\t", {}, 2, "too_few_columns"),
        ("#comment", {}, 1, "too_few_columns"),
        ("a b O\nc O", {"tag_column": 2}, 2, "too_few_columns"),
        ("a O\nNew York O", {}, 2, "ragged_columns"),
        ("\tO", {}, 1, "empty_word"),
        (" \tO", {}, 1, "empty_word"),
        ("a\tx\tO\nb\t\tO", {"tag_column": 1}, 2, "empty_tag"),
        ("# sent_id = 1\n1\t\tO\t-\t-", {}, 2, "empty_word"),
        ("# sent_id = 1\n1-2\tdas\t_\t-\t-", {}, 2, "no_words"),
    ],
)
def test_bad_lines_are_named(text, options, line, reason):
    source = "x.iob2" if reason == "no_words" else "x.conll"
    (entry,) = read(text, source, **options)
    assert (entry.outcome, entry.source, entry.reason) == ("rejected", f"{source}:{line}", reason)
    assert entry.detail


def test_split_columns_is_by_tab_only_if_columns_agree():
    assert split_columns(["a b\tO", "c\tO"], None) == [["a b", "O"], ["c", "O"]]
    assert split_columns(["a b\tO", "c\td\tO"], None) == [["a", "b", "O"], ["c", "d", "O"]]


def test_looks_like_conll_tells_columns_from_prose():
    assert looks_like_conll(["EU B-ORG", "rejects O", "", "a O"])
    assert looks_like_conll(["# text = x", "1\tx\tO\t-\t-"])
    assert not looks_like_conll(["Angela Merkel visited Utrecht.", "", "It is a city O"])
    assert not looks_like_conll(["", " "])


@pytest.mark.parametrize(
    "lines",
    [
        ["Vitamin B-12", "Vitamin B-6"],
        ["See section B-12", "See section I-3"],
        ["room B-2b"],
        ["Send an E-mail to Bob"],
        ["Nimm die U-Bahn", "Nimm die S-Bahn"],
        ["Blood group O", "Vitamin B-12"],
        ["Everybody has blood of the group O", "No group O", "Group B"],
    ],
)
def test_prose_that_holds_what_looks_like_a_tag_is_no_conll(lines):
    assert not looks_like_conll(lines)


@pytest.mark.parametrize(
    "lines",
    [
        ["[ O", "a O"],
        ["Angela B-PER", "Merkel I-PER"],
        ["中 B-人名", "国 E-人名", "人 S-NN_2"],
        ["vitamin B-0", "B I-0", "is O"],
        ["Vitamin\tB-12", "Vitamin\tB-6"],
        ["EU NNP B-NP B-Org", "rejects VBZ B-VP O", "one line too short O"],
        ["1 EU B-org -", "2 rejects O -"],
    ],
)
def test_columns_between_blanks_are_conll_where_their_tags_are_those_of_a_corpus(lines):
    assert looks_like_conll(lines)


words = st.text(st.characters(exclude_characters="\t\n\r ", exclude_categories=["Cs"]), min_size=1, max_size=8)
tags = st.sampled_from(["O", "B-PER", "I-PER", "B-creative-work"])
sentences = st.lists(st.lists(st.tuples(words, tags), min_size=1, max_size=6), min_size=1, max_size=5)


@given(sentences, st.sampled_from(["\t", " ", "  "]))
def test_round_trip(corpus, delimiter):
    lines = [line for sentence in corpus for line in [*(f"{w}{delimiter}{t}" for w, t in sentence), ""]]
    marked = [line for line in lines if line.startswith(("-DOCSTART-", "#begin document", "#end document"))]
    records = list(read_conll(lines, "x.conll"))
    assert marked or [list(zip(r.words, r.tags, strict=True)) for r in records] == corpus


@given(sentences)
def test_round_trip_of_words_with_spaces(corpus):
    corpus = [[(f"{word} {word}", tag) for word, tag in sentence] for sentence in corpus]
    lines = [line for sentence in corpus for line in [*(f"{w}\t{t}" for w, t in sentence), " \t"]]
    assert [list(zip(r.words, r.tags, strict=True)) for r in read_conll(lines, "x.conll")] == corpus


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_becomes_records_and_entries_that_name_their_line(text):
    lines = text.split("\n")
    for item in read_conll(lines, "x"):
        number = int(item.source.removeprefix("x:"))
        assert 1 <= number <= len(lines)
        assert isinstance(item, Record) or item.reason


@pytest.mark.parametrize(
    ("file", "num_sentences", "num_words"),
    [
        ("wnut17/train.conll", 3394, 62730),
        ("wnut17/dev.conll", 1009, 15733),
        ("wnut17/test.conll", 1287, 23394),
        ("ncbi_disease/train.tsv", 5424, 135701),
        ("ncbi_disease/devel.tsv", 923, 23969),
        ("zh_gsdsimp/train.iob2", 3997, 98616),
        ("zh_gsdsimp/test.iob2", 500, 12012),
    ],
)
def test_real_corpora_are_read_whole(file, num_sentences, num_words):
    path = DATA / file
    if not path.exists():
        pytest.skip(f"{path} is not here")
    ledger, num_read = Ledger(), 0
    for item in read_records(str(path)):
        ledger.add(item)
        num_read += len(item.words)
    assert (ledger.num_kept, ledger.entries, num_read) == (num_sentences, [], num_words)


def test_real_ud_corpus_words_join_to_the_text_of_its_comments():
    path = DATA / "zh_gsdsimp/dev.iob2"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    told = [line[9:] for line in path.read_text("utf-8").split("\n") if line.startswith("# text = ")]
    joined = ["".join(record.words) for record in read_records(str(path))]
    assert [text.replace(" ", "") for text in told] == [text.replace(" ", "") for text in joined]
