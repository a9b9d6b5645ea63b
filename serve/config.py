"""What `rayner serve` can be told of where the endpoint listens, of its replicas, and of the requests it takes.

On a cluster the same is said in `config.yaml`; `settings.Arguments` is what both come to.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class HttpConfig:
    """Where the endpoint listens."""

    host: str = "127.0.0.1"
    """Address to listen at; others than this machine's own need API keys, and so does any on a cluster."""
    port: int = 8000
    """Port of HTTP."""
    grpc_port: int | None = None
    """Port of gRPC; default: no gRPC."""
    ingress: str = "auto"
    """haproxy, python (Ray Serve's own proxy, slower), or auto: HAProxy if it is installed."""


@dataclass(frozen=True)
class ReplicaConfig:
    """What one replica has, and how it computes."""

    num_cpus: float | None = None
    """CPUs of a replica, which compute with so many threads; default: this machine's cores by the most replicas."""
    num_gpus: float | None = None
    """GPUs of a replica; a fraction caps its share of the memory too; default: what the model needs of one, as planned,
    where this machine has a GPU."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where the replica has a share of one."""
    runtime: str = "auto"
    """How emissions are computed, as in `rayner predict`; auto measures once."""
    precision: str = "auto"
    """fp32, bf16, fp16, int8 (of a bundle that has it) or auto."""
    scheme: str | None = None
    """Tag scheme of a checkpoint that others have made, where its tags do not tell: `IOB1` for one in which entities
    begin with `I-`."""


@dataclass(frozen=True)
class ScalingConfig:
    """How the number of replicas follows the load."""

    min_replicas: int = 1
    """0: the endpoint may go to sleep, and its first request waits."""
    max_replicas: int = 1
    """More than `min_replicas`: replicas come and go with the load."""
    target_queued_tokens: int = 4000
    """Waiting and running sub-tokens of a replica above which another one is started."""
    upscale_delay_s: float = 2.0
    """A burst shorter than this starts nothing."""
    downscale_delay_s: float = 120.0
    """So long must a replica be superfluous before it ends."""


@dataclass(frozen=True)
class LimitsConfig:
    """What a request may be, and how much may wait."""

    min_score: float = 0.0
    """Entities below are left out where a request says nothing."""
    max_batch_tokens: int | None = None
    """Sub-tokens of a batch: more is faster and later; default: the runtime's own."""
    max_queued_tokens: int = 200_000
    """Sub-tokens that may wait in a replica before it answers 429."""
    max_wait_s: float = 5.0
    """Expected waiting, by the present speed, above which a replica answers 429."""
    timeout_s: float = 30.0
    """A request that takes longer is answered 504; for a line of a stream waiting does not count."""
    max_body_kib: int = 4096
    """Of a request, and of a line of a stream."""
    max_texts: int = 1024
    """Of a request."""
    max_characters: int = 500_000
    """Of a text."""
    max_streams: int = 64
    """At once in a replica, before it answers 429."""
