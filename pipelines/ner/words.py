"""Raw text to words with character offsets, for scripts with and without spaces between words.

Every non-space character of a text belongs to exactly one word, so no text escapes prediction.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import pairwise

import regex

from pipelines.ner.errors import UserError

MAX_WORD_CHARACTERS = 100
"""Longer words are cut into words of this length: WordPiece reads none of a longer one."""

# Scripts written without spaces: each character (with its combining marks) is a word. Joiners and soft hyphens belong
# to the letter before them, as in Persian and Hindi.
_SCRIPT_NAMES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_SCRIPTS = rf"[{_SCRIPT_NAMES}]"
_EXTENDED = r"[\p{M}\u00ad\u200c\u200d]*"
_UNSPACED = rf"{_SCRIPTS}{_EXTENDED}"
_ALNUM = rf"(?:(?!{_SCRIPTS})[\p{{L}}\p{{N}}]{_EXTENDED})"
# Nothing tells where an address ends within text without spaces: it ends before that text, and its punctuation.
_NOT_IN_ADDRESS = rf"\s<>\"{_SCRIPT_NAMES}\u3000-\u303f\uff00-\uffef"
# Any other user-perceived character, e.g. a punctuation mark or a whole emoji sequence. A mark that Unicode joins to
# the character after it (Arabic number signs) stands alone: that character may be a space, or belong to a word.
# Flags are matched here because `\X` counts all flags before each.
_MARK = r"(?:\p{GCB=Prepend}|\p{RI}{2}[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}]*|\X)"

_PUNCTUATION = regex.compile(rf"{_UNSPACED}|{_ALNUM}+|(?!\s){_MARK}")

_UNICODE = regex.compile(
    rf"""
    (?:https?://|www\.)[^{_NOT_IN_ADDRESS}]*[^{_NOT_IN_ADDRESS}.,;:!?)\]}}'’]   # addresses on the web
  | (?=[^\s@]{{1,64}}@)                                     # e-mail; at most 64 before the @
    (?:{_ALNUM}|[._%+\-])+@(?:{_ALNUM}|-)+(?:\.(?:{_ALNUM}|-)+)+
  | [@\#](?:{_ALNUM}|_)+                                   # handles and hashtags
  | {_UNSPACED}
  | (?:\p{{L}}\.){{2,}}                                     # U.S., e.g.
  | \p{{N}}+(?:[.,:/]\p{{N}}+)+                             # 1,000.50  12:30
  | {_ALNUM}+(?:(?:[\-‐_&]|['’](?!(?:s|t|re|ve|ll|d|m)\b)){_ALNUM}+)*   # Anglo-French, O'Brien; but Obama 's
  | ['’](?:s|t|re|ve|ll|d|m)\b                             # Obama's
  | (?!\s){_MARK}
    """,
    regex.VERBOSE | regex.IGNORECASE,
)
_WHITESPACE = regex.compile(r"\S+")
# The ideographs that BERT sets apart: not quite `\p{Han}`.
_BERT_CJK = (
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf"
    r"\U0002f800-\U0002fa1f"
)
_BERT = regex.compile(rf"[{_BERT_CJK}]|[\p{{P}}$+<=>^`|~]|[^\s{_BERT_CJK}\p{{P}}$+<=>^`|~]+")

_PATTERNS = {"unicode": _UNICODE, "punctuation": _PUNCTUATION, "whitespace": _WHITESPACE, "bert": _BERT}

SPLITTERS = tuple(_PATTERNS)
"""`unicode` keeps hyphenated words, abbreviations, numbers, addresses, handles and hashtags whole, as most corpora of
words do; `punctuation` makes every punctuation mark a word, so that an entity may end anywhere; `whitespace` splits at
spaces; `bert` splits as BERT's own pre-tokenizer does, for checkpoints trained elsewhere."""


class SplitterError(UserError):
    """A word splitter that does not exist."""


def split_words(text: str, splitter: str = "unicode", cuts: Collection[int] = ()) -> list[tuple[int, int]]:
    """The words of `text` as half-open character ranges.

    Args:
        splitter: one of `SPLITTERS`.
        cuts: character positions at which words are split in any case, e.g. the edges of gold entities.
    """
    words = (match.span() for match in get_pattern(splitter).finditer(text))
    ordered = sorted(set(cuts))
    pieces = [piece for start, end in words for piece in _cut(start, end, ordered)] if ordered else list(words)
    if any(end - start > MAX_WORD_CHARACTERS for start, end in pieces):
        pieces = [
            (at, min(at + MAX_WORD_CHARACTERS, end))
            for start, end in pieces
            for at in range(start, end, MAX_WORD_CHARACTERS)
        ]
    return pieces


def split_pieces(word: str, splitter: str) -> list[str]:
    """The pieces that `split_words` makes of one word of a corpus; the word itself where it makes none."""
    if len(word) <= MAX_WORD_CHARACTERS and word.isascii() and word.isalnum():
        return [word]
    return [word[start:end] for start, end in split_words(word, splitter)] or [word]


def get_pattern(splitter: str) -> regex.Pattern[str]:
    """The pattern of a splitter. Raises SplitterError."""
    if splitter not in _PATTERNS:
        raise SplitterError(
            f"no word splitter `{splitter}`",
            rule="one of " + ", ".join(f"`{name}`" for name in SPLITTERS),
            value=splitter,
        )
    return _PATTERNS[splitter]


def _cut(start: int, end: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    inner = cuts[bisect_right(cuts, start) : bisect_left(cuts, end)]
    return list(pairwise([start, *inner, end]))
