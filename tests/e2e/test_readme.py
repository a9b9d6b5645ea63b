"""Every command of README.md, run word for word in a copy of the checkout."""

import json
import re
import signal
import subprocess
import urllib.request

import pytest

from tests.conftest import ROOT
from tests.integration.processes import wait_until
from tests.quickstart import COMMAND, Quickstart

BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)
RUN_BY_CI = ["make check", "make test"]
LONG = ("rayner tune ", "rayner compress ")
"""Commands that take minutes, and that no other one needs."""
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


@pytest.mark.timeout(3000)
def test_every_command_of_the_readme_works(quickstart: Quickstart):
    outputs = {COMMAND: quickstart.told}
    serving: subprocess.Popen[bytes] | None = None
    for kind, code in read_blocks():
        for step in [code] if kind == "python" else code.splitlines():
            if step in (COMMAND, *RUN_BY_CI) or step.startswith(LONG):
                continue
            if step.startswith("rayner serve"):
                serving = subprocess.Popen(step.split(), cwd=quickstart.checkout, env=quickstart.environment)
                wait_until(lambda: is_ready("http://localhost:8000/readyz"), "the endpoint is ready")
                continue
            if serving is not None and not step.startswith("curl"):
                serving.send_signal(signal.SIGINT)
                assert serving.wait(60) == 0
                serving = None
            outputs[step] = quickstart.run(*(["python", "-c", step] if kind == "python" else ["bash", "-c", step]))
    assert any(COMMAND in code.splitlines() for _, code in read_blocks())
    served = next(output for step, output in outputs.items() if step.startswith("curl"))
    assert [one["text"] for one in json.loads(served)["entities"]] == ["Angela Merkel", "Utrecht"]
    f1 = float(re.search(r"test strict F1 (\d\.\d+)", quickstart.told)[1])
    assert f1 >= 0.70
    assert "out/quickstart/bundle" in quickstart.told
    assert "next:" in quickstart.told
    python = next(output for step, output in outputs.items() if "NerEngine" in step)
    assert "Angela Merkel" in python
    evaluated = next(output for step, output in outputs.items() if step.startswith("rayner evaluate"))
    assert f"test strict F1 {f1:.4f}" in evaluated
    out = quickstart.checkout / "out"
    trained, scored = (json.loads((out / name / "report.json").read_text()) for name in ("quickstart", "eval"))
    for name in ("strict", "lenient", "errors", "num_gold", "num_predicted", "intervals", "seen", "unseen"):
        assert scored[name] == trained[name]


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_commands_that_take_minutes_work(quickstart: Quickstart):
    steps = [step for _, code in read_blocks() for step in code.splitlines() if step.startswith(LONG)]
    assert [step.split()[1] for step in steps] == ["tune", "compress"]
    for step, folder in zip(steps, ("tuning", "small"), strict=True):
        quickstart.run("bash", "-c", step)
        assert (quickstart.checkout / "out" / folder / "bundle" / "bundle.json").is_file()
