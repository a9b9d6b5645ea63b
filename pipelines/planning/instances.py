"""Machines that clouds rent by name, for a `cluster.yaml` that names them and leaves their resources to Ray.

Sizes as the providers publish them (aws.amazon.com/ec2/instance-types, cloud.google.com/compute/docs/machine-resource,
learn.microsoft.com/azure/virtual-machines/sizes). Prices are those of AWS on demand in us-east-1, in US dollars an
hour, as listed in 2025; they change, and spot, reservations and other regions differ: `--node_price` overrides them.
"""

from dataclasses import replace

from pipelines.planning.inventory import Node

GIB = 2**30

# name → (CPUs, GiB, GPUs, kind of GPU, price per hour or None)
INSTANCES: dict[str, tuple[int, float, int, str | None, float | None]] = {
    "m5.large": (2, 8, 0, None, 0.096),
    "m5.xlarge": (4, 16, 0, None, 0.192),
    "m5.2xlarge": (8, 32, 0, None, 0.384),
    "m5.4xlarge": (16, 64, 0, None, 0.768),
    "m5.8xlarge": (32, 128, 0, None, 1.536),
    "m6i.large": (2, 8, 0, None, 0.096),
    "m6i.xlarge": (4, 16, 0, None, 0.192),
    "m6i.2xlarge": (8, 32, 0, None, 0.384),
    "m6i.4xlarge": (16, 64, 0, None, 0.768),
    "m6i.8xlarge": (32, 128, 0, None, 1.536),
    "m7i.large": (2, 8, 0, None, 0.1008),
    "m7i.xlarge": (4, 16, 0, None, 0.2016),
    "m7i.2xlarge": (8, 32, 0, None, 0.4032),
    "m7i.4xlarge": (16, 64, 0, None, 0.8064),
    "m7i.8xlarge": (32, 128, 0, None, 1.6128),
    "c6i.xlarge": (4, 8, 0, None, 0.17),
    "c6i.2xlarge": (8, 16, 0, None, 0.34),
    "c6i.4xlarge": (16, 32, 0, None, 0.68),
    "c6i.8xlarge": (32, 64, 0, None, 1.36),
    "c7i.2xlarge": (8, 16, 0, None, 0.357),
    "c7i.4xlarge": (16, 32, 0, None, 0.714),
    "c7i.8xlarge": (32, 64, 0, None, 1.428),
    "r6i.xlarge": (4, 32, 0, None, 0.252),
    "r6i.2xlarge": (8, 64, 0, None, 0.504),
    "g4dn.xlarge": (4, 16, 1, "T4", 0.526),
    "g4dn.2xlarge": (8, 32, 1, "T4", 0.752),
    "g4dn.4xlarge": (16, 64, 1, "T4", 1.204),
    "g4dn.12xlarge": (48, 192, 4, "T4", 3.912),
    "g5.xlarge": (4, 16, 1, "A10G", 1.006),
    "g5.2xlarge": (8, 32, 1, "A10G", 1.212),
    "g5.4xlarge": (16, 64, 1, "A10G", 1.624),
    "g5.12xlarge": (48, 192, 4, "A10G", 5.672),
    "g5.48xlarge": (192, 768, 8, "A10G", 16.288),
    "g6.xlarge": (4, 16, 1, "L4", 0.8048),
    "g6.2xlarge": (8, 32, 1, "L4", 0.9776),
    "g6.4xlarge": (16, 64, 1, "L4", 1.3232),
    "g6.12xlarge": (48, 192, 4, "L4", 4.6016),
    "g6.48xlarge": (192, 768, 8, "L4", 13.3504),
    "g6e.xlarge": (4, 32, 1, "L40S", 1.861),
    "g6e.2xlarge": (8, 64, 1, "L40S", 2.24208),
    "g6e.12xlarge": (48, 384, 4, "L40S", 10.49264),
    "g6e.48xlarge": (192, 1536, 8, "L40S", 30.13118),
    "p3.2xlarge": (8, 61, 1, "V100", 3.06),
    "p3.8xlarge": (32, 244, 4, "V100", 12.24),
    "p4d.24xlarge": (96, 1152, 8, "A100", 21.957642),
    "p5.48xlarge": (192, 2048, 8, "H100", 55.04),
    "n1-standard-4": (4, 15, 0, None, None),
    "n2-standard-4": (4, 16, 0, None, None),
    "n2-standard-8": (8, 32, 0, None, None),
    "n2-standard-16": (16, 64, 0, None, None),
    "g2-standard-4": (4, 16, 1, "L4", None),
    "g2-standard-8": (8, 32, 1, "L4", None),
    "g2-standard-16": (16, 64, 1, "L4", None),
    "g2-standard-48": (48, 192, 4, "L4", None),
    "a2-highgpu-1g": (12, 85, 1, "A100", None),
    "a2-highgpu-8g": (96, 680, 8, "A100", None),
    "a3-highgpu-8g": (208, 1872, 8, "H100", None),
    "Standard_NC4as_T4_v3": (4, 28, 1, "T4", None),
    "Standard_NC24ads_A100_v4": (24, 220, 1, "A100-80G", None),
}


# Gbit/s that a machine has all the time; smaller ones have "up to" 10 or 25 for a while.
NETWORKS = {
    "g4dn.12xlarge": 50,
    "g5.12xlarge": 40,
    "g5.48xlarge": 100,
    "g6.12xlarge": 40,
    "g6.48xlarge": 100,
    "g6e.12xlarge": 100,
    "g6e.48xlarge": 400,
    "p3.8xlarge": 10,
    "p4d.24xlarge": 400,
    "p5.48xlarge": 3200,
}


def find_instance(name: str) -> Node | None:
    """A node of this machine type; None if the table has it not."""
    if name not in INSTANCES:
        return None
    cpus, gib, gpus, accelerator, price = INSTANCES[name]
    network = NETWORKS[name] * 1e9 / 8 if name in NETWORKS else None
    shape = Node(name, float(cpus), int(gib * GIB), gpus, accelerator, group=name)
    return replace(shape, price_per_hour=price, network_bytes_per_s=network)


def complete(node: Node, instance: str | None) -> Node:
    """A node with what its machine type adds: memory, the kind of its GPUs, and the price, where they are not given."""
    known = find_instance(instance) if instance else None
    if known is None:
        return node
    return replace(
        node,
        memory_bytes=node.memory_bytes or known.memory_bytes,
        accelerator=node.accelerator or (known.accelerator if node.gpus else None),
        network_bytes_per_s=node.network_bytes_per_s or known.network_bytes_per_s,
        price_per_hour=node.price_per_hour if node.price_per_hour is not None else known.price_per_hour,
    )
