"""How many replicas the load needs, counted in sub-tokens: a request may hold one sentence or a thousand."""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

METRIC = "queued_tokens"
STEADY = 0.3
"""A number of replicas whose share of the load is within this of the target stays: no swinging to and fro."""


class TokenPolicy:
    """Ray Serve's policy: as many replicas as keep each at its target of waiting and running sub-tokens."""

    def __init__(self, target_tokens: float) -> None:
        self.target_tokens = target_tokens

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted; Ray applies bounds and delays.

        Where a replica has not told its load of late, for it is too busy, there are no fewer than before.
        """
        loads = (context.aggregated_metrics or {}).get(METRIC, {})
        samples = (context.raw_metrics or {}).get(METRIC, {})
        present = context.target_num_replicas
        wanted = choose_replicas(sum(loads.values()), self.target_tokens, present)
        all_tell = all(samples.get(replica) for replica in context.running_replicas)
        return wanted if all_tell else max(wanted, present), {}


def choose_replicas(load: float, target: float, present: int) -> int:
    """For a load in sub-tokens, over all replicas; `present` is how many there are or shall be."""
    wanted = load / target
    if present and (1 - STEADY) * present <= wanted <= present:
        return present
    return math.ceil(wanted)
