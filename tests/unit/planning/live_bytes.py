"""Bytes of all tensors that live, operator by operator: what the cost model is held to."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages of tensors that operators make while it is entered: `now`, and `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator, and count what it makes."""
        for storage in _list_storages((args, kwargs)):
            self._meet(storage, 0)  # made before, or counted
        result = func(*args, **(kwargs or {}))
        for storage in _list_storages(result):
            self._meet(storage, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _meet(self, storage: torch.UntypedStorage, size: int) -> None:
        """Count a storage that is new; another may get its address once it is gone."""
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.now += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _list_storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and not leaf.is_sparse:
            yield leaf.untyped_storage()
