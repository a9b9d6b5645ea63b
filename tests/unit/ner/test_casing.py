"""The case of words as token types: its classes, no change before training, the same in every runtime."""

from itertools import pairwise

import pytest
import torch
from tokenizers.normalizers import Lowercase
from transformers import AutoConfig, BertConfig, ElectraConfig, RobertaConfig

from pipelines.ner.bundle import Bundle, BundleInfo, load_bundle, save_bundle
from pipelines.ner.casing import CASE_STEP, NUM_CASES, can_learn_cases, find_case, has_cases, split_cases
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.engine import NerEngine
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, build_token_classifier

SCHEME = LabelScheme.from_labels(["LOC", "PER"])


@pytest.mark.parametrize(
    ("word", "case"),
    [
        ("paris", 0),
        ("Paris", 1),
        ("PARIS", 2),
        ("A", 3),
        ("iPhone", 4),
        ("McDonald", 4),
        ("U.S.", 2),
        ("B2", 3),
        ("2", 0),
        ("@User", 4),
        ("Ünal", 1),
        ("Москва", 1),
        ("北京", 0),
        ("ß", 0),
        ("", 0),
        ("Ǆ", 3),
    ],
)
def test_cases_of_words(word, case):
    assert find_case(word) == case


@pytest.fixture(scope="module")
def encoders(tiny_encoder):
    tokenizer = load_tokenizer(tiny_encoder)
    return [Encoder(tokenizer, window=16, stride=4, splitter="unicode", casing=casing) for casing in (False, True)]


def test_ids_carry_the_case_of_their_word_and_special_tokens_none(encoders):
    words = ["the", "City", "of", "UTRECHT"]
    [plain], [cased] = (encoder.encode_words(words).windows for encoder in encoders)
    ids, cases = split_cases(torch.tensor(cased.input_ids))
    assert ids.tolist() == plain.input_ids
    assert cased.word_starts == plain.word_starts
    starts = [*plain.word_starts, len(ids) - 1]
    assert [set(cases[a:b].tolist()) for a, b in pairwise(starts)] == [{0}, {1}, {0}, {2}]
    assert (cases[0], cases[-1]) == (0, 0)
    assert max(cased.input_ids) < NUM_CASES * CASE_STEP


def test_a_new_model_computes_what_it_did_without_cases(encoders, tiny_encoder):
    models = []
    for casing in (False, True):
        torch.manual_seed(1)
        models.append(build_token_classifier(tiny_encoder, SCHEME, ModelConfig(), casing=casing).eval())
    assert [has_cases(model.network) for model in models] == [False, True]
    emissions = []
    for model, encoder in zip(models, encoders, strict=True):
        [window] = encoder.encode_words(["The", "City", "of", "UTRECHT"]).windows
        ids_BT, starts_BW = torch.tensor([window.input_ids]), torch.tensor([window.word_starts])
        emissions.append(model(ids_BT, torch.ones_like(ids_BT), starts_BW))
    torch.testing.assert_close(emissions[0], emissions[1], rtol=0, atol=0)


@pytest.fixture(scope="module")
def bundle(tiny_encoder, tmp_path_factory):
    """A model whose answers depend on case."""
    torch.manual_seed(3)
    model = build_token_classifier(tiny_encoder, SCHEME, ModelConfig(), casing=True)
    types = model.network.base_model.embeddings.token_type_embeddings.weight
    with torch.no_grad():
        types.add_(torch.randn_like(types))
        model.network.classifier.weight.mul_(20)
    encoder = Encoder(load_tokenizer(tiny_encoder), window=16, stride=4, splitter="unicode", casing=True)
    folder = tmp_path_factory.mktemp("casing") / "bundle"
    save_bundle(folder, Bundle(model, encoder, BundleInfo("BIO", "linear", "unicode", 16, 4)))
    return folder


TEXTS = ["the city of utrecht", "The City of Utrecht", "THE CITY OF UTRECHT", "iPads in A Box " * 9]


@pytest.mark.parametrize("runtime", ["packed", "torch-compiled", "openvino"])
def test_every_runtime_reads_cases_as_the_reference_does(bundle, runtime):
    engines = [NerEngine.load(bundle, runtime=name, precision="fp32", device="cpu") for name in ("torch", runtime)]
    documents = [engines[0].encoder.encode_words(text.split()) for text in TEXTS]
    expected, found = (engine.compute_emissions(documents) for engine in engines)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected[0], expected[1])
    assert not torch.allclose(expected[1], expected[2])


def test_a_bundle_keeps_that_it_reads_cases(bundle):
    loaded = load_bundle(bundle)
    assert has_cases(loaded.model.network)
    assert loaded.encoder.casing
    assert loaded.model.network.config.type_vocab_size == NUM_CASES


def test_only_uncased_encoders_with_token_types_learn_cases(tiny_encoder):
    uncased, cased = load_tokenizer(tiny_encoder), load_tokenizer(tiny_encoder)
    uncased.backend_tokenizer.normalizer, cased.backend_tokenizer.normalizer = Lowercase(), None
    assert can_learn_cases(AutoConfig.from_pretrained(tiny_encoder), uncased)
    assert can_learn_cases(ElectraConfig(), uncased)
    assert not can_learn_cases(RobertaConfig(), cased)
    assert not can_learn_cases(BertConfig(type_vocab_size=0), uncased)
    assert not can_learn_cases(BertConfig(), cased)
