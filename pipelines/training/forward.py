"""From a batch to emissions, with gradients: padded, by the network as it is; or packed, without padding.

Packed, the sub-tokens of a batch lie one after another, and only real ones are computed; windows of equal length share
one batched attention, and the last layer is computed only where a word begins. The parameters are the model's own, so
that either way trains the same model. In bf16 activations and products are bf16, parameters and their gradients fp32.

Shapes: B windows, T sub-tokens, W words of a window, V words of all of them, N rows (sub-tokens and filling), H hidden
size, h heads, d head size, K tags; S samples of the classifier's dropout; in attention b windows times heads, of one
length T.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from pipelines.ner.casing import split_cases
from pipelines.ner.errors import UserError
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.architectures import Architecture, Layer, read_architecture
from pipelines.ner.runtimes.packed import ACTIVATIONS, Groups, fill_rows, has_fused_linear, lay_out
from pipelines.training.batches import Batch, find_words
from pipelines.training.rounding import rounds_to_int8

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SHORT_WINDOW = 64
"""Windows below this have their attention in fp32: of 16-bit floats, PyTorch takes short rows of weights element by
element, and oneDNN compiles each product anew for every number of windows."""
LENGTH_STEP = 16
"""Windows whose attention is in 16-bit floats are filled up to a multiple of this in it: oneDNN keeps kernels for few
shapes, and would compile most of them anew for each step."""


class ForwardError(UserError):
    """A way to compute that a network does not have."""


class Forward(nn.Module):
    """A way from a batch to emissions `[B, W, K]` in fp32."""

    model: TokenClassifier
    dropout_samples = 1
    keeps_states = False
    states_VH: Tensor
    """Of the last batch, where `keeps_states` is set: the last hidden states of words, in fp32, window after window."""
    exit_layers: Sequence[int] = ()
    exit_states: list[Tensor]
    """Of the last batch, after each of `exit_layers`: hidden states of words `[V, H]`, likewise."""

    def keep_exits(self, layers: Sequence[int]) -> None:
        """Keep the states after so many layers of each batch, for exits to learn from."""
        self.exit_layers = layers

    def sample_dropout(self, count: int) -> None:
        """Draw so many masks before the classifier in training (multi-sample dropout, Inoue 2019).

        Emissions are `[S × B, W, K]` then: all windows with the first mask, all with the second, and so on. Raises
        ForwardError for a network that does not drop out right before its classifier.
        """
        last = find_last_dropout(self.model.network)
        self.dropout_samples = count
        self._sample_before(last)

    def _sample_before(self, dropout: nn.Dropout) -> None:
        """Prepare the network's own dropout."""

    @property
    def sparse_table(self) -> nn.Parameter | None:
        """The parameter whose gradients are sparse, if there is one."""
        return None

    def make_dense(self) -> None:
        """Give all parameters dense gradients."""


def build_forward(
    model: TokenClassifier, precision: str, device: torch.device, gradient_checkpointing: bool = False
) -> Forward:
    """Packed where the architecture and the device allow, else padded.

    With gradient checkpointing (Chen et al. 2016) a layer's activations are computed again in the backward pass.
    """
    found = read_architecture(model.network) if device.type == "cpu" else None
    if found is None or rounds_to_int8(model.network):
        return PaddedForward(model, precision, gradient_checkpointing)
    return PackedForward(model, found, precision, gradient_checkpointing)


def find_last_dropout(network: Any) -> nn.Dropout:
    """The dropout before the classifier. Raises ForwardError for a network without one there."""
    last = [child for child in network.children() if isinstance(child, nn.Dropout)]
    if len(last) != 1 or not last[0].p:
        raise ForwardError(
            f"no dropout before the classifier of `{network.config.model_type}` to draw samples of",
            where="`training.dropout_samples`",
            rule="a network with one dropout, above 0, right before its classifier",
            remedy="leave it out, or set `--model.dropout`",
        )
    return last[0]


def check_passes_differ(network: Any, *, remedy: str = "leave it out, or set `--model.dropout`") -> None:
    """Raise ForwardError for a network of which two passes in training are the same, where R-Drop compares them."""
    shares = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    told = [value for name, value in vars(network.config).items() if "dropout" in name and isinstance(value, float)]
    if not any(share > 0 for share in [*shares, *told]):
        raise ForwardError(
            "two passes that differ by nothing",
            where="`training.r_drop`",
            rule="an encoder with some dropout, by which its passes differ",
            value=network.config.model_type,
            remedy=remedy,
        )


class PaddedForward(Forward):
    """The network as it is, under autocast."""

    def __init__(self, model: TokenClassifier, precision: str, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        if gradient_checkpointing:
            model.network.gradient_checkpointing_enable({"use_reentrant": False})
        model.network.base_model.register_forward_hook(self._keep_states)

    def keep_exits(self, layers: Sequence[int]) -> None:
        """The network is asked for the states of all layers."""
        super().keep_exits(layers)
        self.model.network.config.output_hidden_states = True

    def forward(self, batch: Batch) -> Tensor:
        """Emissions `[B, W, K]`."""
        reduced = DTYPES[self.precision]
        word_starts_XW = batch.word_starts_BW.repeat(self.dropout_samples if self.model.training else 1, 1)
        with torch.autocast(batch.input_ids_BT.device.type, reduced, enabled=reduced != torch.float32):
            emissions_XWK: Tensor = self.model(batch.input_ids_BT, batch.attention_mask_BT, word_starts_XW)
        if self.keeps_states:
            self.states_VH = _pick_words(self.hidden_BTH, batch)
        self.exit_states = [_pick_words(self.all_hidden[layer], batch) for layer in self.exit_layers]
        return emissions_XWK.float()

    def _keep_states(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.keeps_states:
            self.hidden_BTH: Tensor = output[0]
        if self.exit_layers:
            self.all_hidden: Sequence[Tensor] = output.hidden_states

    def _sample_before(self, dropout: nn.Dropout) -> None:
        def repeat(module: nn.Module, hidden: tuple[Tensor]) -> tuple[Tensor] | None:
            """The hidden states once for each mask, `[S * B, T, H]`, in training alone."""
            return (hidden[0].repeat(self.dropout_samples, 1, 1),) if module.training else None

        dropout.register_forward_pre_hook(repeat)


class PackedForward(Forward):
    """Only real sub-tokens, in an architecture that is known."""

    def __init__(
        self, model: TokenClassifier, found: Architecture, precision: str, gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.model, self.found, self.gradient_checkpointing = model, found, gradient_checkpointing
        found.words.sparse = True  # a batch has few of the words, and only their rows get a gradient
        self.dtype = DTYPES[precision]

    @property
    def sparse_table(self) -> nn.Parameter | None:
        """The embeddings of words, unless they are frozen."""
        table = self.found.words.weight
        return table if self.found.words.sparse and isinstance(table, nn.Parameter) and table.requires_grad else None

    def make_dense(self) -> None:
        """Give the embeddings of words dense gradients."""
        self.found.words.sparse = False

    def forward(self, batch: Batch) -> Tensor:
        """Emissions `[B, W, K]`; zero where a window has fewer words."""
        found = self.found
        ids_N, positions_N, places_V, is_word_BW, groups = pack(batch, found.first_position)
        ids_N, cases_N = split_cases(ids_N)
        x_NH = found.words(ids_N) + found.positions(positions_N)
        if found.types is not None:
            x_NH = x_NH + (found.types(cases_N) if found.casing else found.types.weight[0])
        norm = found.norm
        x_NH = self._drop(F.layer_norm(x_NH, norm.normalized_shape, norm.weight, norm.bias, norm.eps), found.dropout)
        x_NH = x_NH.to(self.dtype)
        if found.projection is not None:
            x_NH = _project(x_NH, found.projection)
        self.exit_states = []
        for number, layer in enumerate(found.layers[:-1], 1):
            x_NH = self._run_layer(x_NH, layer, groups, None)
            if number in self.exit_layers:
                self.exit_states.append(x_NH[places_V[: int(is_word_BW.sum())]].float())
        x_VH = self._run_layer(x_NH, found.layers[-1], groups, places_V)
        if self.keeps_states:
            self.states_VH = x_VH[: int(is_word_BW.sum())].float()
        samples = self.dropout_samples if self.training else 1
        x_SVH = self._drop(x_VH.float().expand(samples, -1, -1), found.classifier_dropout)
        emissions_SVK = F.linear(x_SVH, found.classifier.weight, found.classifier.bias)[:, : int(is_word_BW.sum())]
        is_word_XW = is_word_BW.repeat(samples, 1)
        emissions_XWK = emissions_SVK.new_zeros(*is_word_XW.shape, emissions_SVK.shape[2])
        return emissions_XWK.index_put((is_word_XW,), emissions_SVK.flatten(0, 1))

    def _run_layer(self, x_NH: Tensor, layer: Layer, groups: Groups, wanted_V: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and self.training:
            again: Tensor = checkpoint(self._compute_layer, x_NH, layer, groups, wanted_V, use_reentrant=False)
            return again
        return self._compute_layer(x_NH, layer, groups, wanted_V)

    def _compute_layer(self, x_NH: Tensor, layer: Layer, groups: Groups, wanted_V: Tensor | None) -> Tensor:
        qkv_N3H = _project(x_NH, layer.query, layer.key, layer.value)
        dropout = layer.weights_dropout if self.training else 0.0
        context_NH = _Attention.apply(qkv_N3H, groups, self.found.head_size, dropout)
        if wanted_V is not None:
            context_NH, x_NH = context_NH[wanted_V], x_NH[wanted_V]
        attended_NH = self._drop(_project(context_NH, layer.attention_out), layer.attention_dropout)
        x_NH = self._norm(x_NH + attended_NH, layer.attention_norm)
        _, activate = ACTIVATIONS[self.found.activation]
        hidden_NI = activate(_project(x_NH, layer.feed_in))
        fed_NH = self._drop(_project(hidden_NI, layer.feed_out), layer.feed_dropout)
        return self._norm(x_NH + fed_NH, layer.feed_norm)

    def _norm(self, x_NH: Tensor, norm: nn.LayerNorm) -> Tensor:
        return F.layer_norm(x_NH, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def _drop(self, x: Tensor, probability: float) -> Tensor:
        if not self.training or not probability:
            return x
        dropped: Tensor = _Dropout.apply(x, probability)
        return dropped


def _pick_words(hidden_BTH: Tensor, batch: Batch) -> Tensor:
    """The hidden states of words `[V, H]` in fp32."""
    index_BWH = batch.word_starts_BW[:, :, None].expand(-1, -1, hidden_BTH.shape[2])
    return hidden_BTH.gather(1, index_BWH)[find_words(batch)].float()


def pack(batch: Batch, first_position: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Groups]:
    """The layout of a batch without padding.

    Returns:
        Ids and positions `[N]`, longest windows first, filling last; the words' rows `[V]`, window after window as in
        the batch, filled up too; which words there are, `[B, W]`; and (count, length) of windows of equal length.
    """
    lengths_B = batch.attention_mask_BT.sum(dim=1).numpy()
    layout = lay_out(lengths_B)
    windows = np.repeat(layout.order_B, lengths_B[layout.order_B])
    positions_N = torch.from_numpy(layout.positions)
    ids_N = batch.input_ids_BT[torch.from_numpy(windows), positions_N]
    words = torch.arange(batch.word_starts_BW.shape[1])
    is_word_BW = words < batch.lengths_B[:, None]
    places_V = (batch.word_starts_BW + torch.from_numpy(layout.offsets_B)[:, None])[is_word_BW]
    rows = (fill_rows(ids_N), fill_rows(positions_N + first_position), fill_rows(places_V))
    return *rows, is_word_BW, layout.groups


def _project(x_NI: Tensor, *linears: nn.Linear) -> Tensor:
    """`x W + b` of layers side by side, `[N, O]`."""
    projected: Tensor = _Linear.apply(x_NI, *(part for linear in linears for part in (linear.weight, linear.bias)))
    return projected


class _Linear(torch.autograd.Function):
    """A linear layer whose weights are rounded to the precision of its input, and whose gradients are not."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, *parts: Tensor) -> Tensor:
        """`x W + b`, of weights and biases in turn."""
        weight_OI, bias_O = (_join([part.to(x_NI.dtype) for part in parts[start::2]]) for start in (0, 1))
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.sizes, ctx.dtype = [len(weight) for weight in parts[::2]], parts[0].dtype
        if x_NI.dtype != torch.float32 and has_fused_linear(x_NI.dtype):
            y_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
            return y_NO
        return F.linear(x_NI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NO: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of input, weights and biases, of those that train."""
        x_NI, weight_OI = ctx.saved_tensors
        for_x = gradient_NO @ weight_OI if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return for_x, *(None for _ in ctx.needs_input_grad[1:])
        for_weights = (gradient_NO.t() @ x_NI).to(ctx.dtype).split(ctx.sizes)
        for_biases = gradient_NO.sum(dim=0).to(ctx.dtype).split(ctx.sizes)
        return for_x, *(part for pair in zip(for_weights, for_biases, strict=True) for part in pair)


def _join(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


class _Dropout(torch.autograd.Function):
    """Dropout (Srivastava et al. 2014) with 16 bits of randomness an element: see `draw_mask`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        """Draw a mask, and keep it for the backward pass."""
        mask = draw_mask(x.shape, probability, x.dtype)
        ctx.save_for_backward(mask)
        return x * mask.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient under the same mask; none for the probability."""
        [mask] = ctx.saved_tensors
        return gradient * mask.to(gradient.dtype), None


def draw_mask(shape: tuple[int, ...], probability: float, dtype: torch.dtype) -> Tensor:
    """Zero where an element is dropped, and elsewhere the factor that makes up for those, as 16-bit floats.

    The probability is moved a little, by 0.4 % of what stays at the most, to one whose factor a 16-bit float can hold:
    what is below that drops nothing.
    Four elements share one draw of the generator, whose draws cannot be shared between threads.
    """
    count = int(np.prod(shape))
    factor = torch.tensor(1 / (1 - probability), dtype=dtype if dtype.itemsize == 2 else torch.bfloat16)
    first_kept = min(round((1 - 1 / factor.item()) * 2**16), 2**16 - 1) - 2**15
    if factor.item() == 1:
        return torch.ones(shape, dtype=factor.dtype)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    kept = draws.clamp_(first_kept - 1, first_kept).sub_(first_kept - 1)
    return kept.mul_(factor.view(torch.int16)).view(factor.dtype).view(shape)  # the factor's bits, or none


class _Attention(torch.autograd.Function):
    """Each window's attention to itself, with dropout of its weights, windows of equal length together.

    What the backward pass needs is saved by PyTorch, so that gradient checkpointing can leave it out.
    """

    @staticmethod
    def forward(ctx: Any, qkv_N3H: Tensor, groups: Groups, size: int, dropout: float) -> Tensor:
        """Contexts `[N, H]` of queries, keys and values `[N, 3 H]`; rows beyond the groups' windows are zero."""
        num_rows, width = qkv_N3H.shape
        context_NH = qkv_N3H.new_zeros(num_rows, width // 3)
        saved: list[Tensor | None] = []
        ctx.groups, ctx.size, at = groups, size, 0
        for count, length in groups:
            rows = slice(at, at + count * length)
            q_bTd, k_bTd, v_bTd = _split_heads(qkv_N3H[rows], count, 3, size, _widen(length, qkv_N3H.dtype))
            nothing = q_bTd.new_empty(1, 1, 1)
            scores_bTT = torch.baddbmm(nothing, q_bTd, k_bTd.transpose(1, 2), beta=0, alpha=size**-0.5)
            scores_bTT[:, :, length:] = -math.inf  # filling
            weights_bTT = scores_bTT.softmax(dim=2)
            mask = draw_mask(weights_bTT.shape, dropout, weights_bTT.dtype) if dropout else None
            used_bTT = weights_bTT if mask is None else weights_bTT * mask.to(weights_bTT.dtype)
            context_NH[rows] = _join_heads(torch.bmm(used_bTT, v_bTd)[None], count, length)
            saved += (q_bTd, k_bTd, v_bTd, weights_bTT, used_bTT, mask)
            at = rows.stop
        ctx.save_for_backward(*saved)
        return context_NH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NH: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of queries, keys and values `[N, 3 H]`; none for the layout, the heads and the dropout."""
        gradient_N3H = gradient_NH.new_zeros(len(gradient_NH), 3 * gradient_NH.shape[1])
        at = 0
        saved = ctx.saved_tensors
        for group, (count, length) in enumerate(ctx.groups):
            q_bTd, k_bTd, v_bTd, weights_bTT, used_bTT, mask = saved[6 * group : 6 * group + 6]
            rows = slice(at, at + count * length)
            [gradient_bTd] = _split_heads(gradient_NH[rows], count, 1, ctx.size, q_bTd.dtype)
            for_weights_bTT = torch.bmm(gradient_bTd, v_bTd.transpose(1, 2))
            if mask is not None:
                for_weights_bTT *= mask.to(for_weights_bTT.dtype)
            for_scores_bTT = torch._softmax_backward_data(for_weights_bTT, weights_bTT, 2, weights_bTT.dtype)
            scale = ctx.size**-0.5
            for_q = torch.bmm(for_scores_bTT, k_bTd).mul_(scale)
            for_k = torch.bmm(for_scores_bTT.transpose(1, 2), q_bTd).mul_(scale)
            for_v = torch.bmm(used_bTT.transpose(1, 2), gradient_bTd)
            gradients_3bTd = torch.stack([for_q, for_k, for_v])
            gradient_N3H[rows] = _join_heads(gradients_3bTd.to(gradient_NH.dtype), count, length)
            at = rows.stop
        return gradient_N3H, None, None, None


def _widen(length: int, dtype: torch.dtype) -> torch.dtype:
    """What the attention of a window of this length is computed in."""
    return torch.float32 if length < SHORT_WINDOW else dtype


def _split_heads(rows: Tensor, count: int, parts: int, size: int, dtype: torch.dtype) -> Tensor:
    """`[count * T, parts * H]` to `[parts, count * h, P, d]`, windows filled up with zeros."""
    num_heads = rows.shape[1] // (parts * size)
    split = rows.view(count, -1, parts, num_heads, size).permute(2, 0, 3, 1, 4)
    length = split.shape[3]
    missing = 0 if dtype == torch.float32 else -length % LENGTH_STEP
    if not missing:
        return split.reshape(parts, count * num_heads, length, size).to(dtype)
    filled = split.new_zeros(parts, count, num_heads, length + missing, size, dtype=dtype)
    filled[:, :, :, :length] = split
    return filled.flatten(1, 2)


def _join_heads(heads: Tensor, count: int, length: int) -> Tensor:
    """`[parts, count * h, P, d]` to `[count * T, parts * H]`."""
    parts, _, filled, size = heads.shape
    joined = heads.view(parts, count, -1, filled, size)[:, :, :, :length].permute(1, 3, 0, 2, 4)
    return joined.reshape(count * length, -1)
