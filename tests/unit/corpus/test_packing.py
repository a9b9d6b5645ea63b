"""Documents to windows: nothing is lost, separators stand between documents alone, mentions are one unit."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.mentions import MentionFinder
from pipelines.corpus.packing import Unit, build_units, pack_documents
from pipelines.ner.units import ENTITY, RARE, SEPARATOR, WORD

SEP = 0
DOCUMENTS = st.lists(
    st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12).map(Unit), min_size=1, max_size=20), max_size=6
)


@given(DOCUMENTS, st.integers(3, 20), st.sampled_from(["joined", "apart"]))
def test_windows_hold_every_sub_token_once_in_order(documents, capacity, packing):
    windows = pack_documents(documents, capacity, SEP, packing)
    found = [token for window in windows for token in window.input_ids if token != SEP]
    assert found == [token for document in documents for unit in document for token in unit.ids]
    for window in windows:
        assert 0 < len(window.input_ids) <= capacity
        assert window.unit_starts[0] == 0
        assert window.unit_starts == sorted(set(window.unit_starts))
        separators = [at for at, kind in zip(window.unit_starts, window.unit_kinds, strict=True) if kind == SEPARATOR]
        assert [at for at, token in enumerate(window.input_ids) if token == SEP] == separators
        assert packing == "joined" or not separators
        assert window.unit_kinds[0] != SEPARATOR != window.unit_kinds[-1]


def test_joined_windows_are_full_but_for_words_that_do_not_fit():
    documents = [[Unit([7]) for _ in range(5)] for _ in range(10)]
    windows = pack_documents(documents, 12, SEP, "joined")
    assert [window.input_ids for window in windows] == [[7] * 5 + [SEP] + [7] * 5] * 5
    assert [window.unit_kinds.count(SEPARATOR) for window in windows] == [1] * 5
    apart = pack_documents(documents, 12, SEP, "apart")
    assert [window.input_ids for window in apart] == [[7] * 5] * 10


def test_words_of_a_mention_are_one_unit_and_sentences_are_told():
    words = ["Ada", "Lovelace", "wrote", ".", "Rarely", "so", "."]
    ids = [[1], [2, 3], [4], [5], [6], [7], [8]]
    units = build_units(words, ids, [(0, 2)], [True, True, False, False, True, False, False])
    assert [list(unit.ids) for unit in units] == [[1, 2, 3], [4], [5], [6], [7], [8]]
    assert [unit.kind for unit in units] == [ENTITY, WORD, WORD, RARE, WORD, WORD]
    assert [unit.begins_sentence for unit in units] == [True, False, False, True, False, False]


def test_a_sentence_ends_with_its_last_word_in_any_script():
    words = ["wrote.", "है।", "غرق؟", "ہے۔", "U.S", "so"]
    units = build_units(words, [[1]] * 6, [], [False] * 6)
    assert [unit.begins_sentence for unit in units] == [True, True, True, True, True, False]


def test_a_line_begins_a_sentence():
    units = build_units(["a", "b"], [[1], [2]], [], [False, False], frozenset({1}))
    assert [unit.begins_sentence for unit in units] == [True, True]


def test_the_longest_name_is_found_in_its_case_and_words():
    finder = MentionFinder(["New York", "New York City", "IT", "O'Brien"], None, "punctuation")
    documents = [["New", "York", "City", "is", "it"], ["O", "'", "Brien", "of", "New", "York"], ["new", "york"], []]
    assert finder.find(documents) == [[(0, 3)], [(0, 3), (4, 6)], [], []]
