"""What `rayner submit` makes of its arguments before it asks a cluster, and of what a cluster answers."""

import importlib
import json
from collections.abc import AsyncIterator
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from ray.job_submission import JobDetails, JobStatus, JobType

from pipelines import job_client, submit
from pipelines.cluster import ClusterError
from pipelines.folders import prepare_output_dir
from pipelines.job_client import Attempt, JobClient, find_dashboard, read_exit_code, read_token
from pipelines.settings import ConfigError
from pipelines.shipping import list_shipped
from pipelines.submit import (
    JOBS,
    SubmitConfig,
    find_left_behind,
    find_lost_output,
    list_presets,
    name_job,
    read_command,
    read_environment,
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("verb", JOBS)
def test_every_verb_that_may_be_a_job_has_settings_by_its_name(verb):
    door = importlib.import_module(f"pipelines.{verb}")
    assert is_dataclass(getattr(door, f"{verb.capitalize()}Config"))


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ([], ["no job is given", "rayner submit [settings] -- VERB", "rayner submit -- train"]),
        (["--"], ["no job is given"]),
        (["train", "--config", "quickstart"], ["no job is given", "-- VERB"]),
        (["--", "lable"], ["no job `lable`", "after `--`", "train", "predict"]),
        (["--", "serve"], ["no job `serve`", "serve deploy serve/config.yaml"]),
        (["--", "submit", "--", "train"], ["no job `submit`"]),
        (["--", "train", "--corpus.trian", "a"], ["unknown setting `corpus.trian`", "--corpus.train"]),
        (["--adress", "x", "--", "train"], ["unknown setting `adress`", "--address"]),
        (["--", "train"], ["`output_dir` of train", "absolute path", "out/run"]),
        (["--working_dir", "nowhere", "--", "train", "--output_dir", "/x"], ["there is no such folder", "nowhere"]),
        (
            ["--driver_cpus", "-1", "--max_working_dir_mib", "9000", "--env", "NO_SUCH_NAME", "--", "train"],
            ["4 mistakes", "`driver_cpus`", "`max_working_dir_mib`", "NO_SUCH_NAME", "`output_dir`"],
        ),
    ],
)
def test_mistakes_are_told_before_any_cluster_is_asked(arguments, facts, capfd):
    assert submit.main(arguments) == 2
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("rayner submit: ")
    for fact in facts:
        assert fact in told.err


def test_folder_too_large_is_refused_with_what_is_large_in_it(tmp_path, capfd):
    (tmp_path / "corpus.jsonl").write_bytes(b"x" * (2 << 20))
    arguments = ["--max_working_dir_mib", "1", "--", "train", "--output_dir", "/shared/run"]
    assert submit.main(arguments) == 2
    told = capfd.readouterr().err
    for fact in ("too large to go with a job", "2.0 MiB in 1 files: corpus.jsonl 2.0 MiB", ".rayignore"):
        assert fact in told


def test_help_tells_both_sides_of_the_dashes(capfd):
    with pytest.raises(SystemExit) as ended:
        submit.main(["--help"])
    assert ended.value.code == 0
    told = capfd.readouterr().out
    for fact in ("-- VERB", "--address", "--no_wait", "--again", "RAY_AUTH_TOKEN"):
        assert fact in told


def test_output_must_be_where_it_lasts():
    assert find_lost_output("train", {"output_dir": "/shared/run"}) == []
    assert find_lost_output("plan", {"cluster": None}) == []
    [problem] = find_lost_output("train", {"output_dir": "out/run"})
    assert f"--output_dir {Path('out/run').absolute()}" in str(problem)
    [problem] = find_lost_output("train", {"output_dir": "~/run"})
    assert f"--output_dir {Path.home() / 'run'}" in str(problem)
    [problem] = find_lost_output("plan", {"output": "out/plan.json"})
    assert f"--output {Path('out/plan.json').absolute()}" in str(problem)
    [problem] = find_lost_output("train", {"output_dir": "s3://bucket/run"})
    assert "remedy" not in str(problem), "no door writes there"


def test_file_that_stays_here_is_refused_and_one_that_goes_along_is_not(tmp_path):
    work = tmp_path / "work"
    for name in ("data/train.jsonl", "out/bundle/config.json", "crf/x"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).touch()
    (work / ".rayignore").write_text("out/\n")
    (tmp_path / "beside.jsonl").touch()
    files = list_shipped(work)

    def find(**settings: object) -> list[str]:
        return [str(problem.value) for problem in find_left_behind(settings, work, files)]

    assert find(corpus={"train": ["data/train.jsonl", "./data/train.jsonl", "sample:en-train.jsonl"]}) == []
    assert find(input=["data/"], model="/elsewhere/bundle", head="crf", output_dir="out/bundle", x="out") == []
    assert find(model="out/bundle", input=["../beside.jsonl"]) == ["out/bundle", "../beside.jsonl"]
    assert (
        find(input=["data/*.jsonl", "**/*.jsonl", "none/*.jsonl", "data/*/x"], space={"x": ["uniform(0, [1])"]}) == []
    )
    assert find(input=["out/*/config.json", "*/*", "../*.jsonl"]) == ["out/*/config.json", "*/*", "../*.jsonl"]


def test_name_is_made_of_what_the_job_is():
    names = [
        name_job("train", "digest", "python -m pipelines.train", SubmitConfig()),
        name_job("train", "other", "python -m pipelines.train", SubmitConfig()),
        name_job("train", "digest", "python -m pipelines.train --fresh", SubmitConfig()),
        name_job("train", "digest", "python -m pipelines.train", SubmitConfig(driver_cpus=1)),
        name_job("train", "digest", "python -m pipelines.train", SubmitConfig(env=["HF_TOKEN"])),
    ]
    assert len(set(names)) == len(names)
    assert names[0] == name_job(
        "train", "digest", "python -m pipelines.train", SubmitConfig(address="http://x:1", no_wait=True, again=True)
    )
    assert all(name.startswith("rayner-train-") and len(name) == len("rayner-train-") + 12 for name in names)


def test_environment_is_taken_from_here_or_as_given(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert read_environment(["HF_TOKEN", "A=b=c", "EMPTY="]) == {"HF_TOKEN": "secret", "A": "b=c", "EMPTY": ""}


def test_settings_of_a_preset_count_as_the_verb_reads_them():
    verb, settings = read_command(["train", "--config", "quickstart", "--output_dir", "/shared/run"])
    assert verb == "train"
    assert settings["corpus"]["train"] == ["sample:en-train.jsonl"]
    assert settings["output_dir"] == "/shared/run"


@pytest.mark.parametrize(
    ("given", "environment", "address"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        ("head:8265", {}, "http://head:8265"),
        ("https://ray.example.com/", {}, "https://ray.example.com"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "http://b:1"}, "http://a:1"),
        (None, {"RAY_ADDRESS": "http://b:1"}, "http://b:1"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "http://127.0.0.1:8265"),
        ("http://c:1", {"RAY_API_SERVER_ADDRESS": "http://a:1"}, "http://c:1"),
    ],
)
def test_dashboard_is_the_one_given_or_told_by_the_environment(given, environment, address, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_dashboard(given) == address


@pytest.mark.parametrize("address", ["ray://head:10001", "http://", "http://head:99999", "file:///x", "anyscale://x"])
def test_address_of_something_else_is_refused(address):
    with pytest.raises(ClusterError, match="no address of a dashboard"):
        find_dashboard(address)


def test_token_comes_from_where_ray_looks_for_it(monkeypatch, tmp_path):
    assert read_token() is None
    usual = tmp_path / ".ray" / "auth_token"
    usual.parent.mkdir()
    usual.write_text("usual\n")
    assert read_token() == "usual"
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert read_token() == "from-a-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert read_token() == "given"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    file.write_text("")
    with pytest.raises(ClusterError, match="it is empty"):
        read_token()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert read_token() is None


def describe(status: str, job_id: str = "job", code: int | None = None) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id=job_id,
        status=JobStatus(status),
        entrypoint="true",
        driver_exit_code=code,
    )


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_exit_code_is_the_job_s_as_a_shell_tells_it(status, code, exit_code):
    assert read_exit_code(describe(status, code=code)) == exit_code


@pytest.mark.parametrize(
    ("statuses", "again", "attempt"),
    [
        ([], False, Attempt("job", 1)),
        (["RUNNING"], False, Attempt("job", 1, is_running=True)),
        (["PENDING"], True, Attempt("job", 1, is_running=True)),
        (["SUCCEEDED"], False, Attempt("job", 1, is_done=True)),
        (["SUCCEEDED"], True, Attempt("job-2", 2)),
        (["FAILED", "STOPPED"], False, Attempt("job-3", 3)),
        (["FAILED", "RUNNING"], False, Attempt("job-2", 2, is_running=True)),
        (["FAILED", "SUCCEEDED"], False, Attempt("job-2", 2, is_done=True)),
    ],
)
def test_attempt_is_the_one_that_is_not_over_in_failure(statuses, again, attempt):
    names = ["job", "job-2", "job-3"]
    jobs = [describe(status, name) for status, name in zip(statuses, names, strict=False)]
    client = JobClient("http://x:1", SimpleNamespace(list_jobs=lambda: [*jobs, describe("RUNNING", "other")]))
    assert client.find_attempt("job", again) == attempt


class RestartedDashboard:
    """Tells a job's log, and then does not answer for a while."""

    def __init__(self, num_failures: int) -> None:
        self.num_failures = num_failures

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield "one line\n"

    def get_job_info(self, job_id: str) -> JobDetails:
        self.num_failures -= 1
        if self.num_failures >= 0:
            raise requests.ConnectionError("refused")
        return describe("FAILED", job_id, 3)


def test_dashboard_that_restarts_when_the_log_has_ended_is_waited_for(monkeypatch, capfd):
    monkeypatch.setattr(job_client, "RETRY_EVERY_S", 0.0)
    assert JobClient("http://x:1", RestartedDashboard(3)).follow("job") == 3
    assert capfd.readouterr().out == "one line\n"


def test_output_into_the_copy_of_a_job_is_warned_of(tmp_path, monkeypatch, capfd):
    told = {"runtime_env": {"working_dir": "gcs://_ray_pkg_x.zip"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(told))
    assert prepare_output_dir("out/run") == tmp_path / "out" / "run"
    assert "goes after the job" in capfd.readouterr().err
    prepare_output_dir(str(tmp_path / "absolute"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}}))
    prepare_output_dir("out/other")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    prepare_output_dir("out/third")
    assert capfd.readouterr().err == ""


def test_unknown_verb_is_a_mistake_of_the_user():
    with pytest.raises(ConfigError, match="no job `x`"):
        read_command(["x"])


def test_preset_that_stays_here_is_refused():
    command = ["train", "--config", "out/best.yaml", "quick", "--config=b.yaml", "c.yaml", "--output_dir", "/x"]
    assert list_presets(command) == ["out/best.yaml", "quick", "b.yaml", "c.yaml"]


def test_job_whose_preset_is_ignored_is_refused_before_any_cluster_is_asked(tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "best.yaml").write_text("training:\n  seed: 7\n")
    (tmp_path / ".gitignore").write_text("out/\n")
    command = ["--working_dir", str(tmp_path), "--", "train", "--config", str(tmp_path / "out" / "best.yaml")]
    assert submit.main([*command, "--output_dir", "/shared/x"]) == 2
    assert "`config`" not in capfd.readouterr().err, "an absolute path is the user's to care for"
    files = list_shipped(tmp_path)
    [problem] = find_left_behind({"config": ["out/best.yaml", "quickstart"]}, tmp_path, files)
    assert (problem.where, problem.value) == ("`config`", "out/best.yaml")
