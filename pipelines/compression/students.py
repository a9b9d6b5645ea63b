"""Students that are not made of their teacher's layers: other encoders, and new networks of a given shape."""

from dataclasses import replace
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForTokenClassification,
    BertConfig,
    ElectraConfig,
    PreTrainedConfig,
)

from pipelines.compression.config import HEAD_SIZE, CompressionError, DistillationConfig
from pipelines.ner.bundle import Bundle
from pipelines.ner.casing import add_cases, can_learn_cases
from pipelines.ner.encoders import find_encoder, load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.model import ModelConfig, TokenClassifier, build_token_classifier, get_max_window
from pipelines.ner.shapes import FIELD


def check_student(teacher: Bundle, config: DistillationConfig) -> tuple[Any, Any]:
    """The student asked for, without its weights (on PyTorch's device `meta`), and its tokenizer.

    Raises CompressionError if it is no smaller than its teacher, cannot follow its states, or cannot be a student at
    all; EncoderError if there is no such encoder.
    """
    if config.is_scratch:
        shape, tokenizer = _shape_scratch(teacher, config), teacher.encoder.tokenizer
    else:
        name = find_encoder(str(config.encoder))
        shape, tokenizer = AutoConfig.from_pretrained(name, trust_remote_code=False), load_tokenizer(name)
        tagged = any("TokenClassification" in one for one in getattr(shape, "architectures", None) or ())
        if tagged or getattr(shape, FIELD, None):
            raise _cannot_be_student(config, "it has a head for tags, or pruned attention, already")
        shape.num_labels = len(teacher.model.scheme.tags)
    try:
        with torch.device("meta"):
            network = AutoModelForTokenClassification.from_config(shape, trust_remote_code=False)
    except ValueError as error:
        raise _cannot_be_student(config, f"transformers has no token classifier of `{shape.model_type}`") from error
    if config.follows_states:
        check_states(network)
    own, given = measure_size(network), measure_size(teacher.model.network)
    if own[0] >= given[0] and own[1] >= given[1]:
        raise CompressionError(
            "a student that is not smaller than its teacher",
            where="`distillation.encoder`",
            rule=f"fewer than {given[0]:,} parameters, or fewer than {given[1]:,} products a sub-token",
            value=f"{own[0]:,} and {own[1]:,}",
            remedy="give a smaller encoder, or `--distillation.encoder scratch` with a shape",
        )
    wanted = teacher.model.network.config.hidden_size
    if config.states and shape.hidden_size != wanted:
        raise CompressionError(
            "states of another width cannot be followed",
            where="`distillation.states`",
            rule=f"a student with the teacher's hidden size, {wanted}",
            value=shape.hidden_size,
            remedy="use `--distillation.relations`, which takes any widths",
        )
    return network, tokenizer


def check_states(network: Any) -> None:
    """Raise CompressionError for a network whose classifier reads something else than the last hidden states."""
    if type(getattr(network, "classifier", None)) is not torch.nn.Linear or hasattr(network, "head"):
        raise CompressionError(
            "hidden states that cannot be followed",
            where="`distillation.states` and `distillation.relations`",
            rule="a linear classifier on the encoder's last hidden states, as of BERT or RoBERTa",
            value=network.config.model_type,
            remedy="leave both at 0",
        )


def _cannot_be_student(config: DistillationConfig, reason: str) -> CompressionError:
    return CompressionError(
        "an encoder that cannot be a student",
        where="`distillation.encoder`",
        rule="an encoder without a head, of an architecture that has a token classifier in transformers",
        value=f"{config.encoder}: {reason}",
        remedy="give another encoder, or `scratch`",
    )


def build_student(teacher: Bundle, config: DistillationConfig, seed: int) -> Bundle:
    """A student that has learned nothing of its teacher yet."""
    torch.manual_seed(seed)
    scheme, head = teacher.model.scheme, teacher.info.head
    if config.is_scratch:
        network: Any = AutoModelForTokenClassification.from_config(
            _shape_scratch(teacher, config), trust_remote_code=False
        )
        if teacher.encoder.casing:
            add_cases(network)
        return replace(teacher, model=TokenClassifier(network, scheme, head), int8=None)
    name = find_encoder(str(config.encoder))
    tokenizer, shape = load_tokenizer(name), AutoConfig.from_pretrained(name, trust_remote_code=False)
    casing = can_learn_cases(shape, tokenizer)
    model = build_token_classifier(name, scheme, ModelConfig(name, head, scheme.name), casing=casing)
    window = min(teacher.encoder.window, get_max_window(shape, tokenizer))
    stride = min(teacher.encoder.stride, window // 4)
    encoder = Encoder(tokenizer, window=window, stride=stride, splitter=teacher.encoder.splitter, casing=casing)
    return replace(
        teacher, model=model, encoder=encoder, info=replace(teacher.info, window=window, stride=stride), int8=None
    )


def measure_size(network: Any) -> tuple[int, int]:
    """Parameters of a network, and the products of its linear layers for a sub-token; a layer used n times counts so.

    Networks whose layers share weights (ALBERT) have one layer of them.
    """
    num_parameters = sum(one.numel() for one in network.parameters())
    tables = {id(one.weight) for one in network.modules() if isinstance(one, torch.nn.Embedding)}
    products = sum(one.numel() for one in network.parameters() if one.dim() == 2 and id(one) not in tables)
    config = network.config
    if config.model_type == "albert":
        products = products * config.num_hidden_layers // config.num_hidden_groups
    return num_parameters, products


def _shape_scratch(teacher: Bundle, config: DistillationConfig) -> PreTrainedConfig:
    given: Any = teacher.model.network.config
    hidden = config.hidden_size or max(HEAD_SIZE, given.hidden_size // 2 // HEAD_SIZE * HEAD_SIZE)
    embedding = config.embedding_size or hidden
    layers = config.layers or max(1, given.num_hidden_layers // 2)
    tokenizer = teacher.encoder.tokenizer
    shape = {
        "vocab_size": teacher.model.network.get_input_embeddings().num_embeddings,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // HEAD_SIZE,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": max(teacher.encoder.window, 128),
        "pad_token_id": tokenizer.pad_token_id or 0,
        "id2label": given.id2label,
        "label2id": given.label2id,
    }
    if config.share_layers:
        return AlbertConfig(
            **shape, embedding_size=embedding, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
        )
    if embedding != hidden:
        return ElectraConfig(**shape, embedding_size=embedding)
    return BertConfig(**shape)
