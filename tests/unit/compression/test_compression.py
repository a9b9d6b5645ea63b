"""Parts taken out of real tiny models: what is left computes what it should, is saved, and loads again."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    LongformerConfig,
    ModernBertConfig,
    RobertaConfig,
    RobertaForTokenClassification,
    XLMConfig,
)

from pipelines.cluster import ClusterConfig
from pipelines.compress import CompressConfig, _collect_facts, choose_steps
from pipelines.compression.config import CompressionError, PruningConfig
from pipelines.compression.gate import FEW_DOCUMENTS, LEAST_DOCUMENTS
from pipelines.compression.layers import choose_layers, keep_layers
from pipelines.compression.pruning import Importance, choose_heads, measure_importance, prune
from pipelines.compression.vocabulary import choose_pieces, prune_vocabulary
from pipelines.compression_inputs import check_dev
from pipelines.corpus.inference import InferenceConfig
from pipelines.corpus.records import RECORD_SCHEMA
from pipelines.corpus.shards import SplitInfo
from pipelines.ner.bundle import Bundle, load_bundle, save_bundle
from pipelines.ner.encoding import Encoder
from pipelines.ner.engine import NerEngine
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.architectures import read_architecture
from pipelines.training.batches import Batch
from pipelines.variants import Bench
from tests.conftest import EXACT, make_bundle

TEXTS = ["Angela Merkel visited Utrecht in the spring.", "A treaty of Łódź, signed by 12 states?", "x"]


@pytest.fixture(scope="module")
def bundle(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(make_bundle(tiny_encoder, tmp_path_factory.mktemp("model") / "linear"))


def predict(bundle: Bundle, runtime: str = "torch"):
    engine = NerEngine(bundle, **EXACT | {"runtime": runtime})
    return [
        [(entity.start, entity.end, entity.label, round(entity.score, 4)) for entity in found.entities]
        for found in engine.predict(TEXTS)
    ]


def emit(bundle: Bundle, runtime: str = "torch") -> torch.Tensor:
    engine = NerEngine(bundle, **EXACT | {"runtime": runtime})
    return torch.cat(engine.compute_emissions([engine.prepare(text).document for text in TEXTS]))


def reload(bundle: Bundle, folder: Path) -> Bundle:
    save_bundle(folder / "small", bundle)
    return load_bundle(folder / "small")


def make_batches(bundle: Bundle) -> list[Batch]:
    ids = bundle.encoder.encode_words(TEXTS[0].split()).windows[0].input_ids
    words = torch.arange(1, 6)[None]
    here = torch.ones(1, dtype=torch.bool)
    tokens = torch.tensor([ids])
    return [Batch(tokens, torch.ones_like(tokens), words, words % 3, torch.tensor([5]), here, here)]


@pytest.mark.parametrize(
    ("num_layers", "num_kept", "expected"), [(6, 3, [0, 2, 5]), (6, 1, [5]), (12, 6, [0, 2, 4, 7, 9, 11]), (2, 1, [1])]
)
def test_layers_are_picked_evenly_with_the_first_and_the_last(num_layers, num_kept, expected):
    assert choose_layers(num_layers, num_kept) == expected


@pytest.mark.parametrize("num_kept", [0, 6, 7])
def test_student_that_is_not_smaller_is_refused(num_kept):
    with pytest.raises(CompressionError, match="not smaller") as refused:
        choose_layers(6, num_kept)
    assert refused.value.value == num_kept


def test_student_of_some_layers_computes_what_those_layers_do_and_loads_anywhere(bundle, tmp_path):
    small = replace(bundle, model=keep_layers(bundle.model, [1]))
    network = bundle.model.network
    ids = torch.tensor([[2, 20, 30, 3]])
    with torch.no_grad():
        expected = network.classifier(network.bert.encoder.layer[1](network.bert.embeddings(ids)))
        assert torch.allclose(small.model.network(ids).logits, expected, atol=1e-6)
    again = reload(small, tmp_path)
    assert torch.equal(emit(again), emit(small))
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "small").config.num_hidden_layers == 1
    assert len(network.bert.encoder.layer) == 2  # the teacher's own


def test_student_of_modernbert_keeps_what_its_configuration_tells_of_each_layer(bundle, tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 99}
    config = ModernBertConfig(num_hidden_layers=6, pad_token_id=0, num_labels=len(bundle.model.scheme.tags), **shape)
    torch.manual_seed(0)
    model = TokenClassifier(AutoModelForTokenClassification.from_config(config).eval(), bundle.model.scheme)
    small = keep_layers(model, [0, 2, 5])
    types = model.network.config.layer_types
    assert small.network.config.layer_types == [types[0], types[2], types[5]]
    small.network.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path)
    ids = torch.tensor([[2, 20, 30, 3]])
    assert torch.equal(again(ids).logits, small.network(ids).logits)
    with pytest.raises(CompressionError, match="without its teacher's first layer"):
        keep_layers(model, [5])


def test_importance_is_what_the_loss_changes_by_without_a_part(bundle):
    """In first order: for a part whose output is small, the importance is the change of the loss itself."""
    model = keep_layers(bundle.model, [0, 1])
    layer = read_architecture(model.network).layers[1]
    with torch.no_grad():
        layer.feed_out.weight[:, 7] *= 1e-2
    [batch] = make_batches(replace(bundle, model=model))

    def measure_loss() -> float:
        with torch.no_grad():
            emissions = model(batch.input_ids_BT, batch.attention_mask_BT, batch.word_starts_BW)
            return float(torch.nn.functional.cross_entropy(emissions[0], batch.tag_ids_BW[0], reduction="sum"))

    importance = measure_importance(model, [batch])
    before = measure_loss()
    with torch.no_grad():
        layer.feed_out.weight[:, 7] = 0
    assert float(importance.columns[1][7]) == pytest.approx(abs(measure_loss() - before), rel=0.05)
    assert all(abs(float(heads.norm()) - 1) < 1e-5 for heads in importance.heads)


def test_pruned_model_equals_one_whose_parts_are_silenced(bundle, tmp_path):
    found = read_architecture(bundle.model.network)
    num_heads, size = found.num_heads, found.head_size
    heads = [torch.arange(num_heads, 0, -1) + 0.5, torch.ones(num_heads)]
    heads[1][0] = 0.5
    columns = [torch.rand(found.layers[0].feed_in.out_features) for _ in found.layers]
    pruned = replace(bundle, model=prune(bundle.model, Importance(heads, columns), PruningConfig(0.25, 0.5)))
    kept = choose_heads(heads, 0.25)
    silenced = keep_layers(bundle.model, [0, 1])
    for layer, stay, scores in zip(read_architecture(silenced.network).layers, kept, columns, strict=True):
        gone = [head for head in range(num_heads) if head not in stay.tolist()]
        with torch.no_grad():
            for head in gone:
                layer.attention_out.weight[:, head * size : (head + 1) * size] = 0
            layer.feed_out.weight[:, scores.argsort()[: len(scores) // 2]] = 0
    expected = emit(replace(bundle, model=silenced))
    again = reload(pruned, tmp_path)
    assert len({len(stay) for stay in kept}) == 2, "layers with different numbers of heads"
    for runtime in ("torch", "packed"):
        torch.testing.assert_close(emit(again, runtime), expected, rtol=1e-4, atol=1e-4)
    assert sum(one.numel() for one in again.model.parameters()) < sum(one.numel() for one in bundle.model.parameters())


def test_each_layer_keeps_its_best_head_and_the_rest_is_chosen_over_all():
    scores = [torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0.1, 0.2, 0.05, 0.01])]
    assert [heads.tolist() for heads in choose_heads(scores, 0.5)] == [[0, 1, 2, 3], [1]]
    assert [heads.tolist() for heads in choose_heads(scores, 0.99)] == [[0], [1]]


def test_columns_alone_leave_an_ordinary_checkpoint(bundle, tmp_path):
    importance = measure_importance(bundle.model, make_batches(bundle))
    reload(replace(bundle, model=prune(bundle.model, importance, PruningConfig(0.0, 0.75))), tmp_path)
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "small").config.intermediate_size == 128


def test_vocabulary_of_what_a_corpus_uses_changes_nothing_there(bundle, tmp_path):
    engine = NerEngine(bundle, **EXACT)
    used = {number for text in TEXTS for one in engine.prepare(text).document.windows for number in one.input_ids}
    small = prune_vocabulary(bundle, used)
    again = reload(small, tmp_path)
    assert torch.equal(emit(small), emit(bundle))
    assert torch.equal(emit(again, "packed"), emit(bundle, "packed"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert len(tokenizer) == again.model.network.config.vocab_size < len(bundle.encoder.tokenizer)
    assert tokenizer.convert_ids_to_tokens([tokenizer.cls_token_id, tokenizer.mask_token_id]) == ["[CLS]", "[MASK]"]
    assert tokenizer("x")["input_ids"][0] == tokenizer.cls_token_id
    assert again.model.network.config.pad_token_id == tokenizer.pad_token_id


def test_word_whose_pieces_went_is_spelled_not_unknown(bundle):
    small = prune_vocabulary(bundle, [])
    unknown = small.encoder.tokenizer.unk_token_id
    ids = small.encoder.encode_words(["visited", "Utrecht"]).windows[0].input_ids
    assert unknown not in ids
    assert len(ids) > len(bundle.encoder.encode_words(["visited", "Utrecht"]).windows[0].input_ids)


def test_pieces_to_spare_are_the_last_to_stay():
    pieces = ["[UNK]", "[unused0]", "[unused1]", "[unused2]", "a", "the", "##ing", "of"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = {"type": "WordPiece", "continuing_subword_prefix": "##", "vocab": vocabulary}
    state = {"model": model, "added_tokens": [{"id": 0}]}
    kept = {least: [pieces[number] for number in choose_pieces(state, {2}, least)] for least in (0, 4, 6, 8)}
    assert kept[0] == ["[UNK]", "[unused1]", "a"]  # used, and so needed
    assert kept[4] == ["[UNK]", "[unused1]", "a", "the"]
    assert kept[6] == ["[UNK]", "[unused1]", "a", "the", "##ing", "of"]
    assert kept[8] == pieces


def test_tokens_that_were_added_to_a_vocabulary_stay(bundle):
    tokenizer = copy.deepcopy(bundle.encoder.tokenizer)
    tokenizer.add_tokens(["<ent>"])
    network = copy.deepcopy(bundle.model.network)
    network.resize_token_embeddings(len(tokenizer))
    model = TokenClassifier(network, bundle.model.scheme)
    small = prune_vocabulary(
        replace(bundle, model=model, encoder=Encoder(tokenizer, window=32, stride=8, splitter="punctuation")), []
    )
    kept = small.encoder.tokenizer
    assert kept.convert_tokens_to_ids("<ent>") == len(kept) - 1 < len(tokenizer) - 1
    old = network.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("<ent>")]
    assert torch.equal(small.model.network.get_input_embeddings().weight[-1], old)


def test_vocabulary_is_filled_up_with_its_first_pieces(bundle):
    fewest = len(prune_vocabulary(bundle, []).encoder.tokenizer)
    more = prune_vocabulary(bundle, [], least=fewest + 25).encoder.tokenizer
    assert len(more) == fewest + 25
    before = bundle.encoder.tokenizer.convert_ids_to_tokens(range(len(bundle.encoder.tokenizer)))
    gone = [piece for piece in before if piece not in more.get_vocab()]
    assert gone == before[-len(gone) :]
    assert len(prune_vocabulary(bundle, [], least=10**6).encoder.tokenizer) == len(before)


def test_parts_of_an_unknown_architecture_and_merged_vocabularies_are_refused(bundle):
    config = RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=9
    )
    network = RobertaForTokenClassification(config)
    network.classifier = torch.nn.Sequential(network.classifier)
    with pytest.raises(CompressionError, match="parts cannot be taken out"):
        measure_importance(TokenClassifier(network, bundle.model.scheme), [])

    class Slow:
        is_fast = False
        backend_tokenizer = bundle.encoder.tokenizer.backend_tokenizer

    with pytest.raises(CompressionError, match="cannot be cut down") as refused:
        prune_vocabulary(replace(bundle, encoder=type("Encoder", (), {"tokenizer": Slow()})()), [])
    assert "WordPiece" in str(refused.value.rule)


@pytest.mark.parametrize(
    ("num_gpus", "device", "expected"), [(0, "auto", (16, 0)), (1, "auto", (8, 1)), (0, "cpu", (16, 0))]
)
def test_process_that_measures_has_all_cores_of_a_node_that_has_what_it_needs(monkeypatch, num_gpus, device, expected):
    nodes = [
        {"Alive": True, "NodeManagerAddress": "far", "Resources": one} for one in ({"CPU": 16}, {"CPU": 8, "GPU": 1})
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 24, "GPU": 1})
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "here")
    bench = SimpleNamespace(inference=InferenceConfig(device=device))
    bench._plan_actors = lambda: Bench._plan_actors(bench)
    plan = Bench._plan_process(bench, num_gpus)
    assert (plan.num_cpus, plan.num_gpus) == expected
    assert Bench._plan_actors(bench).num_gpus == (0 if device == "cpu" else 1)


def test_default_steps_leave_int8_out_where_the_cpu_that_measures_has_none(bundle, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    network = bundle.model.network

    def choose(bits: int, *, config: CompressConfig | None = None, packs: bool = True) -> list[str]:
        for module in ("compress", "compression.int8_settings"):
            monkeypatch.setattr(f"pipelines.{module}.count_weight_bits", lambda device: bits)
        if not packs:
            monkeypatch.setattr("pipelines.compression.int8_settings.read_architecture", lambda network: None)
        return choose_steps(config or CompressConfig(), network)

    assert choose(8) == choose(7) == ["distill", "prune", "vocabulary", "int8"]
    far = CompressConfig(cluster=ClusterConfig(address="head:6379"))
    assert choose(0, config=far) == ["distill", "prune", "vocabulary", "int8"]
    assert not capsys.readouterr().err
    assert choose(0) == ["distill", "prune", "vocabulary"]
    assert "this CPU has no int8 products" in capsys.readouterr().err
    assert choose(7, packs=False) == ["distill", "prune", "vocabulary"], "OpenVINO's weights have 8 bits"


def test_layers_in_several_lists_are_refused():
    """Those of XLM: to take out a part of each would leave a network that does not compute."""
    network = AutoModelForTokenClassification.from_config(
        XLMConfig(vocab_size=50, emb_dim=16, n_layers=2, n_heads=2, max_position_embeddings=32)
    )
    with pytest.raises(CompressionError, match="layers cannot be taken out"):
        keep_layers(TokenClassifier(network, LabelScheme.from_labels(["PER"])), [0])


def test_student_of_longformer_has_a_window_of_attention_for_each_layer(bundle, tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 99}
    config = LongformerConfig(attention_window=[4, 8, 12, 16], num_hidden_layers=4, num_labels=9, **shape)
    model = TokenClassifier(AutoModelForTokenClassification.from_config(config).eval(), bundle.model.scheme)
    small = keep_layers(model, [0, 3])
    assert small.network.config.attention_window == [4, 16]
    small.network.save_pretrained(tmp_path)
    assert len(AutoModelForTokenClassification.from_pretrained(tmp_path).longformer.encoder.layer) == 2


def write_dev(folder: Path, entities_of_documents: list[int]) -> Path:
    """Shards whose dev split has documents of two sentences with so many entities."""
    sentence = {"start": 0, "end": 1, "label": "PER"}
    spans = [[sentence] * number for entities in entities_of_documents for number in (entities, 0)]
    names = [f"d{number // 2}" for number in range(len(spans))]
    (folder / "records" / "split=dev").mkdir(parents=True)
    table = pa.table({"doc_id": names, "spans": pa.array(spans, RECORD_SCHEMA.field("spans").type)})
    pq.write_table(table, folder / "records" / "split=dev" / "one.parquet")
    return folder


@pytest.mark.parametrize("entities", [[30], [0] * 24, [9, 9], [1] * (LEAST_DOCUMENTS - 1) + [0] * 24])
def test_dev_set_that_shows_nothing_is_refused(entities, tmp_path):
    with pytest.raises(CompressionError, match="the dev set shows nothing") as refused:
        check_dev(write_dev(tmp_path / "shards", entities))
    assert refused.value.value == f"entities in {sum(map(bool, entities))} documents"
    check_dev(write_dev(tmp_path / "enough", [1] * LEAST_DOCUMENTS))


@pytest.mark.parametrize(("num_documents", "is_warned"), [(LEAST_DOCUMENTS, True), (FEW_DOCUMENTS, False)])
def test_report_warns_of_intervals_over_few_documents(bundle, num_documents, is_warned):
    info = SimpleNamespace(splits={"dev": SplitInfo(num_records=40), "train": SplitInfo()})
    told = _collect_facts(CompressConfig(), info, bundle, num_documents, None)["dev"]
    assert told.startswith(f"40 records, {num_documents} documents with entities")
    assert ("narrower than they should be" in told) == is_warned
