"""How several workers train one model: what each holds, which part of a batch it reads, and what they exchange.

A strategy hides this from the loop: it computes gradients of the global batch's loss, and gathers weights under the
plain model's names, so that a checkpoint of one strategy resumes with another, and a bundle is an ordinary one.

| strategy | a worker holds | and reads | exchanged in a step |
|---|---|---|---|
| ddp | the whole model (Li et al. 2020) | its share of the batch | gradients |
| fsdp | a slice of every weight and moment (ZeRO 3, Rajbhandari et al. 2020) | its share | weights, gradients |
| tensor | a slice of every layer's products (Shoeybi et al. 2019) | the whole batch | activations |
| pipeline | some of the layers (1F1B, Narayanan et al. 2019) | the whole batch | activations |
| hybrid | as fsdp or tensor within a group of workers; groups share the batch | its group's share | both |
| local_sgd | the whole model, alone for some steps (Stich 2019; Lin et al. 2020) | its share | weights, rarely |
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from pipelines.ner.errors import UserError
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.architectures import may_pack
from pipelines.training.batches import Batch, BatchPlan
from pipelines.training.forward import Forward, PaddedForward, build_forward
from pipelines.training.objective import Imitation, Objective

STRATEGIES = ("ddp", "fsdp", "tensor", "pipeline", "hybrid", "local_sgd")
COMPRESSIONS = ("none", "bf16", "powersgd")
INSIDE = ("shard", "tensor")
POWERSGD_STARTS = 2
"""Step from which gradients are approximated: the first that PyTorch allows."""

Lap = Callable[[str], None]


class ParallelError(UserError):
    """A strategy that the workers or the model cannot do."""


@dataclass(frozen=True)
class ParallelConfig:
    """How workers share the training of one model."""

    strategy: str = "ddp"
    """ddp: each worker has the model, gradients are averaged; fsdp: weights, gradients and moments are sliced; tensor:
    products are sliced; pipeline: layers are divided; hybrid: fsdp or tensor within groups, which divide the batch;
    local_sgd: workers train alone and average their weights every few steps."""
    gradient_compression: str = "none"
    """What ddp sends: none (fp32), bf16 (half), powersgd (low rank, Vogels et al. 2019; an approximation)."""
    powersgd_rank: int = 4
    """Rank of powersgd's approximation: higher is closer and sends more."""
    inside: str = "shard"
    """What hybrid does within a group: shard (as fsdp) or tensor."""
    inside_size: int = 2
    """Workers of one group of hybrid; take those of a node, where they exchange most."""
    sync_every: int = 8
    """Steps between local_sgd's averages."""
    micro_batches: int = 4
    """Parts of a batch that are in a pipeline at once; more leave workers less idle."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them (Chen et al. 2016): less memory, a third
    more time."""
    cpu_offload: bool = False
    """Keep fsdp's slices in the CPU's memory and bring them to the GPU layer by layer."""

    def find_idle(self) -> list[str]:
        """Settings given that change nothing in this run, each with its reason."""
        plain = ParallelConfig()
        reasons = {
            "powersgd_rank": ("`gradient_compression` powersgd", self.gradient_compression == "powersgd"),
            "inside": ("`strategy` hybrid", self.strategy == "hybrid"),
            "inside_size": ("`strategy` hybrid", self.strategy == "hybrid"),
            "sync_every": ("`strategy` local_sgd", self.strategy == "local_sgd"),
            "micro_batches": ("`strategy` pipeline", self.strategy == "pipeline"),
        }
        given = {
            name: needs
            for name, (needs, holds) in reasons.items()
            if not holds and getattr(self, name) != getattr(plain, name)
        }
        return [f"`parallel.{name}` has no effect without {needs}" for name, needs in given.items()]

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings alone."""
        checks = [
            ("strategy", self.strategy, "one of " + ", ".join(STRATEGIES), self.strategy in STRATEGIES),
            (
                "gradient_compression",
                self.gradient_compression,
                "one of " + ", ".join(COMPRESSIONS),
                self.gradient_compression in COMPRESSIONS,
            ),
            ("powersgd_rank", self.powersgd_rank, "at least 1", self.powersgd_rank >= 1),
            ("inside", self.inside, "one of " + ", ".join(INSIDE), self.inside in INSIDE),
            ("inside_size", self.inside_size, "at least 2", self.inside_size >= 2),
            ("sync_every", self.sync_every, "at least 1", self.sync_every >= 1),
            ("micro_batches", self.micro_batches, "at least 1", self.micro_batches >= 1),
        ]
        problems: list[UserError] = [
            ParallelError("a value out of range", where=f"`parallel.{name}`", rule=rule, value=value)
            for name, value, rule, holds in checks
            if not holds
        ]
        if self.gradient_compression != "none" and self.strategy != "ddp":
            rule, value = "only ddp sends gradients as they are", f"{self.gradient_compression} with {self.strategy}"
            where = "`parallel.gradient_compression`"
            problems.append(ParallelError("nothing to compress", where=where, rule=rule, value=value))
        return problems


class Strategy:
    """One worker alone; what the others add or replace."""

    share, num_shares = 0, 1
    """Which part of every global batch this worker reads, of how many."""
    copies = 1
    """Workers that compute the same loss."""
    seed_index = 0
    """Workers of the same index draw the same dropout."""
    sync_every = 1
    """Steps after which workers have exchanged what they know."""
    holds_all = True
    """Whether each worker has all weights, ready to be scored."""
    may_pack = True
    may_be_sparse = True

    def __init__(self, model: TokenClassifier, config: ParallelConfig, device: torch.device) -> None:
        self.whole = self.model = model
        if not self.holds_all:  # copied before the device has it
            self.whole = deepcopy(model.cpu())
        model.to(device)
        self.config, self.device = config, device
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    def prepare(
        self,
        precision: str,
        label_smoothing: float,
        *,
        r_drop: float = 0.0,
        dropout_samples: int = 1,
        sparse: bool = True,
        imitation: Imitation | None = None,
    ) -> None:
        """Make the model ready to train; its parameters are final after this.

        With `sparse` the embeddings of words have sparse gradients, where the forward pass and the strategy can. An
        imitation needs batches with a teacher's states.
        """
        self.forward = self._build_forward(precision)
        if dropout_samples > 1:
            self.forward.sample_dropout(dropout_samples)
        if not sparse or not self.may_be_sparse:
            self.forward.make_dense()
        self.objective: nn.Module = self._wrap(Objective(self.forward, label_smoothing, r_drop, imitation))

    def follow_freezing(self) -> None:
        """Go on with another set of parameters that train."""

    def _build_forward(self, precision: str) -> Forward:
        if not self.may_pack:
            return PaddedForward(self.model, precision, self.config.gradient_checkpointing)
        return build_forward(self.model, precision, self.device, self.config.gradient_checkpointing)

    def _wrap(self, objective: Objective) -> nn.Module:
        return objective

    @property
    def sparse_table(self) -> nn.Parameter | None:
        """The parameter whose gradients are sparse, if there is one."""
        return self.forward.sparse_table

    def plan_share(self, plan: BatchPlan, step: Any) -> list[list[int]]:
        """The windows of this worker's passes of a step; some passes may be empty."""
        return plan.share(step, self.share, self.num_shares)

    def compute(self, batches: Sequence[tuple[Batch, float]], scale: float, lap: Lap) -> Tensor:
        """Add the gradients of `scale` times the loss of these weighted batches; returns the loss, summed."""
        total = torch.zeros((), device=self.device)
        for index, (batch, weight) in enumerate(batches):
            with self._hold_back(index < len(batches) - 1):
                loss = self.objective(batch) * weight
                lap("forward")
                (loss * scale).backward()
                lap("backward")
            total += loss.detach()
        return total

    def _hold_back(self, more_follows: bool) -> AbstractContextManager[Any]:
        """Exchange nothing while more is to be added to the same gradients."""
        return nullcontext()

    def measure_norm(self, gradients: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
        """The norm of all gradients together, those of other workers' slices too."""
        return nn.utils.get_total_norm(gradients)

    def end_step(self, step: int) -> None:
        """After the weights have moved; `step` counts from 1."""

    def settle(self, moments: Iterable[Tensor]) -> None:
        """Bring all workers to one state, before it is scored or kept."""

    def gather(self, values: Iterable[tuple[str, Tensor]], *, for_all: bool = False) -> dict[str, Tensor]:
        """Whole tensors of slices and parts, by name. Every worker takes part; all get them, or the first alone, who
        writes checkpoints: the others may get nothing."""
        return dict(values)

    def gather_model(self, *, for_all: bool = False) -> dict[str, Tensor]:
        """The plain model's state, as `gather` gives it."""
        return self.gather(((name, value.detach()) for name, value in self.model.state_dict().items()), for_all=for_all)

    def take_part(self, whole: Tensor, like: nn.Parameter) -> Tensor:
        """What this worker holds of a whole tensor that lies as a parameter does."""
        return whole.to(like.device)

    @contextmanager
    def open_model(self) -> Iterator[TokenClassifier]:
        """The whole model with the present weights, to be scored within the block. Every worker takes part.

        Where workers hold parts, it is a second copy, on the device no longer than it is scored.
        """
        if not self.holds_all:
            self.whole.load_state_dict(self.gather_model(for_all=True))
        try:
            yield self.whole
        finally:
            if not self.holds_all:
                self.whole.cpu()


class DataParallel(Strategy):
    """PyTorch's DistributedDataParallel (Li et al. 2020)."""

    def __init__(self, model: TokenClassifier, config: ParallelConfig, device: torch.device) -> None:
        super().__init__(model, config, device)
        self.share = self.seed_index = self.rank
        self.num_shares = self.world_size
        self.may_be_sparse = config.gradient_compression == "none"  # the hooks take no sparse gradients

    def _wrap(self, objective: Objective) -> nn.Module:
        wrapped = nn.parallel.DistributedDataParallel(
            objective,
            broadcast_buffers=False,  # they are constants
            gradient_as_bucket_view=True,  # sent from where they are
            # a network of another kind may have parameters that a batch does not touch (XLNet, Longformer)
            find_unused_parameters=not may_pack(self.model.network.config),
        )
        if self.config.gradient_compression == "bf16":
            wrapped.register_comm_hook(None, _send_bf16)
        elif self.config.gradient_compression == "powersgd":
            state = powerSGD_hook.PowerSGDState(
                process_group=None,
                matrix_approximation_rank=self.config.powersgd_rank,
                start_powerSGD_iter=POWERSGD_STARTS,
            )
            wrapped.register_comm_hook(state, _send_low_rank)
        return wrapped

    def follow_freezing(self) -> None:
        """See `Strategy`; the wrapper knows only what trained when it was made."""
        assert isinstance(self.objective, nn.parallel.DistributedDataParallel)
        self.objective = self._wrap(self.objective.module)

    def _hold_back(self, more_follows: bool) -> AbstractContextManager[Any]:
        wrapped = self.objective
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
        return wrapped.no_sync() if more_follows else nullcontext()


class LocalSGD(Strategy):
    """Each worker moves its own weights; they are averaged every `sync_every` steps, and with the moments when kept."""

    def __init__(self, model: TokenClassifier, config: ParallelConfig, device: torch.device) -> None:
        super().__init__(model, config, device)
        self.share = self.seed_index = self.rank
        self.num_shares = self.world_size
        self.sync_every = config.sync_every

    def end_step(self, step: int) -> None:
        """Average the weights when it is time."""
        if step % self.sync_every == 0:
            self._average(parameter.data for parameter in self.model.parameters() if parameter.requires_grad)

    def settle(self, moments: Iterable[Tensor]) -> None:
        """Average weights and moments."""
        self._average(parameter.data for parameter in self.model.parameters() if parameter.requires_grad)
        self._average(moments)

    def _average(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= self.world_size


def _send_bf16(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """PyTorch's hook under another name: by its own name it is refused on CPUs, where gloo can do it too."""
    sent: torch.futures.Future[Tensor] = default_hooks.bf16_compress_hook(None, bucket)  # type: ignore[arg-type]
    return sent


def _send_low_rank(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """PyTorch's hook, bucket after bucket: gloo would mix up the exchanges of several at once."""
    sent = powerSGD_hook.powerSGD_hook(state, bucket)
    if not bucket.buffer().is_cuda:
        sent.wait()
    return sent
