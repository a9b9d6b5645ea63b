"""What augmentation brings where there is little to train on, each technique alone.

    python -m benchmarks.augmentation [--data ../shared/data] [--percents 1 5 25 100] [--seeds 1 2 3] [--recipes …]

WNUT-17's train split is cut down to some percent of its documents (by a hash of their ids with the seed, a smaller part
within a larger one); dev and test stay whole, which real low-resource work would not have: the epoch is chosen on more
documents than are trained on. Siblings are made from that part alone. All runs of a part read about as many sub-tokens,
with siblings or without, so that what they gain is not a longer training. Each run is in fp32, which is the same on
every machine, with one thread, in a process of its own and without Ray, on the code that `rayner prepare` runs. Runs
that are in `benchmarks/results/augmentation.json` are not done again; the file is written after every run. Differences
to the same seeds without augmentation are tested by a paired bootstrap over the test documents. Writes the table of
README.md and the plot at the end.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks.quality import CORPORA, Bench, Run, compare, fit, prepare
from benchmarks.tables import README, put_table
from pipelines.corpus.augmentation.config import TECHNIQUES, AugmentationConfig
from pipelines.corpus.augmentation.pools import Counts
from pipelines.corpus.augmentation.siblings import Augmenter, add_siblings, read_samples
from pipelines.corpus.shards import flatten_windows, load_shards_info, read_split
from pipelines.corpus.windows import EncodeRecords
from pipelines.evaluation.curves import render_curves_svg
from pipelines.settings import parse_settings
from pipelines.train import TrainConfig

RESULTS = Path(__file__).parent / "results" / "augmentation.json"
PLOT = RESULTS.with_suffix(".svg")
CORPUS = "wnut17"
NONE = "none"
FP32 = "fp32"
"""The recipe of `benchmarks.quality` that all runs are."""
CHINESE = ("width_forms", "script_forms")
RECIPES: dict[str, list[str]] = {
    NONE: [],
    **{name: [f"--corpus.augmentation.{name}", "1"] for name in TECHNIQUES if name not in CHINESE},
}
"""Flags of `rayner train`; a technique alone makes one sibling of each record."""
PASSES = {1: (40, 256), 5: (16, 256), 25: (8, 512), 100: (4, 1024)}
"""Percent of the train documents → passes over them without siblings, and sub-tokens of a step."""
NUM_SCORINGS = 4
"""About how often dev is scored in a run."""
STYLE = "<style>svg{color:#1f2328;font-family:sans-serif}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"


def main() -> None:
    """Measure what is not measured yet, write the results, render the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--percents", type=int, nargs="+", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--shards", type=Path, help="the prepared corpus, made if it is not there; default: made anew")
    parser.add_argument("--render", action="store_true", help="run nothing; only write the table and the plot")
    parser.add_argument(
        "--one", nargs=4, metavar=("SHARDS", "PERCENT", "RECIPE", "SEED"), help="prints one run's result"
    )
    arguments = parser.parse_args()
    if arguments.one:
        shards, percent, recipe, seed = arguments.one
        print(json.dumps(run_recipe(Path(shards), int(percent), recipe, int(seed))))
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not arguments.render:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, results, arguments.shards or Path(folder) / "shards")
    page = README.read_text(encoding="utf-8")
    README.write_text(put_table(page, render_table(results), "augmentation"), encoding="utf-8")
    PLOT.write_text(render_plot(results) + "\n", encoding="utf-8")


def measure(arguments: argparse.Namespace, results: dict[str, Any], shards: Path) -> None:
    """Do the runs that are wanted and not in `results`, and write these after each."""
    wanted = [
        (percent, recipe, seed)
        for seed in arguments.seeds
        for percent in arguments.percents
        for recipe in arguments.recipes
        if str(seed) not in results.get(str(percent), {}).get(recipe, {})
    ]
    if wanted and not shards.exists():
        prepare(arguments.data / CORPUS, CORPORA[CORPUS], (), shards)

    def do(run: tuple[int, str, int]) -> tuple[tuple[int, str, int], Run]:
        percent, recipe, seed = run
        command = [sys.executable, "-m", "benchmarks.augmentation", "--one", str(shards)]
        command += [str(percent), recipe, str(seed)]
        alone = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | alone, text=True)
        return run, json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(arguments.processes) as pool:
        for (percent, recipe, seed), found in pool.map(do, wanted):
            results.setdefault(str(percent), {}).setdefault(recipe, {})[str(seed)] = found
            told = {name: found[name] for name in ("test_strict_f1", "dev_strict_f1", "num_siblings", "cpu_s")}
            print(f"{percent} %, {recipe}, seed {seed}: {told}", flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def run_recipe(shards: Path, percent: int, recipe: str, seed: int) -> Run:
    """Train on a part of the corpus and its siblings."""
    torch.set_num_threads(1)
    bench = Bench(shards, FP32, seed)
    corpus = ["--corpus.train", "x"]
    config = parse_settings("train", TrainConfig, [*RECIPES[recipe], *corpus], "").corpus.augmentation
    part = take_part(read_split(shards, "train"), percent, seed)
    base, windows = (
        encode_part(bench, shards, part, one) for one in (AugmentationConfig(), replace(config, seed=seed))
    )
    passes, batch_tokens = PASSES[percent]
    repeats, num_epochs = plan_passes(passes * count_tokens(base) / count_tokens(windows))
    bench.windows = pa.concat_tables([windows] * repeats)
    training = replace(bench.config.training, num_epochs=num_epochs, batch_tokens=batch_tokens)
    bench.config = replace(bench.config, training=training)
    model = fit(bench)
    facts = {
        "flags": RECIPES[recipe],
        "num_documents": len(set(part["doc_id"].to_pylist())),
        "num_siblings": len(set(windows["record_id"].to_pylist())) - len(set(base["record_id"].to_pylist())),
        "passes": repeats * num_epochs,
        "batch_tokens": batch_tokens,
    }
    return bench.report(model, FP32) | facts


def take_part(records: pa.Table, percent: int, seed: int) -> pa.Table:
    """So many percent of the documents, those whose hashes are lowest: a smaller part lies within a larger one."""

    def place(doc_id: str) -> bytes:
        name = doc_id.rsplit("/", 1)[-1]
        return hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()

    documents = sorted(set(records["doc_id"].to_pylist()), key=place)
    chosen = documents[: max(1, round(len(documents) * percent / 100))]
    part = records.filter(pc.is_in(records["doc_id"], pa.array(chosen))).sort_by("record_id")
    return part.append_column("split", pa.array(["train"] * len(part)))


def encode_part(bench: Bench, shards: Path, part: pa.Table, config: AugmentationConfig) -> pa.Table:
    """The windows of records and their siblings, as `rayner prepare` makes them."""
    info = load_shards_info(shards)
    if config.rates:
        counts = Counts()
        for _, sample in read_samples(part, info.splitter, info.corpus_scheme):
            counts.add_sample(sample)
        mask_token = bench.encoder.tokenizer.mask_token
        part = add_siblings(part, Augmenter(config, info.splitter, info.corpus_scheme, counts.freeze(), mask_token))
    encode = EncodeRecords(
        bench.name, info.window, info.stride, info.splitter, info.casing, info.label_scheme, info.corpus_scheme
    )
    return flatten_windows(encode(part))


def count_tokens(windows: pa.Table) -> int:
    """Sub-tokens of windows."""
    return int(pc.sum(pc.list_value_length(windows["input_ids"])).as_py())


def plan_passes(passes: float) -> tuple[int, int]:
    """How often the windows stand in an epoch, and epochs, for so many passes scored about `NUM_SCORINGS` times."""
    repeats = max(1, int(passes / NUM_SCORINGS))
    return repeats, max(1, round(passes / repeats))


def render_table(results: Mapping[str, Any]) -> str:
    """Test F1 by part of train and recipe, and its difference to none, as a Markdown table."""
    percents = [str(percent) for percent in PASSES if results.get(str(percent))]
    head = " | ".join(f"{percent} %: test F1 | difference (p)" for percent in percents)
    lines = [f"| augmentation | {head} |", "|---|" + "---|---|" * len(percents)]
    for recipe in RECIPES:
        cells = [recipe]
        for percent in percents:
            runs, others = results[percent].get(recipe, {}), results[percent].get(NONE, {})
            found = compare(runs, others) if recipe != NONE else None
            cells.append(_render_f1(runs))
            cells.append(f"{100 * found['difference']:+.1f} ({found['p_value']:.3f})" if found else "")
        if any(cells[1:]):
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_plot(results: Mapping[str, Any]) -> str:
    """What each recipe adds to the mean test F1 of the seeds that it and none have, by part of train, as SVG."""
    series: dict[str, list[tuple[float, float]]] = {}
    for at, percent in enumerate(PASSES):
        some = results.get(str(percent), {})
        for recipe in RECIPES:
            seeds = some.get(recipe, {}).keys() & some.get(NONE, {}).keys()
            if seeds:
                gains = [some[recipe][seed]["test_strict_f1"] - some[NONE][seed]["test_strict_f1"] for seed in seeds]
                series.setdefault(recipe, []).append((at, 100 * statistics.mean(gains)))
    names = [f"{percent} %" for percent in PASSES]
    plot = render_curves_svg(
        series, "part of WNUT-17's train documents", "points of strict F1", "What augmentation adds on test", names
    )
    head, end, rest = plot.partition(">")
    return f"{head}{end}{STYLE}{rest}"


def _render_f1(runs: Mapping[str, Run]) -> str:
    tested: Sequence[float] = [100 * run["test_strict_f1"] for run in runs.values()]
    if not tested:
        return ""
    return f"{statistics.mean(tested):.1f}" + (f" ± {statistics.stdev(tested):.1f}" if len(tested) > 1 else "")


if __name__ == "__main__":
    main()
