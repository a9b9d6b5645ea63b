"""Strategies in which a worker holds slices of weights: fsdp, tensor and hybrid."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.architectures import read_architecture, read_layers
from pipelines.training.objective import Objective
from pipelines.training.optimizer import get_local
from pipelines.training.parallel import ParallelConfig, ParallelError, Strategy


class Sliced(Strategy):
    """Weights are slices of whole ones (DTensors): what fsdp, tensor and hybrid have in common."""

    holds_all = False
    may_pack = False

    def _shard(self, module: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
        offload = CPUOffloadPolicy() if self.config.cpu_offload else OffloadPolicy()
        for block in blocks:
            fully_shard(block, mesh=mesh, offload_policy=offload)
        fully_shard(module, mesh=mesh, offload_policy=offload)

    def _hold_back(self, more_follows: bool) -> AbstractContextManager[Any]:
        if isinstance(self.objective, FSDPModule):
            self.objective.set_requires_gradient_sync(not more_follows)
        return nullcontext()

    def measure_norm(self, gradients: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
        """Each piece counts once, however many workers have it."""
        squares = torch.zeros((), device=self.device)
        for gradient, parameter in zip(gradients, parameters, strict=True):
            squares += gradient.square().sum() / _count_copies(parameter, self.world_size)
        dist.all_reduce(squares)
        return squares.sqrt()

    def gather(self, values: Iterable[tuple[str, Tensor]], *, for_all: bool = False) -> dict[str, Tensor]:
        """See `Strategy`."""
        gathered = {}
        for name, value in values:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if for_all or self.rank == 0:
                gathered[name] = whole.cpu()
        return gathered

    def take_part(self, whole: Tensor, like: nn.Parameter) -> Tensor:
        """See `Strategy`."""
        if not isinstance(like.data, DTensor):
            return whole.to(like.device)
        given = distribute_tensor(whole.to(like.device), like.data.device_mesh, like.data.placements)
        mine = torch.empty_like(like.data)  # lies where the parameter lies; the other on the mesh's device
        get_local(mine).copy_(get_local(given))
        return mine


class FullySharded(Sliced):
    """PyTorch's `fully_shard`, encoder layer by encoder layer."""

    def __init__(self, model: TokenClassifier, config: ParallelConfig, device: torch.device) -> None:
        super().__init__(model, config, device)
        self.share = self.seed_index = self.rank
        self.num_shares = self.world_size
        self.mesh = init_device_mesh(device.type, (self.world_size,), mesh_dim_names=("shard",))

    def _wrap(self, objective: Objective) -> nn.Module:
        self._shard(objective, _list_blocks(self.model), self.mesh)
        return objective


class TensorParallel(Sliced):
    """PyTorch's `parallelize_module`: attention by heads, feed-forward by hidden units, embeddings by words."""

    def __init__(self, model: TokenClassifier, config: ParallelConfig, device: torch.device) -> None:
        super().__init__(model, config, device)
        self.copies = self.world_size
        mesh = init_device_mesh(device.type, (self.world_size,), mesh_dim_names=("tensor",))
        _slice_products(model, mesh)


class Hybrid(Sliced):
    """A mesh of groups × workers of a group: `fully_shard` or slices of products within, data parallel across."""

    def __init__(self, model: TokenClassifier, config: ParallelConfig, device: torch.device) -> None:
        super().__init__(model, config, device)
        num_groups = self.world_size // config.inside_size
        self.mesh = init_device_mesh(
            device.type, (num_groups, config.inside_size), mesh_dim_names=("across", config.inside)
        )
        if config.inside == "tensor":
            self.share = self.seed_index = self.rank // config.inside_size
            self.num_shares = num_groups
            self.copies = config.inside_size
            _slice_products(model, self.mesh["tensor"])
        else:
            self.share = self.seed_index = self.rank
            self.num_shares = self.world_size

    def _wrap(self, objective: Objective) -> nn.Module:
        mesh = self.mesh["across"] if self.config.inside == "tensor" else self.mesh
        self._shard(objective, _list_blocks(self.model), mesh)
        return objective


def _slice_products(model: TokenClassifier, mesh: DeviceMesh) -> None:
    found, layers = read_architecture(model.network), read_layers(model.network)
    if layers is None:
        raise ParallelError(f"no tensor parallelism for `{model.network.config.model_type}`")
    names = {module: name for name, module in model.named_modules()}
    plan: dict[str, Any] = {}
    if found is not None:  # embeddings that are a head's weights too stay whole
        plan[names[found.words]] = RowwiseParallel(input_layouts=Replicate())
    for layer in layers:
        for module in (layer.query, layer.key, layer.value, layer.feed_in):
            plan[names[module]] = ColwiseParallel()
        for module in (layer.attention_out, layer.feed_out):
            plan[names[module]] = RowwiseParallel()
    parallelize_module(model, mesh, plan)


def _list_blocks(model: TokenClassifier) -> list[nn.Module]:
    """The encoder's layers: the longest list of modules in it."""
    lists = [module for module in model.network.modules() if isinstance(module, nn.ModuleList)]
    return max((list(blocks) for blocks in lists), key=len)


def _count_copies(parameter: nn.Parameter, world_size: int) -> int:
    """How many workers hold the same piece of a parameter."""
    if not isinstance(parameter.data, DTensor):
        return world_size
    mesh, placements = parameter.data.device_mesh, parameter.data.placements
    copies = world_size // mesh.size()
    for dim, placement in enumerate(placements):
        if placement.is_replicate():
            copies *= mesh.size(dim)
    return copies
