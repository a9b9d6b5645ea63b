"""How long a step takes, and how many sub-tokens a process labels in a second.

A step's time is the sum of its parts: products by the rate of products, what passes through memory by bandwidth or by
seconds an element that a calibration has found, the optimizer by parameters, exchanges by bytes, operators by count.
"""

from dataclasses import dataclass, replace

import numpy as np

from pipelines.planning.activations import WIDTHS, count_activations
from pipelines.planning.architecture import Architecture
from pipelines.planning.cost import Load, Operations, TrainingSetup, count_operations, count_parameters
from pipelines.planning.lengths import Lengths, draw_steps
from pipelines.planning.rates import Rates

TOUCHES = 4
"""Times that what the backward pass reads passes through memory: written, read by the next operator, read again in the
backward pass, and its gradient written."""
OPTIMIZER_BYTES = 36
"""Of a parameter in AdamW with clipped gradients: weight, gradient and moments read, all but the gradient written; the
gradient read for its norm, and scaled."""
LAYER_OPERATORS = 60
"""Operators of a layer, forward and backward, about."""
GROUP_OPERATORS = 24
"""The same for each group of windows of equal length, without padding."""
STEP_OPERATORS = 120
"""Of a step besides: making batches, the loss, the optimizer's loops."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of an average optimizer step."""

    compute: float
    """Products."""
    memory: float
    """What passes through memory besides."""
    optimizer: float
    communication: float
    overhead: float
    """Starting operators, making batches, waiting for a pipeline to fill."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.memory + self.optimizer + self.communication + self.overhead


@dataclass(frozen=True)
class Work:
    """What passes of a step do, in units that rates are for; of forward and backward together."""

    linear: float
    """Operations of products with weights."""
    attention: float
    """Operations of products between sub-tokens."""
    hidden: float
    """Numbers of the hidden size, in each layer."""
    inner: float
    """Numbers of the feed-forward."""
    pair: float
    """Attention weights."""
    operators: float
    """Operators started."""

    def __add__(self, other: "Work") -> "Work":
        """Both."""
        return Work(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> "Work":
        """So many times."""
        return Work(*(value * times for value in vars(self).values()))


def count_steps(lengths: Lengths, setup: TrainingSetup) -> int:
    """Optimizer steps of an epoch."""
    return draw_steps(lengths, setup.step_tokens).num_steps


def count_work(architecture: Architecture, setup: TrainingSetup, load: Load) -> Work:
    """Of one pass, forward and backward; where activations are not kept, the forward part is done twice."""
    is_packed = setup.is_packed(architecture)
    operations = count_operations(architecture, load, setup.num_tags, is_packed)
    times = 4 if setup.gradient_checkpointing else 3
    layers, below = architecture.num_layers * times / 3, architecture.num_layers - 1
    ends = load.num_words if is_packed else load.num_tokens
    rows = (below * load.num_tokens + ends) * times / 3
    return Work(
        linear=times * operations.linear,
        attention=times * operations.attention,
        hidden=rows * architecture.hidden_size,
        inner=rows * architecture.intermediate_size,
        pair=layers * architecture.num_heads * load.sum_of_squares,
        operators=layers * (LAYER_OPERATORS + GROUP_OPERATORS * (load.num_groups if is_packed else 0)),
    )


def count_step_work(architecture: Architecture, setup: TrainingSetup, lengths: Lengths) -> tuple[Work, float]:
    """Of one worker in an average step, all its passes; and the bytes that its backward passes read."""
    steps = draw_steps(lengths, setup.step_tokens)
    num_hands = setup.accumulation * setup.num_shares
    is_packed = setup.is_packed(architecture)
    work, kept, times = Work(0, 0, 0, 0, 0, 0), 0.0, setup.accumulation * setup.num_passes
    hands = _thin(list(steps.deal(num_hands)))
    for hand in hands:
        load = Load.of(hand, lengths.words_per_token, is_packed, setup.num_copies)
        work = work + count_work(architecture, setup, load)
        kept += count_activations(architecture, replace(setup, gradient_checkpointing=False), load).total
    return work * (times / len(hands)), kept * times / len(hands)


def count_parameters_moved(architecture: Architecture, setup: TrainingSetup) -> float:
    """Parameters that an optimizer step moves; few of a table with sparse gradients."""
    parameters = count_parameters(architecture, setup.num_tags, setup.head)
    return parameters - architecture.num_word_parameters * setup.is_sparse(architecture)


def estimate_step_s(architecture: Architecture, setup: TrainingSetup, lengths: Lengths, rates: Rates) -> StepTime:
    """Of a worker group that trains."""
    work, kept = count_step_work(architecture, setup, lengths)
    moved, slices = count_parameters_moved(architecture, setup), setup.num_slices
    divided = slices if slices > 1 and not setup.slices_weights else 1
    compute = find_product_s(Operations(work.linear, work.attention), setup.precision, rates) / divided
    memory = find_element_s(work, kept, rates) / divided
    rate = rates.parameter_s if rates.parameter_s is not None else OPTIMIZER_BYTES / rates.memory_bytes_per_s
    overhead = (work.operators + STEP_OPERATORS * setup.accumulation) * rates.operator_s
    if setup.strategy == "pipeline" and not setup.is_alone:
        num_micro = max(setup.micro_batches, setup.num_workers, setup.accumulation)
        overhead += (compute + memory) * (setup.num_workers - 1) / num_micro  # filling it, and running it empty
    return StepTime(
        compute=compute,
        memory=memory,
        optimizer=moved / slices * rate,
        communication=count_sent_bytes(architecture, setup) / rates.network_bytes_per_s,
        overhead=overhead,
    )


def count_sent_bytes(architecture: Architecture, setup: TrainingSetup) -> float:
    """Bytes that one worker sends in a step, as ring algorithms do (`pipelines.training.traffic`)."""
    if setup.is_alone:
        return 0.0
    workers, slices = setup.num_workers, setup.num_slices
    parameters = count_parameters(architecture, setup.num_tags, setup.head)
    words = architecture.num_word_parameters * setup.is_sparse(architecture)
    tokens = setup.batch_tokens * setup.accumulation
    width = WIDTHS[setup.precision]
    activations = tokens * architecture.hidden_size * width
    ring = 2 * (workers - 1) / workers
    if setup.strategy == "ddp":
        factor = {"none": 1.0, "bf16": 0.5, "powersgd": 0.02}[setup.gradient_compression]
        rows = (4 * architecture.embedding_size + 8) * tokens * (workers - 1) * bool(words)
        return 4 * (parameters - words) * ring * factor + rows
    if setup.strategy == "local_sgd":
        return 4 * parameters * ring / setup.sync_every
    if setup.strategy == "pipeline":
        return 2 * activations
    within = 0.0
    if setup.slices_weights:  # gathered in both passes, and gradients scattered
        within = 3 * 4 * parameters * (slices - 1) / slices * setup.accumulation
    if setup.slices_products:  # two sums a layer in each direction
        within = 4 * architecture.num_layers * activations * 2 * (slices - 1) / slices
    groups = workers // slices
    return within + 4 * parameters / slices * 2 * (groups - 1) / groups


def estimate_inference_tokens_per_s(
    architecture: Architecture, precision: str, lengths: Lengths, rates: Rates, num_tags: int = 9
) -> float:
    """Sub-tokens per second of one process that predicts."""
    is_packed = architecture.is_packed and (rates.device == "cpu" or precision != "fp32")
    setup = TrainingSetup(
        batch_tokens=2048 if rates.device == "cpu" else 32_768,
        precision=precision if precision != "int8" else "bf16",
        device=rates.device,
        num_tags=num_tags,
    )
    seconds, tokens = 0.0, 0.0
    for step in _thin(draw_steps(lengths, setup.batch_tokens).steps):
        load = Load.of(step, lengths.words_per_token, is_packed)
        operations = count_operations(architecture, load, num_tags, is_packed)
        work = count_work(architecture, setup, load) * (1 / 3)
        kept = count_activations(architecture, setup, load).total / 2
        seconds += find_product_s(operations, precision, rates)
        seconds += find_element_s(work, kept, rates) + work.operators * rates.operator_s
        tokens += float(step.sum())
    return tokens / seconds


def find_product_s(operations: Operations, precision: str, rates: Rates) -> float:
    """Seconds of products."""
    peak = rates.flops.get(precision) or rates.flops["fp32"]
    linear = operations.linear / (peak * rates.efficiency)
    return linear + operations.attention / (peak * rates.efficiency * rates.attention_efficiency)


def find_element_s(work: Work, kept_bytes: float, rates: Rates) -> float:
    """Seconds of all that is no product: by the seconds of elements where they are known, else by bandwidth."""
    if rates.element_s:
        amounts = vars(work)
        return sum(float(amounts[name]) * seconds for name, seconds in rates.element_s.items())
    return TOUCHES * kept_bytes / rates.memory_bytes_per_s


def _thin(hands: list[np.ndarray], most: int = 200) -> list[np.ndarray]:
    """At most so many of them, evenly."""
    return hands[:: -(-len(hands) // most)]
