"""A cluster that is not there yet, read off the file that makes it: Ray's `cluster.yaml`, or a KubeRay manifest."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipelines.planning.errors import PlanError
from pipelines.planning.instances import complete, find_instance
from pipelines.planning.inventory import ACCELERATOR_LABEL, Inventory, Node, NodeGroup, build_groups, find_accelerator

KUBERAY_KINDS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
INSTANCE_KEYS = ("InstanceType", "machineType", "vmSize")
"""Where AWS, Google Cloud and Azure name a machine type; Azure below `azure_arm_parameters`."""
GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915")
SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]*)")
_GPU_NAME = re.compile(r"\b(GB200|B200|H200|H100|L40S|L40|L4|A100|A10G|A10|T4|V100|P100|P4|K80)\b(?:[\w-]*?(40|80)GB)?")


def read_manifest(path: Path) -> Inventory:
    """The cluster of a file, whichever of the two it is. Raises PlanError."""
    documents = _load(path)
    if any(document.get("kind") in KUBERAY_KINDS for document in documents):
        return read_kuberay(path)
    return read_cluster_yaml(path)


def read_cluster_yaml(path: Path) -> Inventory:
    """What `ray up` starts with this file, and what its autoscaler may add. Raises PlanError."""
    [config] = _load(path)[:1] or [{}]
    types = config.get("available_node_types")
    head = config.get("head_node_type")
    if not isinstance(types, dict) or head not in types:
        raise PlanError(
            "the cluster file names no kinds of node",
            where=str(path),
            rule="`available_node_types` with their `resources`, and `head_node_type`, one of them",
            remedy="describe the machines instead: `--cluster '4x(8cpu,32GiB,1xL4)'`, or connect to them once they run",
        )
    limit = int(config.get("max_workers", 2))  # Ray's default
    nodes: list[Node] = []
    shapes: dict[str, tuple[Node, int]] = {}
    for name, kind in types.items():
        shape = _read_node_type(path, str(name), kind if isinstance(kind, dict) else {})
        most = int(kind.get("max_workers", limit))
        least = 1 if name == head else min(int(kind.get("min_workers", 0)), limit)
        nodes += [replace(shape, name=f"{name}.{one}") for one in range(1, least + 1)]
        if name != head:
            shapes[str(name)] = (shape, most)
    workers = [node for node in nodes if node.group != head]
    groups = build_groups([(name, {}, {}, most) for name, (_, most) in shapes.items()], workers, limit)
    whole = tuple(NodeGroup(shapes[group.name][0], group.max_count) for group in groups)
    most = max(0, limit - len(workers))
    return Inventory(tuple(nodes), whole, f"the cluster file {path}", bool(whole), most)


def read_kuberay(path: Path) -> Inventory:
    """What a RayCluster, RayJob or RayService manifest starts, and what its autoscaler may add. Raises PlanError."""
    document = next((one for one in _load(path) if one.get("kind") in KUBERAY_KINDS), None)
    spec: Any = document and document.get("spec")
    for key in KUBERAY_KINDS[document["kind"]] if document else ():
        spec = (spec or {}).get(key)
    if not isinstance(spec, dict) or "headGroupSpec" not in spec:
        rule = "a RayCluster, RayJob or RayService with a `headGroupSpec`"
        raise PlanError("the manifest describes no Ray cluster", where=str(path), rule=rule)
    nodes = [_read_pod(path, "head", spec["headGroupSpec"])]
    groups = []
    grows = bool(spec.get("enableInTreeAutoscaling"))
    for worker in spec.get("workerGroupSpecs") or []:
        name = str(worker.get("groupName", "workers"))
        shape = _read_pod(path, name, worker)
        hosts = int(worker.get("numOfHosts", 1))
        least = int(worker.get("replicas", worker.get("minReplicas", 0) if grows else 1)) * hosts
        most = int(worker.get("maxReplicas", least)) * hosts if grows else least
        nodes += [replace(shape, name=f"{name}.{one}") for one in range(1, least + 1)]
        if most > least:
            groups.append(NodeGroup(shape, most - least))
    return Inventory(tuple(nodes), tuple(groups), f"the manifest {path}", grows)


def _load(path: Path) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(
            "the cluster's file cannot be read",
            where=str(path),
            rule="YAML: Ray's `cluster.yaml`, or a KubeRay manifest",
            value=error.strerror if isinstance(error, OSError) else " ".join(str(error).split()),
        ) from error
    return [document for document in documents if isinstance(document, dict)]


def _read_node_type(path: Path, name: str, kind: Mapping[str, Any]) -> Node:
    config = kind.get("node_config") or {}
    config = config.get("azure_arm_parameters") or config
    instance = next((str(config[key]).rpartition("/")[2] for key in INSTANCE_KEYS if key in config), None)
    resources, labels = kind.get("resources") or {}, dict(kind.get("labels") or {})
    if "CPU" not in resources:
        known = find_instance(instance) if instance else None
        if known is None:
            raise PlanError(
                f"the cluster file does not say what a node of `{name}` has",
                where=str(path),
                rule="`resources` with `CPU`, or a machine type that is known",
                value=instance or "neither",
                remedy=f"add `resources: {{CPU: 8, GPU: 1}}` to `available_node_types.{name}`",
            )
        gpus = int(resources.get("GPU", known.gpus))
        return replace(known, name=name, group=name, gpus=gpus, labels=labels)
    shape = Node(
        name=name,
        cpus=float(resources["CPU"]),
        memory_bytes=int(resources.get("memory", 0)),
        gpus=int(resources.get("GPU", 0)),
        accelerator=find_accelerator(resources, labels),
        labels=labels,
        group=name,
    )
    return complete(shape, instance)


def _read_pod(path: Path, name: str, group: Mapping[str, Any]) -> Node:
    spec = ((group.get("template") or {}).get("spec")) or {}
    containers: Sequence[Mapping[str, Any]] = spec.get("containers") or [{}]
    asked = containers[0].get("resources") or {}
    has = {**(asked.get("requests") or {}), **(asked.get("limits") or {})}
    start = group.get("rayStartParams") or {}
    cpus = start.get("num-cpus", has.get("cpu"))
    if cpus is None:
        raise PlanError(
            f"the manifest does not say what a pod of `{name}` has",
            where=str(path),
            rule="`resources.limits` with `cpu` and `memory` on its first container, or `num-cpus` in `rayStartParams`",
        )
    labels = {str(key): str(value) for key, value in (group.get("labels") or {}).items()}
    selector = {str(key): str(value) for key, value in (spec.get("nodeSelector") or {}).items()}
    gpus = start.get("num-gpus", next((has[key] for key in GPU_RESOURCES if key in has), 0))
    node = Node(
        name=name,
        cpus=_read_quantity(path, cpus),
        memory_bytes=int(_read_quantity(path, start.get("memory", has.get("memory", 0)))),
        gpus=int(_read_quantity(path, gpus)),
        accelerator=labels.get(ACCELERATOR_LABEL) or _find_gpu_name(selector.values()),
        labels=labels,
        group=name,
    )
    instance = selector.get("node.kubernetes.io/instance-type")
    return complete(node, instance) if node.gpus else node


def _find_gpu_name(values: Any) -> str | None:
    """`nvidia-l4`, `NVIDIA-A100-SXM4-80GB`, `Tesla-T4` → L4, A100-80G, T4."""
    for value in values:
        match = _GPU_NAME.search(value.upper().replace("_", "-"))
        if match:
            return match[1] + (f"-{match[2]}G" if match[2] and match[1] == "A100" else "")
    return None


def _read_quantity(path: Path, quantity: Any) -> float:
    """Kubernetes' `500m`, `4`, `16Gi`."""
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None or match[2] not in ("", "m", *SUFFIXES):
        rule = "a quantity of Kubernetes: `4`, `500m`, `16Gi`"
        raise PlanError("an amount cannot be read", where=str(path), rule=rule, value=quantity)
    return float(match[1]) * (0.001 if match[2] == "m" else SUFFIXES.get(match[2], 1))
