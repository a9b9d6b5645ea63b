"""Every command of README.md, run word for word in a copy of the checkout."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.integration.processes import wait_until

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)
RUN_BY_CI = ["make check", "make test"]
CLUSTER_BLOCK = re.compile(r"```sh cluster\n(.*?)```", re.DOTALL)
"""Commands that ask a cluster: tests/e2e/test_submit.py runs those that submit jobs, on one that it starts."""
JOB_COMMANDS = ("rayner submit ", "ray job submit ")
NEED_MACHINES = ("ray get-auth-token", "ray up ", "ray dashboard ", "ray down ", "kubectl ", "docker build ", "export ")
"""Commands that make machines, or speak to those that are not here: the files that they name are tested apart."""


def read_blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_commands_that_cannot_run_inside_a_test_are_what_ci_runs():
    developing = [code.split("\n")[:-1] for kind, code in read_blocks() if "make test" in code]
    assert developing == [RUN_BY_CI]
    assert "make check test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def read_cluster_commands() -> list[str]:
    blocks = CLUSTER_BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]


def test_commands_for_clusters_submit_jobs_or_name_files_that_are_there():
    commands = read_cluster_commands()
    jobs = [command for command in commands if command.startswith(JOB_COMMANDS)]
    assert [command.partition(" --")[0] for command in jobs] == ["rayner submit", "ray job submit"]
    for command in set(commands) - set(jobs):
        assert command.startswith(NEED_MACHINES), command
        for name in re.findall(r"[\w./-]+\.yaml|deploy/\w+", command):
            assert (ROOT / name).exists(), command


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.timeout(1500)
def test_every_command_of_the_readme_works(tmp_path: Path):
    if not (Path(sys.prefix) / ".installed").exists():
        pytest.skip("the environment was not made by `make install`")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    environment["PATH"] = f"{sys.prefix}/bin:{environment['PATH']}"
    outputs: dict[str, str] = {}
    serving: subprocess.Popen[bytes] | None = None
    for kind, code in read_blocks():
        for step in [code] if kind == "python" else code.splitlines():
            if step in RUN_BY_CI:
                continue
            if step.startswith("rayner serve"):
                serving = subprocess.Popen(step.split(), cwd=tmp_path, env=environment)
                wait_until(lambda: is_ready("http://localhost:8000/readyz"), "the endpoint is ready")
                continue
            if serving is not None and not step.startswith("curl"):
                serving.send_signal(signal.SIGINT)
                assert serving.wait(60) == 0
                serving = None
            run = ["python", "-c", step] if kind == "python" else ["bash", "-c", step]
            done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, f"{step}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            outputs[step] = done.stdout
    served = next(output for step, output in outputs.items() if step.startswith("curl"))
    assert [one["text"] for one in json.loads(served)["entities"]] == ["Angela Merkel", "Utrecht"]
    [quickstart] = [output for step, output in outputs.items() if step == "make quickstart"]
    f1 = float(re.search(r"test strict F1 (\d\.\d+)", quickstart)[1])
    assert f1 >= 0.70
    assert "out/quickstart/bundle" in quickstart
    assert "next:" in quickstart
    python = next(output for step, output in outputs.items() if "NerEngine" in step)
    assert "Angela Merkel" in python
    evaluated = next(output for step, output in outputs.items() if step.startswith("rayner evaluate"))
    assert f"test strict F1 {f1:.4f}" in evaluated
