"""The model card: `README.md` of a bundle, with the front matter that the Hugging Face hub reads."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.evaluation.examples import make_visible
from pipelines.evaluation.rendering import format_number, format_percent, list_notes, list_score_rows
from pipelines.ner.bundle import BUNDLE_FILE, SEEN_FILE
from pipelines.ner.encoders import PACKAGED_NAMES, SCRATCH, is_uncased, load_tokenizer
from pipelines.ner.files import write_text

CARD_FILE = "README.md"
TASK = "token-classification"
READER_PATH = "path/to/this/folder"
"""What the example in a card loads where the bundle is not on the hub: only its reader knows where it lies."""
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_QUIET = re.compile(r"\\([-,'/%+])")


def write_card(
    bundle: Path,
    shards: Mapping[str, Any],
    usage: Mapping[str, Any],
    scores: Mapping[str, Any],
    *,
    name: str | None = None,
    datasets: Sequence[str] = (),
    hub_id: str | None = None,
) -> Path:
    """Write a bundle's model card, which its fingerprint does not cover; returns the path.

    Args:
        shards: what it was trained on, as in `shards.json`.
        usage: what training took (`summarize_usage`).
        scores: on the test split (`EvaluationReport.to_dict`).
        name: of the model; default: that on the hub, or that of the run folder.
        datasets: those of the corpus that are on the hub.
        hub_id: where it will be on the hub.
    """
    path = bundle / CARD_FILE
    name = name or hub_id or bundle.parent.name
    card = render_card(bundle, name, shards, usage, scores, datasets, hub_id)
    write_text(path, str(card), errors="replace")
    return path


def render_card(
    bundle: Path,
    name: str,
    shards: Mapping[str, Any],
    usage: Mapping[str, Any],
    scores: Mapping[str, Any],
    datasets: Sequence[str],
    hub_id: str | None,
) -> ModelCard:
    """The card. Everything in it is escaped except numbers and what is marked as our own."""
    info = json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))
    encoder = str(info["training"]["encoder"])
    strict = scores["strict"]["micro"]
    intervals = scores["intervals"].get("strict")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda share: Markup(format_percent(share)),
        number=lambda number: Markup(format_number(number)),
        code=lambda text: Markup(json.dumps(text)[1:-1]),
    )
    body = environment.get_template("card.md.jinja").render(
        name=name,
        place=hub_id or READER_PATH,
        info=info,
        encoder=_name_encoder(encoder),
        labels=sorted({label for split in shards["splits"].values() for label in split["entities"]}),
        f1=strict["f1"],
        interval=intervals["micro"]["f1"] if intervals else None,
        rows=list_score_rows(scores),
        notes=[Markup(note) for note in list_notes(scores)],
        shards=shards,
        cost=_list_cost(info, usage),
        is_uncased=is_uncased(load_tokenizer(str(bundle))),
        has_cases=bool(json.loads((bundle / "config.json").read_text(encoding="utf-8")).get("casing")),
        has_seen_mentions=(bundle / SEEN_FILE).is_file(),
    )
    data = _describe(info, name, encoder, strict, datasets)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_squeeze(body)}")


def find_base_model(encoder: str) -> str | None:
    """The hub id of an encoder; None for one that was made here, or lies in a folder."""
    if encoder in PACKAGED_NAMES:
        return PACKAGED_NAMES[-1]
    if encoder == SCRATCH or Path(encoder).is_dir():
        return None
    try:
        validate_repo_id(encoder)
    except HFValidationError:
        return None
    return encoder


def escape_markdown(text: str) -> str:
    """Text that Markdown and HTML show as it is, in one line: links, tags, tables and emphasis are letters in it."""
    line = " ".join(make_visible(text).split())
    return _QUIET.sub(r"\1", _PUNCTUATION.sub(r"\\\1", line))


def _describe(
    info: Mapping[str, Any], name: str, encoder: str, strict: Mapping[str, Any], datasets: Sequence[str]
) -> ModelCardData:
    """The front matter. A CRF is not for transformers, which would load the rest and say nothing."""
    corpus = {"dataset_type": "custom", "dataset_name": "test split of the training corpus", "dataset_split": "test"}
    results = [
        EvalResult(
            task_type=TASK,
            task_name="Named entity recognition",
            metric_type=kind,
            metric_name=f"Strict entity {kind} (micro)",
            metric_value=round(strict[kind], 4),
            **corpus,
        )
        for kind in ("f1", "precision", "recall")
    ]
    return ModelCardData(
        library_name="transformers" if info["head"] == "linear" else "rayner",
        pipeline_tag=TASK,
        tags=["named-entity-recognition", TASK, "rayner"],
        base_model=find_base_model(encoder),
        datasets=list(datasets) or None,
        metrics=["f1", "precision", "recall"],
        model_name=name,
        eval_results=results,
    )


def _list_cost(info: Mapping[str, Any], usage: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    training = info["training"]
    seconds = usage["step_s"] + usage["evaluation_s"]
    workers = usage["num_workers"] or 1
    facts = {
        "steps": f"{training['num_steps']:,} in {training['num_epochs']} epochs; the best was epoch "
        f"{training['best_epoch']}",
        "sub-tokens": f"{usage['num_tokens']:,}",
        "wall time": f"{seconds:,.0f} s, of which {usage['evaluation_s']:,.0f} s scoring dev",
        "worker-hours": f"{seconds * workers / 3600:.3f} ({workers} worker{'s' * (workers != 1)})",
        "device of a worker": str(usage["device"] or "unknown"),
        "precision": str(usage["precision"]),
        "sub-tokens per second": f"{usage['tokens_per_s']:,.0f}",
        "peak memory of a worker": f"{usage['worker_peak_memory_mib']:,} MiB",
        "peak memory of a GPU": f"{usage['gpu_peak_memory_mib']:,} MiB" if usage["gpu_peak_memory_mib"] else "",
        "seed": str(training["seed"]),
        "versions": ", ".join(f"{name} {version}" for name, version in training["versions"].items()),
    }
    return [(name, Markup(value)) for name, value in facts.items() if value]


def _name_encoder(encoder: str) -> str:
    """A name without the paths of the machine."""
    if encoder == SCRATCH:
        return "a small BERT trained from scratch"
    return find_base_model(encoder) or Path(encoder).name


def _finalize(value: object) -> object:
    return value if isinstance(value, int | float | Markup) else escape_markdown(str(value))


def _squeeze(text: str) -> str:
    """At most one empty line in a row."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
