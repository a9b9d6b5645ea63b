"""Predicted against measured: memory of a worker and time of a step, for five configurations on this machine.

    python -m benchmarks.plan [--data ../shared/data]

First this machine is calibrated as by `rayner plan --calibrate`, by real steps of small random encoders, none of which
is among the five. Then
`rayner train` trains each of five configurations, three shapes on two corpora, for some forty steps: the sentences of
WNUT-17, and documents made of ten sentences of NCBI-disease. The predictions see the encoder's `config.json` and the
histogram of lengths in `shards.json`, as `rayner plan` does, and no figure of the run. Writes
`benchmarks/results/plan-cpu.json`, and the table of README.md.

Times mean something only on a machine that does nothing else: the load before each run is kept beside its figures.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, BertConfig, DistilBertConfig

from benchmarks.predict import describe_machine
from benchmarks.tables import README, put_table
from benchmarks.train import Sample, join_samples, read_samples
from pipelines.calibrating import measure_machine
from pipelines.corpus.shards import load_shards_info
from pipelines.ner.encoders import find_encoder, load_tokenizer
from pipelines.planning.architecture import read_architecture
from pipelines.planning.cost import TrainingSetup
from pipelines.planning.lengths import Lengths, divide_batch
from pipelines.planning.measurements import choose_precision
from pipelines.planning.memory import MIB, estimate_training_memory
from pipelines.planning.rates import Rates
from pipelines.planning.timing import estimate_step_s
from pipelines.run_record import read_git_revision, read_versions
from pipelines.training.history import read_metrics

RESULTS = Path(__file__).parent / "results" / "plan-cpu.json"
QUICKSTART = "all-MiniLM-L6-v2"
CORPORA = {"sentences": ("wnut17", "train.conll"), "documents": ("ncbi_disease", "train.tsv")}
SHAPES: dict[str, Any] = {
    "scratch": BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, vocab_size=30522
    ),
    "distilbert": DistilBertConfig(vocab_size=30522),
}
WINDOW, STRIDE = 256, 64
NUM_STEPS = 40
NUM_EPOCHS = 2
WARMUP_STEPS = 6
NUM_SCORED = 60
"""Records of dev, and of test."""
MEMORY_BOUND, TIME_BOUND = 0.15, 0.20


@dataclass(frozen=True)
class Configuration:
    """One of the five."""

    encoder: str
    corpus: str
    batch_tokens: int


CONFIGURATIONS = (
    Configuration(QUICKSTART, "sentences", 1024),
    Configuration(QUICKSTART, "documents", 4096),
    Configuration("scratch", "sentences", 1024),
    Configuration("scratch", "documents", 2048),
    Configuration("distilbert", "sentences", 1024),
)


def main() -> None:
    """Calibrate, train, compare, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", type=int, nargs="*", help="numbers of configurations, from 0; writes no results")
    arguments = parser.parse_args()
    chosen = CONFIGURATIONS if arguments.only is None else [CONFIGURATIONS[number] for number in arguments.only]
    results = measure(arguments.data, chosen)
    if arguments.only is None:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        README.write_text(
            put_table(README.read_text(encoding="utf-8"), render_table(results), "plan"), encoding="utf-8"
        )
    print(render_table(results))


def measure(data: Path, configurations: Sequence[Configuration]) -> dict[str, Any]:
    """Predictions and measurements of some configurations."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.perf_counter()
        load = os.getloadavg()[0]
        rates = measure_machine(folder=folder / "cache")
        results: dict[str, Any] = {
            "versions": read_versions(),
            "git_revision": read_git_revision(),
            "machine": describe_machine("cpu"),
            "calibration": {"seconds": round(time.perf_counter() - started, 1), "load": load, "rates": asdict(rates)},
            "configurations": [],
        }
        for number, configuration in enumerate(configurations):
            found = compare(configuration, data, folder / str(number), rates)
            print(json.dumps(found), file=sys.stderr, flush=True)
            results["configurations"].append(found)
    return results


def compare(configuration: Configuration, data: Path, folder: Path, rates: Rates) -> dict[str, Any]:
    """Train one configuration, and predict what it took."""
    folder.mkdir()
    encoder = make_encoder(configuration.encoder, folder / "encoder")
    load = os.getloadavg()[0]
    run = train(configuration, encoder, data, folder)
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"]
    usage = json.loads((run / "run.json").read_text(encoding="utf-8"))["training"]
    info = load_shards_info(run / "shards")
    split = info.splits["train"]
    words = sum(row["num_words"] for row in rows) / sum(row["num_tokens"] for row in rows)
    lengths = Lengths.from_records(split.token_histogram, window=info.window, stride=info.stride)
    batch_tokens, accumulation = divide_batch(lengths, configuration.batch_tokens, 4096, 1)
    precision = choose_precision(torch.device("cpu"))  # as `auto` does
    setup = TrainingSetup(
        batch_tokens, accumulation, precision=precision, num_tags=len(info.tags), num_epochs=NUM_EPOCHS
    )
    architecture = read_architecture(encoder)
    memory = estimate_training_memory(architecture, setup, lengths)
    step = estimate_step_s(architecture, setup, lengths, rates)
    counted = rows[WARMUP_STEPS:]
    measured_s = statistics.mean(row["seconds"] for row in counted)
    return {
        **asdict(configuration),
        "precision": precision,
        "num_steps": len(rows),
        "load": load,
        "words_per_token": {"predicted": lengths.words_per_token, "measured": round(words, 3)},
        "tokens_per_step": round(statistics.mean(row["num_tokens"] for row in counted)),
        "memory_mib": {
            "predicted": round(memory.total / MIB),
            "measured": usage["worker_peak_memory_mib"],
            "ratio": round(memory.total / MIB / usage["worker_peak_memory_mib"], 3),
            "parts": {name: round(value / MIB) for name, value in vars(memory).items()},
        },
        "step_s": {
            "predicted": round(step.total, 4),
            "measured": round(measured_s, 4),
            "median": round(statistics.median(row["seconds"] for row in counted), 4),
            "ratio": round(step.total / measured_s, 3),
            "parts": {name: round(value, 4) for name, value in vars(step).items()},
        },
    }


def make_encoder(name: str, folder: Path) -> str:
    """The quickstart's encoder, or a random one of another shape with its vocabulary."""
    if name == QUICKSTART:
        return name
    torch.manual_seed(1)
    AutoModel.from_config(SHAPES[name]).save_pretrained(folder)
    load_tokenizer(find_encoder(QUICKSTART)).save_pretrained(folder)
    return str(folder)


def train(configuration: Configuration, encoder: str, data: Path, folder: Path) -> Path:
    """Run `rayner train` on as much of the corpus as the steps need; returns the run folder."""
    samples = list(read_samples(data.joinpath(*CORPORA[configuration.corpus])))
    if configuration.corpus == "documents":
        samples = join_samples(samples)
    scored, samples = samples[:NUM_SCORED], samples[NUM_SCORED:]
    write_samples(scored, folder / "scored.conll")
    needed = take_tokens(samples, configuration.batch_tokens * NUM_STEPS / NUM_EPOCHS, encoder)
    write_samples(needed, folder / "train.conll")
    run = folder / "run"
    settings = {
        "corpus.train": f"[{folder / 'train.conll'}]",
        "corpus.dev": f"[{folder / 'scored.conll'}]",
        "corpus.test": f"[{folder / 'scored.conll'}]",
        "model.encoder": encoder,
        "encoding.window": WINDOW,
        "encoding.stride": STRIDE,
        "training.batch_tokens": configuration.batch_tokens,
        "training.num_epochs": NUM_EPOCHS,
        "output_dir": run,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "pipelines.train", *flags], check=True, stdout=subprocess.DEVNULL)
    return run


def take_tokens(samples: Sequence[Sample], num_tokens: float, encoder: str) -> Iterator[Sample]:
    """So many sub-tokens of samples."""
    tokenizer, total = load_tokenizer(find_encoder(encoder)), 0
    for words, tags in samples:
        if total >= num_tokens:
            return
        total += len(tokenizer(words, is_split_into_words=True)["input_ids"])
        yield words, tags


def write_samples(samples: Sequence[Sample] | Iterator[Sample], path: Path) -> None:
    """As CoNLL."""
    blocks = ["".join(f"{word}\t{tag}\n" for word, tag in zip(*sample, strict=True)) for sample in samples]
    path.write_text("\n".join(blocks), encoding="utf-8")


def render_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| encoder | corpus | memory, predicted | measured | off by | step, predicted | measured | off by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results["configurations"]:
        memory, step = one["memory_mib"], one["step_s"]
        lines.append(
            f"| {one['encoder']} | {one['corpus']} | {memory['predicted']:,} MiB | {memory['measured']:,} MiB | "
            f"{memory['ratio'] - 1:+.0%} | {step['predicted']:.3f} s | {step['measured']:.3f} s | "
            f"{step['ratio'] - 1:+.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
