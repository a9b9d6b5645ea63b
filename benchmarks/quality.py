"""What each option of training buys and costs: the loop of `rayner train` with one option changed, over seeds.

    python -m benchmarks.quality [--data ../shared/data] [--seeds 1 2 3] [--corpora wnut17 ncbi_disease] [--recipes …]

Next to them, the same network trained by transformers' `Trainer`, with settings tuned by hand. Each corpus is prepared
as `rayner prepare` does, once for each form that recipes need. Each run is in bf16, with one thread and a process of
its own, two at a time; its time is that of the processor, so that others on the machine do not count for much. All are
scored in fp32. Runs that are in `benchmarks/results/quality.json` are not done again; the file is written after every
run. Differences to the defaults are tested by a paired bootstrap over the test documents of all seeds together. Writes
the table of README.md at the end.
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

import torch

from benchmarks.tables import README, put_table
from pipelines.corpus.shards import find_shards_encoder, load_shards_info, read_rows, read_windows
from pipelines.evaluation.bootstrap import paired_bootstrap
from pipelines.evaluation.metrics import Scored, Tallies, count, count_documents, scores
from pipelines.ner.bundle import Bundle, BundleInfo
from pipelines.ner.encoders import load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.engine import NerEngine
from pipelines.ner.model import TokenClassifier, build_token_classifier
from pipelines.run_record import read_git_revision, read_versions
from pipelines.settings import parse_settings
from pipelines.train import TrainConfig
from pipelines.training.batches import TrainingWindows
from pipelines.training.devices import resolve_precision
from pipelines.training.loop import train

RESULTS = Path(__file__).parent / "results" / "quality.json"
ENCODER = "all-MiniLM-L6-v2"
CORPORA = {
    "wnut17": ("train.conll", "dev.conll", "test.conll"),
    "ncbi_disease": ("train.tsv", "devel.tsv", "test.tsv"),
    "zh_gsdsimp": ("train.iob2", "dev.iob2", "test.iob2"),
}
DEFAULTS = "defaults"
BASE = ["--training.precision", "bf16"]
"""Of every recipe, unless it says otherwise."""
RECIPES: dict[str, list[str]] = {
    DEFAULTS: [],
    "without the case of words": ["--model.casing", "false"],
    "head at the encoder's rate": ["--training.optimizer.head_learning_rate", "2e-4"],
    "three epochs": ["--training.num_epochs", "3"],
    "dense embeddings": ["--training.optimizer.sparse_embeddings", "false"],
    "BIOES": ["--model.scheme", "BIOES"],
    "CRF": ["--model.head", "crf"],
    "CRF, BIOES": ["--model.head", "crf", "--model.scheme", "BIOES"],
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
    "fp32": ["--training.precision", "fp32"],
}
PEER = "transformers' Trainer, tuned by hand"
PEER_SETTINGS: dict[str, Any] = {
    "num_train_epochs": 3,
    "learning_rate": 3e-4,
    "per_device_train_batch_size": 32,
    "bf16": True,
    "optim": "adamw_torch_fused",
    "train_sampling_strategy": "group_by_length",
}
"""The best of a few tries by hand on dev; its network, too, is taken from the epoch that is best on dev."""
ENCODED = ("--model.casing", "--model.scheme")
"""Settings by which the shards differ."""
NUM_PROCESSES = 2

Run = dict[str, Any]


def main() -> None:
    """Measure what is not measured yet, write the results, render the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--corpora", nargs="+", default=["wnut17", "ncbi_disease"], choices=list(CORPORA))
    parser.add_argument("--recipes", nargs="+", default=[*RECIPES, PEER], choices=[*RECIPES, PEER])
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
    README.write_text(put_table(README.read_text(encoding="utf-8"), render_table(results), "quality"), encoding="utf-8")


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
        form: prepare(arguments.data / form[0], CORPORA[form[0]], form[1], folder / "-".join([form[0], *form[1]]))
        for form in {(corpus, find_encoding(recipe)) for corpus, recipe, _ in wanted}
    }

    def do(run: tuple[str, str, int]) -> tuple[tuple[str, str, int], Run]:
        corpus, recipe, seed = run
        command = [sys.executable, "-m", "benchmarks.quality", "--one"]
        command += [str(shards[corpus, find_encoding(recipe)]), recipe, str(seed)]
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


def find_encoding(recipe: str) -> tuple[str, ...]:
    """The flags of a recipe by which its shards differ from those of the defaults."""
    flags = ["--model.casing", "false"] if recipe == PEER else RECIPES[recipe]
    return tuple(
        part for name, value in zip(flags[::2], flags[1::2], strict=True) if name in ENCODED for part in (name, value)
    )


def prepare(folder: Path, files: Sequence[str], flags: Sequence[str], output: Path) -> Path:
    """The shards of a corpus."""
    command = [sys.executable, "-m", "pipelines.prepare", "--model.encoder", ENCODER]
    command += [*flags, "--output_dir", str(output)]
    for split, file in zip(("train", "dev", "test"), files, strict=True):
        command += [f"--corpus.{split}", str(folder / file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return output


class Bench:
    """A corpus and its encoder, and how a network is scored on it."""

    def __init__(self, shards: Path, recipe: str, seed: int) -> None:
        self.info = load_shards_info(shards)
        flags = [*BASE, *RECIPES.get(recipe, []), "--training.seed", str(seed), "--corpus.shards", str(shards)]
        self.config = parse_settings("train", TrainConfig, flags, "")
        self.name = find_shards_encoder(shards, self.info)
        self.encoder = Encoder(
            load_tokenizer(self.name),
            window=self.info.window,
            stride=self.info.stride,
            splitter=self.info.splitter,
            casing=self.info.casing,
        )
        self.gold = {
            split: [Scored.from_row(row, self.info.corpus_scheme) for row in read_rows(shards, split)]
            for split in ("dev", "test")
        }
        self.windows = read_windows(shards)
        self.num_tokens, self.seconds, self.began, self.dev_f1s = 0, 0.0, 0.0, list[float]()

    def build_model(self) -> TokenClassifier:
        """The encoder with a new head."""
        torch.manual_seed(self.config.training.seed)
        return build_token_classifier(self.name, self.info.label_scheme, self.config.model, casing=self.info.casing)

    def predict(self, model: TokenClassifier, split: str) -> list[Scored]:
        """The records of a split with what the engine finds in them."""
        info = self.info
        about = BundleInfo(info.scheme, self.config.model.head, info.splitter, info.window, info.stride)
        engine = NerEngine(Bundle(model, self.encoder, about), device="cpu", runtime="packed", precision="fp32")
        spans = engine.predict_documents([one.content for one in self.gold[split]])
        return [replace(one, predicted=found) for one, found in zip(self.gold[split], spans, strict=True)]

    def count_step(self, num_tokens: int) -> None:
        """A step has ended."""
        now = time.process_time()
        self.num_tokens, self.seconds, self.began = self.num_tokens + num_tokens, self.seconds + now - self.began, now

    def start_clock(self) -> None:
        """From now on time counts: scoring is not training."""
        self.began = time.process_time()

    def report(self, model: TokenClassifier, recipe: str) -> Run:
        """Scores of dev and test, the tallies of each test document, and what it took."""
        tested = self.predict(model, "test")
        return {
            "test_strict_f1": measure_f1(tested),
            "dev_strict_f1": max(self.dev_f1s),
            "dev_by_epoch": self.dev_f1s,
            "cpu_s": round(self.seconds, 1),
            "num_tokens": self.num_tokens,
            "flags": RECIPES.get(recipe, PEER_SETTINGS),
            "cpu_has_bf16": resolve_precision("auto", torch.device("cpu")) == "bf16",
            "git_revision": read_git_revision(),
            "versions": read_versions(),
            "documents": pack_tallies(count_documents(tested)),
        }


def measure_f1(records: Sequence[Scored]) -> float:
    """Strict micro F1."""
    f1: float = scores(count(records))["strict"]["micro"]["f1"]
    return f1


def run_recipe(shards: Path, recipe: str, seed: int, encoder: str | None = None) -> Run:
    """Train by a recipe without Ray; on another encoder with the same tokenizer, if one is given."""
    torch.set_num_threads(1)
    bench = Bench(shards, recipe, seed)
    bench.name = encoder or bench.name
    return run_peer(bench) if recipe == PEER else bench.report(fit(bench), recipe)


def fit(bench: Bench) -> TokenClassifier:
    """Train as `rayner train` does, and take the epoch that is best on dev."""

    class Listener:
        def on_start(self, metrics: Run) -> None:
            bench.start_clock()

        def on_step(self, metrics: Run) -> None:
            bench.count_step(metrics["num_tokens"])

        def on_checkpoint(self, metrics: Run | None, get_state: Any) -> None:
            if metrics is not None:
                bench.dev_f1s.append(metrics["dev_f1"])
            bench.start_clock()

    model = bench.build_model()
    state = train(
        model,
        TrainingWindows(bench.windows),
        bench.config.training,
        pad_id=bench.encoder.pad_id,
        device=torch.device("cpu"),
        evaluate=lambda scored: measure_f1(bench.predict(scored, "dev")),
        listener=Listener(),
    )
    model.load_state_dict(state.best_model)
    return model


def run_peer(bench: Bench) -> Run:
    """Train the same network on the same windows by transformers' Trainer."""
    from transformers import DataCollatorForTokenClassification, Trainer, TrainerCallback, TrainingArguments

    model = bench.build_model()
    best: dict[str, torch.Tensor] = {}

    class Watch(TrainerCallback):
        def on_train_begin(self, *args: Any, **more: Any) -> None:
            bench.start_clock()

        def on_epoch_end(self, *args: Any, **more: Any) -> None:
            f1 = measure_f1(bench.predict(model.eval(), "dev"))
            if f1 > max(bench.dev_f1s, default=-1.0):
                best.update({name: value.clone() for name, value in model.state_dict().items()})
            bench.dev_f1s.append(f1)
            model.train()
            bench.start_clock()

    class TimedTrainer(Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            bench.count_step(0)  # what is between two steps counts as well
            loss = super().training_step(model, inputs, *args, **more)
            bench.count_step(int(inputs["attention_mask"].sum()))
            return loss

    rows = []
    for row in bench.windows.to_pylist():
        labels = [-100] * len(row["input_ids"])
        for at, tag in zip(row["word_starts"], row["tag_ids"], strict=True):
            labels[at] = tag
        rows.append({"input_ids": row["input_ids"], "attention_mask": [1] * len(labels), "labels": labels})
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=bench.config.training.seed,
            **PEER_SETTINGS,
        )
        collator = DataCollatorForTokenClassification(load_tokenizer(bench.name))
        TimedTrainer(model.network, arguments, train_dataset=rows, data_collator=collator, callbacks=[Watch()]).train()
    model.load_state_dict(best)
    return bench.report(model, PEER)


def pack_tallies(documents: Mapping[str, Tallies]) -> str:
    """The strict tallies of documents as `PLACE:TP,FP,FN …`: a hundredth of the room; those with nothing are left out.

    PLACE is the document's among those of the split.
    """
    sums = [[sum(column) for column in zip(*tallies.values(), strict=True)][:3] for tallies in documents.values()]
    return " ".join(f"{at}:{','.join(map(str, tally))}" for at, tally in enumerate(sums) if any(tally))


def unpack_tallies(packed: str) -> dict[str, list[int]]:
    """Place → tp, fp, fn."""
    pairs = (one.split(":") for one in packed.split())
    return {place: [int(number) for number in tally.split(",")] for place, tally in pairs}


def compare(runs: Mapping[str, Run], others: Mapping[str, Run]) -> dict[str, float] | None:
    """Test F1 of runs minus that of others, over the documents of the seeds that both have."""
    seeds = sorted(runs.keys() & others.keys())
    if not seeds:
        return None
    one, other = (
        {(seed, place): tally for seed in seeds for place, tally in unpack_tallies(some[seed]["documents"]).items()}
        for some in (runs, others)
    )
    every = one.keys() | other.keys()  # a document without gold may have predictions in one of the two only
    some, rest = (
        {f"{seed} {place}": {"all": found.get((seed, place), [0, 0, 0])} for seed, place in every}
        for found in (one, other)
    )
    return paired_bootstrap(some, rest)


def render_table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    names = list(results)
    head = " | ".join(f"{name} test F1 | dev F1 | difference (p) | CPU time" for name in names)
    lines = [f"| recipe | {head} |", "|---|" + "---|" * 4 * len(names)]
    for recipe in (*RECIPES, PEER):
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
