"""What reading the corpus's own text first brings: perplexity on held-out text, and F1 after fine-tuning.

    python -m benchmarks.pretrain [--data ../shared/data] [--work out/pretrain-bench] [--seeds 1 2 3] [--epochs 4]

All-MiniLM-L6-v2, which brings no head for hidden sub-tokens, reads the words of WNUT-17's training split (never those
of dev or test), a part of it held out. `head alone` trains the new head on the encoder as it is: what the encoder knew
before. Then each encoder is fine-tuned as `benchmarks.quality` does with the defaults, and compared with its runs of
the encoder as it is; a difference is tested by a paired bootstrap over the test documents of all seeds. One thread,
bf16, without Ray. What is in the results file is not done again; it is written after every run, and a pretraining that
was cut short goes on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from benchmarks import quality
from pipelines.corpus.formats.files import read_records
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.mentions import MentionSources
from pipelines.corpus.raw_text import PackText
from pipelines.corpus.records import Record, to_table
from pipelines.corpus.text_config import TextEncoding
from pipelines.encoder_folder import write_encoder
from pipelines.ner.encoders import find_encoder
from pipelines.run_record import read_git_revision, read_versions
from pipelines.training.config import TrainingConfig
from pipelines.training.freezing import FreezingConfig
from pipelines.training.history import read_metrics, summarize_usage
from pipelines.training.job import load_result
from pipelines.training.masking import MaskingConfig
from pipelines.training.parallel import ParallelConfig
from pipelines.training.pretraining import PretrainingJob
from pipelines.training.recorder import METRICS_FILE
from pipelines.training.worker import fit_here

RESULTS = Path(__file__).parent / "results" / "pretrain.json"
CORPUS = "wnut17"
WINDOW, HELD_OUT = 128, 0.05
ARMS: dict[str, FreezingConfig] = {"head alone": FreezingConfig(layers=6), "pretrained": FreezingConfig()}

Results = dict[str, Any]


def main() -> None:
    """Measure what is not measured yet, and say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("out/pretrain-bench"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--one", type=int, metavar="SEED", help="one fine-tuning of `--encoder`; prints its result")
    parser.add_argument("--encoder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = arguments.work / "shards"
    if arguments.one is not None:
        print(json.dumps(quality.run_recipe(shards, quality.DEFAULTS, arguments.one, arguments.encoder)))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    results: Results = {}
    if arguments.results.exists():
        results = json.loads(arguments.results.read_text(encoding="utf-8"))
    windows = pack_text(arguments.data / CORPUS / quality.CORPORA[CORPUS][0])
    for arm in arguments.arms:
        key = name_run(arm, arguments.epochs)
        if key not in results.setdefault("pretraining", {}):
            results["pretraining"][key] = pretrain(arm, windows, find_folder(arguments.work, key), arguments.epochs)
            write(results, arguments.results)
        print(key, results["pretraining"][key]["perplexity_by_epoch"], flush=True)
    if arguments.seeds and not (shards / "shards.json").exists():
        quality.prepare(arguments.data / CORPUS, quality.CORPORA[CORPUS], (), shards)
    for seed in map(str, arguments.seeds):
        for arm in arguments.arms:
            key = name_run(arm, arguments.epochs)
            if seed not in results.setdefault("f1", {}).setdefault(key, {}) and arm != "head alone":
                results["f1"][key][seed] = fine_tune(arguments.work, seed, find_folder(arguments.work, key) / "encoder")
                write(results, arguments.results)
    print(describe(results["f1"], json.loads(quality.RESULTS.read_text(encoding="utf-8"))[CORPUS][quality.DEFAULTS]))


def name_run(arm: str, num_epochs: int) -> str:
    """Of the results."""
    return f"{arm}, {num_epochs} epochs"


def find_folder(work: Path, name: str) -> Path:
    """Where a pretraining works."""
    return work / name.replace(",", "").replace(" ", "-")


def pack_text(path: Path) -> dict[str, pa.Table]:
    """The windows of both splits, as `rayner pretrain` makes them of a file."""
    options = FormatOptions(spans_column="none", tags_column="none")
    records = [one for one in read_records(str(path), options) if isinstance(one, Record)]
    table = to_table(records)
    table = table.append_column("split", pa.array(["train"] * table.num_rows))
    encoder = find_encoder(quality.ENCODER)
    pack = PackText(encoder, WINDOW, 1, TextEncoding(splitter="unicode"), HELD_OUT, MentionSources(), None, None)
    packed = pack(table)
    splits = packed["split"].to_pylist()
    return {
        name: packed.filter(pa.array([split == name for split in splits])).drop_columns(["split"])
        for name in ("train", "held_out")
    }


def pretrain(arm: str, windows: dict[str, pa.Table], folder: Path, num_epochs: int) -> Results:
    """Pretrain in this process; the encoder is left in `folder/encoder`."""
    encoder = find_encoder(quality.ENCODER)
    training = TrainingConfig(
        num_epochs=num_epochs,
        batch_tokens=2048,
        precision="bf16",
        checkpoint_every_steps=50,
        freezing=ARMS[arm],
    )
    job = PretrainingJob(
        encoder, None, MaskingConfig(), False, training, ParallelConfig(), partial(dict.__getitem__, windows)
    )
    folder.mkdir(exist_ok=True)
    started = time.process_time()
    fit_here(job, folder, 60)
    cpu_s = round(time.process_time() - started, 1)
    result = load_result(folder)
    rows = read_metrics(folder / METRICS_FILE)
    write_encoder(folder / "encoder", encoder, result.best_model, quality.ENCODER, {"text": f"{CORPUS}, train"})
    return {
        "perplexity_by_epoch": [round(row["held_out_perplexity"], 2) for row in rows if row["kind"] == "epoch"],
        "masks": job.open_windows("train").describe_masks([0]),
        "num_windows": {name: table.num_rows for name, table in windows.items()},
        "num_steps": result.num_steps,
        "num_tokens": summarize_usage(rows)["num_tokens"],
        "cpu_s_of_last_start": cpu_s,
        "git_revision": read_git_revision(),
        "versions": read_versions(),
    }


def fine_tune(work: Path, seed: str, encoder: Path) -> quality.Run:
    """One fine-tuning in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.pretrain",
        "--one",
        seed,
        "--work",
        str(work),
        "--encoder",
        str(encoder),
    ]
    alone = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | alone, text=True)
    found: quality.Run = json.loads(done.stdout.splitlines()[-1])
    print(f"seed {seed}, {encoder}: test F1 {found['test_strict_f1']:.4f}", flush=True)
    return found


def write(results: Results, path: Path) -> None:
    """Keep what is measured so far."""
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def describe(runs: dict[str, dict[str, quality.Run]], plain: dict[str, quality.Run]) -> str:
    """Mean test F1 over the seeds that both have, with the difference and its p value."""
    lines = []
    for name, found in runs.items():
        seeds = sorted(found.keys() & plain.keys())
        compared = quality.compare(found, plain)
        if compared is None:
            continue
        f1, usual = (100 * statistics.mean(side[seed]["test_strict_f1"] for seed in seeds) for side in (found, plain))
        lines.append(
            f"{name}: test F1 {f1:.1f}, as it is {usual:.1f}, over seeds {', '.join(seeds)}: "
            f"{100 * compared['difference']:+.1f} (p = {compared['p_value']:.3f})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
