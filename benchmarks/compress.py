"""What compression buys and costs: variants of one model by `rayner compress`, next to it and transformers' pipeline.

    python -m benchmarks.compress [--data ../shared/data] [--corpora wnut17 ncbi_disease] [--routes …] [--keep FOLDER]

For each corpus a teacher is trained (`rayner train`, defaults, all-MiniLM-L6-v2), and made smaller on each
route. Then, in one run and in turns, the speed of every variant on the test documents, of the teacher and of
transformers' pipeline (fp32, batches of 32), each as it runs by default; F1 on dev with the gate's interval of its
difference, and on test; and what lies on disk. Variants that the gate refused are told as such. Writes
`benchmarks/results/compress-avx2.json` (or `-avx512-bf16`, `-amx`: what is fast depends on how the processor
multiplies) and the tables of README.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.predict import describe_machine, open_pipeline, time_call
from benchmarks.quality import CORPORA, ENCODER, measure_f1
from benchmarks.tables import README, put_table
from pipelines.compression.speed import count_tokens, repeat_documents
from pipelines.corpus.shards import load_shards_info, read_rows
from pipelines.evaluation.metrics import Scored
from pipelines.ner.engine import NerEngine
from pipelines.ner.runtimes.runtime import set_up_process
from pipelines.run_record import read_git_revision, read_versions

RESULTS = Path(__file__).parent / "results"
LONG = ["--training.num_epochs", "10"]
"""A student learns longer than its teacher did."""
THREE = ["--steps", "distill", "--distillation.layers", "3", "--max_f1_loss", "2", *LONG]
CHAIN = [
    *("--steps", "distill", "prune", "int8", "--distillation.layers", "3", *LONG, "--int8.stored", "int8"),
    *("--max_f1_loss", "10", "--max_label_loss", "30"),  # each step goes on from the one before, whatever it lost
]
ROUTES: dict[str, list[str]] = {
    "int8": ["--steps", "int8", "--max_f1_loss", "0.5"],
    "int8 of all layers": ["--steps", "int8", "--max_f1_loss", "2"],
    "int8 by OpenVINO": ["--steps", "int8", "--int8.runtime", "openvino", "--max_f1_loss", "2"],
    "3 layers": THREE,
    "3 layers, states": [*THREE, "--distillation.states", "1"],
    "3 layers, relations": [*THREE, "--distillation.relations", "1"],
    "chain": [*CHAIN, "--pruning.heads", "0", "--pruning.feed_forward", "0.5"],
    "narrow chain": [*CHAIN, "--pruning.heads", "0.25", "--pruning.feed_forward", "0.6"],
    "early exit": ["--steps", "early_exit", "--max_f1_loss", "0.5"],
    "early exit, half a point": [
        *("--steps", "early_exit", "--early_exit.max_f1_loss", "0.5", "--max_f1_loss", "2"),
    ],
    "early exit, joint": ["--steps", "early_exit", "--early_exit.joint", "true", "--max_f1_loss", "2"],
}
TEACHER, PIPELINE = "teacher", "transformers' pipeline"
ROUNDS = 3
KERNELS = 16_384
"""Shapes that oneDNN keeps kernels for: enough for all engines of this process."""
SPEED_TOKENS, PIPELINE_TOKENS = 40_000, 6_000


def main() -> None:
    """Measure, write the results, render the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--corpora", nargs="+", default=["wnut17", "ncbi_disease"], choices=["wnut17", "ncbi_disease"])
    parser.add_argument("--routes", nargs="+", default=list(ROUTES), choices=list(ROUTES))
    parser.add_argument("--keep", type=Path, help="a folder in which the runs are kept, and gone on with")
    parser.add_argument("--render", action="store_true", help="run nothing; only put the table into README.md")
    arguments = parser.parse_args()
    if not arguments.render:
        set_up_process(KERNELS)
        machine = describe_machine("cpu")
        path = RESULTS / f"compress-{machine['cpu_products'].lower()}.json"
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"corpora": {}}
        results |= {"versions": read_versions(), "git_revision": read_git_revision(), "machine": machine}
        with tempfile.TemporaryDirectory() as folder:
            for corpus in arguments.corpora:
                kept = (arguments.keep or Path(folder)) / corpus
                results["corpora"][corpus] = measure(arguments.data, corpus, kept.absolute(), arguments.routes)
                path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("compress-*.json"))]
    page = put_table(
        README.read_text(encoding="utf-8"), "\n\n".join(render_table(results) for results in found), "compress"
    )
    README.write_text(page, encoding="utf-8")


def measure(data: Path, corpus: str, folder: Path, routes: Sequence[str]) -> list[dict[str, Any]]:
    """The teacher, its variants and the pipeline: F1, speed and size."""
    files = dict(zip(("train", "dev", "test"), CORPORA[corpus], strict=True))
    given = [part for split in files for part in (f"--corpus.{split}", str(data / corpus / files[split]))]
    _run("train", ["--model.encoder", ENCODER, *given], folder / "teacher")
    teacher = folder / "teacher" / "bundle"
    shards = folder / "teacher" / "shards"
    found: list[dict[str, Any]] = [{"name": TEACHER, "bundle": teacher, "verdict": None}]
    for route in routes:
        output = folder / route.replace(",", "").replace(" ", "-")
        _run("compress", ["--model", str(teacher), *given[:4], *ROUTES[route]], output)
        told = json.loads((output / "compression.json").read_text(encoding="utf-8"))
        for one in told["variants"]:
            if one["name"] == told["start"]:
                found[0]["dev_f1"] = one["f1"]
                continue
            found.append(
                {
                    "name": f"{route}: {one['name']}" if len(told["variants"]) > 2 else route,
                    "bundle": output / "variants" / one["name"] / "bundle",
                    "dev_f1": one["f1"],
                    "verdict": one["verdict"],
                    "num_parameters": one["num_parameters"],
                    "details": one["details"],
                }
            )
        found += [{"name": f"{route}: {name}", "not_made": why} for name, why in told["not_made"].items()]
    info = load_shards_info(shards)
    gold = [Scored.from_row(row, info.corpus_scheme) for row in read_rows(shards, "test")]
    made = [one for one in found if "bundle" in one]
    engines = [NerEngine.load(one["bundle"]) for one in made]
    rates, pipeline = compare(engines, teacher, [one.content for one in gold])
    for one, engine, rate in zip(made, engines, rates, strict=True):
        spans = engine.predict_documents([document.content for document in gold])
        scored = [replace(document, predicted=own) for document, own in zip(gold, spans, strict=True)]
        bundle = one.pop("bundle")
        one |= {
            "test_f1": measure_f1(scored),
            "tokens_per_s": rate,
            "size_mib": sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 2**20,
            "runtime": f"{engine.runtime.name} {engine.runtime.precision}",
        }
    return [*found, {"name": PIPELINE, "tokens_per_s": pipeline}]


def compare(engines: Sequence[NerEngine], teacher: Path, documents: Sequence[Any]) -> tuple[list[float], float]:
    """Sub-tokens a second of engines and of the pipeline, in turns: the median of the rounds after the first."""
    many = repeat_documents(documents, engines[0], SPEED_TOKENS)
    num_tokens, few, count = count_tokens(engines[0], many), list[Any](), 0
    for document in documents:
        if count < PIPELINE_TOKENS:
            few.append(document)
            count += count_tokens(engines[0], [document])
    texts = [one if isinstance(one, str) else " ".join(one) for one in few]
    peer = open_pipeline(teacher, "cpu")
    seconds: list[list[float]] = [[] for _ in range(len(engines) + 1)]
    for _ in range(ROUNDS + 1):
        for engine, taken in zip(engines, seconds, strict=False):
            taken.append(time_call(lambda: engine.predict_documents(many)))  # noqa: B023
        seconds[-1].append(time_call(lambda: list(peer(texts, batch_size=32))))
    return [num_tokens / median(taken[1:]) for taken in seconds[:-1]], count / median(seconds[-1][1:])


def render_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"With {results['machine']['cpu_products']}:\n",
        "| | dev F1 | difference, interval | gate | test F1 | runtime | sub-tokens/s | × the teacher | × the pipeline "
        "| size |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for corpus, found in results["corpora"].items():
        by_name = {one["name"]: one for one in found}
        teacher, pipeline = by_name[TEACHER], by_name[PIPELINE]
        for one in found:
            if "not_made" in one:
                lines.append(f"| {corpus}, {one['name']} | | {one['not_made']} | not made | | | | | | |")
                continue
            cells = [f"{corpus}, {one['name']}", *[""] * 4]
            if "dev_f1" in one:
                cells[1], cells[4] = (f"{100 * one[key]:.1f}" for key in ("dev_f1", "test_f1"))
            if one.get("verdict"):
                overall = one["verdict"]["overall"]
                cells[2] = f"{overall['difference']:+.2f} ({overall['low']:+.2f} to {overall['high']:+.2f})"
                cells[3] = "passes" if one["verdict"]["passes"] else "refused"
            rate = one["tokens_per_s"]
            cells.append(one.get("runtime", "PyTorch fp32"))
            cells += [f"{rate:,.0f}", f"{rate / teacher['tokens_per_s']:.2f}", f"{rate / pipeline['tokens_per_s']:.1f}"]
            cells.append(f"{100 * one['size_mib'] / teacher['size_mib']:.0f} %" if "size_mib" in one else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _run(verb: str, arguments: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", f"pipelines.{verb}", *arguments, "--output_dir", str(folder)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode and not (verb == "compress" and done.returncode == 1):  # 1: no variant is good enough
        raise subprocess.CalledProcessError(done.returncode, command)


if __name__ == "__main__":
    main()
