"""What each option of training buys and costs: the loop of `rayner train` with one option changed, over seeds.

    python -m benchmarks.recipes [--data ../shared/data] [--seeds 1 2 3] [--corpora wnut17 ncbi_disease] [--recipes …]

Each corpus is prepared once as `rayner prepare` does. Each run is in fp32, so that machines without bf16 measure the
same, with one thread and a process of its own, two at a time; its time is that of the processor, so that others on the
machine do not count for much. Runs that are in
`benchmarks/results/recipes.json` are not done again; the file is written after every run. Differences to the defaults
are tested by a paired bootstrap over the test documents of all seeds together. Writes the table of README.md at the
end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.quality import CORPORA, ENCODER
from benchmarks.tables import README, put_table
from pipelines.corpus.shards import find_shards_encoder, load_shards_info, read_rows, read_windows
from pipelines.evaluation.bootstrap import paired_bootstrap
from pipelines.evaluation.metrics import Scored, count, count_documents, scores
from pipelines.ner.bundle import Bundle, BundleInfo
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.engine import NerEngine
from pipelines.ner.model import TokenClassifier, build_token_classifier
from pipelines.run_record import read_git_revision, read_versions
from pipelines.settings import parse_settings
from pipelines.train import TrainConfig

RESULTS = Path(__file__).parent / "results" / "recipes.json"
DEFAULTS = "defaults"
BASE = ["--training.precision", "fp32"]
"""Of every recipe, unless it says otherwise: the one precision that all machines have."""
RECIPES: dict[str, list[str]] = {
    DEFAULTS: [],
    "without the case of words": ["--model.casing", "false"],
    "head at the encoder's rate": ["--training.optimizer.head_learning_rate", "2e-4"],
    "three epochs": ["--training.num_epochs", "3"],
    "dense embeddings": ["--training.optimizer.sparse_embeddings", "false"],
    "CRF": ["--model.head", "crf"],
    "layer decay 0.9": ["--training.optimizer.layer_decay", "0.9"],
    "cosine": ["--training.optimizer.schedule", "cosine"],
    "constant": ["--training.optimizer.schedule", "constant"],
    "no warm-up": ["--training.optimizer.warmup_fraction", "0"],
    "dropout 0.2": ["--model.dropout", "0.2"],
    "label smoothing 0.05": ["--training.label_smoothing", "0.05"],
    "embeddings frozen": ["--training.freezing.layers", "0"],
    "gradual unfreezing": ["--training.freezing.layers", "6", "--training.freezing.unfreeze_per_epoch", "2"],
    "FGM": ["--training.adversarial.method", "fgm"],
    "PGD": ["--training.adversarial.method", "pgd"],
    "AWP": ["--training.adversarial.method", "awp"],
    "R-Drop": ["--training.r_drop", "1"],
    "dropout samples 5": ["--training.dropout_samples", "5"],
    "EMA": ["--training.averaging.method", "ema", "--training.averaging.decay", "0.99"],
    "SWA": ["--training.averaging.method", "swa"],
    "bf16": ["--training.precision", "bf16"],
}
NO_CASING = "without the case of words"
NUM_PROCESSES = 2

Run = dict[str, Any]


def main() -> None:
    """Measure what is not measured yet, write the results, render the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--corpora", nargs="+", default=["wnut17", "ncbi_disease"], choices=list(CORPORA))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--render", action="store_true", help="run nothing; only put the table into README.md")
    parser.add_argument("--one", nargs=3, metavar=("SHARDS", "RECIPE", "SEED"), help="one run; prints its result")
    arguments = parser.parse_args()
    if arguments.one:
        shards, recipe, seed = arguments.one
        print(json.dumps(run_recipe(Path(shards), recipe, int(seed))))
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not arguments.render:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, results, Path(folder))
    README.write_text(put_table(README.read_text(encoding="utf-8"), render_table(results), "recipes"), encoding="utf-8")


def measure(arguments: argparse.Namespace, results: dict[str, Any], folder: Path) -> None:
    """Do the runs that are wanted and not in `results`, and write these after each."""
    wanted = [
        (corpus, recipe, seed)
        for seed in arguments.seeds
        for recipe in arguments.recipes
        for corpus in arguments.corpora
        if str(seed) not in results.get(corpus, {}).get(recipe, {})
    ]
    shards = {
        (corpus, casing): prepare(arguments.data / corpus, CORPORA[corpus], casing, folder / f"{corpus}-{casing}")
        for corpus, casing in {(corpus, recipe != NO_CASING) for corpus, recipe, _ in wanted}
    }

    def do(run: tuple[str, str, int]) -> tuple[tuple[str, str, int], Run]:
        """Train one in a process of its own, with one thread."""
        corpus, recipe, seed = run
        command = [sys.executable, "-m", "benchmarks.recipes", "--one"]
        command += [str(shards[corpus, recipe != NO_CASING]), recipe, str(seed)]
        alone = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | alone, text=True)
        return run, json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(NUM_PROCESSES) as pool:
        for (corpus, recipe, seed), found in pool.map(do, wanted):
            results.setdefault(corpus, {}).setdefault(recipe, {})[str(seed)] = found
            told = {name: found[name] for name in ("test_strict_f1", "dev_strict_f1", "cpu_s")}
            print(f"{corpus}, {recipe}, seed {seed}: {told}", flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def prepare(folder: Path, files: Sequence[str], casing: bool, output: Path) -> Path:
    """The shards of a corpus."""
    command = [sys.executable, "-m", "pipelines.prepare", "--model.encoder", ENCODER]
    command += ["--model.casing", str(casing).lower(), "--output_dir", str(output)]
    for split, file in zip(("train", "dev", "test"), files, strict=True):
        command += [f"--corpus.{split}", str(folder / file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return output


def run_recipe(shards: Path, recipe: str, seed: int) -> Run:
    """Train by a recipe without Ray; scores of dev and test, the tallies of each test document, and what it took."""
    import torch

    from pipelines.training.batches import TrainingWindows
    from pipelines.training.devices import resolve_precision
    from pipelines.training.loop import train

    torch.set_num_threads(1)
    info = load_shards_info(shards)
    flags = [*BASE, *RECIPES[recipe], "--training.seed", str(seed), "--corpus.shards", str(shards)]
    config = parse_settings("train", TrainConfig, flags, "")
    name = find_shards_encoder(shards, info)
    torch.manual_seed(seed)
    model = build_token_classifier(name, info.label_scheme, config.model, casing=info.casing)
    encoder = Encoder(
        load_tokenizer(name), window=info.window, stride=info.stride, splitter=info.splitter, casing=info.casing
    )
    about = BundleInfo(info.scheme, config.model.head, info.splitter, info.window, info.stride)
    gold = {
        split: [Scored.from_row(row, info.corpus_scheme) for row in read_rows(shards, split)]
        for split in ("dev", "test")
    }

    def predict(scored: TokenClassifier, split: str) -> list[Scored]:
        """A split's records as the engine predicts them."""
        engine = NerEngine(Bundle(scored, encoder, about), device="cpu", runtime="torch", precision="fp32")
        spans = engine.predict_documents([one.content for one in gold[split]])
        return [replace(one, predicted=found) for one, found in zip(gold[split], spans, strict=True)]

    def measure_f1(records: Sequence[Scored]) -> float:
        """Strict micro F1."""
        f1: float = scores(count(records))["strict"]["micro"]["f1"]
        return f1

    class Listener:
        """Adds up the processor's seconds of the steps, without scoring."""

        def __init__(self) -> None:
            self.num_tokens, self.seconds, self.dev_f1s = 0, 0.0, list[float]()

        def on_start(self, metrics: Run) -> None:
            """The clock starts."""
            self.began = time.process_time()

        def on_step(self, metrics: Run) -> None:
            """A step's sub-tokens and seconds count."""
            self.num_tokens += metrics["num_tokens"]
            now = time.process_time()
            self.seconds, self.began = self.seconds + now - self.began, now

        def on_checkpoint(self, metrics: Run | None, get_state: Any) -> None:
            """An epoch's dev F1 is kept, and the clock starts again."""
            if metrics is not None:
                self.dev_f1s.append(metrics["dev_f1"])
            self.began = time.process_time()  # scoring is not training

    listener = Listener()
    state = train(
        model,
        TrainingWindows(read_windows(shards)),
        config.training,
        pad_id=encoder.pad_id,
        device=torch.device("cpu"),
        evaluate=lambda scored: measure_f1(predict(scored, "dev")),
        listener=listener,
    )
    model.load_state_dict(state.best_model)
    tested = predict(model, "test")
    return {
        "test_strict_f1": measure_f1(tested),
        "dev_strict_f1": state.best_f1,
        "dev_by_epoch": listener.dev_f1s,
        "cpu_s": round(listener.seconds, 1),
        "num_tokens": listener.num_tokens,
        "flags": RECIPES[recipe],
        "cpu_has_bf16": resolve_precision("auto", torch.device("cpu")) == "bf16",
        "git_revision": read_git_revision(),
        "versions": read_versions(),
        "documents": {name: tally for name, tally in count_documents(tested).items() if any(map(any, tally.values()))},
    }


def compare(runs: Mapping[str, Run], others: Mapping[str, Run]) -> dict[str, float] | None:
    """Test F1 of runs minus that of others, over the documents of the seeds that both have."""
    seeds = sorted(runs.keys() & others.keys())
    if not seeds:
        return None
    one, other = (
        {(seed, name): tally for seed in seeds for name, tally in some[seed]["documents"].items()}
        for some in (runs, others)
    )
    every = one.keys() | other.keys()  # a document without gold may have predictions in one of the two only
    some, rest = ({f"{seed} {name}": found.get((seed, name), {}) for seed, name in every} for found in (one, other))
    return paired_bootstrap(some, rest)


def render_table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    names = list(results)
    head = " | ".join(f"{name} test F1 | dev F1 | difference (p) | CPU time" for name in names)
    lines = [f"| recipe | {head} |", "|---|" + "---|" * 4 * len(names)]
    for recipe in RECIPES:
        cells = [recipe]
        for corpus in names:
            runs = results[corpus].get(recipe, {})
            cells += _render_runs(runs, results[corpus].get(DEFAULTS, {}), recipe) if runs else ["", "", "", ""]
        if any(cells[1:]):
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _render_runs(runs: Mapping[str, Run], defaults: Mapping[str, Run], recipe: str) -> list[str]:
    tested = [100 * run["test_strict_f1"] for run in runs.values()]
    deviation = f" ± {statistics.stdev(tested):.1f}" if len(tested) > 1 else ""
    dev = 100 * statistics.mean(run["dev_strict_f1"] for run in runs.values())
    seconds = statistics.mean(run["cpu_s"] for run in runs.values())
    found = compare(runs, defaults) if recipe != DEFAULTS else None
    difference = f"{100 * found['difference']:+.1f} ({found['p_value']:.3f})" if found else ""
    usual = statistics.mean(run["cpu_s"] for run in defaults.values()) if defaults else None
    cost = f"{seconds:.0f} s" if recipe == DEFAULTS or not usual else f"{seconds / usual:.2f} ×"
    return [f"{statistics.mean(tested):.1f}{deviation}", f"{dev:.1f}", difference, cost]


if __name__ == "__main__":
    main()
