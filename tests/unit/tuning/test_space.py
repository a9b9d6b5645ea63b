"""The search space: what is read, what is refused and with which near name, how it is applied."""

from dataclasses import dataclass, field

import pytest

from pipelines.ner.errors import UserError, UserErrors
from pipelines.ner.model import ModelConfig
from pipelines.training.config import TrainingConfig
from pipelines.tuning.domains import Domain
from pipelines.tuning.space import apply_settings, check_ends, list_paths, parse_space, read_path, resolve_space

RATE = "training.optimizer.learning_rate"


@dataclass(frozen=True)
class Base:
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output_dir: str = "out"

    def find_problems(self) -> list[UserError]:
        return [*self.model.find_problems(), *self.training.find_problems()]


def parse(path, *texts):
    return parse_space({path: texts}, Base())[path]


@pytest.mark.parametrize(
    ("path", "texts", "expected"),
    [
        (RATE, ["loguniform(5e-5, 5e-4)"], Domain("loguniform", 5e-5, 5e-4)),
        (RATE, ["1e-4", "2e-4"], Domain("choice", choices=(1e-4, 2e-4))),
        ("training.num_epochs", ["randint(1,6)"], Domain("randint", 1, 6)),
        ("training.batch_tokens", ["[256, 512]"], Domain("choice", choices=(256, 512))),
        ("training.batch_tokens", ["times(0.5, 2)"], Domain("times", 0.5, 2)),
        ("training.patience", ["null", "2"], Domain("choice", choices=(None, 2))),
        ("training.r_drop", ["0", "0.5"], Domain("choice", choices=(0, 0.5))),
        ("model.casing", ["true", "false", "null"], Domain("choice", choices=(True, False, None))),
        ("model.head", ["linear", "crf"], Domain("choice", choices=("linear", "crf"))),
    ],
)
def test_texts_become_a_domain(path, texts, expected):
    assert parse(path, *texts) == expected


@pytest.mark.parametrize(
    ("path", "texts", "facts"),
    [
        ("training.optimizer.lerning_rate", ["uniform(0,1)"], ["does not exist", f"--space.{RATE}"]),
        ("learning_rate", ["uniform(0,1)"], ["does not exist", f"--space.{RATE}"]),
        ("training.optimizer", ["1", "2"], ["a group of settings", RATE]),
        ("output_dir", ["a", "b"], ["the same for all trials", "--output_dir"]),
        ("training.seed", ["1", "2"], ["seeds are not searched", "search.num_seeds"]),
        ("training.num_epochs", ["uniform(1, 5)"], ["the type does not fit", "a whole number", "randint"]),
        ("model.head", ["uniform(0, 1)"], ["the type does not fit", "text"]),
        ("training.batch_tokens", ["512", "many"], ["the type does not fit", "many"]),
        ("training.batch_tokens", ["512", "true"], ["the type does not fit", "true"]),
        ("model.dropout", ["0.1"], ["one value is nothing to search", "--model.dropout"]),
        ("model.dropout", ["0.1", "0.1"], ["one value is nothing to search"]),
        ("model.dropout", [], ["one value is nothing to search"]),
        ("model.dropout", ["unifrom(0, 1)"], ["no such domain", "did you mean `uniform(0, 1)`"]),
        ("model.dropout", ["uniform(0.3, 0.1)"], ["low < high"]),
        ("model.dropout", ["uniform(0.1)"], ["two numbers"]),
        ("model.dropout", ["loguniform(0, 1)"], ["above 0"]),
        ("training.num_epochs", ["randint(1, 2.5)"], ["whole numbers"]),
    ],
)
def test_what_cannot_be_meant_is_refused(path, texts, facts):
    with pytest.raises(UserError) as refused:
        parse(path, *texts)
    for fact in facts:
        assert fact in str(refused.value)


def test_empty_space_is_refused():
    with pytest.raises(UserError, match="the search space is empty"):
        parse_space({}, Base())


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserErrors) as refused:
        parse_space({"model.heads": ["a", "b"], "model.dropout": ["x", "y"]}, Base())
    assert len(refused.value.errors) == 2


def test_ends_that_no_recipe_may_have_are_refused():
    space = {RATE: Domain("loguniform", 0.1, 5), "model.head": Domain("choice", choices=("linear", "crff", "crg"))}
    with pytest.raises(UserErrors) as refused:
        check_ends(space, Base(), Base.find_problems)
    told = str(refused.value)
    assert len(refused.value.errors) == 3
    for fact in (f"`space.{RATE}`", "0 < rate ≤ 1", "crff", "crg"):
        assert fact in told


def test_mistakes_that_the_recipe_has_already_are_not_told_of_the_space():
    base = Base(training=TrainingConfig(num_epochs=0))
    check_ends({"model.dropout": Domain("uniform", 0, 0.5)}, base, Base.find_problems)
    with pytest.raises(UserError) as refused:
        check_ends({"model.dropout": Domain("uniform", 0, 1.5)}, base, Base.find_problems)
    assert "dropout" in str(refused.value)
    assert "num_epochs" not in str(refused.value)


def find_contradiction(base):
    is_wrong = base.model.head == "crf" and base.training.label_smoothing > 0
    return [UserError("a CRF has nothing to smooth")] if is_wrong else []


def test_value_that_goes_with_some_value_of_another_setting_is_let_pass():
    base = Base(training=TrainingConfig(label_smoothing=0.1))
    head = {"model.head": Domain("choice", choices=("linear", "crf"))}
    with pytest.raises(UserError, match="nothing to smooth"):
        check_ends(head, base, find_contradiction)
    check_ends(head | {"training.label_smoothing": Domain("choice", choices=(0, 0.1))}, base, find_contradiction)


def test_times_is_around_the_recipes_own_value_and_whole_where_that_is():
    space = {RATE: Domain("times", 0.5, 2), "training.batch_tokens": Domain("times", 0.3, 2)}
    resolved = resolve_space(space, {RATE: 2e-4, "training.batch_tokens": 512})
    assert resolved == {
        RATE: Domain("loguniform", 1e-4, 4e-4),
        "training.batch_tokens": Domain("lograndint", 154, 1024),
    }


def test_times_of_nothing_is_refused():
    with pytest.raises(UserError, match="nothing to multiply"):
        resolve_space({"model.dropout": Domain("times", 0.5, 2)}, {"model.dropout": None})


def test_times_without_a_whole_number_between_its_ends_is_refused():
    space = {"training.num_epochs": Domain("times", 1.1, 1.4), "training.batch_tokens": Domain("times", 0.5, 2)}
    with pytest.raises(UserError, match="no whole number") as caught:
        resolve_space(space, {"training.num_epochs": 2, "training.batch_tokens": 512})
    assert "space.training.num_epochs" in str(caught.value)
    assert "2.2 to 2.8" in str(caught.value)


def test_settings_are_applied_where_they_belong_and_nowhere_else():
    changed = apply_settings(Base(), {RATE: 1e-3, "model.head": "crf"})
    assert (read_path(changed, RATE), changed.model.head) == (1e-3, "crf")
    assert changed.training.num_epochs == Base().training.num_epochs
    assert Base().training.optimizer.learning_rate is None


def test_every_searched_path_can_be_read():
    paths = [path for path, _ in list_paths(Base())]
    assert RATE in paths
    assert "training.seed" not in paths
    assert {read_path(Base(), path) for path in paths} >= {None, "linear"}


@pytest.mark.parametrize(
    ("domain", "value", "expected"),
    [
        (Domain("loguniform", 1e-5, 1e-3), 0.000123456, 0.0001235),
        (Domain("uniform", 0.1, 0.3), 0.35, 0.3),
        (Domain("randint", 1, 6), 7.2, 6),
        (Domain("choice", choices=("a", 0.123456)), 0.123456, 0.123456),
    ],
)
def test_sampled_values_are_tidied_inside_the_domain(domain, value, expected):
    assert domain.tidy(value) == expected
