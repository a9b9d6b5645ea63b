"""Networks of which parts are cut out: what their configuration says of it, and how they are built again.

Fewer layers, narrower feed-forward parts and smaller vocabularies are ordinary shapes of transformers. Attention with
fewer heads in some layers is not: `attention_widths` in `config.json` tells how wide each layer's queries, keys and
values are, and tools that do not know it refuse such a network.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForTokenClassification

from pipelines.ner.runtimes.architectures import read_architecture
from pipelines.ner.stored import read_int8_weights

FIELD = "attention_widths"


def load_network(path: Path) -> Any:
    """The token classifier in a folder, in float32, whatever its shape."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    widths, state = getattr(config, FIELD, None), read_int8_weights(path)
    if widths is None and state is None:
        return AutoModelForTokenClassification.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    network = AutoModelForTokenClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    for layer, width in zip(read_architecture(network).layers, widths, strict=True) if widths else ():  # type: ignore[union-attr]
        for part in (layer.query, layer.key, layer.value):
            set_weights(part, part.weight[:width], part.bias[:width])
        set_weights(layer.attention_out, layer.attention_out.weight[:, :width], layer.attention_out.bias)
    network.load_state_dict(state if state is not None else load_file(path / "model.safetensors"))
    return network.eval()


def set_weights(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give a linear layer other weights, of any shape."""
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    linear.out_features, linear.in_features = weight.shape
