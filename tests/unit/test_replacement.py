"""`--fresh`: nothing goes before the new run has begun, and nothing that no door has written."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pipelines import compress, predict, prepare, pretrain, replacement, scale, train, tune
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.text_config import TextConfig
from pipelines.folders import check_resumable, lock_folder
from pipelines.job import NEVER_BEGAN
from pipelines.ner.errors import UserError
from pipelines.replacement import (
    check_inputs_stay,
    discard_with_rows,
    is_own,
    put_back,
    set_aside,
    take_prepared,
)
from pipelines.settings import ConfigError
from tests.conftest import make_bundle

SAMPLE = "sample:en-train.jsonl"
CORPUS = CorpusConfig(train=[SAMPLE], dev=["sample:en-dev.jsonl"])
OLD = {"corpus": {"train": ["old"]}, "model": {}, "training": {"seed": 1}}
NEW = {"corpus": {"train": ["new"]}, "model": {}, "training": {"seed": 2}}


def write_finished(folder: Path) -> dict[str, str]:
    """A finished run, with a file that its user has put there."""
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / "model.safetensors").write_text("hours of work")
    (folder / "shards").mkdir()
    (folder / "shards" / "shards.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "notes.txt").write_text("mine")
    (folder / "settings.json").write_text(json.dumps(OLD))
    (folder / "run.json").write_text(json.dumps({"verb": "train", "config": {}, "versions": {}, "status": "done"}))
    return read_tree(folder)


def read_tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def refuse_cluster(config):
    raise ConfigError("no room for the workers")


def configure(name: str, output_dir: str, tmp_path: Path, encoder: str):
    """A door, and settings with which it starts over and comes as far as the cluster."""
    text = tmp_path / "a.txt"
    text.write_text("Ada wrote notes.\n")
    if name in ("compress", "predict"):
        bundle = str(make_bundle(encoder, tmp_path / "model"))
    common = {"output_dir": output_dir, "fresh": True}
    return {
        "train": lambda: (train, train.TrainConfig(corpus=CORPUS, **common)),
        "tune": lambda: (tune, tune.TuneConfig(corpus=CORPUS, space={"model.head": ["linear", "crf"]}, **common)),
        "scale": lambda: (scale, scale.ScaleConfig(corpus=CORPUS, **common)),
        "prepare": lambda: (prepare, prepare.PrepareConfig(corpus=CORPUS, **common)),
        "pretrain": lambda: (
            pretrain,
            pretrain.PretrainConfig(corpus=TextConfig([str(text)]), model=pretrain.EncoderConfig(encoder), **common),
        ),
        "compress": lambda: (
            compress,
            compress.CompressConfig(model=bundle, corpus=CORPUS, steps=["prune"], **common),
        ),
        "predict": lambda: (predict, predict.PredictConfig(model=bundle, input=[str(text)], **common)),
    }[name]()


RESUMED = ["train", "tune", "scale", "pretrain", "compress", "predict"]


@pytest.mark.parametrize("name", [*RESUMED, "prepare"])
def test_refused_run_leaves_what_it_was_to_replace(tmp_path, tiny_encoder, monkeypatch, name):
    before = write_finished(tmp_path / "run")
    if name == "prepare":  # which replaces the folder as a whole
        (tmp_path / "run" / "notes.txt").unlink()
        del before["notes.txt"]
    door, config = configure(name, str(tmp_path / "run"), tmp_path, tiny_encoder)
    beside = sorted(tmp_path.iterdir())
    monkeypatch.setattr(door, "connect", refuse_cluster)
    with pytest.raises(ConfigError, match="no room"):
        door.run(config)
    assert read_tree(tmp_path / "run") == before
    assert sorted(tmp_path.iterdir()) == beside


@pytest.mark.parametrize("door", [train, tune, scale])
def test_run_without_its_files_leaves_what_it_was_to_replace(tmp_path, door, capsys):
    before = write_finished(tmp_path / "run")
    folder, missing = ["--output_dir", str(tmp_path / "run")], str(tmp_path / "nowhere.jsonl")
    space = ["--space.model.head", "linear", "crf"] if door is tune else []
    assert door.main(["--corpus.train", missing, "--fresh", "true", *folder, *space]) == 2
    told = capsys.readouterr().err
    assert "there is no such file" in told
    assert "is as it was before" in told
    assert read_tree(tmp_path / "run") == before


def test_what_is_no_doors_stays_and_the_rest_goes_once_the_run_has_begun(tmp_path):
    write_finished(tmp_path)
    rows: list[str] = []

    def begin_and_fail():
        with lock_folder(tmp_path):
            assert check_resumable(tmp_path, NEW, fresh=True) is False
            read = discard_with_rows(tmp_path, lambda: rows)
            read()
            assert (tmp_path / ".earlier" / "bundle" / "model.safetensors").exists()
            rows.append("start")
            read()
            assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.txt", "settings.json"]
            raise UserError("later")

    with pytest.raises(UserError, match="later"):
        begin_and_fail()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "settings.json"]
    with lock_folder(tmp_path):
        assert check_resumable(tmp_path, NEW, fresh=False) is False


def test_run_that_came_to_its_end_has_replaced_the_earlier_one(tmp_path):
    write_finished(tmp_path)
    with lock_folder(tmp_path):
        check_resumable(tmp_path, NEW, fresh=True)
    assert sorted(read_tree(tmp_path)) == ["notes.txt", "settings.json"]


def prepare_and_end(folder: Path, settings: dict, error: BaseException, corpus: str | None = "as it is") -> list[str]:
    """Start over, prepare the corpus unless that is done, and end before the first step; which files were there."""
    found: list[str] = []

    def run():
        with lock_folder(folder):
            assert check_resumable(folder, settings, fresh=True, corpus=corpus) is False
            found.extend(sorted(path.name for path in folder.glob("shards/*")))
            (folder / "shards").mkdir(exist_ok=True)
            (folder / "shards" / "shards.json").write_text('{"of": "new"}')
            (folder / "shards" / "part.parquet").write_text("an hour of work")
            raise error

    with pytest.raises(type(error)) as caught:
        run()
    assert NEVER_BEGAN in caught.value.__notes__
    return found


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConfigError("a mistake")])
def test_what_a_run_has_prepared_that_never_began_is_there_when_it_starts_over_again(tmp_path, error, capsys):
    before = write_finished(tmp_path)
    assert prepare_and_end(tmp_path, NEW, error) == []
    for changed in (NEW, NEW, NEW | {"training": {"seed": 2, "num_epochs": 9}}):
        found = read_tree(tmp_path)
        assert {name: found.pop(name) for name in before} == before
        assert all(map(is_own, {Path(name).parts[0] for name in found}))
        assert prepare_and_end(tmp_path, changed, error) == ["part.parquet", "shards.json"]
        assert "shards/ is taken as the run has prepared it that never began" in capsys.readouterr().err
    with lock_folder(tmp_path):
        check_resumable(tmp_path, NEW, fresh=True, corpus="as it is")
    assert sorted(read_tree(tmp_path)) == ["notes.txt", "settings.json", "shards/part.parquet", "shards/shards.json"]


@pytest.mark.parametrize(
    ("settings", "corpus"),
    [(NEW | {"model": {"encoder": "another"}}, "as it is"), (NEW, "changed"), (NEW, None)],
)
def test_what_was_prepared_for_another_run_is_not_taken(tmp_path, settings, corpus):
    before = write_finished(tmp_path)
    prepare_and_end(tmp_path, NEW, KeyboardInterrupt())
    assert prepare_and_end(tmp_path, settings, KeyboardInterrupt(), corpus) == []
    found = read_tree(tmp_path)
    assert {name: found.pop(name) for name in before} == before


def test_killed_while_what_was_prepared_is_moved_nothing_of_the_earlier_run_is_lost(tmp_path, monkeypatch):
    for number in range(40):
        folder = tmp_path / str(number)
        before = write_finished(folder)
        prepare_and_end(folder, NEW, KeyboardInterrupt())

        def start_over_and_put_back(folder=folder) -> None:
            set_aside(folder)
            take_prepared(folder)
            put_back(folder)

        was_killed = is_killed(monkeypatch, number, start_over_and_put_back)
        with lock_folder(folder):
            found = read_tree(folder)
            assert {name: found.pop(name) for name in before} == before
        assert prepare_and_end(folder, NEW, KeyboardInterrupt()) in ([], ["part.parquet", "shards.json"])
        if not was_killed:
            break
    assert number > 12
    assert not was_killed


class Killed(BaseException):
    """The process is gone."""


def kill_at(monkeypatch, number: int) -> None:
    """Let a process be killed before it renames or removes once more than `number` times."""
    left = [number]

    def count(act):
        def counted(*arguments, **more):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return act(*arguments, **more)

        return counted

    for owner, name in ((Path, "rename"), (Path, "unlink"), (replacement.shutil, "rmtree"), (Path, "rmdir")):
        monkeypatch.setattr(owner, name, count(getattr(owner, name)))


def is_killed(monkeypatch, number: int, act) -> bool:
    """Whether a process that does this does not come to its end, killed before so many renames or removals."""
    with monkeypatch.context() as killed:
        kill_at(killed, number)
        try:
            act()
        except Killed:
            return True
    return False


def test_earlier_run_is_whole_again_whenever_the_new_one_was_killed_before_it_began(tmp_path, monkeypatch):
    """In setting aside, and in putting back."""
    for number in range(20):
        folder = tmp_path / str(number)
        before = write_finished(folder)

        def begin_and_put_back(folder=folder) -> None:
            set_aside(folder)
            (folder / "settings.json").write_text(json.dumps(NEW))
            (folder / "shards").mkdir()
            put_back(folder)

        was_killed = is_killed(monkeypatch, number, begin_and_put_back)
        with lock_folder(folder):
            assert read_tree(folder) == before | {".lock": ""}
        if not was_killed:
            break
    assert number > 8
    assert not was_killed


def test_kill_while_the_earlier_run_is_removed_leaves_the_new_one(tmp_path, monkeypatch):
    write_finished(tmp_path)
    set_aside(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(NEW))
    with monkeypatch.context() as killed:
        kill_at(killed, 1)
        with pytest.raises(Killed):
            replacement.discard(tmp_path)
    assert (tmp_path / ".earlier.removed").is_dir()
    with lock_folder(tmp_path):
        pass
    assert read_tree(tmp_path) == {"notes.txt": "mine", "settings.json": json.dumps(NEW)}


@dataclass(frozen=True)
class FreshConfig:
    """Settings that name inputs."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: str = "all-MiniLM-L6-v2"
    more: dict[str, list[str]] = field(default_factory=dict)
    output_dir: str = ""
    fresh: bool = True


@pytest.mark.parametrize(
    "inside",
    ["run", "run/shards", "run/../run/shards", "link/shards", "run/sh*/*.parquet", "ru?/*", "**/*.parquet"],
)
def test_run_that_would_remove_its_own_input_is_refused(tmp_path, inside):
    before = write_finished(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    value = str(tmp_path / inside)
    for config, where in (
        (FreshConfig(CorpusConfig(shards=value)), "`corpus.shards`"),
        (FreshConfig(CorpusConfig(train=["a", value])), "`corpus.train`"),
        (FreshConfig(model=value), "`model`"),
        (FreshConfig(more={"space": [value]}), "`more.space`"),
    ):
        with pytest.raises(ConfigError, match="an input lies in the output folder") as caught:
            check_inputs_stay(tmp_path / "run", config)
        assert (caught.value.where, caught.value.value) == (where, value)
        check_inputs_stay(tmp_path / "run", replace(config, fresh=False))
    assert read_tree(tmp_path / "run") == before


@pytest.mark.parametrize("outside", ["", "run/notes.txt", "run2/shards", "other/*/shards", "runs", "s3://bucket/run"])
def test_input_that_stays_is_no_mistake(tmp_path, outside):
    write_finished(tmp_path / "run")
    check_inputs_stay(tmp_path / "run", FreshConfig(CorpusConfig(shards=str(tmp_path / outside) if outside else "")))


@pytest.mark.parametrize("name", [*RESUMED, "prepare"])
def test_every_door_asks_whether_its_inputs_stay(tmp_path, tiny_encoder, monkeypatch, name):
    before = write_finished(tmp_path / "run")
    door, config = configure(name, str(tmp_path / "run"), tmp_path, tiny_encoder)
    monkeypatch.setattr(door, "connect", refuse_cluster)
    text = tmp_path / "run" / "shards" / "a.txt"
    text.write_text("Ada wrote notes.\n")
    before["shards/a.txt"] = text.read_text()
    if name == "predict":
        config = replace(config, input=[str(text)])
    elif name == "pretrain":
        config = replace(config, corpus=TextConfig([str(text)]))
    else:
        config = replace(config, corpus=replace(CORPUS, train=[SAMPLE, str(text)]))
    with pytest.raises(ConfigError, match="an input lies in the output folder"):
        door.run(config)
    assert read_tree(tmp_path / "run") == before


def test_folder_that_is_replaced_as_a_whole_is_refused_with_what_no_door_has_written(tmp_path, monkeypatch):
    before = write_finished(tmp_path)
    monkeypatch.setattr(prepare, "connect", refuse_cluster)
    with pytest.raises(ConfigError, match="something else, too") as caught:
        prepare.run(prepare.PrepareConfig(corpus=CORPUS, output_dir=str(tmp_path), fresh=True))
    assert caught.value.value == "notes.txt"
    assert read_tree(tmp_path) == before


def test_files_half_written_are_known_for_the_doors_too():
    assert all(map(is_own, (".shards.partial", ".run.json.partial", ".report.html.x8d2", ".trials-tune", "bundle")))
    assert not any(map(is_own, ("notes.txt", ".git", ".lock", ".earlier", "my-bundle", "bundle.zip", ".shards")))
