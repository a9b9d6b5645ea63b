"""The frame of every door: exit codes, messages, folders that can be resumed, files written whole."""

import errno
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayTaskError

from pipelines import compress, evaluate, predict, prepare, pretrain, run_record, scale, serve, train, tune
from pipelines.cluster import ClusterConfig
from pipelines.compression.config import DistillationConfig
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.identity import identify_corpus
from pipelines.corpus.text_config import TextConfig
from pipelines.folders import (
    check_resumable,
    leave_no_trace_of_mistakes,
    lock_folder,
    prepare_output_dir,
    write_json,
)
from pipelines.job import NEVER_BEGAN, find_mistake, run_door, warn_of_idle
from pipelines.ner.bundle import load_bundle, save_bundle
from pipelines.ner.errors import UserError, UserErrors
from pipelines.ner.files import write_text
from pipelines.ner.model import ModelConfig
from pipelines.run_record import RunRecord, read_git_revision
from pipelines.runs import FREE, build_guard
from pipelines.settings import ConfigError
from pipelines.training.config import TrainingConfig
from pipelines.training.forward import ForwardError
from pipelines.training.job import TrainingJob
from pipelines.training.masking import MaskingConfig
from pipelines.training.parallel import ParallelConfig
from tests.conftest import make_bundle
from tests.quickstart import ROOT
from tests.unit.shards import make_info

SETTINGS = {"corpus": {"train": ["a"], "dev": []}, "training": {"seed": 1, "rate": None}}


@dataclass(frozen=True)
class DoorConfig:
    """Settings of a door made for these tests."""

    number: int = 1
    """Any number."""
    fresh: bool = False
    """Start over."""


class WrappedError(Exception):
    """As Ray wraps what a worker raises: the original as `cause`."""

    def __init__(self, cause):
        super().__init__("Traceback (most recent call last):\n  File …\nthe last line")
        self.cause = cause


def open_door(error=None, argv=()):
    def run(config):
        if error is not None:
            raise error

    return run_door("try", DoorConfig, run, "A door.", list(argv))


def wrap(error, depth):
    for _ in range(depth):
        error = WrappedError(error)
    return error


MISTAKE = UserError("the soup is cold", where="the kitchen", rule="hot", value=12, remedy="heat it")


def test_exit_code_is_0_when_all_went_well(capsys):
    assert open_door() == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_exit_code_is_2_for_a_mistake_of_the_user_however_it_is_wrapped(capsys, depth):
    assert open_door(wrap(MISTAKE, depth)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("rayner try: the soup is cold\n  where:  the kitchen\n")
    assert "Traceback" not in printed.err


def test_exit_code_is_2_for_a_mistake_that_another_error_came_from(capsys):
    error = RuntimeError("workers failed")
    error.__cause__ = WrappedError(MISTAKE)
    assert open_door(error) == 2
    assert "heat it" in capsys.readouterr().err


def test_exit_code_is_2_for_mistakes_in_the_settings(capsys):
    assert open_door(argv=["--numbr", "3"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "`--number`" in printed.err


def test_several_mistakes_are_told_in_one_message(capsys):
    assert open_door(UserErrors([MISTAKE, UserError("the bread is stale")])) == 2
    printed = capsys.readouterr().err
    assert "1. the soup is cold" in printed
    assert "2. the bread is stale" in printed


def test_exit_code_is_1_for_a_failed_run_with_its_last_line_and_no_traceback(capsys):
    assert open_door(wrap(ZeroDivisionError("division by zero"), 1)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("rayner try failed: WrappedError: the last line\n")
    assert "Traceback" not in printed.err
    assert "--debug" in printed.err


def test_failure_of_a_worker_is_told_without_what_ray_adds(capsys):
    advice = "Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change retry attempts, …"
    failure = RuntimeError(f"the device is gone\n{advice}")
    assert open_door(RayTaskError("submit", "Traceback …", failure).as_instanceof_cause()) == 1
    assert capsys.readouterr().err.startswith("rayner try failed: RuntimeError: the device is gone\n")


def test_mistake_found_by_a_worker_is_told_as_it_is(capsys):
    assert open_door(RayTaskError("submit", "Traceback …", MISTAKE).as_instanceof_cause()) == 2
    assert capsys.readouterr().err == f"rayner try: {MISTAKE}\n"


def test_exit_code_is_1_for_an_error_without_a_message(capsys):
    assert open_door(RuntimeError()) == 1
    assert "RuntimeError" in capsys.readouterr().err


def test_exit_code_is_130_when_the_user_stops_it(capsys):
    assert open_door(KeyboardInterrupt()) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "stopped" in printed.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "the same command goes on"),
        (["--fresh"], "the same command without `--fresh` goes on"),
        (["--fresh", "false"], "the same command goes on"),
    ],
)
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), UserError("full", remedy="the same command goes on"), OSError("the same command goes on")],
)
def test_what_goes_on_with_a_run_does_not_remove_it(capsys, argv, told, error):
    open_door(error, argv)
    assert told in capsys.readouterr().err


def test_run_that_never_began_goes_on_by_starting_over_again(capsys):
    error = KeyboardInterrupt()
    error.add_note(NEVER_BEGAN)
    open_door(error, ["--fresh"])
    assert "the same command goes on" in capsys.readouterr().err


def test_help_exits_with_0():
    with pytest.raises(SystemExit) as caught:
        open_door(argv=["--help"])
    assert caught.value.code == 0


def test_disk_that_is_full_is_a_mistake_with_a_remedy():
    mistake = find_mistake(wrap(OSError(28, "No space left on device", "/out/model"), 2))
    assert isinstance(mistake, ConfigError)
    assert (mistake.where, mistake.value) == ("/out/model", "No space left on device")
    assert find_mistake(OSError(2, "No such file or directory", "/out/model")) is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_file_that_may_not_be_read_is_not_told_to_be_unwritable(number):
    mistake = find_mistake(wrap(OSError(number, os.strerror(number), "/data/shards.json"), 2))
    assert (mistake.what, mistake.where) == ("no right to a file", "/data/shards.json")
    assert "read" in mistake.rule


def test_a_forbidden_file_without_its_name_is_a_mistake_and_a_forbidden_process_is_not():
    mistake = find_mistake(OSError(errno.EACCES, "Error creating dataset: '/data/x.parquet': Permission denied"))
    assert "/data/x.parquet" in mistake.value
    assert find_mistake(OSError(errno.EPERM, "of a process")) is None


def test_errors_that_name_each_other_do_not_loop():
    first, second = WrappedError(None), WrappedError(None)
    first.cause, second.cause = second, first
    assert find_mistake(first) is None


def test_new_folder_is_made_ready_and_remembers_its_settings(tmp_path):
    assert check_resumable(tmp_path, SETTINGS, fresh=False) is False
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS


def test_interrupted_run_with_the_same_settings_is_resumed_and_its_files_stay(tmp_path):
    check_resumable(tmp_path, SETTINGS, fresh=False)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert check_resumable(tmp_path, SETTINGS, fresh=False) is False
    assert (tmp_path / "metrics.jsonl").exists()


def test_changed_settings_are_refused_and_named_with_both_values(tmp_path):
    check_resumable(tmp_path, SETTINGS, fresh=False)
    changed = {"corpus": {"train": ["b"], "dev": []}, "training": {"seed": 1, "rate": 0.5}}
    with pytest.raises(ConfigError) as caught:
        check_resumable(tmp_path, changed, fresh=False)
    assert caught.value.value == "`corpus.train`: ['a'] then, ['b'] now; `training.rate`: None then, 0.5 now"
    assert "--fresh" in caught.value.remedy
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS


def test_settings_that_change_no_step_may_change_when_a_run_goes_on(tmp_path, capsys):
    before = {"training": {"device_batch_tokens": 4096, "seed": 1}}
    now = {"training": {"device_batch_tokens": 512, "seed": 1}}
    check_resumable(tmp_path, before, False, "a hash", FREE)
    assert capsys.readouterr().err == ""
    assert check_resumable(tmp_path, now, False, "a hash", FREE) is False
    assert "`training.device_batch_tokens`: 4096 then, 512 now" in capsys.readouterr().err
    assert json.loads((tmp_path / "settings.json").read_text()) == now | {"corpus_fingerprint": "a hash"}
    with pytest.raises(ConfigError) as caught:
        check_resumable(tmp_path, {"training": {"device_batch_tokens": 256, "seed": 2}}, False, "a hash", FREE)
    assert caught.value.value == "`training.seed`: 1 then, 2 now"
    RunRecord("try", DoorConfig()).write(tmp_path, status="done")
    assert check_resumable(tmp_path, before, False, "a hash", FREE) is True
    assert json.loads((tmp_path / "settings.json").read_text())["training"] == now["training"]


@pytest.mark.parametrize("name", ["training.device_batch_tokens", "training.checkpoint_every_steps"])
def test_training_may_go_on_in_smaller_passes(tmp_path, monkeypatch, name, capsys):
    monkeypatch.setattr(train, "connect", refuse_cluster)
    arguments = ["--corpus.train", "sample:en-train.jsonl", "--output_dir", str(tmp_path)]
    assert train.main(arguments) == 1
    assert train.main([*arguments, f"--{name}", "17"]) == 1
    told = capsys.readouterr().err
    assert "Connected" in told
    assert f"`{name}`: " in told


def test_settings_that_json_writes_otherwise_are_not_changed_ones(tmp_path):
    settings = {"corpus": {"names": ("a", "b"), "path": tmp_path}}
    check_resumable(tmp_path, settings, fresh=False)
    assert check_resumable(tmp_path, settings, fresh=False) is False


def test_setting_that_is_new_with_a_default_of_none_is_no_change(tmp_path):
    check_resumable(tmp_path, {"training": {"seed": 1}}, fresh=False)
    assert check_resumable(tmp_path, {"training": {"seed": 1, "patience": None}}, fresh=False) is False


def test_finished_run_is_recognized(tmp_path):
    check_resumable(tmp_path, SETTINGS, fresh=False)
    record = RunRecord("try", DoorConfig())
    record.write(tmp_path, status="failed")
    assert check_resumable(tmp_path, SETTINGS, fresh=False) is False
    record.write(tmp_path, status="done")
    assert check_resumable(tmp_path, SETTINGS, fresh=False) is True


def test_folder_with_something_else_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(ConfigError, match="something else"):
        check_resumable(tmp_path, SETTINGS, fresh=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    for content in ("", "[]"):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(ConfigError, match="something else"):
            check_resumable(tmp_path, SETTINGS, fresh=False)


def test_fresh_removes_what_an_earlier_run_left_but_not_what_links_point_to(tmp_path):
    kept, folder = tmp_path / "kept", tmp_path / "run"
    kept.mkdir()
    (kept / "precious").write_text("x")
    folder.mkdir()
    check_resumable(folder, SETTINGS, fresh=False)
    (folder / "bundle").mkdir()
    (folder / "bundle" / "model.bin").write_text("x")
    (folder / "shards").symlink_to(kept)
    RunRecord("try", DoorConfig()).write(folder, status="done")
    with lock_folder(folder):
        assert check_resumable(folder, {"training": {"seed": 2}}, fresh=True) is False
    assert [path.name for path in folder.iterdir()] == ["settings.json"]
    assert (kept / "precious").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("settings.json", {"editor.fontSize": 12}),
        ("settings.json", {"model": "gpt2", "training": {}}),
        ("settings.json", ["model", "corpus", "training"]),
        ("run.json", {"status": "done"}),
        ("shards.json", {"shards": 3}),
        ("_SUCCESS", {}),
    ],
)
def test_fresh_leaves_the_folders_of_other_programs(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(ConfigError, match="something else"):
        check_resumable(tmp_path, SETTINGS, fresh=True)
    assert (tmp_path / "thesis.txt").exists()


IDENTITIES = [door.IDENTITY for door in (train, tune, pretrain, scale, compress)]


@pytest.mark.parametrize("names", [*IDENTITIES, ("model", *predict.IDENTITY, "input")])
def test_fresh_starts_over_where_a_run_of_any_door_was_killed_at_once(tmp_path, names):
    check_resumable(tmp_path, dict.fromkeys(names, 1), fresh=False)
    (tmp_path / "shards").mkdir()
    with lock_folder(tmp_path):
        check_resumable(tmp_path, dict.fromkeys(names, 2), fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_run_on_a_corpus_that_has_changed_is_refused(tmp_path):
    file, folder = tmp_path / "a.conll", tmp_path / "run"
    file.write_text("Utrecht B-LOC\n")
    folder.mkdir()
    corpus = CorpusConfig(train=[str(file)])
    check_resumable(folder, SETTINGS, False, identify_corpus(corpus))
    os.utime(file, (1, 1))  # a copy is the same corpus
    assert check_resumable(folder, SETTINGS, False, identify_corpus(corpus)) is False
    file.write_text("Utrecht B-ORG\n")
    with pytest.raises(ConfigError, match="the corpus has changed") as caught:
        check_resumable(folder, SETTINGS, False, identify_corpus(corpus))
    assert "--fresh" in caught.value.remedy
    file.unlink()
    assert check_resumable(folder, SETTINGS, False, identify_corpus(corpus)) is False


def test_run_of_which_no_corpus_is_known_goes_on(tmp_path):
    check_resumable(tmp_path, SETTINGS, fresh=False)
    assert check_resumable(tmp_path, SETTINGS, False, "a hash") is False


def test_corpus_is_known_by_its_files_or_by_the_sidecar_of_its_shards(tmp_path):
    (tmp_path / "shards.json").write_text("{}")
    shards = CorpusConfig(shards=str(tmp_path))
    before = identify_corpus(shards)
    assert before
    (tmp_path / "shards.json").write_text("[]")
    assert identify_corpus(shards) not in (None, before)
    assert identify_corpus(CorpusConfig(train=["hf:conll2003", "s3://bucket/a.conll"])) is None
    assert identify_corpus(CorpusConfig(train=[str(tmp_path / "missing.conll")])) is None
    both = CorpusConfig(train=["sample:en-train.jsonl"], dev=["sample:en-dev.jsonl"])
    swapped = CorpusConfig(train=["sample:en-dev.jsonl"], dev=["sample:en-train.jsonl"])
    assert identify_corpus(both) != identify_corpus(swapped)


def test_other_files_that_are_learned_from_belong_to_the_corpus(tmp_path):
    text, names = tmp_path / "a.txt", tmp_path / "names"
    text.write_text("Ada wrote notes.\n")
    names.write_text("Ada\n")
    (tmp_path / "shards.json").write_text("{}")
    corpora = (
        TextConfig([str(text)]),
        CorpusConfig(train=["sample:en-train.jsonl"]),
        CorpusConfig(shards=str(tmp_path)),
    )
    before = [identify_corpus(corpus, [str(names)]) for corpus in corpora]
    assert None not in before
    assert before == [identify_corpus(corpus, [str(names)]) for corpus in corpora]
    assert not set(before) & {identify_corpus(corpus) for corpus in corpora}
    names.write_text("Grace\n")
    assert not set(before) & {identify_corpus(corpus, [str(names)]) for corpus in corpora}
    changed = identify_corpus(corpora[0])
    text.write_text("Grace wrote a compiler.\n")
    assert identify_corpus(corpora[0]) not in (None, changed)


class Connected(Exception):
    """A run has come to where it needs a cluster."""


def refuse_cluster(config):
    raise Connected


def test_pretraining_on_a_text_or_gazetteer_that_has_changed_is_refused(tmp_path, tiny_encoder, monkeypatch):
    text, names = tmp_path / "a.txt", tmp_path / "names.txt"
    text.write_text("Ada wrote notes.\n")
    names.write_text("Ada\n")
    config = pretrain.PretrainConfig(
        corpus=TextConfig([str(text)]),
        model=pretrain.EncoderConfig(tiny_encoder),
        masking=MaskingConfig(gazetteer=[str(names)]),
        output_dir=str(tmp_path / "run"),
    )
    monkeypatch.setattr(pretrain, "connect", refuse_cluster)
    for _ in range(2):
        with pytest.raises(Connected):
            pretrain.run(config)
    for file in (names, text):
        before = file.read_text()
        file.write_text("Grace\n")
        with pytest.raises(ConfigError, match="the corpus has changed"):
            pretrain.run(config)
        file.write_text(before)


@pytest.fixture
def compression(tiny_encoder, tmp_path, monkeypatch):
    """Settings of a compression that ends before it needs a cluster."""
    monkeypatch.setattr(compress, "connect", refuse_cluster)
    return compress.CompressConfig(
        model=str(make_bundle(tiny_encoder, tmp_path / "bundle")),
        corpus=CorpusConfig(train=["sample:en-train.jsonl"], dev=["sample:en-dev.jsonl"]),
        steps=["prune"],
        output_dir=str(tmp_path / "small"),
    )


def test_compression_with_unlabelled_text_that_has_changed_is_refused(compression, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("Ada wrote notes.\n")
    config = replace(compression, distillation=DistillationConfig(unlabelled=[str(text)]))
    for _ in range(2):
        with pytest.raises(Connected):
            compress.run(config)
    text.write_text("Grace wrote a compiler.\n")
    with pytest.raises(ConfigError, match="the corpus has changed"):
        compress.run(config)


def test_compression_by_passes_that_do_not_differ_is_refused_before_it_begins(compression):
    config = replace(compression, training=TrainingConfig(r_drop=1.0))
    with pytest.raises(Connected):
        compress.run(config)
    bundle = load_bundle(config.model)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(bundle.model.network.config, name, 0.0)
    for module in bundle.model.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    save_bundle(Path(config.model), bundle)
    with pytest.raises(ForwardError, match="differ by nothing") as caught:
        compress.run(replace(config, fresh=True))
    assert "--model.dropout" not in str(caught.value)  # which compression does not have
    plain = {"splitter": "punctuation", "casing": False, "parallel": ParallelConfig(), "corpus_scheme": "BIO"}
    job = TrainingJob(
        config.model,
        ModelConfig(),
        bundle.model.scheme,
        32,
        8,
        training=config.training,
        start=config.model,
        load_windows=list,
        load_dev=list,
        **plain,
    )
    with pytest.raises(ForwardError, match="differ by nothing"):
        job.build_model()
    taught = DistillationConfig(encoder="scratch", layers=1, hidden_size=32)
    with pytest.raises(Connected):  # a new student has dropout
        compress.run(replace(config, steps=["distill", "prune"], distillation=taught, fresh=True))


def test_written_text_is_whole_or_as_it_was(tmp_path, monkeypatch):
    write_text(tmp_path / "report.md", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "report.md", "after \ud800")
    assert (tmp_path / "report.md").read_text() == "before"
    write_text(tmp_path / "report.md", "after \ud800", errors="replace")
    assert (tmp_path / "report.md").read_text() == "after ?"


def test_locked_folder_is_refused_and_free_afterwards(tmp_path):
    with lock_folder(tmp_path):
        assert check_resumable(tmp_path, SETTINGS, fresh=True) is False
        with pytest.raises(ConfigError, match="another run writes"), lock_folder(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    with lock_folder(tmp_path):
        pass


def test_mistake_before_anything_is_done_leaves_no_trace(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for error, has_begun, expected in ((MISTAKE, True, True), (RuntimeError(), False, True), (MISTAKE, False, False)):
        with lock_folder(folder):
            check_resumable(folder, SETTINGS, fresh=False)
            with pytest.raises(type(error)), leave_no_trace_of_mistakes(folder, lambda begun=has_begun: begun):
                raise error
        assert folder.exists() is expected


def test_output_dir_is_made_with_its_parents_and_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepare_output_dir("a/b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_output_dir_in_an_object_store_is_refused_and_no_folder_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="s3://bucket/run"):
        prepare_output_dir("s3://bucket/run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "/run", "/deep/run"])
def test_output_dir_at_or_below_a_file_is_refused(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigError) as caught:
        prepare_output_dir(f"{file}{below}")
    assert str(file) in caught.value.where
    assert caught.value.value
    assert "--output_dir" in caught.value.remedy
    assert file.read_text() == "x"


def test_write_json_writes_what_it_was_given(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"text": "中 é", "path": path, "numbers": [1, 2.5, None]})
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content == {"text": "中 é", "path": str(path), "numbers": [1, 2.5, None]}
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("content", [{(1, 2): "a key that JSON lacks"}, {"text": "\ud800"}])
def test_write_json_leaves_the_old_file_whole_when_it_fails(tmp_path, content):
    path = tmp_path / "run.json"
    write_json(path, {"old": True})
    with pytest.raises((TypeError, UnicodeEncodeError)):
        write_json(path, content)
    assert json.loads(path.read_text()) == {"old": True}


def test_phases_are_timed_and_told_on_stderr(capsys):
    record = RunRecord("try", DoorConfig(number=3))
    with record.phase("cook", "cooking soup"):
        pass
    printed = capsys.readouterr()
    assert record.data["phases_s"].keys() == {"cook"}
    assert record.data["config"] == {"number": 3, "fresh": False}
    assert printed.out == ""
    assert "cooking soup" in printed.err
    assert "\x1b" not in printed.err


def test_settings_without_effect_are_told(capsys: pytest.CaptureFixture[str]):
    given = CorpusConfig(train=["a"], dev=["b"], dev_fraction=0.2, test_fraction=0.3)
    assert given.find_idle() == ["`corpus.dev_fraction` has no effect: dev files are given"]
    prepared = CorpusConfig(shards="s", scheme="BIO").find_idle()
    assert prepared == ["`corpus.scheme` has no effect: the shards are prepared"]
    reader = FormatOptions(extra_columns=("lang",))
    [told] = CorpusConfig(train=["a"], reader=reader).find_idle()
    assert told.startswith("`corpus.reader.extra_columns` has no effect")
    assert "`--keep`" in told
    warn_of_idle(prepared)
    assert "`corpus.scheme` has no effect" in capsys.readouterr().err


def test_hub_datasets_of_a_corpus_are_named_once():
    files = {
        "train": ["hf:me/data:train", "a.conll"],
        "dev": ["hf:conll2003:en:validation"],
        "test": ["hf:me/data:test"],
    }
    assert CorpusConfig(**files).find_datasets() == ["conll2003", "me/data"]
    assert CorpusConfig(shards="s").find_datasets() == []


@pytest.mark.parametrize(
    "work",
    ["checkpoints/step-1.pt", "trials/0000", "cases/ddp-2/metrics.jsonl", "metrics.jsonl"],
)
def test_mistake_on_the_way_leaves_what_a_run_has_done(tmp_path, work):
    """Also where the checkpoints that its history tells of are gone."""
    check_resumable(tmp_path, SETTINGS, fresh=False)
    (tmp_path / work).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / work).write_text('{"kind": "checkpoint", "step": 1}\n')
    with pytest.raises(UserError), build_guard(tmp_path)():
        raise MISTAKE
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS
    with pytest.raises(ConfigError, match="other settings"):
        check_resumable(tmp_path, {"corpus": {"train": ["b"]}}, fresh=False)


def test_mistake_of_a_run_that_has_done_nothing_is_forgotten(tmp_path):
    (tmp_path / "run").mkdir()
    check_resumable(tmp_path / "run", SETTINGS, fresh=False)
    with pytest.raises(UserError), build_guard(tmp_path / "run")():
        raise MISTAKE
    assert not (tmp_path / "run").exists()


def refuse_in_workers(folder: Path, corpus: str | None = None) -> None:
    """As a run does that was refused by its workers after some steps: nothing of it can be gone on with."""
    check_resumable(folder, SETTINGS, False, corpus)
    for name in ("shards", "checkpoints"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "shards" / "shards.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"kind": "start", "step": 0}\n')
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError), build_guard(folder)():
        raise MISTAKE


@pytest.mark.parametrize(
    ("mended", "corpus", "kept"),
    [
        ({"training": {"seed": 1, "rate": 0.1}}, "a hash", ["shards"]),
        ({"training": {"seed": 2, "rate": None}}, "a hash", []),
        ({"corpus": {"train": ["b"], "dev": []}}, "a hash", []),
        ({}, "another hash", []),
    ],
)
def test_mended_command_takes_the_folder_of_a_run_refused_by_its_workers(tmp_path, mended, corpus, kept):
    """With its shards, where they would be the same."""
    refuse_in_workers(tmp_path, "a hash")
    assert check_resumable(tmp_path, SETTINGS | mended, False, corpus) is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "settings.json", *kept]
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS | mended | {"corpus_fingerprint": corpus}


def test_refused_command_that_goes_on_after_all_is_a_run_as_any(tmp_path):
    refuse_in_workers(tmp_path)
    assert check_resumable(tmp_path, SETTINGS, fresh=False) is False
    assert (tmp_path / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match="other settings"):
        check_resumable(tmp_path, {"corpus": {"train": ["b"]}}, fresh=False)


@pytest.mark.parametrize("name", ["train", "pretrain"])
def test_mistake_that_workers_find_does_not_bind_the_folder(tmp_path, tiny_encoder, monkeypatch, name):
    """Of all between the corpus and the workers, only what would need a cluster is left out."""
    door = {"train": train, "pretrain": pretrain}[name]
    text, folder = tmp_path / "a.txt", tmp_path / "run"
    text.write_text("Ada wrote notes.\n")

    def fit(job, resources, folder, **more):
        (folder / "checkpoints").mkdir(exist_ok=True)
        raise MISTAKE

    monkeypatch.setattr(door, "connect", lambda config: nullcontext())
    monkeypatch.setattr(door, "fit", fit)
    monkeypatch.setattr(door.ray, "cluster_resources", dict)
    for part in ("read_running_cluster", "plan_workers"):
        monkeypatch.setattr(
            door, part, lambda *given, **more: SimpleNamespace(may_grow=False, max_workers=1, use_gpu=0)
        )
    if door is train:
        monkeypatch.setattr(
            door,
            "get_shards",
            lambda *given: (
                tmp_path,
                make_info(),
                False,
            ),
        )
        monkeypatch.setattr(door, "find_shards_encoder", lambda *given: tiny_encoder)
        corpus = ["--corpus.train", "sample:en-train.jsonl", "--resources.auto", "false"]
    else:
        monkeypatch.setattr(door, "load_text_info", lambda folder: SimpleNamespace())
        corpus = ["--corpus.train", str(text), "--model.encoder", tiny_encoder]
    arguments = [*corpus, "--output_dir", str(folder)]
    for more in ([], ["--training.num_epochs", "2"], ["--training.num_epochs", "1"]):
        assert door.main([*arguments, *more]) == 2
        assert json.loads((folder / "settings.json").read_text())["refused"] is True


def test_revision_is_that_of_the_checkout_and_slow_git_ends_nothing(monkeypatch, tmp_path):
    assert read_git_revision()

    def hang(*_, **__):
        raise subprocess.TimeoutExpired("git", 10)

    with monkeypatch.context() as slow:
        slow.setattr(run_record.subprocess, "run", hang)
        assert read_git_revision() is None
    monkeypatch.setattr(run_record, "__file__", str(tmp_path / "site-packages" / "pipelines" / "run_record.py"))
    assert read_git_revision() is None


@dataclass(frozen=True)
class DoorWithCluster:
    """A door made for these tests."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@pytest.mark.parametrize("door", [compress, evaluate, predict, prepare, pretrain, scale, serve, train, tune])
def test_local_cluster_of_nothing_is_refused_with_all_other_mistakes(door, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert door.main(["--cluster.num_cpus", "0", "--cluster.object_store_mib", "10"]) == 2
    told = capsys.readouterr().err
    assert "`cluster.num_cpus`" in told
    assert "`cluster.object_store_mib`" in told
    assert "3 mistakes" in told or "4 mistakes" in told  # what is not given, too


def test_settings_of_a_local_cluster_are_told_where_it_is_another(capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address, is_told in ([], False), (["--cluster.address", "10.0.0.1:6379"], True):
        assert run_door("try", DoorWithCluster, lambda config: None, "", [*address, "--cluster.num_cpus", "4"]) == 0
        assert ("`cluster.num_cpus` has no effect" in capsys.readouterr().err) == is_told


def test_lines_of_a_log_are_not_broken(capfd):
    code = "from pipelines.job import progress_console as console; console.print('plan: ' + 'word ' * 60)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert capfd.readouterr().err.count("\n") == 1
