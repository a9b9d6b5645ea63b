"""Every mistake of a user: exit code 2, one message on stderr, nothing on stdout, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipelines import compress, evaluate, predict, prepare, scale, train, tune
from tests.conftest import ROOT, SAMPLE, make_bundle
from tests.e2e.refusals import Refusal

pytestmark = pytest.mark.usefixtures("ray_session")

DOORS = {
    "train": train.main,
    "prepare": prepare.main,
    "scale": scale.main,
    "tune": tune.main,
    "compress": compress.main,
    "predict": predict.main,
    "evaluate": evaluate.main,
}
GOOD = "Angela B-PER\nMerkel I-PER\nvisited O\nUtrecht B-LOC\n. O\n\n" * 3
Refuse = Callable[..., Refusal]


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """Runs a door that is expected to refuse; it gets its own output folder, where nothing may appear."""

    def run(door: str, *arguments: object, output_dir: Path | None = None) -> Refusal:
        folder = output_dir or tmp_path / "out"
        before = set(tmp_path.rglob("*"))
        capfd.readouterr()
        code = DOORS[door]([*map(str, arguments), "--output_dir", str(folder)])
        captured = capfd.readouterr()
        made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
        assert not made, f"left behind: {sorted(made)}"
        return Refusal(code, captured.out, captured.err)

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file under the test's folder."""

    def write_file(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write_file


@pytest.fixture(scope="module")
def bundle(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("bundle") / "tiny")


def train_on(refuse: Refuse, *arguments: object) -> Refusal:
    return refuse("train", "--model.encoder", "scratch", *arguments)


def test_file_that_is_not_there_is_refused_with_the_near_name(refuse, write):
    write("news.conll", GOOD)
    missing = write("x", "").parent / "nevs.conll"
    refusal = train_on(refuse, "--corpus.train", missing)
    assert not refusal.lacks("there is no such file", str(missing), "news.conll", "remedy")


def test_all_missing_files_are_told_at_once(refuse, tmp_path):
    paths = [tmp_path / f"{split}-nowhere.conll" for split in ("train", "dev", "test")]
    train, dev, test = paths
    flags = ("--corpus.train", train, "--corpus.dev", dev, "--corpus.test", test)
    assert not train_on(refuse, *flags).lacks("3 mistakes", "1. ", "2. ", "3. ", *map(str, paths))


def test_glob_that_matches_nothing_is_refused(refuse, tmp_path):
    pattern = tmp_path / "*.conll"
    assert not train_on(refuse, "--corpus.train", pattern).lacks("the pattern matches no file", str(pattern), "remedy")


def test_empty_and_binary_files_are_refused_together(refuse, write, tmp_path):
    empty, binary = write("empty.conll", ""), tmp_path / "binary.conll"
    binary.write_bytes(b"PK\x03\x04\0\0\0\0" * 100)
    refusal = train_on(refuse, "--corpus.train", write("good.conll", GOOD), empty, binary)
    assert not refusal.lacks(
        "2 mistakes", "the file is empty", str(empty), "the file is binary", f"{binary}:1", "a NUL byte"
    )


def test_line_with_too_few_columns_is_named_with_its_line(refuse, write):
    path = write("a.conll", GOOD + "Berlin\nis O\n")
    refusal = train_on(refuse, "--corpus.train", path)
    assert not refusal.lacks(f"{path}:19", "too_few_columns", "`Berlin`", "max_bad_fraction", "25.00%")


def test_unknown_tag_prefix_is_named_with_its_line(refuse, write):
    path = write("a.conll", GOOD + "Berlin X-LOC\n")
    refusal = train_on(refuse, "--corpus.train", path)
    assert not refusal.lacks("unknown tag prefix", f"{path}:19", "`X-LOC`", "--corpus.scheme")


def test_overlapping_spans_are_named_with_their_line(refuse, write):
    rows = [{"text": "Angela Merkel", "entities": [[0, 13, "PER"], [7, 13, "LOC"]]}]
    path = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    refusal = train_on(refuse, "--corpus.train", path)
    assert not refusal.lacks(f"{path}:1", "overlapping_spans", "`PER` 0..13", "`LOC` 7..13", "max_bad_fraction")


def test_span_outside_the_text_is_named_with_its_line(refuse, write):
    rows = [{"text": "Angela Merkel", "entities": [[0, 99, "PER"]]}]
    path = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    refusal = train_on(refuse, "--corpus.train", path)
    assert not refusal.lacks(f"{path}:1", "span_outside_text", "`PER` 0..99", "the 13 characters")


def test_mixed_schemes_are_refused_with_an_example_of_each(refuse, write):
    one, other = write("a.conll", GOOD), write("b.conll", "Anna U-PER\nvan B-PER\nder M-PER\nVeer L-PER\n")
    refusal = train_on(refuse, "--corpus.train", one, other)
    assert not refusal.lacks("mix label schemes", "`U-PER`", f"{other}:1", "`M-PER`", "one scheme")


def test_label_that_only_test_has_is_refused(refuse, write):
    one, other = write("a.conll", GOOD), write("b.conll", "Siemens B-ORG\n")
    refusal = train_on(refuse, "--corpus.train", one, "--corpus.dev", one, "--corpus.test", other)
    assert not refusal.lacks("test split has labels that the training split lacks", "`ORG`", "`LOC`, `PER`", "remedy")


def test_corpus_without_annotation_is_refused(refuse, write):
    path = write("a.jsonl", '{"text": "Angela Merkel"}\n')
    assert not train_on(refuse, "--corpus.train", path).lacks("1 records have no annotation", "spans_column")


def test_encoder_that_is_not_there_is_refused_with_the_ways_to_have_one(refuse, write, tmp_path):
    path = write("a.conll", GOOD)
    ways = ("a folder", "hub id", "pip install", "scratch")
    for name in (tmp_path / "no-encoder", "no-such-organisation-anywhere/no-such-encoder"):
        refusal = refuse("train", "--corpus.train", path, "--model.encoder", name)
        assert not refusal.lacks(f"no encoder `{name}`", *ways)


def test_window_without_room_for_words_is_refused_before_reading(refuse, write, tiny_encoder):
    path = write("a.conll", GOOD)
    corpus = ("--corpus.train", path, "--corpus.dev", path, "--corpus.test", path)
    arguments = ("train", *corpus, "--model.encoder", tiny_encoder, "--encoding.window")
    assert not refuse(*arguments, 3).lacks("no room for words", "2 special tokens", "window 3")
    assert not refuse(*arguments, 9999).lacks("longer than the encoder can read", "512", "window 9999")
    assert not train_on(refuse, *corpus, "--encoding.window", 3).lacks("no room for words", "window 3")


def test_workers_without_room_are_refused_with_the_sum(refuse, write):
    path = write("a.conll", GOOD)
    arguments = ("--corpus.train", path, "--corpus.dev", path, "--corpus.test", path, "--resources.num_workers", 99)
    assert not train_on(refuse, *arguments).lacks("no room for the workers", "99 workers with 1 CPU", "room for 8")


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (("--workers", 0, 2), ("`workers`", "at least 1", "[0, 2]")),
        (("--workers", "[]"), ("`workers`", "one number or more")),
        (("--workers", "two"), ("`workers`", "a whole number", "two")),
        (("--strategies", "ddp", "zero3"), ("`strategies`", "ddp, fsdp, tensor", "zero3")),
        (("--strategies", "[]"), ("`strategies`", "one or more of ddp")),
        (("--strategies",), ("`strategies` has no value",)),
        (("--num_steps", 5), ("`num_steps`", "at least 15", "5")),
        (("--price_per_hour", -1), ("`price_per_hour`", "-1")),
        (("--parallel.strategy", "fsdp"), ("`parallel.strategy`", "`strategies` says which", "fsdp")),
        (("--workers", 0, "--num_steps", 1), ("2 mistakes", "`workers`", "`num_steps`")),
        (("--workers", 99), ("no room for the workers", "99 workers")),
    ],
)
def test_scaling_that_cannot_be_measured_is_refused(refuse, write, flags, facts):
    path = write("a.conll", GOOD)
    assert not refuse("scale", "--corpus.train", path, "--model.encoder", "scratch", *flags).lacks(*facts)


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ((), ("the search space is empty", "--config quick")),
        (("--space.training.lerning_rate", "1", "2"), ("does not exist", "--space.training.optimizer.learning_rate")),
        (("--space.training.num_epochs", "uniform(1, 5)"), ("the type does not fit", "a whole number", "randint")),
        (("--space.model.head", "linear", "crff"), ("`space.model.head`", "one of linear, crf", "crff")),
        (("--space.encoding.window", "randint(64, 256)"), ("`space.encoding.window`", "values to choose from")),
        (
            ("--space.model.dropout", "0", "0.1", "--search.budget_s", 2),
            ("the budget is smaller than one trial", "2 s"),
        ),
        (("--space.model.dropout", "0", "0.1", "--search.cpus_per_trial", 99), ("no room for a trial", "99 CPU")),
        (
            ("--space.model.heads", "a", "b", "--search.sampler", "grid", "--training.num_epochs", 0),
            ("3 mistakes", "`--space.model.head`", "random, tpe, pbt", "num_epochs"),
        ),
        (
            ("--space.model.head", "linear", "crf", "--search.sampler", "pbt"),
            ("a population has nothing to change", "training.optimizer."),
        ),
    ],
)
def test_search_that_cannot_be_run_is_refused(refuse, write, flags, facts):
    path = write("a.conll", GOOD)
    corpus = ("--corpus.train", path, "--corpus.dev", path, "--corpus.test", path)
    refusal = refuse("tune", *corpus, "--model.encoder", "scratch", *flags)
    assert not refusal.lacks(*facts)


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (["--steps", "distil", "--max_f1_loss", "-1"], ["2 mistakes", "some of distill, prune", "0 to 100 points"]),
        (["--distillation.layers", "2"], ["not smaller than its teacher", "the teacher has 2"]),
        (["--distillation.teacher_share", "1.5", "--pruning.heads", "1"], ["0 to 1", "0 ≤ share < 1"]),
        (["--corpus.dev"], ["no dev set to judge by", "was not trained on"]),
        (
            [
                *("--steps", "distill", "--distillation.encoder", "scratch", "--distillation.share_layers", "true"),
                *("--distillation.layers", "1", "--distillation.hidden_size", "32", "--inference.runtime", "packed"),
            ],
            ["a variant that the runtime cannot compute", "`inference.runtime`", "albert"],
        ),
        (
            ["--steps", "early_exit", "--inference.runtime", "torch-compiled"],
            ["a variant that the runtime cannot compute", "auto, packed or torch", "torch-compiled"],
        ),
    ],
)
def test_compression_that_cannot_be_done_is_refused(refuse, write, bundle, flags, facts):
    corpus = ["--corpus.train", write("train.conll", GOOD), "--corpus.dev", write("dev.conll", GOOD)]
    corpus = corpus[:2] if "--corpus.dev" in flags else [*corpus, *flags]
    assert not refuse("compress", "--model", bundle, *corpus).lacks(*facts)


def test_corpus_with_labels_that_the_model_lacks_is_refused_by_compress(refuse, write, bundle):
    other = GOOD.replace("LOC", "RIVER")
    corpus = ["--corpus.train", write("train.conll", other), "--corpus.dev", write("dev.conll", other)]
    refusal = refuse("compress", "--model", bundle, *corpus)
    assert not refusal.lacks("labels that the model does not know", "only in the corpus: RIVER")


def test_folder_that_is_no_model_is_refused_by_predict_and_evaluate(refuse, write, tmp_path):
    path = write("a.txt", "Angela Merkel\n")
    (tmp_path / "nothing").mkdir()
    for name, reason in ((tmp_path / "nothing", "no config.json"), (tmp_path / "nowhere", "no such folder")):
        refusal = refuse("predict", "--model", name, "--input", path)
        assert not refusal.lacks(f"`{name}` is not a model", reason, "remedy")
        refusal = refuse("evaluate", "--model", name, "--corpus", path)
        assert not refusal.lacks(f"`{name}` is not a model", reason, "remedy")


def test_bundle_whose_files_were_changed_is_refused(refuse, write, bundle, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    config = changed / "config.json"
    config.write_text(config.read_text().replace("B-PER", "B-CAT"))
    refusal = refuse("predict", "--model", changed, "--input", write("a.txt", "Angela\n"))
    assert not refusal.lacks("not those it was saved with", str(changed), "fingerprint", "remedy")


def test_model_that_knows_none_of_the_labels_is_refused_by_evaluate(refuse, write, bundle, tmp_path):
    path = write("a.conll", GOOD.replace("PER", "CAT").replace("LOC", "DOG"))
    refusal = refuse("evaluate", "--model", bundle, "--corpus", path)
    assert not refusal.lacks("knows none of the corpus's labels", "CAT, DOG", "LOC, MISC")


def test_documents_that_cannot_be_read_are_refused_by_predict(refuse, write, bundle):
    path = write("a.jsonl", '{"text": "Angela"}\n{"title": "no text"}\n{"text"\n')
    refusal = refuse("predict", "--model", bundle, "--input", path)
    assert not refusal.lacks(f"{path}:2", "no_text", f"{path}:3", "broken_json", "66.67%", "max_bad_fraction")


def test_shards_that_are_none_are_refused(refuse, tmp_path):
    assert not refuse("train", "--corpus.shards", tmp_path).lacks("holds no shards", str(tmp_path), "rayner prepare")


def test_unknown_settings_are_refused_with_the_near_ones(refuse):
    refusal = refuse("train", "--corpus.trian", "a.conll", "--learning_rate", "1e-3", "--training.num_epochs", "many")
    assert not refusal.lacks("3 mistakes", "`corpus.trian`", "--corpus.train", "--training.optimizer.learning_rate")
    assert not refusal.lacks("`training.num_epochs`", "a whole number", "many")


def test_several_values_out_of_range_are_told_at_once(refuse):
    arguments = ("--training.num_epochs", 0, "--model.head", "crff", "--corpus.scheme", "BIEO")
    refusal = refuse("train", *arguments, "--training.precision", "fp8")
    assert not refusal.lacks("5 mistakes", "no corpus is given", "num_epochs", "crff", "BIEO", "fp8")
    assert not refuse("predict", "--format", "xml").lacks("3 mistakes", "no model is given", "no input is given", "xml")
    refusal = refuse("evaluate", "--max_bad_fraction", 2)
    assert not refusal.lacks("3 mistakes", "no model is given", "no corpus is given", "fraction")


def test_augmentation_that_cannot_be_done_is_refused(refuse, write, tmp_path):
    arguments = ("--corpus.train", write("a.conll", GOOD), "--corpus.augmentation.masking", -1)
    refusal = train_on(refuse, *arguments, "--corpus.augmentation.gazetteer", tmp_path / "nowhere.tsv")
    assert not refusal.lacks("2 mistakes", "`corpus.augmentation.masking`", "there is no such file", "nowhere.tsv")


def test_settings_that_contradict_each_other_are_refused(refuse, write):
    arguments = ("--corpus.train", write("a.conll", GOOD), "--model.head", "crf")
    arguments += ("--training.adversarial.method", "fgm", "--parallel.strategy", "fsdp")
    refusal = refuse("train", *arguments, "--training.label_smoothing", 0.1)
    assert not refusal.lacks("2 mistakes", "`training.label_smoothing`, `model.head` crf", "leave one of them out")
    assert not refusal.lacks(
        "`training.adversarial.method`, `parallel.strategy` fsdp", "ddp, local_sgd, or one worker alone"
    )


def test_output_folder_below_a_file_is_refused(refuse, write, bundle):
    file = write("file", "")
    corpus = write("a.conll", GOOD)
    for door, arguments in (
        ("train", ("--corpus.train", corpus)),
        ("prepare", ("--corpus.train", corpus)),
        ("evaluate", ("--model", bundle, "--corpus", corpus)),
        ("predict", ("--model", bundle, "--input", corpus)),
    ):
        refusal = refuse(door, *arguments, output_dir=file / "below")
        assert not refusal.lacks(
            "the output folder cannot be written", str(file / "below"), "Not a directory", "--output_dir"
        )


def test_output_folder_that_holds_something_else_is_refused(refuse, write, bundle, tmp_path):
    corpus = write("a.conll", GOOD)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for door, arguments in (
        ("train", ("--corpus.train", corpus)),
        ("prepare", ("--corpus.train", corpus)),
        ("predict", ("--model", bundle, "--input", corpus)),
    ):
        assert not refuse(door, *arguments, output_dir=folder).lacks("the output folder", str(folder), "--output_dir")
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_mended_command_runs_after_a_refusal_in_the_same_output_folder(refuse, write, tmp_path):
    corpus = write("a.conll", GOOD.split("\n\n")[0])
    assert not train_on(refuse, "--corpus.train", tmp_path / "nowhere.conll").lacks("there is no such file")
    assert not train_on(refuse, "--corpus.train", corpus).lacks("split is empty", "train, dev and test each")


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment, check=False)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["train", "--config", "quikstart"], ["no preset", "did you mean `quickstart`"]),
        (["predict", "--model", "nowhere", "--input", str(SAMPLE / "en-test.jsonl")], ["`nowhere` is not a model"]),
        (["lable", "--model", "x"], ["no verb `lable`", "predict"]),
    ],
)
def test_command_line_refuses_with_code_2(arguments: Sequence[str], facts: Sequence[str], tmp_path):
    output = [] if arguments[0] == "lable" else ["--output_dir", tmp_path / "out"]
    done = run_command(*arguments, *output)
    assert not Refusal(done.returncode, done.stdout, done.stderr).lacks(*facts)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
