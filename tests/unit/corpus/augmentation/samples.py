"""Any records at all, for property tests: all of Unicode, white space, mentions at both ends and side by side."""

from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from pipelines.ner.entities import Span
from pipelines.ner.labels import SCHEMES, read_spans, write_tags

LABELS = ("LOC", "PER", "ORG-x")
PIECES = (
    *("Ada", "lovelace", "München", "İstanbul", "ŉß", "U.S.", "don't", "x", "2018", ",", ".", "@ada_l", "#tag"),
    *("👩‍💻", "🇨🇭🇫🇷", "e\u0301", "\u0301", "\u200d", "שלום", "مرحبا", "नमस्ते", "ไทย", "カナ"),
    *("北", "京", "国家", "發", "，", "ＡＢ", "１", "[MASK]", "[", "MASK", "\x1c", "Ada\x1c", "\ue000"),
)
SPACES = (" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "")
TEXTS = st.one_of(
    st.lists(st.one_of(st.sampled_from(PIECES), st.sampled_from(SPACES)), max_size=14).map("".join),
    st.text(max_size=30),
)


@st.composite
def text_rows(draw: Any) -> dict[str, Any]:
    """Rows of text, with spans as readers leave them: sorted, apart, without white space at their edges."""
    text = draw(TEXTS).encode("utf-8", "replace").decode()
    edges = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    if draw(st.booleans()):
        edges = sorted({0, *edges, len(text)})
    found = []
    for start, end in pairwise(edges):
        mention = text[start:end]
        first = start + len(mention) - len(mention.lstrip())
        last = start + len(mention.rstrip())
        if first < last and draw(st.integers(0, 2)):
            found.append({"start": first, "end": last, "label": draw(st.sampled_from(LABELS))})
    return make_row(text=text, spans=found)


@st.composite
def word_rows(draw: Any) -> dict[str, Any]:
    """Rows of words with tags of any scheme, or with spans; `scheme` says of which."""
    words = draw(st.lists(st.one_of(st.sampled_from(PIECES), st.text(min_size=1, max_size=8)), max_size=12))
    words = [word.encode("utf-8", "replace").decode() for word in words]
    edges = sorted({0, *draw(st.sets(st.integers(0, len(words)), max_size=6)), len(words)})
    spans = [Span(start, end, draw(st.sampled_from(LABELS))) for start, end in pairwise(edges) if draw(st.booleans())]
    scheme = draw(st.sampled_from([*SCHEMES]))
    tags = write_tags(spans, len(words), scheme)
    if draw(st.booleans()):
        return make_row(words=words, tags=tags) | {"scheme": scheme}
    found = [{"start": span.start, "end": span.end, "label": span.label} for span in read_spans(tags, scheme)]
    return make_row(words=words, spans=found) | {"scheme": scheme}


def make_row(**content: Any) -> dict[str, Any]:
    row = {"record_id": "folder/a.jsonl:1", "doc_id": "d", "source": "folder/a.jsonl:1", "split": "train"}
    return row | {"text": None, "words": None, "tags": None, "spans": None, "scheme": "BIO"} | content
