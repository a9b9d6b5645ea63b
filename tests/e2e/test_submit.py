"""Jobs on a cluster that asks for a token: the README's commands, what goes wrong, and who may not."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipelines import submit
from pipelines.job_client import JobClient
from serve.ingress import find_free_ports
from tests.conftest import ROOT, SAMPLE
from tests.e2e.job_cluster import JobCluster, run_job_cluster
from tests.e2e.test_readme import read_cluster_commands
from tests.integration.processes import wait_until

pytestmark = pytest.mark.timeout(900)

QUICK = ("--model.encoder", "scratch", "--training.num_epochs", "1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with run_job_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README calls /shared."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(autouse=True)
def as_told(cluster: JobCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, cluster.environment[name])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(ROOT)


def read_command(beginning: str, shared: Path) -> list[str]:
    """The arguments of the one command of the README that begins so."""
    [command] = [one for one in read_cluster_commands() if one.startswith(beginning)]
    return shlex.split(command.replace("/shared", str(shared)))


def list_jobs(cluster: JobCluster) -> dict[str, str]:
    jobs = JobClient.open(cluster.address, cluster.token).client.list_jobs()
    return {job.submission_id: str(job.status.value) for job in jobs if job.submission_id}


@pytest.fixture(scope="module")
def training(shared: Path) -> Sequence[str]:
    """The README's training job, a quick one: forty documents, a tiny encoder, one epoch."""
    some = shared / "train.jsonl"
    some.write_text("".join((SAMPLE / "en-train.jsonl").open().readlines()[:40]), encoding="utf-8")
    _, _, *arguments = read_command("rayner submit -- train", shared)
    return [*arguments, *QUICK, "--corpus.train", str(some)]


def test_job_goes_on_without_who_follows_it_and_its_command_finds_it_again(cluster, training, shared, capfd):
    assert submit.main(["--no-wait", *training]) == 0
    [name] = list_jobs(cluster)
    told = capfd.readouterr()
    assert f"RAY_API_SERVER_ADDRESS={cluster.address} RAY_AUTH_MODE=token ray job logs --follow {name}" in told.out
    assert f"submitted: {name} to {cluster.address}" in told.err

    follower = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "submit", *training],
        cwd=ROOT,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "this job runs already" in follower.stderr.readline()
    assert "Running entrypoint" in "".join(follower.stdout.readline() for _ in range(2))
    follower.send_signal(signal.SIGINT)
    _, complaint = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert f"the job goes on: {name}" in complaint
    assert f"ray job stop {name}" in complaint
    assert "Traceback" not in complaint

    assert submit.main(list(training)) == 0
    told = capfd.readouterr()
    assert "test strict F1" in told.out
    assert f"done: {name}" in told.err
    assert list_jobs(cluster) == {name: "SUCCEEDED"}
    assert (shared / "runs" / "first" / "bundle" / "bundle.json").is_file()

    assert submit.main(list(training)) == 0
    assert f"this job is done: {name}" in capfd.readouterr().out
    assert list_jobs(cluster) == {name: "SUCCEEDED"}


def test_job_submitted_by_ray_itself_predicts_from_a_checkout(cluster, shared):
    ray, *arguments = read_command("ray job submit", shared)
    assert (shared / "runs" / "first" / "bundle").is_dir(), "the test before has trained it"
    command = [Path(sys.executable).with_name(ray), *arguments]
    environment = cluster.environment | {"RAY_AUTH_MODE": "token"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "49 documents labelled, 0 quarantined" in done.stdout
    assert (shared / "entities" / "_SUCCESS").is_file()
    assert set(list_jobs(cluster).values()) == {"SUCCEEDED"}


def test_failing_job_ends_failed_with_its_message_and_its_exit_code(cluster, shared, capfd):
    arguments = ["--", "predict", "--model", str(shared / "nowhere"), "--input", "sample:en-test.jsonl"]
    assert submit.main([*arguments, "--output_dir", str(shared / "none")]) == 2
    told = capfd.readouterr()
    assert f"`{shared / 'nowhere'}` is not a model" in told.out
    assert "the job failed with exit code 2: rayner-predict-" in told.err
    assert [status for name, status in list_jobs(cluster).items() if name.startswith("rayner-predict-")] == ["FAILED"]
    job = next(name for name in list_jobs(cluster) if name.startswith("rayner-predict-"))
    info = JobClient.open(cluster.address, cluster.token).client.get_job_info(job)
    assert "is not a model" in info.message
    attempt = JobClient.open(cluster.address, cluster.token).find_attempt(job, again=False)
    assert (attempt.job_id, attempt.number) == (f"{job}-2", 2)


def test_dashboard_answers_nobody_without_the_token(cluster):
    """But for its empty page, which asks for the token itself."""
    for path in ("/api/version", "/api/jobs/", "/api/serve/applications/", "/nodes?view=summary"):
        assert cluster.ask(path) == 401
        assert cluster.ask(path, "wrong") == 403
    assert cluster.ask("/api/jobs/", cluster.token) == 200


@pytest.mark.parametrize(
    ("environment", "facts"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, ["the cluster refuses the token", "RAY_AUTH_TOKEN"]),
        ({"RAY_AUTH_TOKEN": "", "HOME": "/nonexistent"}, ["the cluster asks for a token", "RAY_AUTH_TOKEN_PATH"]),
        (
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nonexistent/token"},
            ["the token cannot be read", "/nonexistent/token", "No such file"],
        ),
        ({"RAY_AUTH_TOKEN": "a b"}, ["the token has characters that no token has"]),
        ({"RAY_API_SERVER_ADDRESS": "ray://head:10001"}, ["no address of a dashboard", "ray://head:10001", "http://"]),
        ({"RAY_API_SERVER_ADDRESS": "127.0.0.1:{free}"}, ["cannot be reached", "127.0.0.1", "ray dashboard"]),
    ],
)
def test_who_may_not_or_cannot_submit_is_told_so(cluster, tmp_path, monkeypatch, capfd, environment, facts):
    free = find_free_ports(1)[0]
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(free=free))
    before = list_jobs(cluster)  # an address that is given wins over the environment's, other than in Ray
    arguments = ["--", "evaluate", "--model", str(tmp_path), "--corpus", "sample:en-test.jsonl"]
    assert submit.main([*arguments, "--output_dir", str(tmp_path / "out")]) == 2
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("rayner submit: ")
    for fact in facts:
        assert fact in told.err
    assert list_jobs(cluster) == before


def test_server_that_is_none_of_rays_is_told_so(tmp_path, monkeypatch, capfd):
    port = find_free_ports(1)[0]
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", tmp_path],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ,
    )
    try:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{port}")
        arguments = ["--", "prepare", "--corpus.train", "sample:en-train.jsonl", "--output_dir", str(tmp_path / "o")]

        def refuses() -> bool:
            assert submit.main(arguments) == 2
            return "what answers is no Ray dashboard" in capfd.readouterr().err

        wait_until(refuses, "the server is up")
    finally:
        server.kill()
        server.wait()
