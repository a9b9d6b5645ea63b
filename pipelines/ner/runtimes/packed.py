"""BERT and its kin without padding: the sub-tokens of a batch lie one after another, and only real ones are computed.

For encoders of one shape: absolute positions, LayerNorm after each block, a linear classifier (BERT, RoBERTa, XLM-R,
CamemBERT, ELECTRA, DistilBERT). On a CPU the linear layers are oneDNN's, with weights laid out beforehand and GELU and
the residual fused in; rows are filled up to one of few counts (`fill_rows`), for oneDNN compiles kernels for each.
Windows of equal length share one batched attention, which needs no mask; on a GPU attention is the variable-length
flash kernel of PyTorch. With an int8 form the products in it are of bytes, what goes from layer to layer is fp32, and
attention is in bf16 where that is fast.

Shapes: N rows (sub-tokens and filling), H hidden size, h heads, d head size, b windows of one length T, W words,
K tags.
"""

import copy
import functools
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from math import e, log2
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.ner.casing import NUM_CASES, split_cases
from pipelines.ner.encoding import Window
from pipelines.ner.exits import Exits
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.architectures import Architecture, Layer, read_architecture
from pipelines.ner.runtimes.leaving import Leaving
from pipelines.ner.runtimes.products import KERNELS_RULE, PARTS, Int8Linear, Int8Product, has_int8_kernels
from pipelines.ner.runtimes.runtime import PRECISIONS, RuntimeUnavailable, has_fast_bf16

LEAST_ROW_STEP, MOST_ROW_STEP = 4, 64
MAX_WEIGHTS = 2**20
ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "none": ("", lambda x: x),
    "gelu": ("none", F.gelu),
    "gelu_tanh": ("tanh", lambda x: F.gelu(x, approximate="tanh")),
    "relu": ("", F.relu),
}
Groups = list[tuple[int, int]]


class PackedRuntime:
    """Padding-free encoder. Raises RuntimeUnavailable for an architecture of another shape.

    Args:
        precision: int8 is that of `products`, with bf16 for the others where it is fast, else fp32.
        products: the products that are of bytes, by name.
    """

    name = "packed"
    batch_tokens = 2048
    group_tokens = 262_144

    def __init__(
        self,
        model: TokenClassifier,
        *,
        device: torch.device,
        precision: str,
        pad_id: int,
        products: Mapping[str, Int8Product] | None = None,
    ) -> None:
        found = read_architecture(model.network)
        if found is None:
            raise RuntimeUnavailable(
                f"the architecture `{model.network.config.model_type}` has no packed form",
                where="runtime `packed`",
                rule="an encoder built like BERT, RoBERTa, ELECTRA or DistilBERT, with a linear classifier",
                remedy="use the runtime `auto`, `torch` or `torch-compiled`",
            )
        if products and not has_int8_kernels():
            raise RuntimeUnavailable(
                "this PyTorch has no int8 products",
                where="runtime `packed`",
                rule=KERNELS_RULE,
                value=platform.machine(),
                remedy="use another precision: the bundle has the weights of all",
            )
        self.device, self.precision, self.pad_id = device, precision, pad_id
        if device.type != "cpu":
            self.batch_tokens = 32_768
        elif products:
            self.batch_tokens = 1024  # whose rows in fp32 stay in a core's cache
        beside_int8 = "bf16" if has_fast_bf16(device) else "fp32"
        dtype = PRECISIONS[precision if precision != "int8" else beside_int8]
        self.dtype = torch.float32 if products else dtype
        self.first_position, self.casing, self.head_size = found.first_position, found.casing, found.head_size
        self.embeddings = [table.to(device, dtype) for table in _read_tables(found)]
        self.norm = _Norm(found.norm, device, self.dtype)
        self.project = _Linear(_read(found.projection), device, dtype) if found.projection is not None else None
        self.layers = [
            _PackedLayer(layer, found.activation, device, dtype, _select(products or {}, number))
            for number, layer in enumerate(found.layers)
        ]
        self.classifier = [part.to(device, torch.float32) for part in _read(found.classifier)]  # it is small
        self.exits = None if model.exits is None else copy.deepcopy(model.exits).to(device)

    def compute(self, windows: Sequence[Window]) -> Tensor:
        """See `Runtime`."""
        ids_N, positions_N, places_W, groups = pack_windows(windows, self.first_position)
        with torch.inference_mode():
            word_table, place_table = self.embeddings
            if self.casing:
                ids_N, cases_N = split_cases(ids_N)
                positions_N = positions_N * NUM_CASES + cases_N
            x_NH = F.embedding(ids_N.to(self.device), word_table)
            x_NH = x_NH.to(self.dtype) + F.embedding(positions_N.to(self.device), place_table)
            x_NH = self.norm(x_NH)
            if self.project is not None:
                x_NH = self.project(x_NH).to(self.dtype)
            attend = self._plan_attention(groups)
            if self.exits is not None:
                return self._compute_with_exits(x_NH, attend, windows, self.exits)
            for layer in self.layers[:-1]:
                x_NH = layer(x_NH, attend)
            return self._finish(x_NH, attend, places_W)

    def _finish(self, x_NH: Tensor, attend: Callable[[Tensor], Tensor], places_W: Tensor) -> Tensor:
        """The last layer, of words alone, and their emissions."""
        wanted_N = fill_rows(places_W).to(self.device)
        x_WH = self.layers[-1](x_NH, attend, wanted_N)[: len(places_W)]
        return F.linear(x_WH.float(), *self.classifier).cpu()

    def _compute_with_exits(
        self, x_NH: Tensor, attend: Callable[[Tensor], Tensor], windows: Sequence[Window], exits: Exits
    ) -> Tensor:
        layout = lay_out([len(window.input_ids) for window in windows])
        leaving = Leaving(windows, layout.order_B, layout.offsets_B, exits, self.device)
        for number, layer in enumerate(self.layers[:-1], 1):
            x_NH = layer(x_NH, attend)
            if number in exits.layers:
                moved = leaving.leave(exits.layers.index(number), x_NH)
                if not leaving.stays_B.any():
                    return leaving.emissions_WK
                if moved is not None:
                    rows_N, groups = moved
                    x_NH, attend = x_NH[fill_rows(rows_N).to(self.device)], self._plan_attention(groups)
        leaving.tell(self._finish(x_NH, attend, torch.from_numpy(leaving.find_places())))
        return leaving.emissions_WK

    def _plan_attention(self, groups: Groups) -> Callable[[Tensor], Tensor]:
        size = self.head_size
        if self.device.type != "cuda" or self.precision == "fp32":  # the flash kernel knows no fp32
            return lambda qkv_N3H: _attend_by_length(qkv_N3H, groups, size)
        lengths = [length for count, length in groups for _ in range(count)]
        edges = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=self.device)
        return lambda qkv_N3H: _attend_varlen(qkv_N3H, edges, max(lengths), size)


class Layout(NamedTuple):
    """Where the sub-tokens of windows lie without padding: the longest windows first."""

    order_B: np.ndarray
    """The windows as they come in the rows."""
    offsets_B: np.ndarray
    """The first row of each window."""
    groups: Groups
    """Count and length of windows of equal length."""
    positions: np.ndarray
    """The place of each row in its window."""


def lay_out(lengths: Sequence[int] | np.ndarray) -> Layout:
    """The layout of windows of these lengths."""
    lengths_B = np.asarray(lengths)
    order_B = np.argsort(-lengths_B, kind="stable")
    sorted_B = lengths_B[order_B]
    offsets_B = np.empty_like(lengths_B)
    offsets_B[order_B] = np.cumsum(sorted_B) - sorted_B
    groups = [(len(list(same)), length) for length, same in groupby(sorted_B.tolist())]
    positions = np.concatenate([np.tile(np.arange(length), count) for count, length in groups])
    return Layout(order_B, offsets_B, groups, positions)


def fill_rows(values: Tensor) -> Tensor:
    """Values `[N]`, the first repeated up to a multiple of a step: what is computed of those, nothing reads.

    The step is a power of two and an eighth of the rows at most, within its bounds: so a lone sentence costs little
    more than its own rows, and yet 64 counts serve all batches of up to 2048 rows.
    """
    most = min(max(len(values) // 8, LEAST_ROW_STEP), MOST_ROW_STEP)
    step = 1 << (most.bit_length() - 1)
    return torch.cat([values, values[:1].expand(-len(values) % step)])


def pack_windows(windows: Sequence[Window], first_position: int) -> tuple[Tensor, Tensor, Tensor, Groups]:
    """Ids and positions `[N]`; the words' places `[W]`, in the order of `windows`; (count, length) of equal windows."""
    layout = lay_out([len(window.input_ids) for window in windows])
    ids = [token for index in layout.order_B.tolist() for token in windows[index].input_ids]
    offsets = layout.offsets_B.tolist()
    places = [offset + start for window, offset in zip(windows, offsets, strict=True) for start in window.word_starts]
    ids_N, positions_N = fill_rows(torch.tensor(ids)), fill_rows(torch.from_numpy(layout.positions) + first_position)
    return ids_N, positions_N, torch.tensor(places, dtype=torch.long), layout.groups


class _PackedLayer:
    """`products` are those that are of bytes, by part: then what goes from layer to layer is fp32."""

    def __init__(
        self,
        layer: Layer,
        activation: str,
        device: torch.device,
        dtype: torch.dtype,
        products: Mapping[str, Int8Product] | None,
    ) -> None:
        def build(part: str, activation: str = "none") -> Any:
            if products is None or part not in products:
                return _Linear(read_product(layer, part), device, dtype, activation)
            following = products.get("feed_out") if part == "feed_in" else None
            return Int8Linear(products[part], name_activation(activation), dtype, following)

        between = dtype if products is None else torch.float32
        self.attention_in, self.attention_out = build("attention_in"), build("attention_out")
        self.attention_norm = _Norm(layer.attention_norm, device, between)
        self.feed_in, self.feed_out = build("feed_in", activation), build("feed_out")
        self.feed_norm = _Norm(layer.feed_norm, device, between)

    def __call__(self, x_NH: Tensor, attend: Callable[[Tensor], Tensor], wanted_M: Tensor | None = None) -> Tensor:
        """The next layer's rows; with `wanted_M` only those, for nothing reads the others after the last layer."""
        context_NH = attend(self.attention_in(x_NH))
        if wanted_M is not None:
            context_NH, x_NH = context_NH[wanted_M], x_NH[wanted_M]
        x_NH = self.attention_norm(self.attention_out.add(context_NH, x_NH))
        return self.feed_norm(self.feed_out.add(self.feed_in(x_NH), x_NH))


class _Linear:
    """`activation(x W + b)`, or `x W + b + residual`, in oneDNN's fused form where there is one."""

    def __init__(
        self, parameters: tuple[Tensor, Tensor], device: torch.device, dtype: torch.dtype, activation: str = "none"
    ) -> None:
        self.weight, self.bias = (parameter.detach().to(device, dtype) for parameter in parameters)
        self.activation, self.dtype = activation, dtype
        self.fused = device.type == "cpu" and has_fused_linear(dtype)
        if self.fused:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())

    def __call__(self, x_NI: Tensor) -> Tensor:
        """`activation(x W + b)`, `[N, O]`."""
        x_NI = x_NI.to(self.dtype)
        if self.fused:
            name, algorithm = name_activation(self.activation)
            y_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, self.weight, self.bias, name, [], algorithm)
            return y_NO
        return ACTIVATIONS[self.activation][1](F.linear(x_NI, self.weight, self.bias))

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        """`x W + b + residual`, `[N, O]`, without activation, in the residual's precision; it may take its place."""
        x_NI = x_NI.to(self.dtype)
        if self.fused and residual_NO.dtype == self.dtype:
            binary = torch.ops.mkldnn._linear_pointwise.binary
            y_NO: Tensor = binary(x_NI, residual_NO, self.weight, self.bias, "add")
            return y_NO
        return self(x_NI) + residual_NO


class _Norm:
    """Layer normalization (Ba et al. 2016), with weights in the runtime's precision."""

    def __init__(self, norm: nn.LayerNorm, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.weight, self.bias = norm.weight.detach().to(device, dtype), norm.bias.detach().to(device, dtype)

    def __call__(self, x_NH: Tensor) -> Tensor:
        """Rows normalized over their width, `[N, H]`."""
        return F.layer_norm(x_NH, self.shape, self.weight, self.bias, self.eps)


@functools.cache
def has_fused_linear(dtype: torch.dtype) -> bool:
    """Whether there are oneDNN's fused linear operators (what inductor's frozen graphs call) in a precision.

    This build of PyTorch must have them, and for 16-bit floats the CPU instructions that they are made of.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype != torch.float16 or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def name_activation(activation: str) -> tuple[str, str]:
    """An activation's name and form, as oneDNN has them."""
    return activation.partition("_")[0], ACTIVATIONS[activation][0]


def read_product(layer: Layer, part: str) -> tuple[Tensor, Tensor]:
    """Weight `[O, I]` and bias `[O]` of one of a layer's four products."""
    linears = (layer.query, layer.key, layer.value) if part == "attention_in" else (getattr(layer, part),)
    weight_OI, bias_O = (torch.cat(parts) for parts in zip(*map(_read, linears), strict=True))
    return weight_OI, bias_O


def _select(products: Mapping[str, Int8Product], number: int) -> dict[str, Int8Product] | None:
    """The products of one layer, by part; None where no layer has any."""
    named = {part: f"layer.{number}.{part}" for part in PARTS}
    return {part: products[name] for part, name in named.items() if name in products} if products else None


def _read(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    bias = linear.bias if linear.bias is not None else torch.zeros(linear.out_features)
    return linear.weight.detach(), bias.detach()


def _read_tables(found: Architecture) -> tuple[Tensor, Tensor]:
    """The embeddings of words, and those of positions with token types added: a row a position and case."""
    places = found.positions.weight.detach().float()
    if found.types is not None:
        types = found.types.weight.detach().float()
        places = (places[:, None] + (types if found.casing else types[:1])).flatten(0, 1)
    return found.words.weight.detach(), places


def _attend_by_length(qkv_N3H: Tensor, groups: Groups, size: int) -> Tensor:
    """Attention of each window to itself, by heads of a size, windows of equal length together."""
    num_rows, width = qkv_N3H.shape
    hidden = width // 3
    num_heads = hidden // size
    context_NH = qkv_N3H.new_empty(num_rows, hidden)
    at = 0
    for count, length in _limit(groups, MAX_WEIGHTS // num_heads):
        rows = slice(at, at + count * length)
        parts = qkv_N3H[rows].view(count, length, 3, num_heads, size).permute(2, 0, 3, 1, 4)
        q_bTd, k_bTd, v_bTd = parts.reshape(3, count * num_heads, length, size)
        attended = _attend(q_bTd, k_bTd, v_bTd).view(count, num_heads, length, size).transpose(1, 2)
        context_NH[rows].view(count, length, num_heads, size).copy_(attended)
        at = rows.stop
    context_NH[at:] = 0
    return context_NH


def _limit(groups: Groups, max_weights: int) -> Iterator[tuple[int, int]]:
    """The groups cut into such as have few enough attention weights to stay in a core's cache."""
    for count, length in groups:
        most = max(1, max_weights // length**2)
        while count > 0:
            yield min(count, most), length
            count -= most


def _attend(q_bTd: Tensor, k_bTd: Tensor, v_bTd: Tensor) -> Tensor:
    """Softmax attention without the pass that subtracts the maximum, where no row comes near overflow or underflow."""
    scale = q_bTd.shape[2] ** -0.5
    nothing = q_bTd.new_empty(1, 1, 1)
    keys_bdT = k_bTd.transpose(1, 2)
    if q_bTd.dtype == torch.float16:  # whose range ends at 65504
        return torch.bmm((torch.bmm(q_bTd, keys_bdT) * scale).softmax(dim=2), v_bTd)
    weights_bTT = torch.baddbmm(nothing, q_bTd, keys_bdT, beta=0, alpha=scale * log2(e)).exp2_()
    totals_bT1 = weights_bTT.sum(dim=2, keepdim=True)
    low, high = (float(total) for total in torch.aminmax(totals_bT1))
    if low > 2.0**-100 and (high < 2.0**100 or high * float(v_bTd.abs().max()) < 2.0**126):
        return torch.bmm(weights_bTT, v_bTd).div_(totals_bT1)
    return torch.bmm((torch.bmm(q_bTd, keys_bdT) * scale).softmax(dim=2), v_bTd)


def _attend_varlen(qkv_N3H: Tensor, edges: Tensor, longest: int, size: int) -> Tensor:
    """Variable-length flash attention (Dao et al. 2022) between `edges`; filling attends to nothing."""
    from torch.nn.attention.varlen import varlen_attn

    num_rows = int(edges[-1])
    q, k, v = qkv_N3H[:num_rows].view(num_rows, 3, -1, size).unbind(1)
    context: Any = varlen_attn(q, k, v, edges, edges, longest, longest)
    return F.pad(context.flatten(1), (0, 0, 0, len(qkv_N3H) - num_rows))
