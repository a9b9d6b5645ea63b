"""What pretraining asks of an encoder's tokenizer and of the settings of training."""

from dataclasses import replace
from typing import Any

from pipelines.ner.encoding import read_special_tokens
from pipelines.ner.errors import UserError
from pipelines.training.config import TrainingConfig
from pipelines.training.parallel import ParallelConfig

OBJECTIVES = ("masks", "masks_and_order")


class PretrainingError(UserError):
    """Pretraining that the encoder, or the settings, do not allow."""


def find_tokenizer_problems(tokenizer: Any, objective: str) -> list[UserError]:
    """What keeps a tokenizer from being pretrained with."""
    prefix, _ = read_special_tokens(tokenizer)
    name = getattr(tokenizer, "name_or_path", "")
    checks = [
        ("no mask token", "a mask token, which hides sub-tokens", tokenizer.mask_token_id is not None),
        (
            "no token that separates documents",
            "a separator, or an end-of-sequence token",
            tokenizer.sep_token_id is not None or tokenizer.eos_token_id is not None,
        ),
        (
            "no token before a window that could tell the order of segments",
            "one special token at the beginning, as BERT's [CLS]",
            objective == "masks" or len(prefix) == 1,
        ),
    ]
    return [
        PretrainingError(f"the tokenizer has {what}", where="`model.encoder`", rule=rule, value=name)
        for what, rule, holds in checks
        if not holds
    ]


def with_own_loss(training: TrainingConfig) -> TrainingConfig:
    """The settings without those that pretraining does not have."""
    return replace(training, label_smoothing=0.0, r_drop=0.0, dropout_samples=1)


def find_setting_problems(objective: str, training: TrainingConfig, parallel: ParallelConfig) -> list[UserError]:
    """Settings of training that have no meaning without tags, or that the head's shared embeddings do not allow."""
    problems: list[UserError] = []
    if objective not in OBJECTIVES:
        rule = "one of " + ", ".join(OBJECTIVES)
        problems.append(PretrainingError("no such objective", where="`objective`", rule=rule, value=objective))
    used = {
        "label_smoothing": training.label_smoothing > 0,
        "r_drop": training.r_drop > 0,
        "dropout_samples": training.dropout_samples > 1,
    }
    problems += [
        PretrainingError(
            "a setting that pretraining does not have",
            where=f"`training.{name}`",
            rule="the loss is that of hidden sub-tokens, as a perplexity needs it",
            remedy="leave it out",
        )
        for name, is_used in used.items()
        if is_used
    ]
    if parallel.strategy == "pipeline":
        problems.append(
            PretrainingError(
                "a strategy that pretraining does not have",
                where="`parallel.strategy` pipeline",
                rule="the head's weights are the embeddings: the first and the last stage would both hold them",
                remedy="take ddp, fsdp, tensor, hybrid or local_sgd",
            )
        )
    return problems
