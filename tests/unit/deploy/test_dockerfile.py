"""The Dockerfile: linted where the linter is, pinned, and ending in a user without rights."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve.ingress import ENVIRONMENT
from tests.conftest import ROOT
from tests.unit.deploy.test_cluster_launcher import read_constraints

FILE = ROOT / "deploy" / "Dockerfile"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Instruction and rest, continued lines joined, without comments."""
    text = re.sub(r"^\s*#.*\n", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines if line.strip()]


def find_stages(instructions: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions:
        if name == "FROM":
            stage = stages.setdefault(rest.split(" AS ")[1], [])
        elif stages:
            stage.append((name, rest))
    return stages


def test_hadolint_finds_nothing():
    linter = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed (there is a package for Linux on x86-64)")
    done = subprocess.run([linter, "--no-color", FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_versions_are_those_of_the_constraints(instructions):
    constraints = read_constraints()
    told = " ".join(rest for _, rest in instructions)
    assert set(re.findall(r"TORCH_VERSION=(\S+)", told)) == {constraints["torch"]}
    assert set(re.findall(r'"ray\[[\w,]+\]==([^"]+)"', told)) == {constraints["ray"]}
    installs = [command for name, rest in instructions if name == "RUN" for command in [rest] if "pip install" in rest]
    assert len(installs) == 2
    assert all("-c constraints.txt" in command for command in installs)
    bases = {rest.split()[0] for name, rest in instructions if name == "FROM" and ":" in rest}
    assert bases == {"python:${PYTHON_VERSION}-slim-bookworm"}
    assert re.search(r"PYTHON_VERSION=\d+\.\d+\.\d+(\s|$)", told)


def test_both_images_run_as_a_numbered_user_and_hold_no_build(instructions):
    stages = find_stages(instructions)
    assert [rest for name, rest in stages["runtime"] if name == "USER"] == ["1000:1000"]
    for target in ("cpu", "gpu"):
        parents = [rest for name, rest in instructions if name == "FROM" and rest.endswith(f" AS {target}")]
        assert parents == [f"runtime AS {target}"]
        copies = [rest for name, rest in stages[target] if name == "COPY"]
        assert copies == [f"--from=build-{target} /install /usr/local"]
        assert "RUN" not in {name for name, _ in stages[target]}


def test_environment_asks_for_the_token_and_is_what_the_endpoint_wants(instructions):
    told = " ".join(rest for name, rest in find_stages(instructions)["runtime"] if name == "ENV")
    exported = dict(re.findall(r"(\w+)=(\S+)", told))
    assert exported["RAY_AUTH_MODE"] == "token"
    assert exported.items() >= ENVIRONMENT.items()


def test_only_what_is_copied_is_sent_to_the_engine(instructions):
    allowed = (FILE.with_name("Dockerfile.dockerignore")).read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in allowed if line.startswith("!")}
    copied = {
        part for name, rest in find_stages(instructions)["source"] if name == "COPY" for part in rest.split()[:-1]
    }
    assert sent == copied
    assert "*" in allowed
