"""The engine: exact offsets on any text, the same answer however it is asked, whole entities across window seams.

And the answers of the transformers pipeline, where that one is legal.
"""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import regex
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    pipeline,
)

from pipelines.ner.bundle import Bundle, BundleInfo
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.engine import EngineError, NerEngine, _group, find_device
from pipelines.ner.entities import Coverage, Prediction
from pipelines.ner.labels import LabelScheme, count_illegal_tags, read_spans
from pipelines.ner.model import ModelConfig, build_token_classifier
from pipelines.ner.runtimes.runtime import release_memory
from pipelines.ner.streams import EmissionsError
from pipelines.ner.words import split_pieces, split_words
from tests.conftest import EXACT, SAMPLE, make_bundle

NASTY = (
    "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "e\u0301", "\u0301", "\r\n", "\u00a0", "\u2028", "\u200b", "\u200d", "\ufeff", "东京",
    "とき",
    "ไทย", "שלום", "\u202eمرحبا\u202c", "\u0600 ", "\ud800", "\udfff", "\x00", "\x1c", "Angela", "Merkel",
    "U.S.", "#x", "y" * 130,
)  # fmt: skip
texts = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=()), max_size=40),
    st.lists(st.one_of(st.sampled_from(NASTY), st.just(" "), st.text(max_size=3)), max_size=20).map("".join),
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_texts(name, count):
    with (SAMPLE / name).open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in itertools.islice(lines, count)]


TEXTS = [*read_texts("en-dev.jsonl", 12), *read_texts("zh-dev.jsonl", 6)]


@pytest.fixture(scope="module")
def engine(tiny_bundle):
    return NerEngine.load(tiny_bundle, **EXACT)


def places(prediction):
    return [(e.start, e.end, e.label) for e in prediction.entities]


def assert_same(found, expected):
    """Equal entities; scores up to the rounding of another batch."""
    assert [places(p) for p in found] == [places(p) for p in expected]
    assert [p.coverage for p in found] == [p.coverage for p in expected]
    for a, b in zip(found, expected, strict=True):
        assert [e.score for e in a.entities] == pytest.approx([e.score for e in b.entities], abs=1e-3)


@quick
@given(text=texts)
@example(text="\ud83d\ude00 \udc00Angela\r\nMerkel e\u0301")
def test_entities_are_exact_slices_in_order_disjoint_with_probabilities(engine, text):
    (prediction,) = engine.predict([text])
    for entity in prediction.entities:
        assert 0 <= entity.start < entity.end <= len(text)
        assert text[entity.start : entity.end] == entity.text
        assert regex.search(r"^\s|\s$", entity.text) is None
        assert 0 <= entity.score <= 1
        assert entity.label in ("PER", "ORG", "LOC", "MISC")
    assert all(a.end <= b.start for a, b in itertools.pairwise(prediction.entities))


@quick
@given(text=texts)
def test_every_sub_token_is_read(engine, text):
    (prediction,) = engine.predict([text])
    coverage = prediction.coverage
    assert coverage.fraction == 1.0
    assert coverage.num_characters == len(text)
    assert coverage.num_words == len(split_words(text, engine.encoder.splitter))
    assert coverage.num_tokens == engine.count_tokens(text)
    assert (coverage.num_windows == 0) == (coverage.num_words == 0)


def test_the_model_of_these_tests_finds_entities(engine):
    counts = [len(prediction.entities) for prediction in engine.predict(TEXTS)]
    assert sum(count > 0 for count in counts) > len(TEXTS) / 2
    assert any(prediction.coverage.num_windows > 1 for prediction in engine.predict(TEXTS))


@pytest.mark.parametrize("text", ["", " ", "\r\n\t\u00a0\u3000\u2028"])
def test_a_text_without_words_has_no_entities_and_is_wholly_covered(engine, text):
    assert engine.predict([text]) == [Prediction([], Coverage(len(text), 0, 0, 0, 1.0))]


def test_no_texts_and_no_words_give_no_answers(engine):
    assert engine.predict([]) == []
    assert engine.predict_words([]) == []
    assert engine.predict_words([[], ["Angela"], []])[::2] == [[], []]


@quick
@given(text=texts)
def test_predict_equals_predict_words_on_the_words_of_the_text(engine, text):
    ranges = split_words(text, engine.encoder.splitter)
    words = [text[start:end] for start, end in ranges]
    if any(split_pieces(word, engine.encoder.splitter) != [word] for word in words):
        return  # a word cut at its hundredth character reads differently by itself
    (prediction,) = engine.predict([text])
    (spans,) = engine.predict_words([words])
    assert places(prediction) == [(ranges[s.start][0], ranges[s.end - 1][1], s.label) for s in spans]
    assert [e.score for e in prediction.entities] == pytest.approx([s.score for s in spans], abs=1e-9)


def test_predict_documents_takes_texts_and_words_mixed(engine):
    words = TEXTS[1].split()
    by_text, by_words, by_text_again = engine.predict_documents([TEXTS[0], words, TEXTS[2]])
    singles = engine.predict([TEXTS[0], TEXTS[2]])
    assert [[(s.start, s.end, s.label) for s in spans] for spans in (by_text, by_text_again)] == [
        places(p) for p in singles
    ]
    assert [(s.start, s.end) for s in by_words] == [(s.start, s.end) for s in engine.predict_words([words])[0]]


def test_batch_composition_and_order_do_not_change_an_answer(engine):
    mixed = [*TEXTS, "", TEXTS[0] * 5, "x"]
    together = engine.predict(mixed)
    assert_same([engine.predict([text])[0] for text in mixed], together)
    assert_same(engine.predict(mixed[::-1])[::-1], together)


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 1_000_000])
def test_the_token_budget_does_not_change_an_answer(tiny_bundle, engine, max_batch_tokens):
    other = NerEngine.load(tiny_bundle, **EXACT, max_batch_tokens=max_batch_tokens)
    assert_same(other.predict(TEXTS), engine.predict(TEXTS))


def test_groups_of_documents_do_not_change_an_answer(engine, monkeypatch):
    whole = engine.predict(TEXTS)
    monkeypatch.setattr(engine.runtime, "group_tokens", 50)
    assert_same(engine.predict(TEXTS), whole)


def test_a_document_of_50_000_characters_is_read_to_its_end(tiny_encoder, tmp_path):
    long_engine = NerEngine.load(make_bundle(tiny_encoder, tmp_path / "bundle", window=256, stride=64), **EXACT)
    text = " ".join(itertools.islice(itertools.cycle(TEXTS), 2_000))[:50_000]
    (prediction,) = long_engine.predict([text])
    assert prediction.coverage.fraction == 1.0
    assert prediction.coverage.num_windows > 40
    assert prediction.entities[-1].end > 49_000
    assert all(text[e.start : e.end] == e.text for e in prediction.entities)


def test_a_word_of_300_000_characters_is_read_to_its_end(tiny_encoder, tmp_path):
    long_engine = NerEngine.load(make_bundle(tiny_encoder, tmp_path / "bundle", window=256, stride=64), **EXACT)
    text = "Angela " + "visited" * 42_857 + " Merkel"
    (prediction,) = long_engine.predict([text])
    assert prediction.coverage.fraction == 1.0
    assert prediction.coverage.num_words == 2 + 3_000
    assert prediction.coverage.num_tokens == long_engine.count_tokens(text) > 3_000
    assert all(text[e.start : e.end] == e.text for e in prediction.entities)


# A model that decides by each word alone: its layers add nothing, so that a token's state is its own embedding.
ENTITY = ("Angela", "Merkel", "Utrecht")


@pytest.fixture(scope="module")
def context_free(tiny_encoder):
    """Bundle by (head, window, stride): B-PER for the first word of ENTITY, I-PER for the others, O for all else."""
    scheme = LabelScheme.from_labels(["PER"])
    tokenizer = load_tokenizer(tiny_encoder)
    torch.manual_seed(0)
    model = build_token_classifier(tiny_encoder, scheme, ModelConfig()).eval()
    first = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ENTITY]
    assert len(set(first)) == 3
    with torch.no_grad():
        body = model.network.bert
        body.embeddings.position_embeddings.weight.zero_()
        for layer in body.encoder.layer:
            for dense in (layer.attention.output.dense, layer.output.dense):
                dense.weight.zero_()
                dense.bias.zero_()
        everything = torch.arange(len(tokenizer))[:, None]
        states = body(input_ids=everything, attention_mask=torch.ones_like(everything)).last_hidden_state[:, 0]
        directions = states[first] - states.mean(dim=0)
        weight = torch.zeros(3, states.shape[1])
        tags = [scheme.ids[tag] for tag in ("B-PER", "I-PER", "I-PER")]
        for direction, tag in zip(directions, tags, strict=True):
            weight[tag] += direction
        scores = (states - states.mean(dim=0)) @ weight.T
        model.network.classifier.weight.copy_(weight)
        model.network.classifier.bias.copy_(-(states.mean(dim=0) @ weight.T))
        own = scores[first, tags]
        others = torch.ones(len(tokenizer), dtype=torch.bool)
        others[first] = False
        threshold = (own.min() + scores[others][:, 1:].max()) / 2
        assert own.min() > scores[others][:, 1:].max()
        model.network.classifier.bias[0] += threshold

    def build(window, stride):
        encoder = Encoder(tokenizer, window=window, stride=stride, splitter="punctuation")
        return NerEngine(Bundle(model, encoder, BundleInfo("BIO", "linear", "punctuation", window, stride)), **EXACT)

    return build


@pytest.mark.parametrize(("window", "stride"), [(32, 8), (16, 7), (16, 0), (8, 3), (5, 1)])
def test_an_entity_is_found_as_one_wherever_it_lies_on_a_window_seam(context_free, window, stride):
    seam_engine = context_free(window, stride)
    entity = " ".join(ENTITY)
    documents = ["the " * before + entity + " the" * (3 * window) for before in range(3 * window)]
    for before, prediction in enumerate(seam_engine.predict(documents)):
        assert prediction.coverage.num_windows > 1
        assert [(e.text, e.start, e.label) for e in prediction.entities] == [(entity, 4 * before, "PER")]


def test_an_entity_longer_than_a_window_stays_one(context_free):
    long_engine = context_free(8, 2)
    text = "the Angela " + "Merkel " * 40 + "the"
    (prediction,) = long_engine.predict([text])
    assert [e.text for e in prediction.entities] == [text[4:-4]]


def test_lone_surrogates_between_the_words_of_a_text_do_not_move_offsets(context_free):
    text = "\ud800 the 👍🏽 Angela Merkel\udc00 the"
    (prediction,) = context_free(32, 8).predict([text])
    assert [(e.text, e.start) for e in prediction.entities] == [("Angela Merkel", 9)]


def test_reduced_precision_rounds_emissions_but_not_the_learned_chain(tiny_encoder, tmp_path):
    folder = make_bundle(tiny_encoder, tmp_path / "bundle", head="crf")
    exact, rounded = (NerEngine.load(folder, **EXACT | {"precision": precision}) for precision in ("fp32", "bf16"))
    assert torch.equal(exact.decoder.chain.transitions_KK, rounded.decoder.chain.transitions_KK)
    assert rounded.runtime.network.classifier.weight.dtype == torch.bfloat16
    documents = [exact.encoder.encode_words(TEXTS[0].split())]
    a, b = exact.compute_emissions(documents)[0], rounded.compute_emissions(documents)[0]
    assert a.dtype == b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert (a - b).abs().max() < 0.1 * a.abs().max()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("precision", "int3"),
        ("runtime", "tpu"),
        *(("device", name) for name in ("gpu", "mps", "meta", "xpu", "cpu:9", "cuda:x", "", "cuda:99")),
    ],
)
def test_a_device_or_precision_that_is_not_there_is_told(tiny_bundle, option, value):
    with pytest.raises(EngineError) as caught:
        NerEngine.load(tiny_bundle, **{option: value})
    assert value in str(caught.value)


def test_a_cuda_device_beyond_the_last_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (find_device("cuda:1").index, find_device("auto").type) == (1, "cuda")
    with pytest.raises(EngineError, match="no CUDA device 2") as caught:
        find_device("cuda:2")
    assert caught.value.rule == "2 of them are here"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("precision", "told"), [("fp16", "overflows in fp16"), ("fp32", "computes no numbers")])
def test_emissions_that_are_no_numbers_are_refused_not_decoded(tiny_bundle, value, precision, told):
    engine = NerEngine.load(tiny_bundle, **EXACT)
    compute = engine.runtime.compute

    def overflow(windows):
        emissions_WK = compute(windows).clone()
        emissions_WK[-1, 0] = value
        return emissions_WK

    engine.runtime.compute, engine.runtime.precision = overflow, precision
    with pytest.raises(EmissionsError, match=told):
        engine.predict(TEXTS)
    text = engine.prepare(TEXTS[0])
    with pytest.raises(EmissionsError):
        engine.compute(text.document.windows)


# Checkpoints made elsewhere.


def save_checkpoint(tiny_encoder, folder, tags, seed=0, outside=0.0):
    """A plain Hugging Face checkpoint with a random head and a bias towards O."""
    torch.manual_seed(seed)
    scheme = LabelScheme("BIO", tuple(tags))
    network = build_token_classifier(tiny_encoder, scheme, ModelConfig()).network
    with torch.no_grad():
        network.classifier.weight.mul_(60)
        network.classifier.bias[tags.index("O")] += outside
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    return folder


BIO_TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_entities_equal_the_transformers_pipeline_wherever_its_tags_are_legal(tiny_encoder, tmp_path):
    folder = save_checkpoint(tiny_encoder, tmp_path / "hf", BIO_TAGS, outside=9.0)
    ours = NerEngine.load(folder, **EXACT)
    theirs = pipeline("token-classification", model=str(folder), aggregation_strategy="first", device="cpu")
    documents = [*read_texts("en-train.jsonl", 120), *read_texts("zh-train.jsonl", 40)]
    clauses = [clause.strip() for text in documents for clause in text.replace("，", ",").split(",") if clause.strip()]
    predictions = ours.predict(clauses)
    encoded = [ours.encoder.encode_pieces([text[a:b] for a, b in split_words(text, "bert")]) for text in clauses]
    emissions = ours.compute_emissions(encoded)
    num_legal = num_illegal = num_entities = num_differ = 0
    for text, prediction, scores in zip(clauses, predictions, emissions, strict=True):
        assert prediction.coverage.num_windows == 1
        tags = [BIO_TAGS[tag] for tag in scores.argmax(dim=1).tolist()]
        expected = [(e["start"], e["end"], e["entity_group"]) for e in theirs(text)]
        if count_illegal_tags(tags, "BIO") == 0:
            num_legal += 1
            num_entities += len(expected)
            assert places(prediction) == expected
        else:
            num_illegal += 1
            num_differ += places(prediction) != expected
            words = split_words(text, "bert")
            assert expected == [(words[s.start][0], words[s.end - 1][1], s.label) for s in read_spans(tags)]
    assert num_legal > 30
    assert num_entities > 30
    assert 0 < num_differ <= num_illegal


TAG_SETS = {
    "BIOES": ["O", *(f"{p}-{label}" for label in ("LOC", "PER") for p in "BIES")],
    "BILOU": ["U-PER", "L-PER", "O", "I-PER", "B-PER"],
    "BMES": ["B-PER", "M-PER", "E-PER", "S-PER", "O"],
    "IO": ["PER", "O", "LOC"],
    "IOB1": ["B-LOC", "I-LOC", "I-PER", "O"],
}


@pytest.mark.parametrize("scheme", TAG_SETS)
def test_a_checkpoint_in_another_scheme_gives_whole_legal_entities(tiny_encoder, tmp_path, scheme):
    tags = TAG_SETS[scheme]
    ours = NerEngine.load(save_checkpoint(tiny_encoder, tmp_path / "hf", tags), **EXACT)
    assert ours.scheme == LabelScheme(scheme, tuple(tags))
    sentences = [text.split() for text in TEXTS[:12]]
    found = ours.predict_words(sentences)
    labels = set()
    for words, spans in zip(sentences, found, strict=True):
        assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
        labels.update(span.label for span in spans)
        written = ours.scheme.to_tags(spans, len(words)) if scheme != "IOB1" else []
        assert count_illegal_tags(written, scheme) == 0
    assert labels <= {"PER", "LOC"}
    assert any(span.end - span.start > 1 for spans in found for span in spans)


def test_whole_entities_come_from_a_biose_checkpoint_that_tags_them_plainly(context_free, tiny_encoder, tmp_path):
    plain = context_free(32, 8)
    source = plain.runtime.network
    tags = ["O", "B-PER", "I-PER", "E-PER", "S-PER"]
    config = BertConfig.from_pretrained(
        tiny_encoder, id2label=dict(enumerate(tags)), label2id={t: i for i, t in enumerate(tags)}
    )
    network = BertForTokenClassification(config)
    network.bert.load_state_dict(source.bert.state_dict())
    with torch.no_grad():
        rows = [0, 1, 2, 2, 1]  # E as I, S as B: only legality tells them apart
        network.classifier.weight.copy_(source.classifier.weight[rows])
        network.classifier.bias.copy_(source.classifier.bias[rows])
    network.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path)
    ours = NerEngine.load(tmp_path, **EXACT)
    text = "the Angela Merkel the Angela the Angela Merkel Utrecht the"
    assert [e.text for e in ours.predict([text])[0].entities] == ["Angela Merkel", "Angela", "Angela Merkel Utrecht"]


def test_iob1_is_read_when_asked_for(tiny_encoder, tmp_path):
    folder = save_checkpoint(tiny_encoder, tmp_path / "hf", BIO_TAGS)
    as_bio, as_iob1 = NerEngine.load(folder, **EXACT), NerEngine.load(folder, **EXACT, scheme="IOB1")
    assert (as_bio.scheme.name, as_iob1.scheme.name) == ("BIO", "IOB1")
    begin = torch.tensor([[8.0, -9.0, -9.0, 9.0, -9.0]])  # B-PER may not come first in IOB1
    assert [(s.start, s.end, s.label) for s in as_bio.decoder.decode([begin])[0]] == [(0, 1, "PER")]
    assert as_iob1.decoder.decode([begin]) == [[]]
    inside = torch.full((2, 5), -9.0)
    inside[:, BIO_TAGS.index("I-PER")] = 9.0
    assert [(s.start, s.end) for s in as_iob1.decoder.decode([inside])[0]] == [(0, 2)]
    assert as_iob1.decoder.decode([inside])[0][0].score > 0.99


def test_a_checkpoint_gives_the_same_answer_from_a_copy_elsewhere(tiny_encoder, tmp_path):
    folder = save_checkpoint(tiny_encoder, tmp_path / "hf", BIO_TAGS)
    expected = NerEngine.load(folder, **EXACT).predict(TEXTS[:4])
    shutil.copytree(folder, tmp_path / "copy")
    assert NerEngine.load(str(tmp_path / "copy"), **EXACT).predict(TEXTS[:4]) == expected


def test_groups_begin_small_and_grow(engine):
    documents = [engine.encoder.encode_words(["Angela"] * 10)] * 100
    tokens = documents[0].num_tokens
    groups = list(_group(iter(documents), 2 * tokens, 20 * tokens))
    assert [len(group) for group in groups] == [2, 8, 20, 20, 20, 20, 10]
    assert [one for group in groups for one in group] == documents


def test_no_batch_waits_once_all_are_answered(engine):
    engine.predict(TEXTS)
    assert engine.streams.is_idle


def test_lone_batch_on_all_cores_gives_the_same_emissions(tiny_bundle):
    engine = NerEngine.load(tiny_bundle, device="cpu", precision="fp32", num_threads=2)
    [window] = engine.prepare("Angela Merkel visited Utrecht").document.windows

    def compute() -> tuple[torch.Tensor, int]:
        return engine.compute([window])[0], torch.get_num_threads()

    alone, threads_alone = engine.streams.wide.pool.submit(compute).result()
    shared, threads_of_a_share = engine.streams.pool.submit(compute).result()
    assert (threads_alone, threads_of_a_share) == (2, 1)
    torch.testing.assert_close(alone, shared)


def test_engines_share_the_thread_that_has_all_cores(tiny_bundle):
    engines = [NerEngine.load(tiny_bundle, device="cpu", precision="fp32", num_threads=2) for _ in range(2)]
    assert engines[0].streams.wide is engines[1].streams.wide
    engines[0].close()
    [window] = engines[1].prepare("Utrecht").document.windows
    assert len(engines[1].streams.wide.pool.submit(engines[1].compute, [window]).result()) == 1


def test_memory_that_is_free_goes_back_to_the_system():
    blocks = [bytearray(50_000) for _ in range(4000)]
    kept = blocks[-1]  # on top of the heap, so that nothing below it goes back by itself
    full = _read_resident_kib()
    del blocks
    release_memory()
    assert len(kept) == 50_000
    assert full - _read_resident_kib() > 100_000


def _read_resident_kib() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])
