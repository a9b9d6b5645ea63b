"""The classifier: emissions are the network's logits at first sub-tokens; settings reach it; mistakes are told."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, BertConfig, ModernBertConfig, ModernBertForMaskedLM, RobertaConfig, XLNetConfig

from pipelines.ner.encoders import EncoderError, load_tokenizer
from pipelines.ner.encoding import Encoder, pad
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, build_token_classifier, get_max_window

BIO = LabelScheme.from_labels(["LOC", "PER"])


@pytest.mark.parametrize("head", ["linear", "crf"])
def test_emissions_are_the_logits_at_each_first_sub_token(tiny_encoder, head):
    model = build_token_classifier(tiny_encoder, BIO, ModelConfig(head=head)).eval()
    encoder = Encoder(load_tokenizer(tiny_encoder), window=64, stride=8, splitter="whitespace")
    (window,) = encoder.encode_words(["Angela", "Merkelovszkij", "visited", "Utrecht"]).windows
    ids = pad([window.input_ids], 0)
    with torch.no_grad():
        emissions = model(ids, torch.ones_like(ids), pad([window.word_starts], 0))
        logits = model.network(ids, torch.ones_like(ids)).logits
    assert emissions.shape == (1, 4, 5)
    assert torch.equal(emissions[0], logits[0, window.word_starts])
    assert len(window.input_ids) > 6  # some word has several sub-tokens, else nothing is gathered


def test_padding_changes_emissions_only_by_rounding(tiny_encoder):
    model = build_token_classifier(tiny_encoder, BIO, ModelConfig()).eval()
    ids = torch.randint(5, 500, (1, 9), generator=torch.Generator().manual_seed(0))
    starts, mask = torch.arange(1, 8)[None], torch.ones_like(ids)
    longer = torch.cat([ids, torch.zeros(1, 20, dtype=torch.long)], dim=1)
    with torch.no_grad():
        short = model(ids, mask, starts)
        padded = model(longer, (longer > 0).long(), starts)
    assert torch.allclose(short, padded, atol=1e-5)


def test_the_chain_is_learned_for_crf_and_only_legal_for_linear(tiny_encoder):
    crf = build_token_classifier(tiny_encoder, BIO, ModelConfig(head="crf"))
    linear = build_token_classifier(tiny_encoder, BIO, ModelConfig(head="linear"))
    with torch.no_grad():
        crf.crf.transitions.fill_(2.0)
    inside_after_outside = BIO.ids["O"], BIO.ids["I-PER"]
    for model, legal in ((crf, 2.0), (linear, 0.0)):
        assert model.chain.transitions_KK[inside_after_outside].item() == -torch.inf
        assert model.chain.transitions_KK[0, 0].item() == legal
    assert crf.chain.transitions_KK.requires_grad
    assert linear.crf is None


def test_the_network_carries_the_tags_in_order(tiny_encoder):
    network = build_token_classifier(tiny_encoder, BIO, ModelConfig()).network
    assert [network.config.id2label[i] for i in range(5)] == list(BIO.tags)
    assert network.config.label2id == BIO.ids


def test_dropout_reaches_encoder_and_head_and_default_is_the_encoders_own(tiny_encoder):
    changed = build_token_classifier(tiny_encoder, BIO, ModelConfig(dropout=0.37)).network
    rates = {module.p for module in changed.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.37}
    own = build_token_classifier(tiny_encoder, BIO, ModelConfig()).network
    config = AutoConfig.from_pretrained(tiny_encoder)
    assert {module.p for module in own.modules() if isinstance(module, torch.nn.Dropout)} == {
        config.hidden_dropout_prob
    }


def test_the_head_is_the_same_for_the_same_seed(tiny_encoder):
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(build_token_classifier(tiny_encoder, BIO, ModelConfig()).network.classifier.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_encoder_without_weights_is_refused(tiny_encoder, tmp_path):
    AutoConfig.from_pretrained(tiny_encoder).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="cannot be loaded") as caught:
        build_token_classifier(str(tmp_path), BIO, ModelConfig())
    assert "safetensors" in caught.value.rule


def test_config_reports_every_mistake_at_once():
    problems = ModelConfig(head="svm", scheme="BILUO", dropout=1.5).find_problems()
    assert [problem.where for problem in problems] == ["`model.head`", "`model.scheme`", "`model.dropout`"]
    assert [str(problem.value) for problem in problems] == ["svm", "BILUO", "1.5"]
    assert all(problem.rule for problem in problems)


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(head="crf", scheme="IO", dropout=0.0)])
def test_config_that_works_has_no_problems(config):
    assert config.find_problems() == []


def test_max_window_is_the_smaller_of_encoder_and_tokenizer(tiny_encoder):
    tokenizer = load_tokenizer(tiny_encoder)
    assert get_max_window(BertConfig(max_position_embeddings=128), tokenizer) == 128
    assert get_max_window(BertConfig(max_position_embeddings=4096), tokenizer) == 512
    tokenizer.model_max_length = int(1e30)  # what tokenizers without a limit say
    assert get_max_window(BertConfig(max_position_embeddings=512), tokenizer) == 512
    assert get_max_window(RobertaConfig(max_position_embeddings=514), tokenizer) == 512


@pytest.mark.parametrize("labels", [["LOC", "PER"], ["PER", "LOC"], ["A", "B", "C"]])
def test_head_that_comes_with_an_encoder_is_made_anew(tiny_encoder, tmp_path, labels):
    """It knows other tags, or these in another order."""
    torch.manual_seed(1)
    given = build_token_classifier(tiny_encoder, LabelScheme.from_labels(labels), ModelConfig())
    with torch.no_grad():
        given.network.classifier.weight.fill_(7.0)
    given.network.save_pretrained(tmp_path)
    model = build_token_classifier(str(tmp_path), BIO, ModelConfig())
    weight = model.network.classifier.weight
    assert weight.shape == (5, given.network.config.hidden_size)
    assert 0 < weight.std() < 0.1
    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(model.network.bert.state_dict()[name], given.network.bert.state_dict()[name])


def test_encoder_without_positions_reads_windows_of_any_length(tiny_encoder):
    tokenizer = load_tokenizer(tiny_encoder)
    assert get_max_window(XLNetConfig(), tokenizer) == tokenizer.model_max_length


def test_encoder_whose_configuration_does_not_fit_its_weights_is_refused(tiny_encoder, tmp_path):
    shutil.copytree(tiny_encoder, tmp_path / "edited")
    config = json.loads((tmp_path / "edited" / "config.json").read_text())
    (tmp_path / "edited" / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(EncoderError, match="other shapes"):
        build_token_classifier(str(tmp_path / "edited"), BIO, ModelConfig())


def test_what_an_encoder_has_learned_before_its_tags_is_kept(tmp_path):
    """ModernBERT's head has a layer that is pretrained with it."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
    network = ModernBertForMaskedLM(ModernBertConfig(vocab_size=99, pad_token_id=0, **sizes))
    with torch.no_grad():
        network.head.dense.weight.fill_(0.5)
    network.save_pretrained(tmp_path)
    model = build_token_classifier(str(tmp_path), BIO, ModelConfig())
    assert (model.network.head.dense.weight == 0.5).all()
    assert model.pretrained_head == {"head.dense.weight", "head.norm.weight"}
    for labels in (["LOC", "PER"], ["A"]):  # of a checkpoint with tags of its own, the layer of tags is made anew
        build_token_classifier(str(tmp_path), LabelScheme.from_labels(labels), ModelConfig()).network.save_pretrained(
            tmp_path / "tags"
        )
        again = build_token_classifier(str(tmp_path / "tags"), BIO, ModelConfig())
        assert again.pretrained_head == model.pretrained_head
