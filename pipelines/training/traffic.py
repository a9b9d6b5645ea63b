"""What a worker holds and sends: memory of the model's state, and bytes of one step's exchanges."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.training.optimizer import get_local

MIB = 2**20
KINDS: dict[str, tuple[str, Callable[[int], float]]] = {
    "allreduce": ("all-reduce", lambda n: 2 * (n - 1) / n),
    "all_reduce": ("all-reduce", lambda n: 2 * (n - 1) / n),
    "allgather": ("all-gather", lambda n: (n - 1) / n),
    "all_gather": ("all-gather", lambda n: (n - 1) / n),
    "reduce_scatter": ("reduce-scatter", lambda n: (n - 1) / n),
    "alltoall": ("all-to-all", lambda n: (n - 1) / n),
    "all_to_all": ("all-to-all", lambda n: (n - 1) / n),
    "broadcast": ("broadcast", lambda n: (n - 1) / n),
    "send": ("messages", lambda n: 1.0),
}


class TrafficMeter(TorchDispatchMode):
    """Counts what this worker sends while it is entered, in bytes by kind of exchange: `sent`.

    As ring algorithms send it: of an all-reduce of b bytes between n workers 2 b (n - 1) / n, of an all-gather to b
    bytes, a reduce-scatter of b bytes and, on average, a broadcast b (n - 1) / n; of a message b.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and count it if it is an exchange."""
        result = func(*args, **(kwargs or {}))
        space, _, name = func._schema.name.partition("::")
        if space in ("c10d", "_c10d_functional"):
            leaves = tree_leaves((args, kwargs))
            found = next((KINDS[known] for known in KINDS if name.lstrip("_").startswith(known)), None)
            if found is not None:
                kind, share = found
                largest = max(_count_bytes(leaf) for leaf in tree_leaves((leaves, result)) if isinstance(leaf, Tensor))
                self.sent[kind] += round(largest * share(_find_group_size(leaves)))
        return result


def measure_state(parameters: Iterable[Tensor], moments: Iterable[Tensor]) -> dict[str, float]:
    """MiB of the weights, gradients and moments that this worker holds."""
    weights = list(parameters)
    return {
        "weights": _sum_mib(weights),
        "gradients": _sum_mib(one for one in weights if one.requires_grad),
        "moments": _sum_mib(moments),
    }


def _sum_mib(tensors: Iterable[Tensor]) -> float:
    local = [get_local(one) for one in tensors if not one.is_meta]
    return round(sum(one.nbytes for one in local) / MIB, 3)


def _count_bytes(tensor: Tensor) -> int:
    if tensor.is_sparse:
        return _count_bytes(tensor._indices()) + _count_bytes(tensor._values())
    return tensor.nbytes


def _find_group_size(leaves: Iterable[Any]) -> int:
    for leaf in leaves:
        if isinstance(leaf, torch.ScriptObject):
            try:
                return int(dist.ProcessGroup.unbox(leaf).size())
            except RuntimeError:  # another object, as the operator to reduce by
                continue
    return dist.get_world_size()
