"""The files for Ray's cluster launcher: taken by Ray's own schema, with every command and version in them."""

import ipaddress
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from serve.ingress import ENVIRONMENT
from tests.conftest import ROOT

FILES = ("cluster.yaml", "deploy/cluster-on-premises.yaml")
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
PIN = re.compile(r"'([A-Za-z0-9_.-]+(?:\[[\w,]+\])?==[^']+)'")


@pytest.fixture(scope="module", params=FILES)
def config(request: pytest.FixtureRequest) -> dict:
    return yaml.safe_load((ROOT / request.param).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def aws() -> dict:
    return yaml.safe_load((ROOT / FILES[0]).read_text(encoding="utf-8"))


def read_constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip().partition("==") for line in lines if "==" in line]
    return {name.lower().replace("_", "-"): version for name, _, version in pins}


def list_commands(config: dict) -> list[str]:
    return [command for name in COMMANDS for command in config[name]]


def test_ray_takes_it_and_adds_no_command(config):
    prepared = prepare_config(config)
    validate_config(prepared)
    for name in ("initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert prepared[name] == config[name]
    for name in ("head_setup_commands", "worker_setup_commands"):
        assert prepared[name] == config["setup_commands"] + config[name]


def test_nothing_listens_to_everybody(config):
    for command in list_commands(config):
        assert "0.0.0.0" not in command
        assert "::" not in command
        for host in re.findall(r"--dashboard-host[= ](\S+)", command):
            assert ipaddress.ip_address(host).is_loopback
    [head] = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=" in head  # else whatever Ray's default is


def test_every_node_asks_for_the_token(config):
    [environment] = [command for command in config["setup_commands"] if "ray.env" in command]
    assert "export RAY_AUTH_MODE=token" in environment
    [token] = [remote for remote, local in config["file_mounts"].items() if local == "~/.ray/auth_token"]
    assert f"export RAY_AUTH_TOKEN_PATH={token}" in environment
    assert f"chmod 600 {token}" in config["setup_commands"]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all(re.match(r"\. /home/\w+/ray\.env && ", command) for command in config[name])


def test_every_version_is_the_one_of_the_constraints(config):
    constraints = read_constraints()
    pinned = [Requirement(one) for command in list_commands(config) for one in PIN.findall(command)]
    assert {"ray", "torch"} <= {one.name for one in pinned}
    assert {one.name: str(one.specifier) for one in pinned} == {
        one.name: f"=={constraints[one.name]}" for one in pinned
    }
    for command in list_commands(config):
        if "pip install" in command:
            assert re.search(r"--constraint \S+/rayner/constraints\.txt", command)


def test_the_endpoint_finds_what_it_wants_in_the_environment(config):
    [environment] = [command for command in config["setup_commands"] if "ray.env" in command]
    exported = dict(re.findall(r"export (\w+)=(\S+)", environment))
    assert exported.items() >= ENVIRONMENT.items()


def test_shell_and_ray_can_read_every_command(config):
    for command in list_commands(config):
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)
        for options in re.findall(r"ray start (.*)", command, re.DOTALL):
            told = CliRunner().invoke(start, [*options.split(), "--help"])  # an unknown option is told before the help
            assert told.exit_code == 0, told.output
            known = {name for parameter in start.params for name in parameter.opts}
            assert {part.partition("=")[0] for part in options.split()} <= known


def test_what_is_sent_is_there_and_is_what_an_installation_needs(config):
    local = {path for path in config["file_mounts"].values() if not path.startswith("~")}
    assert [path for path in local if not (ROOT / path).exists()] == []
    assert {"pyproject.toml", "constraints.txt", "pipelines", "serve"} <= local
    remote = {Path(path).name for path in config["file_mounts"]}
    assert remote == {Path(path).name for path in config["file_mounts"].values()}


def test_aws_nodes_scale_from_zero_within_their_sum(aws):
    types = aws["available_node_types"]
    workers = {name: one for name, one in types.items() if name != aws["head_node_type"]}
    assert set(workers) == {"data", "training", "serving"}
    assert all(one["min_workers"] == 0 for one in types.values())
    assert aws["max_workers"] == sum(one["max_workers"] for one in workers.values())
    assert types["head"]["resources"] == {"CPU": 0}


def test_aws_spot_is_for_training_alone(aws):
    types = aws["available_node_types"]
    spot = {name for name, one in types.items() if "InstanceMarketOptions" in one["node_config"]}
    assert spot == {"training"}
    assert {name for name, one in types.items() if one["resources"].get("GPU")} == {"training", "serving"}
    ordered = sorted((name for name in types if name != "head"), key=lambda name: -types[name]["priority"])
    assert ordered == ["data", "training", "serving"]


def test_aws_nodes_have_no_way_in_but_the_tunnel(aws):
    assert aws["provider"]["use_internal_ips"] is True
    assert "aws ssm start-session" in aws["auth"]["ssh_proxy_command"]
    for one in aws["available_node_types"].values():
        node = one["node_config"]
        assert node["SecurityGroupIds"]  # else Ray makes one that lets the world in on port 22
        assert node["MetadataOptions"] == {"HttpTokens": "required"}
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])


def test_aws_memory_leaves_a_third_to_the_object_store(aws):
    machines = {"m7i.4xlarge": 64, "g6.2xlarge": 32, "g6.xlarge": 16}  # GiB
    for one in aws["available_node_types"].values():
        gib = machines.get(one["node_config"]["InstanceType"])
        if gib:
            assert 0.6 < one["resources"]["memory"] / (gib << 30) <= 0.7
