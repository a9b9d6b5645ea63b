"""Students that are new networks or other encoders: their shape, their size, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForTokenClassification,
    BartConfig,
    ModernBertConfig,
    ModernBertForTokenClassification,
)

from pipelines.compression.config import CompressionError, DistillationConfig, Tolerance
from pipelines.compression.steps import Recipe
from pipelines.compression.students import build_student, check_student, measure_size
from pipelines.ner.bundle import Bundle, load_bundle, save_bundle
from pipelines.ner.encoders import EncoderError
from pipelines.ner.engine import NerEngine
from tests.conftest import EXACT, make_bundle

SCRATCH = DistillationConfig(encoder="scratch", layers=1, hidden_size=32)


@pytest.fixture(scope="module", params=["linear", "crf"])
def teacher(request: pytest.FixtureRequest, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(make_bundle(tiny_encoder, tmp_path_factory.mktemp("model") / "teacher", head=request.param))


@pytest.mark.parametrize(
    ("shape", "model_type"),
    [
        (SCRATCH, "bert"),
        (replace(SCRATCH, embedding_size=16), "electra"),
        (replace(SCRATCH, layers=3, share_layers=True, embedding_size=8), "albert"),
    ],
)
def test_new_network_has_the_shape_asked_for_and_is_a_bundle_like_any_other(teacher, shape, model_type, tmp_path):
    network, tokenizer = check_student(teacher, shape)
    expected = network.config
    assert tokenizer is teacher.encoder.tokenizer
    assert next(network.parameters()).is_meta
    student = build_student(teacher, shape, seed=1)
    config = student.model.network.config
    assert config.model_type == expected.model_type == model_type
    assert (config.hidden_size, config.num_hidden_layers) == (32, shape.layers)
    assert getattr(config, "embedding_size", 32) == (shape.embedding_size or 32)
    assert student.info.head == teacher.info.head
    save_bundle(tmp_path / "student", student)
    again = load_bundle(tmp_path / "student")
    assert again.model.scheme == teacher.model.scheme
    engines = [NerEngine(one, **EXACT) for one in (student, again)]
    read = [engines[0].prepare("Angela Merkel visited Utrecht in the spring.").document]
    first, second = (engine.compute_emissions(read)[0] for engine in engines)
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    again = build_student(teacher, shape, seed=1).model.network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in student.model.network.state_dict().items())


def test_shared_layers_are_counted_once_in_size_and_each_time_in_work(teacher):
    one, many = (
        measure_size(build_student(teacher, replace(SCRATCH, layers=layers, share_layers=True), 1).model.network)
        for layers in (1, 4)
    )
    assert one[0] == many[0]
    assert one[1] < many[1] < 4 * one[1] + 1


def test_another_encoder_becomes_a_student_with_its_own_tokenizer(teacher, tmp_path):
    small = AutoModelForTokenClassification.from_config(check_student(teacher, SCRATCH)[0].config)
    small.base_model.save_pretrained(tmp_path / "encoder")
    teacher.encoder.tokenizer.save_pretrained(tmp_path / "encoder")
    config = DistillationConfig(encoder=str(tmp_path / "encoder"))
    assert check_student(teacher, config)[0].config.hidden_size == 32
    student = build_student(teacher, config, seed=1)
    weights = student.model.network.base_model.embeddings.word_embeddings.weight
    assert torch.equal(weights, small.base_model.embeddings.word_embeddings.weight)
    assert student.model.network.config.num_labels == len(teacher.model.scheme.tags)


def test_student_that_is_larger_or_too_narrow_for_states_or_nowhere_is_refused(teacher, tmp_path):
    given = teacher.model.network.config
    large = replace(SCRATCH, layers=given.num_hidden_layers, hidden_size=2 * given.hidden_size)
    with pytest.raises(CompressionError, match="not smaller than its teacher") as refused:
        check_student(teacher, large)
    assert f"{measure_size(teacher.model.network)[0]:,}" in str(refused.value.rule)
    with pytest.raises(CompressionError, match="another width") as refused:
        check_student(teacher, replace(SCRATCH, states=1.0))
    assert "relations" in str(refused.value.remedy)
    assert check_student(teacher, replace(SCRATCH, relations=1.0))[0].config.hidden_size == 32
    with pytest.raises(EncoderError):
        Recipe(["distill"], Tolerance(1, 1), DistillationConfig(encoder=str(tmp_path / "none"))).check(teacher)


def test_encoder_that_cannot_be_a_student_is_refused_before_anything_is_labelled(teacher, tmp_path):
    save_bundle(tmp_path / "bundle", teacher)
    with pytest.raises(CompressionError, match="cannot be a student"):
        check_student(teacher, DistillationConfig(encoder=str(tmp_path / "bundle")))
    BartConfig(vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1).save_pretrained(tmp_path / "bart")
    teacher.encoder.tokenizer.save_pretrained(tmp_path / "bart")
    with pytest.raises(CompressionError, match="cannot be a student") as refused:
        check_student(teacher, DistillationConfig(encoder=str(tmp_path / "bart")))
    assert "bart" in str(refused.value.value)


def test_steps_after_a_student_are_checked_on_the_student(teacher):
    shared = replace(SCRATCH, share_layers=True)
    with pytest.raises(CompressionError, match="parts cannot be taken out"):
        Recipe(["distill", "prune"], Tolerance(1, 1), shared).check(teacher)
    Recipe(["prune", "distill"], Tolerance(1, 1), shared).check(teacher)
    Recipe(["distill", "prune", "vocabulary"], Tolerance(1, 1), SCRATCH).check(teacher)


def test_states_are_followed_only_where_the_classifier_reads_them(teacher):
    config = ModernBertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    network = ModernBertForTokenClassification(config)
    other = replace(teacher, model=type(teacher.model)(network, teacher.model.scheme))
    with pytest.raises(CompressionError, match="hidden states that cannot be followed"):
        Recipe(["distill"], Tolerance(1, 1), replace(SCRATCH, relations=1.0)).check(other)


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"hidden_size": 33}, "hidden_size"),
        ({"hidden_size": 32, "embedding_size": 64}, "embedding_size"),
        ({"embedding_size": 0}, "embedding_size"),
        ({"states": -1.0}, "states"),
        ({"relations": float("nan")}, "relations"),
    ],
)
def test_settings_out_of_range_are_told(changed, where):
    [problem] = replace(SCRATCH, **changed).find_problems() if changed else []
    assert problem.where == f"`distillation.{where}`"


def test_settings_that_change_nothing_are_told(tmp_path: Path):
    tolerance = Tolerance(1, 1)
    idle = Recipe(["distill"], tolerance, DistillationConfig(hidden_size=64, share_layers=True)).find_idle()
    assert len(idle) == 2
    assert all("scratch" in line for line in idle)
    assert Recipe(["distill"], tolerance, SCRATCH).find_idle() == []
    assert len(Recipe(["distill"], tolerance, DistillationConfig(encoder=str(tmp_path), layers=3)).find_idle()) == 1
    assert len(Recipe(["prune"], tolerance, SCRATCH).find_idle()) == 3
