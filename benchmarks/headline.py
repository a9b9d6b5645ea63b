"""The first table of README.md: the most telling ratios of all results, each next to a peer of the same run.

    python -m benchmarks.headline

Measures nothing; run it after any benchmark whose results are in the table.
"""

import json
import statistics
from typing import Any

from benchmarks.quality import DEFAULTS, PEER
from benchmarks.quality import RESULTS as QUALITY
from benchmarks.tables import README, put_table

RESULTS = QUALITY.parent
SMALLEST = "chain: 3-int8"
"""The variant of the table of compression that stands for what a chain of steps reaches."""
CRF = "CRF, BIOES"
CLIENTS = "64"


def main() -> None:
    """Write the table."""
    README.write_text(put_table(README.read_text(encoding="utf-8"), render(), "headline"), encoding="utf-8")


def render() -> str:
    """The table as Markdown."""
    return "\n".join(
        [
            "| all-MiniLM-L6-v2, two CPU cores | next to | |",
            "|---|---|---|",
            *_tell_labelling(),
            _tell_training(),
            _tell_quality(),
            _tell_serving(),
        ]
    )


def _tell_labelling() -> list[str]:
    rates = [
        corpus["tokens_per_s"] for corpus in _read("predict-cpu")["corpora"].values()
    ]  # of sentences and of documents
    ratios = [one["packed bf16"] / one["pipeline"] for one in rates]
    found = {one["name"]: one for one in _read("compress-avx512-bf16")["corpora"]["wnut17"]}
    small, teacher = found[SMALLEST], found["teacher"]
    speed = small["tokens_per_s"] / found["transformers' pipeline"]["tokens_per_s"]
    lost = small["verdict"]["overall"]["difference"]
    size = small["size_mib"] / teacher["size_mib"]
    return [
        f"| labelling sentences / documents, bf16 | transformers' pipeline | **{ratios[0]:.1f} × / {ratios[1]:.1f} ×** "
        "the sub-tokens a second |",
        f"| the same, distilled, pruned, int8 | transformers' pipeline | **{speed:.0f} ×**, with {100 * size:.0f} % of "
        f"the bytes and {lost:+.1f} points of F1 on dev |",
    ]


def _tell_training() -> str:
    rates = _read("train-cpu")["corpora"]["sentences"]["tokens_per_s"]
    ours = rates["ours, bf16"]
    return (
        f"| training, bf16 | `Trainer` as in run_ner / tuned by hand | **{ours / rates['Trainer, fp32']:.1f} × / "
        f"{ours / rates['Trainer, tuned']:.1f} ×** the sub-tokens a second |"
    )


def _tell_quality() -> str:
    found = _read("quality")

    def mean(corpus: str, recipe: str) -> float:
        return 100 * statistics.mean([float(run["test_strict_f1"]) for run in found[corpus][recipe].values()])

    told = []
    for corpus, name in (("wnut17", "WNUT-17"), ("ncbi_disease", "NCBI-disease")):
        ours, peer = mean(corpus, DEFAULTS), mean(corpus, PEER)
        told.append(f"{name} {f'**{ours:.1f}**' if ours > peer else f'{ours:.1f}'} to {peer:.1f}")
    accurate = f"({mean('ncbi_disease', CRF):.1f} by the preset `accurate`)"
    return f"| test F1, mean of seeds, defaults | `Trainer` tuned by hand | {', '.join(told)} {accurate} |"


def _tell_serving() -> str:
    found = _read("serve-cpu")
    ours, peer = found["ours"]["haproxy"]["closed"][CLIENTS], found["peer"]["closed"][CLIENTS]
    return (
        f"| endpoint, {CLIENTS} clients, fp32 | FastAPI around the pipeline | "
        f"**{ours['goodput_per_s'] / peer['goodput_per_s']:.1f} ×** the answers a second, p99 "
        f"{ours['latency_ms']['p99'] / 1000:.2f} s to {peer['latency_ms']['p99'] / 1000:.2f} s |"
    )


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
