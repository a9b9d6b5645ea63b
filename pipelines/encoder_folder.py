"""The encoder that pretraining leaves: a Hugging Face folder with its head, and a card that says where it came from."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import ModelCardData

from pipelines.evaluation.card import escape_markdown, find_base_model
from pipelines.ner.encoders import SCRATCH, load_tokenizer
from pipelines.training.masked_model import build_masked_model

CARD_FILE = "README.md"


def write_encoder(
    folder: Path, encoder: str, weights: Mapping[str, torch.Tensor], name: str, facts: Mapping[str, str]
) -> None:
    """Write the folder, whole or not at all; AutoModel and AutoModelForMaskedLM load it, the latter with the head.

    Args:
        encoder: what training began with, a resolved path or hub id; its configuration is kept, dropout included.
        weights: of a `MaskedModel`; a head for orders is left out.
        name: of that encoder, for the card.
        facts: for the card.
    """
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model = build_masked_model(encoder)
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith("order_head.")})
    model.network.save_pretrained(staging)
    load_tokenizer(encoder).save_pretrained(staging)
    (staging / CARD_FILE).write_text(_render_card(folder, name, facts), encoding="utf-8", errors="replace")
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def _render_card(folder: Path, name: str, facts: Mapping[str, str]) -> str:
    base = find_base_model(name)
    data = ModelCardData(
        library_name="transformers", pipeline_tag="fill-mask", tags=["fill-mask", "rayner"], base_model=base
    )
    shown = escape_markdown(base or (Path(name).name if Path(name).is_dir() else name))
    origin = "A small BERT, trained from scratch" if name == SCRATCH else f"The encoder {shown}, trained further"
    lines = [
        f"# {escape_markdown(folder.parent.name)}",
        f"{origin} on raw text as a masked language model by `rayner pretrain`.",
        "`rayner train --model.encoder` takes this folder, and so do `AutoModel` and `AutoModelForMaskedLM` of "
        "transformers.",
        "\n".join(f"* {escape_markdown(key)}: {escape_markdown(value)}" for key, value in facts.items()),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n"
