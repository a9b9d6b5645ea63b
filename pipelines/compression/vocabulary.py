"""A vocabulary cut down to the sub-tokens that a corpus uses.

All pieces of one character stay, so that a word that could be spelled before still can: of more and shorter pieces.
"""

import copy
import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.compression.config import CompressionError
from pipelines.ner.bundle import Bundle
from pipelines.ner.casing import CASE_STEP
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.model import TokenClassifier

UNUSED = re.compile(r"\[unused\d+\]")
"""Pieces of BERT's vocabularies that no text has."""


def prune_vocabulary(bundle: Bundle, used: Iterable[int], least: int = 0) -> Bundle:
    """A copy of a bundle that knows only these of its sub-tokens (ids, with or without their case), and the letters.

    Args:
        least: so many stay, if need be of those that are not used: the first ones of the vocabulary.

    Raises CompressionError for a tokenizer that is not WordPiece: merges of pairs would need pieces that go.
    """
    tokenizer = bundle.encoder.tokenizer
    state = read_state(tokenizer)
    kept = choose_pieces(state, {number % CASE_STEP for number in used}, least)
    encoder = bundle.encoder
    return replace(
        bundle,
        model=_keep_rows(bundle.model, kept),
        encoder=Encoder(
            _renumber(tokenizer, state, kept),
            window=encoder.window,
            stride=encoder.stride,
            splitter=encoder.splitter,
            casing=encoder.casing,
        ),
    )


def read_state(tokenizer: Any) -> dict[str, Any]:
    """All that a WordPiece tokenizer is. Raises CompressionError for one of another kind."""
    state: dict[str, Any] = (
        json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "is_fast", False) else {}
    )
    kind = state.get("model", {}).get("type")
    if kind != "WordPiece":
        raise CompressionError(
            "a vocabulary that cannot be cut down",
            rule="a WordPiece tokenizer, as BERT has it",
            value=str(kind or type(tokenizer).__name__),
            remedy="leave `vocabulary` out of `--steps`",
        )
    return state


def choose_pieces(state: dict[str, Any], used: set[int], least: int = 0) -> list[int]:
    """The ids to keep, in their order: special ones, pieces of one character, those used, and the first others.

    Pieces that a vocabulary has to spare stand among its first ones, but are the last of the others.
    """
    prefix = state["model"]["continuing_subword_prefix"]
    special = {token["id"] for token in state["added_tokens"]}
    needed = {
        number
        for piece, number in state["model"]["vocab"].items()
        if number in used or len(piece.removeprefix(prefix)) == 1
    } | special  # of which those that were added stand outside the vocabulary
    spare = {number for piece, number in state["model"]["vocab"].items() if UNUSED.fullmatch(piece)}
    others = sorted(set(state["model"]["vocab"].values()) - needed, key=lambda number: (number in spare, number))
    return sorted([*needed, *others[: max(0, least - len(needed))]])


def _renumber(tokenizer: Any, state: dict[str, Any], kept: list[int]) -> Any:
    """The tokenizer with the pieces that are kept, numbered from 0."""
    new = {old: number for number, old in enumerate(kept)}
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {piece: new[number] for piece, number in vocabulary.items() if number in new}
    for token in state["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber_specials(state.get("post_processor"), new)
    _renumber_specials(state.get("padding"), new)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in ("vocab.txt", "added_tokens.json"):  # the old ones
            Path(folder, name).unlink(missing_ok=True)
        Path(folder, "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        settings_file = Path(folder, "tokenizer_config.json")
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # says the old numbers
        settings_file.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        return load_tokenizer(folder)


def _renumber_specials(node: Any, new: dict[int, int]) -> None:
    """Ids in what puts special tokens around a text, in each of the forms that there are."""
    if isinstance(node, list):
        if len(node) == 2 and isinstance(node[0], str) and isinstance(node[1], int):  # `["[SEP]", 102]`
            node[1] = new[node[1]]
        else:
            for one in node:
                _renumber_specials(one, new)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name == "ids":
                node[name] = [new[number] for number in value]
            elif name == "pad_id":
                node[name] = new[value]
            else:
                _renumber_specials(value, new)


def _keep_rows(model: TokenClassifier, kept: list[int]) -> TokenClassifier:
    """A copy of the model with these rows of its word embeddings."""
    small = copy.deepcopy(model)
    network: Any = small.network
    old = network.get_input_embeddings()
    places = {number: place for place, number in enumerate(kept)}
    padding = places.get(old.padding_idx) if old.padding_idx is not None else None
    new = nn.Embedding(len(kept), old.embedding_dim, padding_idx=padding)
    with torch.no_grad():
        new.weight.copy_(old.weight[kept])
    network.set_input_embeddings(new)
    config = network.config
    config.vocab_size = len(kept)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id"):
        if getattr(config, name, None) is not None:
            setattr(config, name, places.get(getattr(config, name)))
    return small
