"""Encoding: windows cover all sub-tokens, own each word once, and equal what the tokenizer gives for sentences."""

import contextlib
import itertools
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, RobertaTokenizerFast

from pipelines.ner import encoding
from pipelines.ner.encoders import EncoderError, find_encoder, load_tokenizer
from pipelines.ner.encoding import Encoder, EncodingError, fingerprint_tokenizer, pad, plan_batches, plan_windows
from pipelines.ner.words import split_words

SAMPLE = Path(encoding.__file__).parents[1] / "sample"
TEXTS = [json.loads(line)["text"] for line in itertools.islice((SAMPLE / "en-dev.jsonl").open(encoding="utf-8"), 40)]


@st.composite
def layouts(draw):
    capacity = draw(st.integers(2, 40))
    stride = draw(st.integers(0, capacity // 2))
    lengths = draw(st.lists(st.integers(1, capacity), max_size=60))
    return [0, *itertools.accumulate(lengths)], capacity, stride


@given(layouts())
def test_plan_windows_owns_each_unit_once_in_order_inside_its_slice(layout):
    ends, capacity, stride = layout
    slices = plan_windows(ends, capacity, stride)
    assert [unit for *_, first, last in slices for unit in range(first, last)] == list(range(len(ends) - 1))
    assert all(first <= owned <= owned_end <= last for first, last, owned, owned_end in slices)


@given(layouts())
def test_plan_windows_keeps_to_the_capacity_leaves_no_gap_and_always_moves_on(layout):
    ends, capacity, stride = layout
    slices = plan_windows(ends, capacity, stride)
    assert all(0 < ends[last] - ends[first] <= capacity for first, last, *_ in slices)
    for (first, last, *_), (next_first, next_last, *_) in itertools.pairwise(slices):
        assert first < next_first <= last < next_last
    if slices:
        assert slices[0][0] == 0
        assert slices[-1][1] == len(ends) - 1


@given(layouts())
def test_plan_windows_overlaps_by_as_much_of_the_stride_as_whole_units_allow(layout):
    ends, capacity, stride = layout
    slices = plan_windows(ends, capacity, stride)
    for (_, last, *_), (next_first, next_last, *_) in itertools.pairwise(slices):
        one_more = ends[last] - ends[next_first - 1]
        assert one_more > stride or one_more + ends[last + 1] - ends[last] > capacity or next_last == len(ends) - 1
        if next_last < len(ends) - 1:
            assert ends[last] - ends[next_first] <= stride


@given(layouts())
def test_plan_windows_uses_one_window_if_all_fits(layout):
    ends, capacity, stride = layout
    if 0 < ends[-1] <= capacity:
        assert plan_windows(ends, capacity, stride) == [(0, len(ends) - 1, 0, len(ends) - 1)]
    assert (len(plan_windows(ends, capacity, stride)) > 1) == (ends[-1] > capacity)


@given(layouts())
def test_plan_windows_gives_a_unit_to_the_neighbour_with_more_context(layout):
    ends, capacity, stride = layout
    slices = plan_windows(ends, capacity, stride)
    for i, ((first, last, owned, owned_end), (next_first, _, _, next_end)) in enumerate(itertools.pairwise(slices)):
        for unit in range(max(first, next_first), last):
            right_here, left_there = ends[last] - ends[unit + 1], ends[unit] - ends[next_first]
            if owned <= unit < owned_end:
                assert right_here >= left_there
            elif owned_end <= unit < next_end:
                assert left_there > right_here or any(a <= unit < b for *_, a, b in slices[:i])


def test_plan_windows_has_no_slice_for_no_units():
    assert plan_windows([0], 10, 5) == []


def test_plan_windows_adds_no_window_that_reads_nothing_new_around_a_long_unit():
    ends = [0, *range(1, 28), 27 + 30, *range(58, 100)]
    slices = plan_windows(ends, 30, 15)
    assert len(slices) <= 6


@pytest.fixture(scope="module")
def tiny(tiny_encoder):
    return load_tokenizer(tiny_encoder)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A RoBERTa-like tokenizer folder, whose own setting puts no space before the first word."""
    folder = tmp_path_factory.mktemp("roberta")
    learner = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learner.train_from_iterator(
        TEXTS * 3, vocab_size=1200, min_frequency=2, special_tokens=specials, show_progress=False
    )
    learner.save_model(str(folder))
    RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=64).save_pretrained(
        folder
    )
    return folder


def build(tokenizer, window=32, stride=8, splitter="punctuation"):
    return Encoder(tokenizer, window=window, stride=stride, splitter=splitter)


def strip_specials(encoder, document):
    """The windows' sub-tokens without the special ones."""
    first, last = len(encoder.prefix), len(encoder.suffix)
    return [window.input_ids[first : len(window.input_ids) - last] for window in document.windows]


WORDS = st.lists(
    st.one_of(
        st.sampled_from(
            ["Angela", "Merkel", "visited", "Utrecht", ".", "东", "\u200d", "\ud800", "", " ", "x" * 90, "zqj" * 40]
        ),
        st.text(alphabet=st.characters(exclude_categories=()), max_size=12),
    ),
    max_size=50,
)


@given(words=WORDS, window=st.integers(4, 40), data=st.data())
def test_every_word_has_one_start_at_its_own_first_sub_token_and_no_sub_token_is_lost(tiny, words, window, data):
    encoder = build(tiny, window, data.draw(st.integers(0, (window - 2) // 2)))
    document = encoder.encode_pieces(words)
    expected = [token for word in words for token in encoder.tokenize([word])[0]]
    assert sum(len(w.word_starts) for w in document.windows) == len(words)
    assert document.num_tokens == document.num_tokens_read == len(expected)
    firsts = [encoder.tokenize([piece])[0][0] for piece in words]
    assert [w.input_ids[at] for w in document.windows for at in w.word_starts] == firsts
    assert all(len(w.input_ids) <= window for w in document.windows)
    bodies = strip_specials(encoder, document)
    reached = {0}  # each window's body is a slice of the document that leaves no gap to the one before
    for body in bodies:
        begins = [i for i in range(len(expected)) if expected[i : i + len(body)] == body]
        reached = {i + len(body) for i in begins if any(i <= end < i + len(body) for end in reached)}
    assert len(expected) in reached
    assert [w.starts_document for w in document.windows] == [i == 0 for i in range(len(bodies))]
    assert [w.ends_document for w in document.windows] == [i == len(bodies) - 1 for i in range(len(bodies))]


@given(words=WORDS)
def test_encode_words_gives_a_word_one_start_however_many_pieces_it_has(tiny, words):
    encoder = build(tiny)
    assert sum(len(window.word_starts) for window in encoder.encode_words(words).windows) == len(words)


@pytest.mark.parametrize("word", ["", " ", "\u200b", "\x00", "\ufeff"])
def test_a_word_that_maps_to_no_sub_token_still_gets_a_start(tiny, word):
    encoder = build(tiny)
    document = encoder.encode_words(["Angela", word, "Merkel"])
    (window,) = document.windows
    assert len(window.word_starts) == 3
    assert window.input_ids[window.word_starts[1]] == encoder.unknown_id


def test_a_word_with_more_sub_tokens_than_a_window_spans_windows_with_one_start(tiny):
    encoder = build(tiny, window=8, stride=2)
    word = "zqjxv" * 18
    num_tokens = encoder.count_tokens([word])
    assert num_tokens > encoder.capacity * 2
    document = encoder.encode_words(["Angela", word, "Merkel"])
    assert sum(len(window.word_starts) for window in document.windows) == 3
    assert document.num_tokens_read == document.num_tokens == num_tokens + encoder.count_tokens(["Angela", "Merkel"])


def test_an_empty_document_has_no_windows(tiny):
    document = build(tiny).encode_words([])
    assert (document.windows, document.num_tokens, document.num_tokens_read) == ([], 0, 0)


def test_a_word_has_the_same_sub_tokens_wherever_it_stands(tiny, byte_level):
    for tokenizer in (tiny, load_tokenizer(str(byte_level))):
        encoder = build(tokenizer)
        (first,) = encoder.encode_words(["Utrecht", "is", "Utrecht"]).windows
        length = encoder.count_tokens(["Utrecht"])
        a, _, b = first.word_starts
        assert first.input_ids[a : a + length] == first.input_ids[b : b + length]


def test_byte_level_tokenizer_is_read_with_a_space_before_each_word(byte_level):
    encoder = build(load_tokenizer(str(byte_level)), window=64, splitter="whitespace")
    spaced = AutoTokenizer.from_pretrained(byte_level, add_prefix_space=True)
    for text in TEXTS[:20]:
        words = text.split()[:15]
        (window,) = encoder.encode_words(words).windows
        assert window.input_ids == spaced(" " + " ".join(words))["input_ids"]
        assert all(spaced.convert_ids_to_tokens(window.input_ids[at]).startswith("Ġ") for at in window.word_starts)


def test_byte_level_tokenizer_keeps_its_space_when_saved_again(byte_level, tmp_path):
    tokenizer = load_tokenizer(str(byte_level))
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint_tokenizer(load_tokenizer(str(tmp_path))) == fingerprint_tokenizer(tokenizer)


def test_a_sentence_has_the_input_ids_that_the_tokenizer_gives_for_its_words(tiny):
    tokenizers = [tiny]
    with contextlib.suppress(EncoderError):  # where the extra is not installed
        tokenizers.append(load_tokenizer(find_encoder("all-MiniLM-L6-v2")))
    for tokenizer in tokenizers:
        expect = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
        encoder = build(tokenizer, window=256, stride=64)
        for text in TEXTS:
            words = [text[start:end] for start, end in split_words(text, "punctuation")]
            (window,) = encoder.encode_words(words).windows
            encoding = expect(words, is_split_into_words=True)
            assert window.input_ids == encoding["input_ids"]
            ids = encoding.word_ids()
            assert window.word_starts == [ids.index(word) for word in range(len(words))]


def test_count_tokens_equals_the_encoded_document(tiny):
    encoder = build(tiny)
    for text in TEXTS:
        pieces = [text[start:end] for start, end in split_words(text, "punctuation")]
        assert encoder.count_tokens(pieces) == encoder.encode_pieces(pieces).num_tokens


def test_the_cache_stays_bounded_and_threads_do_not_disturb_each_other(tiny, monkeypatch):
    monkeypatch.setattr(encoding, "CACHE_SIZE", 20)
    encoder = build(tiny)
    pieces = [f"{a}{b}" for a in "abcdefgh" for b in range(10)]
    expected = build(tiny).encode_pieces(pieces)
    results = []
    threads = [threading.Thread(target=lambda: results.append(encoder.encode_pieces(pieces))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4
    for piece in pieces:
        encoder.count_tokens([f"{piece}z"])
    assert len(encoder._cache) <= 21


@given(lengths=st.lists(st.integers(1, 300), max_size=60), budget=st.integers(1, 1000))
def test_plan_batches_holds_each_item_once_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)


@given(lengths=st.lists(st.integers(1, 300), max_size=60), budget=st.integers(1, 1000))
def test_plan_batches_are_full_and_longest_first(lengths, budget):
    batches = plan_batches(lengths, budget)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, top in zip(batches[:-1], longest, strict=False):
        assert top * (len(batch) + 1) > budget


def test_pad_fills_to_the_longest_and_has_at_least_one_column():
    assert pad([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
    assert pad([[], []], 9).tolist() == [[9], [9]]


@pytest.mark.parametrize("window", [0, 1, 2, 3])
def test_a_window_with_no_room_beside_the_special_tokens_is_refused(tiny, window):
    with pytest.raises(EncodingError, match="no room for words") as caught:
        build(tiny, window, 0)
    assert f"window {window}" in str(caught.value)
    assert "--encoding.window" in caught.value.remedy


@pytest.mark.parametrize("stride", [-1, 16, 30, 500])
def test_a_stride_that_does_not_fit_is_refused(tiny, stride):
    with pytest.raises(EncodingError, match="stride does not fit") as caught:
        build(tiny, 32, stride)
    assert f"stride {stride}" in str(caught.value)
    assert "15" in caught.value.rule


def test_the_smallest_window_and_the_largest_stride_work(tiny):
    assert build(tiny, 4, 1).encode_words(["Angela", "Merkel", "visited"]).num_tokens >= 3


def test_fingerprint_tells_tokenizers_apart_and_ignores_truncation(tiny, tiny_encoder, byte_level):
    again = AutoTokenizer.from_pretrained(tiny_encoder)
    again("a b c", truncation=True, max_length=3, padding="max_length")
    assert fingerprint_tokenizer(again) == fingerprint_tokenizer(tiny)
    assert fingerprint_tokenizer(load_tokenizer(str(byte_level))) != fingerprint_tokenizer(tiny)


def test_words_as_long_as_documents_are_not_kept(tiny_encoder):
    encoder = Encoder(load_tokenizer(tiny_encoder), window=32, stride=8, splitter="punctuation")
    long = "ab" * 5000
    first = encoder.encode_pieces(["Ada", long, "Ada"])
    assert encoder.encode_pieces(["Ada", long, "Ada"]) == first
    assert first.num_tokens_read == first.num_tokens > 2
    assert set(encoder._cache) == {"Ada"}
