"""Early exits: equal answers in every runtime and batch, and a threshold that keeps to what it may cost."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.compression.config import CompressionError, EarlyExitConfig
from pipelines.compression.early_exit import Answers, choose_exits, choose_threshold, train_exits
from pipelines.evaluation.metrics import Scored
from pipelines.ner.bundle import Bundle, load_bundle, save_bundle
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.engine import NerEngine
from pipelines.ner.exits import Exits
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.runtime import RuntimeUnavailable
from pipelines.training.batches import TrainingWindows
from tests.conftest import EXACT, make_bundle

TEXTS = [
    "Angela Merkel visited Utrecht in the spring.",
    "A treaty of Łódź, signed by 12 states?",
    "x",
    " ".join(["Long texts about Utrecht have several windows."] * 12),
    "",
]


@pytest.fixture(scope="module")
def bundle(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Four layers, so that there is something to leave out."""
    made = load_bundle(make_bundle(tiny_encoder, tmp_path_factory.mktemp("model") / "linear"))
    config = made.model.network.config
    config.num_hidden_layers = 4
    torch.manual_seed(0)
    network = type(made.model.network)(config).eval()
    with torch.no_grad():
        network.classifier.weight.mul_(60)
    return replace(made, model=TokenClassifier(network, made.model.scheme).eval())


def add_exits(bundle: Bundle, threshold: float) -> Bundle:
    torch.manual_seed(1)
    model = TokenClassifier(bundle.model.network, bundle.model.scheme).eval()
    hidden, num_tags = model.network.config.hidden_size, len(model.scheme.tags)
    model.exits = Exits([1, 3], hidden, num_tags, threshold)
    with torch.no_grad():
        for head in model.exits.heads:
            head.weight.mul_(12)
    return replace(bundle, model=model)


def emit(bundle: Bundle, runtime: str, texts=TEXTS, **options) -> list[torch.Tensor]:
    engine = NerEngine(bundle, **EXACT | {"runtime": runtime} | options)
    return engine.compute_emissions([engine.prepare(text).document for text in texts])


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.8, 2.0])
def test_packed_windows_leave_where_the_whole_network_says(bundle, threshold):
    with_exits = add_exits(bundle, threshold)
    for found, expected in zip(emit(with_exits, "packed"), emit(with_exits, "torch"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [[-2, 3], [0, 1], [2, 1], [1, 1]])
def test_layers_that_are_none_or_out_of_order_are_refused(layers):
    [problem] = EarlyExitConfig(layers).find_problems()
    assert (problem.where, problem.value) == ("`early_exit.layers`", layers)
    assert EarlyExitConfig([1, 3]).find_problems() == []


def test_some_windows_leave_early_and_some_late_at_a_threshold_between(bundle):
    """Or the test above would show little."""
    between, at_once, never = (emit(add_exits(bundle, threshold), "torch") for threshold in (0.7, 0.0, 2.0))
    kinds = set()
    for one, first, last in zip(between, at_once, never, strict=True):
        if len(one):
            kinds.add("first" if torch.equal(one, first) else "last" if torch.equal(one, last) else "other")
    assert len(kinds) >= 2


def test_threshold_above_one_changes_nothing(bundle):
    for found, expected in zip(emit(add_exits(bundle, 2.0), "packed"), emit(bundle, "packed"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_else_is_in_a_batch_changes_no_answer(bundle):
    with_exits = add_exits(bundle, 0.7)
    together = emit(with_exits, "packed")
    alone = [emit(with_exits, "packed", [text], max_batch_tokens=64)[0] for text in TEXTS]
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_exits_are_saved_and_covered_by_the_fingerprint(bundle, tmp_path: Path):
    with_exits = add_exits(bundle, 0.7)
    save_bundle(tmp_path / "one", with_exits)
    again = load_bundle(tmp_path / "one")
    assert (again.model.exits.layers, again.model.exits.threshold) == ((1, 3), 0.7)
    for found, expected in zip(emit(again, "packed"), emit(with_exits, "packed"), strict=True):
        assert torch.equal(found, expected)
    assert save_bundle(tmp_path / "two", add_exits(bundle, 0.8)) != again.info.fingerprint


@pytest.mark.parametrize("runtime", ["openvino", "torch-compiled"])
def test_runtimes_that_cannot_leave_refuse(bundle, runtime):
    with pytest.raises(RuntimeUnavailable, match="early exits"):
        NerEngine(add_exits(bundle, 0.7), **EXACT | {"runtime": runtime})


def test_exits_learn_and_the_threshold_keeps_to_its_bound(training_bundle, training_windows, dev):
    made = train_exits(training_bundle, training_windows, [1], seed=0)
    assert made.model.exits.threshold > 1
    chosen, points = choose_threshold(made, dev, 1.0, accept=lambda found: True)
    assert points[0].threshold > 1
    layers = [point.layers for point in points]
    assert layers[0] == training_bundle.model.network.config.num_hidden_layers
    assert layers == sorted(layers, reverse=True), "a lower threshold lets more leave"
    by_threshold = {point.threshold: point.f1 for point in points}
    assert 100 * (points[0].f1 - by_threshold[chosen.model.exits.threshold]) <= 1.0
    assert chosen.model.exits.threshold < 1, "an exit that has learned lets something leave"
    assert training_bundle.model.exits is None


@pytest.mark.parametrize("num_good", [0, 1, 3])
def test_threshold_is_one_that_the_gate_accepts_if_there_is_any(training_bundle, training_windows, dev, num_good):
    made = train_exits(training_bundle, training_windows, [1], seed=0)
    calls = iter(range(100))
    chosen, points = choose_threshold(made, dev, 100.0, accept=lambda found: next(calls) < num_good)
    assert [point.accepted for point in points] == [number < num_good for number in range(len(points))]
    assert chosen.model.exits.threshold == points[num_good - 1].threshold


@pytest.mark.parametrize("threshold", [0.0, 0.7, 2.0])
def test_thresholds_are_tried_on_what_engines_tell(bundle, threshold):
    """Words, and texts of several windows, in one computation for all thresholds."""
    with_exits = add_exits(bundle, threshold)
    documents = [*TEXTS, TEXTS[0].split(), ["x"]]
    found, layers = Answers(add_exits(bundle, 0.5), documents).label(threshold)
    expected = NerEngine(with_exits, **EXACT).predict_documents(documents)
    assert [strip(spans) for spans in found] == [strip(spans) for spans in expected]
    assert any(found)
    assert layers == {0.0: 1.0, 2.0: 4.0}.get(threshold, pytest.approx(2.5, abs=1.49))


def strip(spans):
    return [(span.start, span.end, span.label, round(span.score, 4)) for span in spans]


@pytest.fixture(scope="module")
def training_bundle(tiny_encoder: str) -> Bundle:
    """A network whose classifier tells words apart by their embeddings alone, as its exits can too."""
    torch.manual_seed(3)
    scheme = LabelScheme.from_labels(["PER"])
    from pipelines.ner.bundle import BundleInfo
    from pipelines.ner.model import ModelConfig, build_token_classifier

    model = build_token_classifier(tiny_encoder, scheme, ModelConfig())
    encoder = Encoder(load_tokenizer(tiny_encoder), window=32, stride=8, splitter="punctuation")
    bundle = Bundle(model.eval(), encoder, BundleInfo("BIO", "linear", "punctuation", 32, 8))
    words, tags = make_words(0), make_tags(make_words(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    window = encoder.encode_words(words).windows[0]
    ids, starts = torch.tensor([window.input_ids]), torch.tensor([window.word_starts])
    for _ in range(60):
        optimizer.zero_grad()
        emissions = model(ids, torch.ones_like(ids), starts)
        torch.nn.functional.cross_entropy(emissions[0], torch.tensor(tags)).backward()
        optimizer.step()
    return bundle


def make_words(seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    return [("in", "the", "Utrecht")[index] for index in torch.randint(3, (8,), generator=generator)]


def make_tags(words: list[str]) -> list[int]:
    return [1 if word == "Utrecht" else 0 for word in words]


@pytest.fixture(scope="module")
def training_windows(training_bundle: Bundle) -> TrainingWindows:
    import pyarrow as pa

    rows = []
    for seed in range(40):
        window = training_bundle.encoder.encode_words(make_words(seed)).windows[0]
        rows.append(
            {
                "record_id": f"{seed:03}",
                "input_ids": window.input_ids,
                "word_starts": window.word_starts,
                "tag_ids": make_tags(make_words(seed)),
                "starts_document": True,
                "ends_document": True,
            }
        )
    return TrainingWindows(pa.Table.from_pylist(rows))


@pytest.fixture(scope="module")
def dev() -> list[Scored]:
    records = []
    for seed in range(100, 110):
        words = make_words(seed)
        tags = ["B-PER" if tag else "O" for tag in make_tags(words)]
        records.append(Scored.from_tags(f"d{seed}", f"f:{seed}", words, tags, "BIO", []))
    return records


@pytest.mark.parametrize(
    ("num_layers", "wanted", "expected"),
    [(6, [], [2, 3, 4, 5]), (2, [], [1]), (12, [], list(range(4, 12))), (6, [1, 5], [1, 5])],
)
def test_exits_lie_after_each_layer_from_a_third_on_or_where_they_are_wanted(num_layers, wanted, expected):
    assert choose_exits(num_layers, wanted) == expected


@pytest.mark.parametrize(("num_layers", "wanted"), [(1, []), (4, [4]), (4, [2, 5])])
def test_exits_at_the_end_are_refused(num_layers, wanted):
    with pytest.raises(CompressionError, match="not before the end"):
        choose_exits(num_layers, wanted)
