"""What a worker holds in memory at its peak."""

from dataclasses import dataclass, replace

from pipelines.planning.activations import WIDTHS, Activations, count_activations
from pipelines.planning.architecture import Architecture
from pipelines.planning.cost import SHORT_WINDOW, Load, TrainingSetup, count_parameters
from pipelines.planning.lengths import Lengths, divide_step, draw_steps

MIB = 2**20
PROCESS_BYTES = 620 * MIB
"""Of Ray Train's worker before there is a model: Python, torch, transformers, Ray and their code (measured with an
encoder of next to nothing: torch 2.13, Ray 2.60, Linux)."""
GPU_CONTEXT_BYTES = 600 * MIB
"""Of CUDA's context with the kernels of cuBLAS, which no framework counts as its own."""
HEAP_SHARE = 0.9
"""Memory that the heap of a CPU's worker holds beyond the activations that live at most, by the latter: steps differ in
the sizes of their tensors, and what is freed leaves holes. Measured: glibc, in the thread in which Ray Train trains,
after 40 to 60 steps; four configurations gave 0.8, 0.9, 0.9 and 1.3. In a process's main thread it is about 0.4."""
LONG_HEAP_SHARE = 2.4
"""The same where all sub-tokens are in windows whose attention is in 16-bit floats: oneDNN keeps kernels for each of
their lengths, which lie between what is freed. Measured: two configurations gave 2.0 and 3.0."""
VALIDATION_TOKENS = 2048
"""Sub-tokens of a batch of the engine that scores dev."""
GPU_CACHE_SHARE = 0.08
"""The same of PyTorch's allocator on a GPU, which joins and splits its own blocks."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at its peak, on its GPU or, without one, in its process."""

    weights: float
    """Weights, and copies of them: the best epoch's, averaged ones, what lies gathered."""
    gradients: float
    optimizer: float
    activations: float
    """What the backward pass needs, scratch, and what the allocator holds beyond that."""
    validation: float
    """The engine that scores dev between epochs: its own form of the weights, and scratch. On a GPU the whole model,
    where workers hold parts of it, as far as it is more than the gradients and activations in whose place it lies."""
    context: float
    """The process or the GPU's context before there is a model."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.validation + self.context


def estimate_training_memory(architecture: Architecture, setup: TrainingSetup, lengths: Lengths) -> Memory:
    """Of one worker that trains, at the step with the longest windows."""
    on_gpu = setup.device == "cuda"
    steps = draw_steps(lengths, setup.step_tokens)
    num_hands = setup.accumulation * setup.num_shares
    is_pipeline = setup.strategy == "pipeline" and not setup.is_alone
    if is_pipeline:
        num_hands = max(setup.micro_batches, setup.num_workers, setup.accumulation)
        hand = steps.heaviest[::num_hands]  # dealt to and fro, which comes to the same
    else:
        hand = max(divide_step(steps.heaviest, num_hands), key=lambda lengths: int((lengths**2).sum()))
    load = Load.of(hand, lengths.words_per_token, setup.is_packed(architecture), setup.num_copies)
    held = _divide(count_activations(architecture, setup, load), architecture, setup)
    if is_pipeline:  # the first worker, which has most micro-batches under way
        under_way = min(setup.num_workers, num_hands)
        held = replace(held, layers=held.layers * under_way)
    parameters = _count_held(architecture, setup)
    gradients, activations = find_peak(architecture, setup, held, load)
    if not on_gpu:  # the heap gives gradients places of their own, whose pages stay
        gradients = max(gradients, _count_gradients(architecture, setup, len(held.layers)))
    if setup.slices_weights:
        block = max(architecture.num_layer_parameters, architecture.num_embedding_parameters)
        activations += block * (4 + (0 if setup.precision == "fp32" else WIDTHS[setup.precision])) * 2
    copies = 1.0 + setup.has_average
    if not on_gpu:
        copies += (setup.num_epochs > 1) * (1 if setup.num_slices == 1 else setup.num_slices)  # the best epoch's
        copies += setup.num_slices if setup.num_slices > 1 else 0  # the whole model, to be scored
    whole = 4 * count_parameters(architecture, setup.num_tags, setup.head) * (setup.num_slices > 1)
    gathered = 0.0 if on_gpu else whole * (3 + setup.has_average)  # by the first worker, at each checkpoint
    share = GPU_CACHE_SHARE if on_gpu else _find_heap_share(architecture, setup, lengths)
    activations *= 1 + share
    if setup.cpu_offload and setup.slices_weights:
        parameters = gradients = 0.0
    scored = max(0.0, whole - gradients - activations)
    return Memory(
        weights=4 * parameters * copies + gathered,
        gradients=gradients,
        optimizer=8 * parameters,
        activations=activations,
        validation=scored if on_gpu else _count_validation(architecture, setup, lengths),
        context=GPU_CONTEXT_BYTES if on_gpu else PROCESS_BYTES,
    )


def estimate_inference_memory(
    architecture: Architecture,
    precision: str,
    batch_tokens: int,
    window: int,
    device: str = "cpu",
    num_tags: int = 9,
    process_bytes: float = PROCESS_BYTES,
) -> Memory:
    """Of one process that predicts, with batches of so many sub-tokens in windows of one length."""
    width, hidden = WIDTHS[precision], architecture.hidden_size
    tokens = max(batch_tokens, window)
    parameters = count_parameters(architecture, num_tags)
    table = architecture.num_word_parameters if precision == "int8" else 0  # products alone are of bytes
    weights = width * (parameters - table) + 4 * table
    if device == "cpu" and architecture.is_packed:
        layers = (architecture.num_distinct_layers or architecture.num_layers) * architecture.num_layer_parameters
        weights += max(width, 2) * layers + (4 * parameters if precision != "fp32" else 0)  # laid out for oneDNN
    computed = max(2, width)
    inner = architecture.intermediate_size * (3 if architecture.is_gated else 2)
    scratch = tokens * computed * (6 * hidden + inner)
    if device == "cpu" or architecture.relative_terms:
        at_once = 2**20 if architecture.is_packed else architecture.num_heads * tokens * window
        scratch += at_once * computed * (2 + 2 * architecture.relative_terms)
    share = GPU_CACHE_SHARE if device == "cuda" else HEAP_SHARE
    return Memory(
        weights=weights,
        gradients=0.0,
        optimizer=0.0,
        activations=scratch * (1 + share),
        validation=0.0,
        context=GPU_CONTEXT_BYTES if device == "cuda" else process_bytes,
    )


def _find_heap_share(architecture: Architecture, setup: TrainingSetup, lengths: Lengths) -> float:
    """What the heap of a CPU's worker holds beyond the activations that live at most, by the latter."""
    if setup.precision == "fp32" or not setup.is_packed(architecture):
        return HEAP_SHARE
    long = sum(length * count for length, count in lengths.counts if length >= SHORT_WINDOW) / lengths.num_tokens
    return HEAP_SHARE + (LONG_HEAP_SHARE - HEAP_SHARE) * long


def _count_validation(architecture: Architecture, setup: TrainingSetup, lengths: Lengths) -> float:
    """Bytes of the engine that scores dev, beyond the weights that train."""
    engine = estimate_inference_memory(
        architecture, setup.precision, VALIDATION_TOKENS, lengths.longest, num_tags=setup.num_tags
    )
    is_shared = setup.precision == "fp32" or architecture.is_packed
    trained = 4 * count_parameters(architecture, setup.num_tags) * is_shared
    return engine.weights - trained + engine.activations


def _count_held(architecture: Architecture, setup: TrainingSetup) -> float:
    """Parameters whose weights and moments a worker holds."""
    parameters = count_parameters(architecture, setup.num_tags, setup.head)
    if setup.num_slices == 1:
        return parameters
    if setup.strategy == "pipeline":
        layers = -(-architecture.num_layers // setup.num_workers)
        own = layers * architecture.num_layer_parameters
        return own + architecture.num_embedding_parameters  # the first worker, which has most
    if setup.slices_products:
        norms = architecture.num_layers * 4 * architecture.hidden_size
        whole = norms + architecture.num_embedding_parameters - architecture.num_word_parameters
        return whole + (parameters - whole) / setup.num_slices
    return parameters / setup.num_slices


def _divide(whole: Activations, architecture: Architecture, setup: TrainingSetup) -> Activations:
    """What one worker keeps of a pass's activations."""
    if setup.is_alone:
        return whole
    if setup.slices_products:  # what is between the two products of a pair lies in slices
        hidden, inner = architecture.hidden_size, architecture.intermediate_size
        divided = (4 * hidden + 2 * inner) / (8 * hidden + 2 * inner)
        share = 1 - divided * (1 - 1 / setup.num_slices)
        layers = tuple(layer * share for layer in whole.layers)
        return replace(whole, layers=layers, scratch=whole.scratch * share)
    if setup.strategy == "pipeline":
        own = whole.layers[: -(-len(whole.layers) // setup.num_workers)]
        return replace(whole, layers=own, head=0.0)
    return whole


def find_peak(architecture: Architecture, setup: TrainingSetup, held: Activations, load: Load) -> tuple[float, float]:
    """Bytes of gradients and of activations at the moment when both together are most."""
    layer = 4 * architecture.num_layer_parameters / _count_gradient_slices(setup)
    num_distinct = architecture.num_distinct_layers or len(held.layers)
    rows = 0.0
    if setup.is_sparse(architecture):
        rows = 3 * 4 * load.num_tokens * architecture.embedding_size  # as they come, and summed by word
    everything = _count_gradients(architecture, setup, len(held.layers))
    before = 0.0
    if setup.accumulation > 1 or setup.num_passes > 1:  # gradients are there from the pass before
        before = everything * (2 if setup.num_passes > 1 else 1)
    moments = [(before, held.total)]
    for done in range(len(held.layers)):
        below = held.embeddings + sum(held.layers[: len(held.layers) - done - 1])
        own = held.layers[-1 - done]
        made = before or layer * min(done, num_distinct)
        reach = own / held.layers[0] if held.layers[0] else 1.0  # the last layer goes on with fewer rows
        moments.append((made, below + own + held.scratch * reach))
        moments.append((made + layer, below + min(own, held.attention) + held.attention_scratch))
    moments.append((before or everything + rows, 0.0))
    return max(moments, key=sum)


def _count_gradients(architecture: Architecture, setup: TrainingSetup, num_layers: int) -> float:
    """Bytes of all dense gradients of a worker with so many layers."""
    tables = architecture.num_embedding_parameters - architecture.num_word_parameters * setup.is_sparse(architecture)
    layers = min(architecture.num_distinct_layers or num_layers, num_layers) * architecture.num_layer_parameters
    return 4 * (layers + tables) / _count_gradient_slices(setup)


def _count_gradient_slices(setup: TrainingSetup) -> int:
    """Workers that divide the gradients of a layer."""
    return 1 if setup.strategy == "pipeline" and not setup.is_alone else setup.num_slices
