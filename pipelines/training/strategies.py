"""Which strategy a run takes, and whether its workers and its model can do it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

from pipelines.ner.errors import UserError
from pipelines.ner.model import TokenClassifier, find_dropouts
from pipelines.ner.runtimes.architectures import read_architecture
from pipelines.training.config import TrainingConfig
from pipelines.training.forward import check_passes_differ, find_last_dropout
from pipelines.training.freezing import find_layers_to_freeze
from pipelines.training.optimizer import check_layer_rates
from pipelines.training.parallel import DataParallel, LocalSGD, ParallelConfig, ParallelError, Strategy

ELASTIC = ("ddp", "fsdp", "local_sgd")
"""Strategies for any number of workers."""


def build_strategy(model: TokenClassifier, config: ParallelConfig, device: torch.device) -> Strategy:
    """The strategy for the default process group; one worker alone needs none."""
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    return Strategy(model, config, device) if alone else find_strategy(config.strategy)(model, config, device)


def find_strategy(name: str) -> type[Strategy]:
    """The class of a name of STRATEGIES.

    Those that slice a model are imported where they are used: what they rest on in torch takes seconds.
    """
    if name == "ddp":
        return DataParallel
    if name == "local_sgd":
        return LocalSGD
    if name == "pipeline":
        from pipelines.training.pipeline import Pipeline

        return Pipeline
    from pipelines.training import slices

    return {"fsdp": slices.FullySharded, "tensor": slices.TensorParallel, "hybrid": slices.Hybrid}[name]


def find_misfits(
    config: ParallelConfig,
    num_workers: int,
    use_gpu: bool,
    encoder: str,
    training: TrainingConfig | None = None,
    dropout: float | None = None,
) -> list[UserError]:
    """What the workers or the encoder (a resolved path or hub id) cannot do; told before any worker starts.

    Args:
        dropout: of the model; default: the encoder's own.
    """
    problems: list[UserError] = [
        ParallelError("a strategy that the workers cannot do", where=f"`parallel.{name}`", rule=rule, value=value)
        for name, rule, value, holds in _list_needs(config, num_workers, use_gpu)
        if not holds
    ]
    problems += find_encoder_misfits(config, encoder, training or TrainingConfig(), dropout)
    slices_products = config.strategy == "tensor" or (config.strategy == "hybrid" and config.inside == "tensor")
    if problems or not (slices_products or config.strategy == "pipeline"):
        return problems
    found = read_architecture(_outline_network(encoder))
    where = f"`parallel.strategy` {config.strategy}"
    if found is None:
        rule = "an encoder built like BERT, RoBERTa, ELECTRA or DistilBERT"
        what = "a strategy that knows only some architectures"
        return [ParallelError(what, where=where, rule=rule, value=encoder, remedy="take ddp or fsdp")]
    if config.strategy == "pipeline":
        rule, num_parts, holds = "at least one layer a worker", len(found.layers), len(found.layers) >= num_workers
        value = f"{num_parts} layers, {num_workers} workers"
    else:
        size = num_workers if config.strategy == "tensor" else config.inside_size
        hidden: Any = found.layers[0].feed_in.out_features
        rule, holds = "heads and hidden units that the workers divide", not (found.num_heads % size or hidden % size)
        value = f"{found.num_heads} heads, {hidden} hidden units, {size} workers"
    return [] if holds else [ParallelError("the encoder cannot be divided so", where=where, rule=rule, value=value)]


def find_idle_alone(config: ParallelConfig, num_workers: int) -> list[str]:
    """Settings given that change nothing where one worker trains alone, each with its reason."""
    plain = ParallelConfig()
    names = [name for name in ("strategy", "gradient_compression") if getattr(config, name) != getattr(plain, name)]
    told = "has no effect with one worker, which shares nothing: `--resources.num_workers`"
    return [f"`parallel.{name}` {told}" for name in names if num_workers == 1]


def _list_needs(config: ParallelConfig, num_workers: int, use_gpu: bool) -> list[tuple[str, str, Any, bool]]:
    """(setting, rule, value, whether it holds) of what depends on the workers alone."""
    needs: list[tuple[str, str, Any, bool]] = []
    if config.strategy not in ("ddp", "local_sgd"):
        rule, value = "at least 2 workers: `--resources.num_workers`", f"{config.strategy} with {num_workers}"
        needs.append(("strategy", rule, value, num_workers >= 2))
    if config.strategy == "hybrid":
        rule = f"a multiple of the {config.inside_size} workers of a group, and at least 2 groups"
        fits = num_workers % config.inside_size == 0 and num_workers >= 2 * config.inside_size
        needs.append(("inside_size", rule, f"{num_workers} workers", fits))
    if config.cpu_offload:
        shards = config.strategy == "fsdp" or (config.strategy == "hybrid" and config.inside == "shard")
        value = f"{config.strategy}, {'with' if use_gpu else 'without'} GPUs"
        needs.append(("cpu_offload", "fsdp, or hybrid with shard, on GPUs", value, shards and use_gpu))
    return needs


def find_encoder_misfits(
    config: ParallelConfig, encoder: str, training: TrainingConfig, dropout: float | None = None
) -> list[UserError]:
    """What the encoder cannot do, whatever the workers; see `find_misfits`."""
    problems: list[UserError] = []
    if config.gradient_checkpointing and not getattr(
        _outline_network(encoder), "supports_gradient_checkpointing", False
    ):
        problems.append(
            ParallelError(
                "an encoder that cannot compute its activations again",
                where="`parallel.gradient_checkpointing`",
                rule="one for which transformers has gradient checkpointing",
                value=encoder,
                remedy="leave it out; fewer `--training.device_batch_tokens` take less memory too",
            )
        )
    checks: list[tuple[bool, Callable[[nn.Module], object]]] = [
        (training.freezing.layers is not None, partial(find_layers_to_freeze, config=training.freezing)),
        (training.optimizer.layer_decay != 1, partial(check_layer_rates, config=training.optimizer)),
        (training.dropout_samples > 1, find_last_dropout),
        (training.r_drop > 0, check_passes_differ),
    ]
    asked = [check for is_asked, check in checks if is_asked]
    network = _outline_network(encoder, dropout) if asked else nn.Module()
    for check in asked:
        try:
            check(network)
        except UserError as error:
            problems.append(error)
    return problems


def _outline_network(encoder: str, dropout: float | None = None) -> nn.Module:
    """The network's modules without weights; an encoder alone where it has no token classifier, to be pretrained."""
    config = AutoConfig.from_pretrained(encoder, trust_remote_code=False)
    for name, share in find_dropouts(config, dropout).items():
        setattr(config, name, share)
    is_classifier = type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    with torch.device("meta"):
        network: nn.Module = (AutoModelForTokenClassification if is_classifier else AutoModel).from_config(
            config, trust_remote_code=False
        )
    return network
