"""Settings from flags and presets: what is meant, and every mistake at once."""

from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from pipelines.corpus.config import CorpusConfig
from pipelines.ner.errors import UserError, UserErrors
from pipelines.settings import ConfigError, list_keys, parse_settings
from pipelines.training.config import TrainingConfig


@dataclass(frozen=True)
class StepConfig:
    """How a step is made."""

    rate: float | None = None
    """Share of the way that one step takes."""
    names: tuple[str, ...] = ()
    """Names of the parts."""


@dataclass(frozen=True)
class DoorConfig:
    """Settings of a door made for these tests."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    step: StepConfig = field(default_factory=StepConfig)
    kind: Literal["plain", "fancy"] = "plain"
    """Which kind."""
    output_dir: str = "out/run"
    """Where everything goes."""
    fresh: bool = False
    """Start over."""


def parse(*arguments):
    return parse_settings("try", DoorConfig, arguments, "A door made for tests.")


def read_errors(*arguments):
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    return caught.value.errors if isinstance(caught.value, UserErrors) else [caught.value]


def read_error(*arguments):
    errors = read_errors(*arguments)
    assert len(errors) == 1, errors
    assert isinstance(errors[0], ConfigError)
    return errors[0]


def write_preset(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_no_arguments_give_the_defaults():
    assert parse() == DoorConfig()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output_dir", "a b", "--training.seed", "7"],
        ["--output_dir=a b", "--training.seed=7"],
        ["--output-dir", "a b", "--training.seed", "7"],
        ["--training.seed", "3", "--training.seed", "7", "--output_dir", "a b"],
    ],
)
def test_flags_are_given_with_a_space_or_an_equals_sign_and_the_last_one_holds(arguments):
    config = parse(*arguments)
    assert (config.output_dir, config.training.seed) == ("a b", 7)


def test_dotted_overrides_reach_the_deepest_groups():
    config = parse("--training.optimizer.learning_rate", "3e-5", "--corpus.reader.format", "conll")
    assert config.training.optimizer.learning_rate == 3e-5
    assert config.corpus.reader.format == "conll"
    assert config.training.num_epochs == TrainingConfig().num_epochs


def test_null_unsets_an_optional_setting():
    assert parse("--step.rate", "0.5", "--step.rate", "null").step.rate is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--corpus.train", "a.conll", "b c.jsonl", "--fresh"],
        ["--corpus.train", '["a.conll", "b c.jsonl"]', "--fresh"],
        ["--fresh", "--corpus.train", "a.conll", "b c.jsonl"],
    ],
)
def test_list_flags_take_several_values(arguments):
    config = parse(*arguments)
    assert config.corpus.train == ["a.conll", "b c.jsonl"]
    assert config.fresh is True


def test_list_flags_take_one_value_also_one_that_looks_like_yaml():
    assert parse("--corpus.train", "a: b, {c}").corpus.train == ["a: b, {c}"]
    assert parse("--step.names", "1", "null", "true").step.names == ("1", "null", "true")


@pytest.mark.parametrize("value", ["2024", "true", "null.d", "a#b", "é/中", "1e3", "0x10", "{}", "[x]"])
def test_texts_stay_as_typed_whatever_they_look_like(value):
    assert parse("--output_dir", value).output_dir == value


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False)])
def test_switches_take_a_value_too(value, expected):
    assert parse("--fresh", value).fresh is expected


def test_fresh_needs_no_value():
    assert parse("--fresh").fresh is True
    assert parse("--fresh", "--training.seed", "4").fresh is True


@pytest.mark.parametrize("arguments", [["--corpus.reader.tag_column", "-1"], ["--corpus.reader.tag_column=-1"]])
def test_negative_numbers_are_values(arguments):
    assert parse(*arguments).corpus.reader.tag_column == -1


def test_preset_by_name_is_read():
    assert parse("--config", "quickstart").corpus.train == ["sample:en-train.jsonl"]


def test_preset_file_is_read_with_nested_and_dotted_keys(tmp_path):
    preset = write_preset(
        tmp_path, "corpus:\n  train: [a, b]\n  reader: {tag_column: -2}\ntraining.seed: 9\nstep: {rate: 0.25}\n"
    )
    config = parse("--config", preset)
    assert (config.corpus.train, config.corpus.reader.tag_column) == (["a", "b"], -2)
    assert (config.training.seed, config.step.rate) == (9, 0.25)


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "{}\n"])
def test_empty_preset_changes_nothing(tmp_path, content):
    assert parse("--config", write_preset(tmp_path, content)) == DoorConfig()


def test_flag_after_a_preset_overrides_it_and_a_preset_after_a_flag_overrides_that(tmp_path):
    preset = write_preset(tmp_path, "training: {seed: 9}\n")
    assert parse("--config", preset, "--training.seed", "5").training.seed == 5
    assert parse("--training.seed", "5", "--config", preset).training.seed == 9


def test_several_presets_are_read_in_their_order(tmp_path):
    config = parse("--config", "quickstart", write_preset(tmp_path, "output_dir: mine\n"))
    assert (config.output_dir, config.corpus.test) == ("mine", ["sample:en-test.jsonl"])


def test_preset_may_leave_text_that_yaml_reads_as_something_else(tmp_path):
    assert parse("--config", write_preset(tmp_path, "output_dir: 2024-05-01\n")).output_dir == "2024-05-01"


def test_a_bad_value_that_a_later_flag_overrides_is_no_mistake(tmp_path):
    preset = write_preset(tmp_path, "training: {seed: many}\n")
    assert parse("--config", preset, "--training.seed", "5").training.seed == 5


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--training.num_epoch", "--training.num_epochs"),
        ("--seed", "--training.seed"),
        ("--learning_rate", "--training.optimizer.learning_rate"),
        ("--training.learning_rate", "--training.optimizer.learning_rate"),
        ("--ouptut_dir", "--output_dir"),
    ],
)
def test_unknown_flag_names_the_nearest_setting(flag, nearest):
    error = read_error(flag, "3")
    assert flag.removeprefix("--") in error.what
    assert f"`{nearest}`" in error.remedy
    assert error.value == "3"
    assert error.where == "the command line"


def test_unknown_key_of_a_preset_names_file_and_nearest_setting(tmp_path):
    preset = write_preset(tmp_path, "training:\n  num_epoch: 3\n")
    error = read_error("--config", preset)
    assert error.where == preset
    assert "`training.num_epoch`" in error.what
    assert "`--training.num_epochs`" in error.remedy


def test_a_group_given_a_value_names_its_settings(tmp_path):
    for arguments in (["--training", "fast"], ["--config", write_preset(tmp_path, "training: fast\n")]):
        error = read_error(*arguments)
        assert "it is a group" in error.remedy
        assert "`--training.num_epochs`" in error.remedy


def test_key_that_resembles_nothing_points_to_help():
    assert "`--help`" in read_error("--zzzzqqqq", "1").remedy


def test_several_mistakes_are_told_at_once(tmp_path):
    preset = write_preset(tmp_path, "training: {num_epochs: many, sed: 1}\n")
    arguments = ["stray", "--config", preset, "--config", "quikstart"]
    arguments += ["--fresh", "perhaps", "--step.rate", "fast", "--kind", "odd"]
    errors = read_errors(*arguments)
    told = "\n".join(error.what for error in errors)
    parts = ["without a name", "quikstart", "`training.num_epochs`", "`training.sed`"]
    parts += ["`fresh`", "`step.rate`", "`kind`"]
    assert len(errors) == len(parts)
    assert [part for part in parts if told.count(part) != 1] == []


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("training.num_epochs", "many", "a whole number"),
        ("training.num_epochs", "1.5", "a whole number"),
        ("step.rate", "fast", "a number"),
        ("fresh", "perhaps", "true or false"),
        ("kind", "odd", "fancy"),
        ("corpus.reader.tag_column", "last", "a whole number"),
    ],
)
def test_wrong_type_tells_rule_and_value(flag, value, rule):
    error = read_error(f"--{flag}", value)
    assert f"`{flag}`" in error.what
    assert rule in error.rule
    assert error.value == value
    assert error.where == "the command line"


def test_wrong_type_in_a_preset_names_the_file(tmp_path):
    preset = write_preset(tmp_path, "training: {num_epochs: [3, 4]}\n")
    assert read_error("--config", preset, "--training.seed", "1").where == preset


@pytest.mark.parametrize("arguments", [["extra"], ["extra", "--fresh"]])
def test_stray_argument_is_refused(arguments):
    error = read_error(*arguments)
    assert error.value == "extra"
    assert "`--name value`" in error.rule


def test_stray_argument_after_a_value_is_refused_and_not_joined_to_it():
    error = read_error("--output_dir", "out/a", "extra")
    assert "`output_dir`" in error.what
    assert "`extra`" in error.value


@pytest.mark.parametrize("flag", ["--output_dir", "--training.seed", "--corpus.train", "--config"])
def test_flag_without_its_value_is_refused(flag):
    assert flag.removeprefix("--") in str(read_error(flag))
    assert flag.removeprefix("--") in str(read_error(flag, "--fresh"))


def test_missing_preset_names_the_shipped_ones():
    error = read_error("--config", "quickstrat")
    assert "`quickstart`" in error.rule
    assert "`quickstart`" in error.remedy
    assert "quickstrat" in error.what


@pytest.mark.parametrize("content", ["- a\n- b\n", "just text\n", "[]\n", "0\n", "a: [1\n", "a: b: c\n", "\x00\n"])
def test_preset_that_is_not_a_mapping_or_not_yaml_is_refused(tmp_path, content):
    preset = write_preset(tmp_path, content)
    error = read_error("--config", preset)
    assert error.where == preset
    assert error.value


def test_preset_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("output_dir: é\n".encode("latin-1"))
    assert read_error("--config", str(path)).where == str(path)


@pytest.mark.parametrize("also", [[], ["--debug"]])
def test_printed_config_can_be_read_back(tmp_path, capsys, also):
    given = ["--config", "quickstart", "--corpus.reader.tag_column", "-1", "--step.names", "a", "1", "--fresh"]
    given += ["--training.optimizer.learning_rate", "3e-05", "--output_dir", "2024"]
    with pytest.raises(SystemExit) as caught:
        parse(*given, "--print_config", *also)
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert yaml.safe_load(printed)["corpus"]["train"] == ["sample:en-train.jsonl"]
    assert parse("--config", write_preset(tmp_path, printed)) == parse(*given)


def test_print_config_tells_mistakes_instead(capsys):
    assert "sed" in read_error("--print_config", "--training.sed", "1").what
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--help", "--unknown", "1"]])
def test_help_shows_the_docstring_of_every_field(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    printed = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for sentence in (
        "A door made for tests.",
        "Share of the way that one step takes.",
        "Where everything goes.",
        "Passes over the training corpus.",
        "AdamW's decay; not applied to biases, norms and a CRF, nor to embeddings of words with sparse gradients.",
        "CoNLL: position of the tag's column; by default the last",
        "`quickstart`",
    ):
        assert sentence in printed
    assert "--debug" in printed
    assert all(f"--{key}" in printed for key in list_keys(DoorConfig))


def test_debug_is_no_setting():
    assert parse("--debug") == parse()
    assert parse("--training.seed", "4", "--debug").training.seed == 4


@dataclass(frozen=True)
class MappingConfig:
    """Settings with keys of the user's own."""

    models: dict[str, str] = field(default_factory=dict)
    """A path for each name."""
    space: dict[str, list[str]] = field(default_factory=dict)
    """Texts for each name."""


def parse_mapping(*arguments):
    return parse_settings("try", MappingConfig, arguments, "A door made for tests.")


def test_keys_of_a_mapping_are_the_users_own():
    config = parse_mapping("--models.a-1", "x/y", "--models.b.c=z", "--space.p.q", "1", "2", "--space.r-s", "f(1, 2)")
    assert config == MappingConfig({"a-1": "x/y", "b.c": "z"}, {"p.q": ["1", "2"], "r_s": ["f(1, 2)"]})


def test_mapping_of_a_preset_is_nested_or_dotted_and_flags_add_to_it(tmp_path):
    preset = write_preset(tmp_path, "space:\n  p:\n    q: [1, 2]\n    s: [a, b]\n  r.t: 3\n")
    config = parse_mapping("--config", preset, "--space.p.q", "5", "--space.u", "v")
    assert config.space == {"p.q": ["5"], "p.s": ["a", "b"], "r.t": ["3"], "u": ["v"]}


def test_key_of_a_mapping_without_value_or_with_too_many_is_refused():
    for arguments, fact in ((["--models.a"], "has no value"), (["--models.a", "x", "y"], "takes one value")):
        with pytest.raises(ConfigError, match=fact):
            parse_mapping(*arguments)


def test_pattern_that_begins_with_a_bracket_is_a_pattern():
    assert parse("--corpus.train", "[ab]*.jsonl").corpus.train == ["[ab]*.jsonl"]
    for pattern in ("[ab]", "[0-9].jsonl", "[!a]*"):
        assert parse("--corpus.train", pattern).corpus.train == [pattern]
    for given in ('["a.jsonl", "b.jsonl"]', "[a.jsonl, b.jsonl]", "['a.jsonl','b.jsonl']"):
        assert parse("--corpus.train", given).corpus.train == ["a.jsonl", "b.jsonl"]
    assert parse("--corpus.train", '["a.jsonl"]').corpus.train == ["a.jsonl"]
    assert parse("--corpus.train", "[]").corpus.train == []


def test_key_of_a_list_with_nothing_behind_it_is_an_empty_list(tmp_path):
    (tmp_path / "own.yaml").write_text("corpus:\n  dev:\n", encoding="utf-8")
    assert parse("--config", str(tmp_path / "own.yaml")).corpus.dev == []


def test_list_flag_given_twice_has_the_values_of_both(tmp_path):
    config = parse("--corpus.train", "a.jsonl", "b.jsonl", "--corpus.train", "c.jsonl", "--corpus.train", '["d.jsonl"]')
    assert config.corpus.train == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]
    assert parse("--corpus.train", "[2024-05-01, b]", "--corpus.train", "c").corpus.train == ["2024-05-01", "b", "c"]
    preset = write_preset(tmp_path, "corpus:\n  train: [mine.jsonl]\n")
    assert parse("--config", preset, "--corpus.train", "c.jsonl").corpus.train == ["c.jsonl"]
    assert parse("--corpus.train", "c.jsonl", "--config", preset).corpus.train == ["mine.jsonl"]


@pytest.mark.parametrize("content", ["training:\n  seed: 1\ntraining:\n  seed: 2\n", "kind: plain\nkind: fancy\n"])
def test_key_that_stands_twice_in_a_preset_is_refused(tmp_path, content):
    error = read_error("--config", write_preset(tmp_path, content))
    assert "stands twice" in str(error)
    assert "mine.yaml" in str(error)


def test_anchors_of_a_preset_may_be_merged(tmp_path):
    merged = "a: &a {seed: 1, num_epochs: 3}\nb: &b {<<: *a, seed: 2}\ntraining: {<<: *b, seed: 4}\n"
    errors = read_errors("--config", write_preset(tmp_path, merged))
    assert {error.what for error in errors} == {
        f"unknown setting `{x}.{y}`" for x in "ab" for y in ("seed", "num_epochs")
    }


@pytest.mark.parametrize("content", ["output_dir:\n", "output_dir: null\n", "output_dir: ~\n"])
def test_text_with_nothing_behind_its_key_is_missing_and_not_the_word_null(tmp_path, content):
    error = read_error("--config", write_preset(tmp_path, content))
    assert "`output_dir` has no value" in str(error)


def test_mapping_with_nothing_behind_its_key_is_empty(tmp_path):
    preset = write_preset(tmp_path, "models:\nspace:\n")
    assert parse_mapping("--config", preset) == MappingConfig()
    more = parse_mapping("--config", preset, "--models.a", "x", "--space.b", "1", "2")
    assert more == MappingConfig({"a": "x"}, {"b": ["1", "2"]})


def test_mapping_given_as_text_and_by_key_is_refused():
    with pytest.raises(ConfigError, match="`models` is no mapping"):
        parse_mapping("--models", "a=x", "--models.b", "y")
