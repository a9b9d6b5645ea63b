"""An encoder with its masked language model, seen as the loop sees a token classifier: scores at some places.

What a token classifier has as words are here the hidden places, and its tags are the vocabulary; so loss, strategies
and checkpoints are those of training. Where the order of two segments is to be told, the first place of a window is its
first special token, whose two scores stand in the first two columns.

Shapes: B windows, T sub-tokens, W places, H hidden size, V vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from pipelines.ner.casing import split_cases
from pipelines.ner.encoders import EncoderError
from pipelines.ner.errors import UserError
from pipelines.ner.model import find_dropouts
from pipelines.ner.shapes import FIELD

IN_SWAPPED_ORDER, IN_ORDER = 0, 1
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
_NEVER = -1e4
"""A score of what cannot be."""


class MaskedModel(nn.Module):
    """A masked language model of transformers, whose head is computed only at the places that are asked for."""

    crf = None

    def __init__(self, network: Any, *, tells_order: bool = False) -> None:
        super().__init__()
        self.network = network
        size = network.config.hidden_size
        self.order_head = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 2)) if tells_order else None
        self._places_BW = torch.empty(0, dtype=torch.long)
        self._hidden_BWH = torch.empty(0)
        network.base_model.register_forward_hook(self._keep_places)

    @property
    def has_segments(self) -> bool:
        """Whether the network tells two segments apart by token types."""
        return (getattr(self.network.config, "type_vocab_size", 0) or 0) >= 2

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, places_BW: Tensor) -> Tensor:
        """Scores `[B, W, V]` (logits) of each sub-token of the vocabulary at each place."""
        ids_BT, types_BT = split_cases(input_ids_BT)
        more = {"token_type_ids": types_BT} if self.order_head is not None and self.has_segments else {}
        self._places_BW = places_BW
        scores_BWV: Tensor = self.network(input_ids=ids_BT, attention_mask=attention_mask_BT, **more).logits
        if self.order_head is None:
            return scores_BWV
        order_B2 = self.order_head(self._hidden_BWH[:, 0])
        self._hidden_BWH = torch.empty(0)
        filled_BV = torch.full_like(scores_BWV[:, 0], _NEVER).index_copy(
            1, torch.arange(2, device=order_B2.device), order_B2.to(scores_BWV.dtype)
        )
        tells_B11 = (places_BW[:, 0] == 0)[:, None, None]
        first_B1V = torch.where(tells_B11, filled_BV[:, None], scores_BWV[:, :1])
        return torch.cat([first_B1V, scores_BWV[:, 1:]], dim=1)

    def _keep_places(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Of the encoder's last hidden states leave those that the head is asked for."""
        index_BWH = self._places_BW[:, :, None].expand(-1, -1, output.last_hidden_state.shape[2])
        output.last_hidden_state = output.last_hidden_state.gather(1, index_BWH)
        if self.order_head is not None:
            self._hidden_BWH = output.last_hidden_state
        return output


def build_masked_model(encoder: str, *, dropout: float | None = None, tells_order: bool = False) -> MaskedModel:
    """The masked language model of an encoder (a resolved path or hub id). Seed torch before the call."""
    network, _ = _load(encoder, dropout)
    return MaskedModel(network, tells_order=tells_order)


def has_masked_head(encoder: str) -> bool:
    """Whether a checkpoint brings the head of a masked language model; otherwise it begins anew."""
    network, missing = _load(encoder, None)
    prefix = f"{network.base_model_prefix}."
    return not any(not name.startswith(prefix) and name.endswith("weight") for name in missing)


def find_model_problems(encoder: str) -> list[UserError]:
    """What keeps an encoder (a resolved path or hub id) from being pretrained."""
    config = AutoConfig.from_pretrained(encoder, trust_remote_code=False)
    if getattr(config, FIELD, None) is not None:
        return [
            EncoderError(
                "the encoder is one whose attention heads were cut out",
                where="`model.encoder`",
                rule="a network of a shape that transformers knows",
                value=encoder,
                remedy="pretrain the encoder that it was made of, and make the model trained on that one smaller",
            )
        ]
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return _find_weight_problems(Path(encoder))
    return [
        EncoderError(
            "the encoder has no masked language model",
            where="`model.encoder`",
            rule="an architecture that AutoModelForMaskedLM of transformers knows (BERT, RoBERTa, DeBERTa, ELECTRA …)",
            value=f"`{config.model_type}` of {encoder}",
            remedy="choose another encoder, or `scratch`",
        )
    ]


def _find_weight_problems(folder: Path) -> list[UserError]:
    """Nothing of an encoder on the hub, whose files are told as they are loaded."""
    if not folder.is_dir() or any((folder / name).is_file() for name in WEIGHT_FILES):
        return []
    return [
        EncoderError(
            "the encoder has no weights",
            where=str(folder),
            rule=" or ".join(WEIGHT_FILES),
            value=", ".join(sorted(path.name for path in folder.iterdir())[:8]),
            remedy="choose another encoder, or convert its weights with `save_pretrained` of transformers",
        )
    ]


def _load(encoder: str, dropout: float | None) -> tuple[Any, set[str]]:
    config = AutoConfig.from_pretrained(encoder, trust_remote_code=False)
    settings = find_dropouts(config, dropout)
    try:
        network, told = AutoModelForMaskedLM.from_pretrained(
            encoder,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            **settings,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise EncoderError(
            f"the encoder `{encoder}` cannot be loaded",
            rule="weights in safetensors, an architecture with a masked language model in transformers",
            value=str(error).splitlines()[0],
            remedy="choose another encoder, or convert its weights with `save_pretrained` of transformers",
        ) from error
    return network, set(told["missing_keys"])
