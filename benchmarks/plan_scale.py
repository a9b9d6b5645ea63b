"""What runs at scale would need and cost, by the planner: the tables of docs/scale.md.

    python -m benchmarks.plan_scale [--render]

BERT of the usual size (its configuration), documents with the lengths of the sample corpus, clusters of 1, 8 and 64
GPUs: training on ten million annotated documents, with the batch of the recipe and with one that grows with the GPUs;
labelling ten billion documents; serving. Nothing runs: these are predictions, from published rates of GPUs and the list
prices of `pipelines/planning/instances.py`. Writes `benchmarks/results/plan-scale.json` and the tables.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from transformers import BertConfig

from benchmarks.tables import put_table
from pipelines.corpus.formats.files import find_files
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.lengths import count_lengths
from pipelines.ner.encoders import find_encoder, load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.planning.architecture import Architecture, convert_config
from pipelines.planning.candidates import TrainingRequest
from pipelines.planning.cost import TrainingSetup, count_parameters
from pipelines.planning.descriptions import parse_cluster
from pipelines.planning.inference_plans import plan_prediction, plan_serving
from pipelines.planning.lengths import Lengths
from pipelines.planning.plans import Plan, render_money, render_seconds
from pipelines.planning.pools import InferenceRequest
from pipelines.planning.training_plans import plan_training

RESULTS = Path(__file__).parent / "results" / "plan-scale.json"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
TOKENIZER = "all-MiniLM-L6-v2"
WINDOW, STRIDE = 256, 64
TRAINING_DOCUMENTS = 10_000_000
LABELLED_DOCUMENTS = 10_000_000_000
RECIPE_TOKENS = 1024
GPU_TOKENS = 16_384
"""Sub-tokens of a step for each GPU, where the batch grows with them."""
CLUSTERS = {
    "1 L4": "1x(8cpu,32GiB,1xL4,0.9776/h)",
    "8 L4": "8x(8cpu,32GiB,1xL4,0.9776/h)",
    "64 L4": "64x(8cpu,32GiB,1xL4,0.9776/h)",
    "8 A100": "1x(96cpu,1152GiB,8xA100,400Gbit,21.957642/h)",
    "64 A100": "8x(96cpu,1152GiB,8xA100,400Gbit,21.957642/h)",
}
"""As AWS rents them: g6.2xlarge and p4d.24xlarge."""


def main() -> None:
    """Plan, write the results, render the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true", help="plan nothing; only put the tables into docs/scale.md")
    if not parser.parse_args().render:
        RESULTS.write_text(json.dumps(plan_all(), indent=2) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(put_tables(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


def plan_all() -> dict[str, Any]:
    """Every plan of the page, and how long making it took."""
    architecture = convert_config(BertConfig())
    histogram = count_sample()
    num_documents = sum(histogram.values())
    results: dict[str, Any] = {
        "model": {"name": "BERT, base", "parameters": count_parameters(architecture, 9)},
        "corpus": {"histogram": histogram, "documents": num_documents, "window": WINDOW, "stride": STRIDE},
        "clusters": CLUSTERS,
        "train": {},
        "predict": {},
        "serve": {},
    }
    lengths = Lengths.from_records(histogram, window=WINDOW, stride=STRIDE)
    few, many = (scale(lengths, number / num_documents) for number in (TRAINING_DOCUMENTS, LABELLED_DOCUMENTS))
    for name, described in CLUSTERS.items():
        num_gpus = int(name.split()[0])
        for case, tokens in (("recipe", RECIPE_TOKENS), ("growing", num_gpus * GPU_TOKENS)):
            results["train"].setdefault(case, {})[name] = plan_one_training(architecture, few, described, tokens)
        inventory = parse_cluster(described)
        results["predict"][name] = _time(lambda: plan_prediction(inventory, architecture, many, InferenceRequest()))  # noqa: B023
        results["serve"][name] = _time(lambda: plan_serving(inventory, architecture, lengths, InferenceRequest()))  # noqa: B023
    return results


def count_sample() -> dict[str, int]:
    """The lengths of the sample corpus, in sub-tokens."""
    encoder = Encoder(load_tokenizer(find_encoder(TOKENIZER)), window=WINDOW, stride=STRIDE, splitter="unicode")
    census = count_lengths(find_files(["sample:"]), encoder.count_tokens, FormatOptions())
    return dict(sorted(census.histogram.items(), key=lambda pair: int(pair[0])))


def scale(lengths: Lengths, factor: float) -> Lengths:
    """So many times as many windows."""
    return Lengths.from_counts(
        {length: max(1, round(count * factor)) for length, count in lengths.counts}, lengths.words_per_token
    )


def plan_one_training(architecture: Architecture, lengths: Lengths, described: str, tokens: int) -> dict[str, Any]:
    """The plan of a training with so many sub-tokens a step."""
    request = TrainingRequest(TrainingSetup(), batch_tokens=tokens, use_gpu=True)
    return _time(lambda: plan_training(parse_cluster(described), architecture, lengths, request))


def _time(plan: Any) -> dict[str, Any]:
    started = time.perf_counter()
    found: Plan = plan()
    return {**found.to_dict(), "planning_s": round(time.perf_counter() - started, 4)}


def put_tables(page: str, results: dict[str, Any]) -> str:
    """The page with its tables made anew."""
    page = put_table(page, render_training(results["train"]["recipe"]), "train-recipe")
    page = put_table(page, render_training(results["train"]["growing"]), "train-growing")
    page = put_table(page, render_labelling(results["predict"]), "predict")
    return put_table(page, render_serving(results["serve"]), "serve")


def render_training(plans: dict[str, Any]) -> str:
    """Plans of training as Markdown."""
    lines = [
        "| GPUs there | taken | sub-tokens a step | GiB each | a step | 4 epochs | cost, USD | bottleneck |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, plan in plans.items():
        settings, predicted = plan["settings"], plan["predicted"]
        variant = f" ({settings['strategy']})" if settings["num_workers"] > 1 else ""
        cells = [
            name,
            f"{settings['num_workers']} {settings['accelerator']}{variant}",
            f"{settings['batch_tokens']:,}",
            f"{plan['memory_mib']['total'] / 1024:.1f}",
            render_seconds(predicted["step_s"]),
            render_seconds(predicted["total_s"]),
            render_money(predicted["cost"]),
            plan["bottleneck"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_labelling(plans: dict[str, Any]) -> str:
    """Plans of labelling as Markdown."""
    lines = [
        "| GPUs there | actors | sub-tokens/s | 10 billion documents | cost, USD | a million documents | bottleneck |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, plan in plans.items():
        predicted = plan["predicted"]
        cells = [
            name,
            _describe_pool(plan),
            f"{predicted['tokens_per_s']:,.0f}",
            render_seconds(predicted["total_s"]),
            render_money(predicted["cost"]),
            render_money(predicted["cost"] / (LABELLED_DOCUMENTS / 1e6)),
            plan["bottleneck"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_serving(plans: dict[str, Any]) -> str:
    """Plans of serving as Markdown."""
    lines = ["| GPUs there | replicas | sub-tokens/s at most | USD an hour | bottleneck |", "|---|---|---|---|---|"]
    for name, plan in plans.items():
        predicted = plan["predicted"]
        cells = [name, _describe_pool(plan), f"{predicted['tokens_per_s']:,.0f}"]
        cells += [render_money(predicted["price_per_hour"]), plan["bottleneck"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _describe_pool(plan: dict[str, Any]) -> str:
    bundle = plan["placement"]["bundle"]
    gpus = f", {bundle['GPU']:g} GPU" if "GPU" in bundle else ""
    return f"{plan['placement']['number']} with {bundle['CPU']:g} CPU{gpus}"


if __name__ == "__main__":
    main()
