"""The KubeRay manifests: only fields that there are, and in each pod what a serious one has."""

import copy
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from pipelines.submit import read_command
from serve.settings import Arguments, Tuning
from tests.conftest import ROOT
from tests.unit.deploy.test_cluster_launcher import read_constraints

FOLDER = ROOT / "deploy" / "kuberay"
GIB = 1 << 30
# What differs between a pod and one machine; each has its reason in the manifest.
OF_A_POD = {
    "http_options.host": "0.0.0.0",
    "controller_options.runtime_env.env_vars.RAYNER_GRPC_HOST": "0.0.0.0",
    "applications.0.args.model": "/shared/runs/first/bundle",
    "applications.0.args.api_keys_file": "/etc/rayner/keys",
    "applications.0.args.num_gpus": 0.5,
    "applications.0.deployments.0.ray_actor_options.num_gpus": 0.5,
    "applications.0.deployments.0.ray_actor_options.label_selector.role": "serving",
}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["raycluster", "rayjob", "rayservice"])
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "tests" / "data" / "kuberay_schema.yaml").read_text(encoding="utf-8"))


def find_cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def list_pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = find_cluster(manifest)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def list_containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for pod in list_pods(manifest) for container in pod["containers"]]


def read_gib(quantity: str) -> float:
    return int(quantity.removesuffix("Gi")) if quantity.endswith("Gi") else int(quantity) / GIB


def test_it_has_only_fields_that_there_are(manifest, schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    kind = {"$ref": f"#/$defs/{manifest['kind']}", "$defs": schema["$defs"]}
    jsonschema.validate(manifest, kind)
    wrong = copy.deepcopy(manifest)
    find_cluster(wrong)["workerGroupSpecs"][0]["maxReplica"] = 8
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(wrong, kind)


def test_the_token_is_asked_for_and_the_autoscaler_on(manifest):
    cluster = find_cluster(manifest)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "rayner-token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "dashboard-host" not in cluster["headGroupSpec"]["rayStartParams"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["labels"] == {"role": group["groupName"]}


def test_versions_are_those_of_the_constraints_and_of_this_project(manifest):
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert find_cluster(manifest)["rayVersion"] == read_constraints()["ray"]
    for container in list_containers(manifest):
        assert re.fullmatch(rf"registry\.example\.com/rayner:{re.escape(version)}-(cpu|gpu)", container["image"])


def test_every_container_is_bounded_probed_and_without_rights(manifest):
    for pod in list_pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["terminationGracePeriodSeconds"] >= 60  # Ray takes up to 30 s to drain a node
    for container in list_containers(manifest):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        is_serving = manifest["kind"] == "RayService" and container["name"] == "ray-worker"
        if is_serving:  # a pod whose replicas are elsewhere has no proxy, or one that says so
            ready = container["readinessProbe"]["httpGet"]
            assert (ready["path"], ready["port"]) == ("/-/healthz", 8000)
        for probe in (container["livenessProbe"], container["readinessProbe"])[: 1 if is_serving else 2]:
            port = {"ray-head": 8265, "ray-worker": 52365}[container["name"]]
            assert probe["httpGet"]["port"] == port
            assert probe["httpGet"]["path"] in ("/api/gcs_healthz", "/api/local_raylet_healthz")  # which need no token


def test_shared_memory_holds_the_object_store(manifest):
    """Ray takes 30 % of a node's memory for it, and goes to the disk if /dev/shm is hardly larger."""
    for pod in list_pods(manifest):
        [container] = pod["containers"]
        [shm] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        memory = read_gib(container["resources"]["limits"]["memory"])
        assert shm["medium"] == "Memory"
        assert 0.3 * memory < 0.95 * read_gib(shm["sizeLimit"]) < 0.4 * memory
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


def test_gpus_are_asked_for_where_the_image_can_use_them(manifest):
    for group in find_cluster(manifest)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert has_gpu == container["image"].endswith("-gpu")
        assert has_gpu == any(one["key"] == "nvidia.com/gpu" for one in pod.get("tolerations", []))


@pytest.mark.parametrize("name", ["raycluster", "rayservice"])
def test_tables_of_what_must_outlive_its_head_are_kept(name):
    options = find_cluster(load(name))["gcsFaultToleranceOptions"]
    service = next(one for one in load_all("storage") if one["kind"] == "Service")
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "rayner-redis", "key": "password"}


def load_all(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def test_claims_and_secrets_that_are_used_are_made_or_told_of():
    told = (FOLDER / "storage.yaml").read_text(encoding="utf-8")
    claims = {one["metadata"]["name"] for one in load_all("storage") if one["kind"] == "PersistentVolumeClaim"}
    used = "".join((FOLDER / f"{name}.yaml").read_text() for name in ("raycluster", "rayjob", "rayservice", "storage"))
    assert set(re.findall(r"claimName: ([\w-]+)", used)) <= claims
    secrets = set(re.findall(r"secretName: ([\w-]+)|secretKeyRef: \{name: ([\w-]+)", used))
    for name in {one or other for one, other in secrets}:
        assert f"kubectl create secret generic {name} " in told


def test_redis_and_ray_talk_to_whom_they_must_alone():
    policies = {one["metadata"]["name"]: one["spec"] for one in load_all("network")}
    [redis] = [one["spec"]["template"] for one in load_all("storage") if one["kind"] == "Deployment"]
    assert policies["rayner-redis"]["podSelector"]["matchLabels"] == redis["metadata"]["labels"]
    open_ports = [rule.get("ports") for rule in policies["rayner"]["ingress"]]
    assert open_ports == [None, [{"port": 8265}], [{"port": 8000}, {"port": 9000}]]
    assert all(rule["from"] for policy in policies.values() for rule in policy["ingress"])


def test_job_gives_a_verb_settings_that_it_knows_and_output_that_lasts():
    spec = load("rayjob")["spec"]
    python, flag, module, *rest = shlex.split(spec["entrypoint"])
    assert (python, flag) == ("python", "-m")
    _, settings = read_command([module.removeprefix("pipelines."), *rest])
    mounts = [mount["mountPath"] for one in list_containers(load("rayjob")) for mount in one["volumeMounts"]]
    assert settings["output_dir"].startswith("/shared/")
    assert "/shared" in mounts
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    most = next(group["maxReplicas"] for group in groups if group["groupName"] == "training")
    assert settings["resources"]["num_workers"] == f"1..{most}"


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten(one, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def find_unknown(given: dict, schema: type[BaseModel]) -> set[str]:
    return given.keys() - schema.model_fields.keys()


def test_service_serves_what_the_configuration_for_one_machine_does():
    service = yaml.safe_load(load("rayservice")["spec"]["serveConfigV2"])
    machine = dict(flatten(yaml.safe_load((ROOT / "serve" / "config.yaml").read_text(encoding="utf-8"))))
    assert dict(flatten(service)) == machine | OF_A_POD
    ServeDeploySchema.model_validate(service)
    [application] = service["applications"]
    [deployment] = application["deployments"]
    assert find_unknown(service, ServeDeploySchema) == set()
    assert find_unknown(application, ServeApplicationSchema) == set()
    assert find_unknown(deployment, DeploymentSchema) == set()
    assert find_unknown(deployment["ray_actor_options"], RayActorOptionsSchema) == set()
    AutoscalingConfig(**deployment["autoscaling_config"])
    Arguments.model_validate(application["args"])
    Tuning.model_validate(deployment["user_config"])


def test_service_has_keys_in_every_pod_and_room_for_every_replica():
    manifest = load("rayservice")
    service = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    [application] = service["applications"]
    folder = application["args"]["api_keys_file"].rpartition("/")[0]
    for container in list_containers(manifest):
        assert {"name": "keys", "mountPath": folder, "readOnly": True} in container["volumeMounts"]
    [deployment] = application["deployments"]
    [group] = find_cluster(manifest)["workerGroupSpecs"]
    replicas = group["maxReplicas"] / deployment["ray_actor_options"]["num_gpus"]
    assert replicas == deployment["autoscaling_config"]["max_replicas"]
    assert deployment["ray_actor_options"]["label_selector"] == group["labels"]
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > deployment["graceful_shutdown_timeout_s"]
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] > deployment["graceful_shutdown_timeout_s"]


def read_drain(pod: dict[str, Any]) -> str:
    [container] = pod["containers"]
    return container["lifecycle"]["preStop"]["exec"]["command"][-1]


@pytest.mark.parametrize("name", ["raycluster", "rayservice"])
def test_pod_that_serves_waits_for_its_connections_before_it_ends(name, tmp_path):
    [pod] = [one for one in list_pods(load(name)) if one["terminationGracePeriodSeconds"] > 600]
    script = read_drain(pod)
    assert script.endswith("ray stop")
    calls = tmp_path / "calls"
    stubs = {"sleep": f"echo sleep >> {calls}; echo > {tmp_path / 'tcp'}", "ray": f'echo "ray $*" >> {calls}'}
    for program, body in stubs.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / program).chmod(0o755)
    listening = "   0: 00000000:1F40 00000000:0000 0A 00000000:00000000\n"
    asking = "   1: 0100007F:9C40 0100007F:1F40 01 00000000:00000000\n"  # of a client here, to another port of ours
    answering = "   2: 0100007F:1F40 0100007F:9C40 01 00000000:00000000\n"
    path = f"{tmp_path}:/usr/bin:/bin"
    for table, wanted in ((listening + asking, ["ray stop"]), (listening + answering, ["sleep", "ray stop"])):
        calls.unlink(missing_ok=True)
        (tmp_path / "tcp").write_text(table)
        here = script.replace("/proc/net/tcp6", "/none").replace("/proc/net/tcp", str(tmp_path / "tcp"))
        subprocess.run(["/bin/sh", "-c", here], env={"PATH": path}, check=True, timeout=20)
        assert calls.read_text().splitlines() == wanted


def test_service_of_grpc_finds_the_pods_and_the_port():
    [service] = load_all("grpc")
    manifest = load("rayservice")
    [group] = find_cluster(manifest)["workerGroupSpecs"]
    assert service["spec"]["selector"].items() >= group["template"]["metadata"]["labels"].items()
    serving = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    assert [port["port"] for port in service["spec"]["ports"]] == [serving["grpc_options"]["port"]]
    head = find_cluster(manifest)["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "serve", "containerPort": serving["http_options"]["port"]} in head["ports"]


def test_no_two_of_them_share_a_name():
    """KubeRay names Services after them: two clusters with one name have one head for both."""
    names = [load(one)["metadata"]["name"] for one in ("raycluster", "rayjob", "rayservice")]
    assert len(set(names)) == 3
