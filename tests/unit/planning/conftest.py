"""Tiny encoders of every family whose costs are counted."""

from typing import Any

import pytest
from transformers import AutoConfig

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "vocab_size": 200,
    "max_position_embeddings": 300,
    "pad_token_id": 0,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
SECOND = RELATIVE | {"position_buckets": 16, "norm_rel_ebd": "layer_norm"}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", SMALL),
    "roberta": ("roberta", SMALL),
    "xlm-roberta": ("xlm-roberta", SMALL),
    "camembert": ("camembert", SMALL),
    "electra": ("electra", SMALL | {"embedding_size": 20}),
    "distilbert": (
        "distilbert",
        {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 80, "vocab_size": 200, "max_position_embeddings": 300},
    ),
    "albert": ("albert", SMALL | {"embedding_size": 20}),
    "deberta": ("deberta", SMALL | RELATIVE),
    "deberta-v3": ("deberta-v2", SMALL | SECOND | {"share_att_key": True}),
    "deberta-v2, with a convolution": ("deberta-v2", SMALL | SECOND | {"conv_kernel_size": 3}),
    "modernbert": (
        "modernbert",
        SMALL | {"eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 1},
    ),
}


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest) -> Any:
    """The configuration of a tiny encoder with five tags."""
    family, settings = FAMILIES[request.param]
    return AutoConfig.for_model(family, num_labels=5, **settings)
