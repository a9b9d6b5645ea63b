"""Quality on real corpora: `rayner train` with its defaults, over seeds, and what it cost.

    python -m benchmarks.quality [--data ../shared/data] [--seeds 1 2 3] [--corpora wnut17 ncbi_disease zh_gsdsimp]

Writes `benchmarks/results/quality.json` after every run, and at the end the table of README.md.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.tables import README, put_table
from pipelines.training.config import TrainingConfig

RESULTS = Path(__file__).parent / "results" / "quality.json"
CORPORA = {
    "wnut17": ("train.conll", "dev.conll", "test.conll"),
    "ncbi_disease": ("train.tsv", "devel.tsv", "test.tsv"),
    "zh_gsdsimp": ("train.iob2", "dev.iob2", "test.iob2"),
}
CORPORA_NAMES = {
    "wnut17": "WNUT-17 (English, social media)",
    "ncbi_disease": "NCBI-disease (English, biomedical)",
    "zh_gsdsimp": "UNER GSDSimp (Chinese; the encoder is English)",
}
ENCODER = "all-MiniLM-L6-v2"


def main() -> None:
    """Run the series and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--corpora", nargs="+", default=list(CORPORA), choices=list(CORPORA))
    parser.add_argument("--render", action="store_true", help="run nothing; only put the table into README.md")
    parser.add_argument("--keep", type=Path, help="a folder in which the runs' bundles and reports are kept")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for corpus in [] if arguments.render else arguments.corpora:
        runs = results.setdefault(corpus, {"runs": {}})["runs"]
        for seed in arguments.seeds:
            runs[str(seed)] = train_once(arguments.data / corpus, CORPORA[corpus], seed, arguments.keep)
            print(f"{corpus} seed {seed}: {runs[str(seed)]}", flush=True)
            results[corpus] |= summarize(runs)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    page = README.read_text(encoding="utf-8")
    README.write_text(put_table(page, render_table(results), "quality"), encoding="utf-8")


def train_once(folder: Path, files: tuple[str, str, str], seed: int, keep: Path | None) -> dict[str, Any]:
    """One run of the main job as a user starts it; its scores and what it took."""
    output = (keep or Path(tempfile.mkdtemp(prefix="quality-"))) / f"{folder.name}-{seed}"
    command = [sys.executable, "-m", "pipelines.train", "--model.encoder", ENCODER, "--training.seed", str(seed)]
    for split, file in zip(("train", "dev", "test"), files, strict=True):
        command += [f"--corpus.{split}", str(folder / file)]
    started = time.monotonic()
    subprocess.run([*command, "--output_dir", str(output), "--fresh"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    if keep is None:
        shutil.rmtree(output.parent)
    return {
        "test_strict_f1": report["strict"]["micro"]["f1"],
        "test_lenient_f1": report["lenient"]["micro"]["f1"],
        "test_strict_f1_interval": report["intervals"]["strict"]["micro"]["f1"],
        "dev_strict_f1": run["scores"]["dev_strict_micro_f1"],
        "seconds": round(seconds, 1),
        "training_s": run["phases_s"]["train"],
        "tokens_per_s": run["training"]["tokens_per_s"],
        "num_steps": run["training"]["num_steps"],
        "peak_memory_mib": run["training"]["worker_peak_memory_mib"],
        "git_revision": run["git_revision"],
        "versions": run["versions"],
    }


def render_table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| corpus | seeds | test F1 | dev F1 | seconds a run | sub-tokens/s in training |",
        "|---|---|---|---|---|---|",
    ]
    for corpus, result in results.items():
        speed = statistics.mean(run["tokens_per_s"] for run in result["runs"].values())
        deviation = f" ± {100 * result['test_strict_f1_stdev']:.1f}" if len(result["runs"]) > 1 else ""
        lines.append(
            f"| {CORPORA_NAMES[corpus]} | {', '.join(result['runs'])} | {100 * result['test_strict_f1_mean']:.1f}"
            f"{deviation} | {100 * result['dev_strict_f1_mean']:.1f} | "
            f"{result['seconds_mean']:.0f} | {speed:,.0f} |"
        )
    return "\n".join(lines)


def summarize(runs: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    scores = [run["test_strict_f1"] for run in runs.values()]
    return {
        "encoder": ENCODER,
        "num_epochs": TrainingConfig().num_epochs,
        "test_strict_f1_mean": statistics.mean(scores),
        "test_strict_f1_stdev": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "dev_strict_f1_mean": statistics.mean(run["dev_strict_f1"] for run in runs.values()),
        "seconds_mean": statistics.mean(run["seconds"] for run in runs.values()),
    }


if __name__ == "__main__":
    main()
