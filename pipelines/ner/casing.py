"""The case of words for encoders that read none: carried in the ids of sub-tokens, computed as token types.

An uncased encoder reads `US` as `us`. Its token types, which tell two sentences apart where there are two, are of no
use here; so they tell the case of the word that a sub-token belongs to. New types begin as copies of the first one:
before training the encoder computes what it always did.

An id with its case is `id + case * CASE_STEP`, so that ids stay one number a sub-token from the corpus to the encoder.
"""

from typing import Any

import torch
from torch import Tensor, nn

CASE_STEP = 2**20
"""More than any vocabulary has."""
NUM_CASES = 5
_WITH_TYPES = ("bert", "electra", "albert")


def find_case(word: str) -> int:
    """0: no capitals; 1: the first letter alone; 2: all of several letters; 3: the only letter; 4: other capitals."""
    if not any(map(str.isupper, word)):
        return 0
    letters = [character for character in word if character.isalpha()]
    if all(map(str.isupper, letters)):
        return 2 if len(letters) > 1 else 3
    return 1 if word[0].isupper() and not any(map(str.isupper, word[1:])) else 4


def split_cases(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The ids of the vocabulary, and the cases."""
    return ids % CASE_STEP, ids // CASE_STEP


def can_learn_cases(network_config: Any, tokenizer: Any) -> bool:
    """Whether the tokenizer drops case and the network has token types to tell it with."""
    spellings = (tokenizer([word], is_split_into_words=True)["input_ids"] for word in ("PARIS", "paris"))
    types = getattr(network_config, "type_vocab_size", 0) or 0
    first, second = spellings
    return bool(first == second and types > 0 and network_config.model_type in _WITH_TYPES)


def has_cases(network: Any) -> bool:
    """Whether a network has learned, or is to learn, the cases."""
    return bool(getattr(network.config, "casing", False))


def get_case_table(network: Any) -> nn.Parameter | None:
    """The embeddings of the cases, of a network that has them."""
    if not has_cases(network):
        return None
    table: nn.Parameter = network.base_model.embeddings.token_type_embeddings.weight
    return table


def add_cases(network: Any) -> None:
    """Give a network a token type for each case."""
    embeddings = network.base_model.embeddings
    old: Tensor = embeddings.token_type_embeddings.weight.detach()
    new = nn.Embedding(NUM_CASES, old.shape[1])
    with torch.no_grad():
        new.weight.copy_(old[:1].expand(NUM_CASES, -1))
    embeddings.token_type_embeddings = new
    network.config.type_vocab_size, network.config.casing = NUM_CASES, True


def compute_logits(network: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`[B, T, K]`: what a network of transformers gives for ids, with cases if it has them, and their mask."""
    more = {}
    if has_cases(network):
        ids_BT, more["token_type_ids"] = split_cases(ids_BT)
    logits_BTK: Tensor = network(input_ids=ids_BT, attention_mask=mask_BT, **more).logits
    return logits_BTK
