"""Words: each non-space character in exactly one word, for any script and any rubbish, in linear time."""

from collections import Counter

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers.models.bert.tokenization_bert_legacy import BasicTokenizer

from pipelines.ner.words import MAX_WORD_CHARACTERS, SPLITTERS, SplitterError, split_pieces, split_words

NASTY = (
    "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "👍🏽", "e\u0301", "\u0301", "\r\n", "\r", "\t", "\u00a0", "\u2028", "\u200b", "\u200d",
    "\u200c", "\ufeff",
        "东京", "とき", "々", "한국어", "ไทย", "עברית", "مرحبا", "\u0600", "\u061c", "हिन्दी",
    "\ud800", "\udfff", "\x00", "\x1c",
    "a", "Z9", "ß", "İ", "'s", "’", "-", "U.S.", "1,000.5", "https://x.y/z?q=1", "a.b@c.de", "@you", "#tag",
    "x" * 120, "\u0301" * 130,
)  # fmt: skip
texts = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=()), max_size=60),
    st.lists(st.one_of(st.sampled_from(NASTY), st.just(" "), st.text(max_size=4)), max_size=15).map("".join),
)
cut_sets = st.sets(st.integers(-2, 140), max_size=6)


@pytest.mark.parametrize("splitter", SPLITTERS)
@given(text=texts, cuts=cut_sets)
@example(text="\u0600 a", cuts=set())  # Unicode joins this mark to a space after it
@example(text=" \u0301", cuts=set())
@example(text="a" * 250, cuts={100, 101})
def test_every_non_space_character_is_in_exactly_one_word(splitter, text, cuts):
    words = split_words(text, splitter, cuts)
    covered = Counter(at for start, end in words for at in range(start, end))
    assert covered == Counter(at for at, character in enumerate(text) if not regex.match(r"\s", character))


@pytest.mark.parametrize("splitter", SPLITTERS)
@given(text=texts, cuts=cut_sets)
def test_words_are_in_order_not_empty_and_not_too_long(splitter, text, cuts):
    words = split_words(text, splitter, cuts)
    assert words == sorted(words)
    assert all(0 < end - start <= MAX_WORD_CHARACTERS for start, end in words)
    assert all(start >= 0 and end <= len(text) for start, end in words)


@pytest.mark.parametrize("splitter", SPLITTERS)
@given(text=texts, cuts=cut_sets)
def test_no_word_crosses_a_cut_and_cuts_only_split(splitter, text, cuts):
    words = split_words(text, splitter, cuts)
    assert not any(start < cut < end for start, end in words for cut in cuts)
    untouched = [word for word in split_words(text, splitter) if not any(word[0] < cut < word[1] for cut in cuts)]
    if regex.search(rf"\S{{{MAX_WORD_CHARACTERS + 1}}}", text) is None:
        assert set(untouched) <= set(words)


@pytest.mark.parametrize("splitter", SPLITTERS)
@given(text=texts)
def test_split_pieces_of_a_word_join_to_its_characters(splitter, text):
    pieces = split_pieces(text, splitter)
    assert pieces
    if text.strip() and len(pieces) > 1:
        assert "".join(pieces) == regex.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("splitter", "text", "words"),
    [
        (
            "unicode",
            "Anglo-French O'Brien's 1,000.50 U.S. AT&T",
            ["Anglo-French", "O'Brien", "'s", "1,000.50", "U.S.", "AT&T"],
        ),
        (
            "unicode",
            "see https://a.b/c?d=1, or a.b+c@d-e.org.",
            ["see", "https://a.b/c?d=1", ",", "or", "a.b+c@d-e.org", "."],
        ),
        ("unicode", "@you #tag 东京 とき", ["@you", "#tag", "东", "京", "と", "き"]),
        ("unicode", "#हिन्दी @e\u0301te\u0301, हि.न्दी@भा.रत", ["#हिन्दी", "@e\u0301te\u0301", ",", "हि.न्दी@भा.रत"]),
        ("unicode", "#奥运会#李四@张三", ["#", "奥", "运", "会", "#", "李", "四", "@", "张", "三"]),
        ("unicode", "问张三z@a.com谢谢", ["问", "张", "三", "z@a.com", "谢", "谢"]),
        ("unicode", "见https://t.cn/a，李四。", ["见", "https://t.cn/a", "，", "李", "四", "。"]),
        ("unicode", "ดูwww.a.thครับ", ["ดู", "www.a.th", "ค", "รั", "บ"]),
        ("unicode", "👩‍👩‍👧!👍🏽", ["👩‍👩‍👧", "!", "👍🏽"]),
        ("unicode", "cafe\u0301 naïve", ["cafe\u0301", "naïve"]),
        ("punctuation", "Anglo-French U.S.", ["Anglo", "-", "French", "U", ".", "S", "."]),
        ("punctuation", "(\u0600123)", ["(", "\u0600", "123", ")"]),
        ("whitespace", "Anglo-French\r\nU.S. 东京", ["Anglo-French", "U.S.", "东京"]),
        ("bert", "Anglo-French_x 东京 👍🏽a", ["Anglo", "-", "French", "_", "x", "东", "京", "👍🏽a"]),
    ],
)
def test_splitter_by_example(splitter, text, words):
    assert [text[start:end] for start, end in split_words(text, splitter)] == words


ORDINARY = (
    "Angela Merkel visited Utrecht on 3 May 2015 (a Sunday), didn't she?",
    "Société Générale S.A. lost €4.9bn; l'Allemagne — « oui » — non…",
    "U.S. GDP rose 2.5%: see https://example.org/a_b?c=1&d=[2] or mail x@y.z <ok> ~`^|=+$",
    "东京和New York之间，佐々木さんは「時々」笑う。ソニー株式会社",
    "여기는 서울입니다. Привет, мир! שלום עולם; مرحبا، عالم؟",
    "हिन्दी में लिखा। ไทย\u00a0ก\u3000全角　スペース\tTab\r\nline",
    "naïve café e\u0301 Straße ﬁne ½ № 1.000,5 → ☃ 👍🏽 ₿ © ™",
)


def bert_words(text):
    normalizer = BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False)
    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text))]


@pytest.mark.parametrize("text", ORDINARY)
def test_bert_splitter_equals_the_tokenizers_of_bert_on_ordinary_text(text):
    found = [text[start:end] for start, end in split_words(text, "bert")]
    assert found == bert_words(text)
    basic = BasicTokenizer(do_lower_case=False, strip_accents=False)
    assert found == [regex.sub("[\ufeff]", "", word) for word in basic.tokenize(text)] or "\u0301" in text


@given(
    st.text(
        alphabet=st.characters(
            codec="utf-8", max_codepoint=0xFFFF, exclude_categories=("Cc", "Cf", "Co", "Cn", "Po", "Ps", "Pe", "Pd")
        ),
        max_size=30,
    )
)
def test_bert_splitter_equals_the_pre_tokenizer_of_bert_without_rare_punctuation(text):
    text = text.replace("\ufffd", "").replace("\u166d", "")  # rare: a symbol and a character that BERT drops
    assert [text[start:end] for start, end in split_words(text, "bert")] == bert_words(text)


RUNS = (
    "_", "-", ".", "a+", "a.", "1,", "x", "'", "@", "a@", "www.", "http://", "\u0301", "京", "👍", "🇩",
    "a\u0301@", "#京", "http://京",
)  # fmt: skip


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("unit", RUNS)
@pytest.mark.timeout(60)
def test_a_very_long_run_without_spaces_is_split_in_linear_time(splitter, unit):
    text = unit * (100_000 // len(unit))
    words = split_words(text, splitter)
    assert sum(end - start for start, end in words) == len(text)


def test_many_cuts_are_quick_and_all_respected():
    text = "word " * 10_000
    words = split_words(text, "unicode", range(0, len(text), 2))
    assert all(end - start <= 2 for start, end in words)
    assert sum(end - start for start, end in words) == 40_000


@pytest.mark.parametrize("text", ["", " ", "\r\n\t\u00a0\u3000"])
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_text_without_words_has_none(splitter, text):
    assert split_words(text, splitter) == []


def test_unknown_splitter_is_refused_with_the_known_ones():
    with pytest.raises(SplitterError, match="no word splitter `spaces`") as caught:
        split_words("a", "spaces")
    assert all(name in caught.value.rule for name in SPLITTERS)
