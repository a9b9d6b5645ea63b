"""Pipeline parallelism: each worker holds some of the layers and passes activations of one micro-batch after another.

PyTorch's `torch.distributed.pipelining` runs it, one forward and one backward in turn (1F1B, Narayanan et al. 2019).
A stage is computed from the network's own parameters, padded, in the architectures that `read_architecture` knows.

Shapes: M micro-batches of B windows, T sub-tokens, W words, H hidden size, h heads, d head size, K tags.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.utils.checkpoint import checkpoint

from pipelines.ner.casing import split_cases
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.architectures import Architecture, Layer, read_architecture
from pipelines.ner.runtimes.packed import ACTIVATIONS
from pipelines.training.batches import Batch, BatchPlan, deal
from pipelines.training.forward import DTYPES
from pipelines.training.objective import Imitation, sum_loss
from pipelines.training.parallel import Lap, ParallelConfig, ParallelError, Strategy

TOKENS_MULTIPLE, WORDS_MULTIPLE = 32, 16
"""Micro-batches are padded to few shapes, since workers agree on each shape before its first use."""
KEPT_SCHEDULES = 8
"""Shapes whose buffers are kept; all workers see the same shapes one after the other, so each drops the same."""


class Pipeline(Strategy):
    """A worker is a stage; the last one has the loss."""

    holds_all = False

    def __init__(self, model: TokenClassifier, config: ParallelConfig, device: torch.device) -> None:
        super().__init__(model, config, device)
        found = read_architecture(model.network)
        if found is None:
            raise ParallelError(f"no pipeline parallelism for `{model.network.config.model_type}`")
        self.found = found
        self.seed_index = self.rank
        self.layers = np.array_split(np.arange(len(found.layers)), self.world_size)[self.rank].tolist()
        self._forget_others()
        self.schedules: dict[tuple[int, int, int, int], Schedule1F1B] = {}

    @property
    def is_last(self) -> bool:
        """Whether this worker computes the loss."""
        return self.rank == self.world_size - 1

    def _forget_others(self) -> None:
        """Leave of the other stages' parameters only their shapes."""
        found = self.found
        first = [found.words, found.positions, found.types, found.norm, found.projection]
        parts: list[nn.Module] = [part for part in first if part is not None] if self.rank == 0 else []
        for index in self.layers:
            parts += [part for part in vars(found.layers[index]).values() if isinstance(part, nn.Module)]
        if self.is_last:
            parts.append(found.classifier)
        if self.is_last and self.model.crf is not None:
            parts.append(self.model.crf)
        own = {parameter for part in parts for parameter in part.parameters()}
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter not in own:
                    module.register_parameter(name, nn.Parameter(torch.empty_like(parameter, device="meta")))

    def prepare(
        self,
        precision: str,
        label_smoothing: float,
        *,
        r_drop: float = 0.0,
        dropout_samples: int = 1,
        sparse: bool = False,
        imitation: Imitation | None = None,
    ) -> None:
        """See `Strategy`; one pass a window, dense, without imitation."""
        assert imitation is None, "compression trains data-parallel"
        assert not r_drop, "refused before"
        assert dropout_samples == 1, "refused before"
        layers = [self.found.layers[index] for index in self.layers]
        self.stage = _Stage(self.found, layers, self.rank == 0, self.is_last, precision, self.config)
        self.label_smoothing, self.pad_id = label_smoothing, self.model.network.config.pad_token_id or 0

    @property
    def sparse_table(self) -> nn.Parameter | None:
        """None: the stages are padded."""
        return None

    def plan_share(self, plan: BatchPlan, step: Any) -> list[list[int]]:
        """All windows of the step, in micro-batches of about one size."""
        num_micro = max(self.config.micro_batches, self.world_size, len(plan.share(step, 0, 1)))
        return [deal(step, num_micro, micro) for micro in range(num_micro)]

    def compute(self, batches: Sequence[tuple[Batch, float]], scale: float, lap: Lap) -> Tensor:
        """See `Strategy`; the loss is zero but on the last worker."""
        inputs, starts, target = _stack(batches, self.pad_id)
        self.stage.train(self.model.training)
        self.scale, self.total = scale, torch.zeros((), device=self.device)
        shape = (len(batches), *inputs.shape[:2], starts.shape[1])
        schedule = self.schedules.pop(shape, None) or self._schedule(*shape)
        self.schedules[shape] = schedule  # the one used last is the last
        if len(self.schedules) > KEPT_SCHEDULES:
            del self.schedules[next(iter(self.schedules))]
        more: dict[str, Any] = {"mask_BT": inputs[:, :, 1], "word_starts_BW": starts}
        if self.is_last:
            more |= {"target": target, "losses": []}
        schedule.step(*([inputs[:, :, 0]] if self.rank == 0 else []), **more)
        lap("pipeline")
        return self.total

    def _schedule(self, num_micro: int, num_rows: int, num_tokens: int, num_words: int) -> Schedule1F1B:
        """The schedule for micro-batches of one shape; told its shapes, it need not run the stage to find them."""
        num_rows //= num_micro
        width = self.model.network.config.hidden_size

        def outline(*shape: int, dtype: torch.dtype) -> Tensor:
            """A tensor without memory, which tells its shape and type alone."""
            return torch.empty(shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)

        between = outline(num_rows, num_tokens, width, dtype=self.stage.dtype)
        ids = outline(num_rows, num_tokens, dtype=torch.long)
        emissions = outline(num_rows, num_words, self.found.classifier.out_features, dtype=torch.float32)
        stage = PipelineStage(
            self.stage,
            self.rank,
            self.world_size,
            self.device,
            input_args=ids if self.rank == 0 else between,
            output_args=emissions if self.is_last else between,
        )
        return Schedule1F1B(stage, num_micro, loss_fn=self._score, scale_grads=False)

    def _score(self, emissions_BWK: Tensor, target_BX: Tensor) -> Tensor:
        """The scaled loss of a micro-batch, its filling left out."""
        real_B = target_BX[:, -1] > 0
        if not real_B.any():
            return emissions_BWK.sum() * 0
        kept_BX = target_BX[real_B]
        tags_BW, (lengths_B, starts_B, ends_B) = kept_BX[:, :-4], kept_BX[:, -4:-1].T
        batch = Batch(tags_BW, tags_BW, tags_BW, tags_BW, lengths_B, starts_B > 0, ends_B > 0)
        loss = sum_loss(self.model, emissions_BWK[real_B], batch, self.label_smoothing)
        self.total += loss.detach()
        return loss * self.scale

    def measure_norm(self, gradients: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
        """Of all stages' gradients."""
        squares = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        dist.all_reduce(squares)
        return squares.sqrt()

    def gather(self, values: Iterable[tuple[str, Tensor]], *, for_all: bool = False) -> dict[str, Tensor]:
        """See `Strategy`."""
        held = {name: value for name, value in values if not value.is_meta}
        outlines: list[Any] = [None] * self.world_size
        dist.all_gather_object(outlines, {name: (value.shape, value.dtype) for name, value in held.items()})
        whole = {}
        for rank, outline in enumerate(outlines):
            for name, (shape, dtype) in outline.items():
                tensor = torch.empty(shape, dtype=dtype, device=self.device)
                if rank == self.rank:
                    tensor.copy_(held[name])
                dist.broadcast(tensor, rank)
                if for_all or self.rank == 0:
                    whole[name] = tensor.cpu()
        return whole


class _Stage(nn.Module):
    """Some layers: sub-tokens `[B, T]` (first stage) or activations `[B, T, H]` in, activations or emissions out."""

    def __init__(
        self,
        found: Architecture,
        layers: Sequence[Layer],
        is_first: bool,
        is_last: bool,
        precision: str,
        config: ParallelConfig,
    ) -> None:
        super().__init__()
        self.found, self.layers, self.is_first, self.is_last = found, layers, is_first, is_last
        self.dtype, self.gradient_checkpointing = DTYPES[precision], config.gradient_checkpointing

    def forward(self, x: Tensor, mask_BT: Tensor, word_starts_BW: Tensor) -> Tensor:
        """See the class."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if self.is_first:
                x = self._embed(x)
            for layer in self.layers:
                if self.gradient_checkpointing and self.training:
                    x = checkpoint(self._run_layer, x, layer, mask_BT, use_reentrant=False)
                else:
                    x = self._run_layer(x, layer, mask_BT)
        if not self.is_last:
            return x.to(self.dtype)
        x_BWH = x.float().gather(1, word_starts_BW[:, :, None].expand(-1, -1, x.shape[2]))
        classifier: Tensor = self.found.classifier(self._drop(x_BWH, self.found.classifier_dropout))
        return classifier

    def _embed(self, ids_BT: Tensor) -> Tensor:
        found = self.found
        positions_T = torch.arange(found.first_position, found.first_position + ids_BT.shape[1], device=ids_BT.device)
        ids_BT, cases_BT = split_cases(ids_BT)
        x_BTH = found.words(ids_BT) + found.positions(positions_T)
        if found.types is not None:
            x_BTH = x_BTH + (found.types(cases_BT) if found.casing else found.types.weight[0])
        x_BTH = self._drop(found.norm(x_BTH), found.dropout)
        return x_BTH if found.projection is None else found.projection(x_BTH)

    def _run_layer(self, x_BTH: Tensor, layer: Layer, mask_BT: Tensor) -> Tensor:
        q_BhTd, k_BhTd, v_BhTd = (
            part(x_BTH).unflatten(2, (-1, self.found.head_size)).transpose(1, 2)
            for part in (layer.query, layer.key, layer.value)
        )
        dropout = layer.weights_dropout if self.training else 0.0
        seen = mask_BT[:, None, None, :] > 0
        context_BhTd = F.scaled_dot_product_attention(q_BhTd, k_BhTd, v_BhTd, seen, dropout)
        context_BTH = context_BhTd.transpose(1, 2).flatten(2)
        x_BTH = layer.attention_norm(x_BTH + self._drop(layer.attention_out(context_BTH), layer.attention_dropout))
        _, activate = ACTIVATIONS[self.found.activation]
        fed_BTH = layer.feed_out(activate(layer.feed_in(x_BTH)))
        out_BTH: Tensor = layer.feed_norm(x_BTH + self._drop(fed_BTH, layer.feed_dropout))
        return out_BTH

    def _drop(self, x: Tensor, probability: float) -> Tensor:
        return F.dropout(x, probability, self.training)


def _stack(batches: Sequence[tuple[Batch, float]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Micro-batches filled up to one shape, one below the other.

    Returns:
        Ids and mask `[M·B, T, 2]`; the words' starts `[M·B, W]`; and `[M·B, W + 4]`: tags, number of words, whether
        the window starts and ends its document, and whether it is a real one.
    """
    num_rows = max(len(batch.lengths_B) for batch, _ in batches)
    num_tokens = _round_up(max(batch.input_ids_BT.shape[1] for batch, _ in batches), TOKENS_MULTIPLE)
    num_words = _round_up(max(batch.tag_ids_BW.shape[1] for batch, _ in batches), WORDS_MULTIPLE)
    inputs, starts, targets = [], [], []
    for batch, weight in batches:
        own = len(batch.lengths_B)
        rows = torch.arange(num_rows, device=batch.lengths_B.device)
        filled = rows.clamp(max=own - 1)  # the last window again: a row without any would attend to nothing
        ids_BT = F.pad(batch.input_ids_BT, (0, num_tokens - batch.input_ids_BT.shape[1]), value=pad_id)
        mask_BT = F.pad(batch.attention_mask_BT, (0, num_tokens - batch.attention_mask_BT.shape[1]))
        inputs.append(torch.stack([ids_BT, mask_BT], dim=2)[filled])
        starts.append(F.pad(batch.word_starts_BW, (0, num_words - batch.word_starts_BW.shape[1]))[filled])
        tags_BW = F.pad(batch.tag_ids_BW, (0, num_words - batch.tag_ids_BW.shape[1]))
        facts_BX = torch.stack([batch.lengths_B, batch.starts_B.long(), batch.ends_B.long()], dim=1)
        is_real_B1 = ((rows < own) & (weight > 0)).long()[:, None]
        targets.append(torch.cat([torch.cat([tags_BW, facts_BX], dim=1)[filled], is_real_B1], dim=1))
    return torch.cat(inputs), torch.cat(starts), torch.cat(targets)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
