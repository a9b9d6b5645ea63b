"""What a search brings: the found recipe next to the default one, and ASHA next to random search, in one run.

    python -m benchmarks.tune [--data ../shared/data] [--minutes 25] [--seeds 1 2 3] [--quick]

On WNUT-17 with all-MiniLM-L6-v2, as a user starts it. First `rayner tune` within so many minutes; then the default
recipe and the found one are trained with the same seeds and scored on test. Last, random search and ASHA over the same
draws: what each reaches on dev, and for how many sub-tokens of training.
Writes `benchmarks/results/tune-cpu.json` and the table of README.md; `--quick` shows on the sample corpus that it
works, and writes nothing.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality import CORPORA, ENCODER
from benchmarks.tables import README, put_table
from pipelines.run_record import read_git_revision, read_versions
from pipelines.training.history import read_metrics
from pipelines.training.recorder import METRICS_FILE
from pipelines.tuning.trials import Journal, Trial

RESULTS = Path(__file__).parent / "results" / "tune-cpu.json"
FOUND = [
    *("--space.training.optimizer.learning_rate", "times(0.5, 3)"),
    *("--space.training.batch_tokens", "times(0.25, 1)"),
    *("--space.model.dropout", "uniform(0.05, 0.25)"),
    *("--space.model.head", "linear", "crf"),
    *("--search.num_trials", "24", "--search.num_leaders", "1", "--search.num_seeds", "3"),
]
COMPARED = [
    *("--space.training.optimizer.learning_rate", "times(0.1, 5)"),
    *("--space.training.batch_tokens", "times(0.25, 4)"),
    *("--space.model.dropout", "uniform(0.0, 0.3)"),
    *("--search.sampler", "random", "--search.num_leaders", "1", "--search.num_seeds", "1"),
]


def main() -> None:
    """Run what is asked for and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, default=25, help="of the search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the recipes scored on test")
    parser.add_argument("--trials", type=int, default=12, help="of random search, and of ASHA")
    parser.add_argument("--parts", nargs="+", choices=["found", "asha"], default=["found", "asha"])
    parser.add_argument("--keep", type=Path, help="a folder in which the runs are kept, and gone on with")
    parser.add_argument("--quick", action="store_true", help="in small, to see that it works")
    parser.add_argument("--render", action="store_true", help="run nothing; only put the table into README.md")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not arguments.render:
        results |= {"versions": read_versions(), "git_revision": read_git_revision()}
        with tempfile.TemporaryDirectory() as folder:
            kept = arguments.keep or Path(folder)
            corpus = _list_corpus(arguments.data, quick=arguments.quick)
            seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
            if "found" in arguments.parts:
                flags = ["--search.num_trials", "3", "--search.num_seeds", "1"] if arguments.quick else []
                results["found"] = measure_found(kept, corpus, arguments.minutes, seeds, flags)
                _keep(results, quick=arguments.quick)
            if "asha" in arguments.parts:
                results["asha"] = measure_asha(kept, corpus, 4 if arguments.quick else arguments.trials)
                _keep(results, quick=arguments.quick)
        print(json.dumps(results, indent=2))
    if arguments.quick:
        return
    README.write_text(put_table(README.read_text(encoding="utf-8"), render_table(results), "tune"), encoding="utf-8")


def measure_found(
    kept: Path, corpus: list[str], minutes: float, seeds: Sequence[int], flags: list[str]
) -> dict[str, Any]:
    """The default recipe and what a search within a budget makes of it, with the same seeds."""
    folder = kept / "found"
    _run("tune", [*corpus, *FOUND, *flags, "--search.budget_s", str(60 * minutes)], folder)
    seconds = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"]
    tuning = json.loads((folder / "tuning.json").read_text(encoding="utf-8"))
    recipes = {"default": corpus, "found": ["--config", str(folder / "best.yaml")]}
    scores: dict[str, dict[str, list[float]]] = {}
    for name, recipe in recipes.items():
        runs = [_score(kept / f"{name}-{seed}", [*recipe, "--training.seed", str(seed)]) for seed in seeds]
        scores[name] = {split: [run[split] for run in runs] for split in ("dev", "test")}
    return {
        "seconds": round(seconds, 1),
        "minutes_allowed": minutes,
        "num_trials": len(tuning["trials"]),
        "num_stopped": sum(trial["status"] == "stopped" for trial in tuning["trials"]),
        "settings": tuning["leaders"][0]["settings"],
        "gain": tuning["gain"],
        "importance": tuning["importance"],
        "seeds": list(seeds),
        "f1": scores,
    }


def measure_asha(kept: Path, corpus: list[str], num_trials: int) -> dict[str, Any]:
    """What ASHA takes until it has the best F1 of random search over the same draws, of what the latter takes."""
    searches: dict[str, list[Trial]] = {}
    for scheduler in ("none", "asha"):
        folder = kept / f"compared-{scheduler}"
        flags = ["--search.scheduler", scheduler, "--search.num_trials", str(num_trials)]
        _run("tune", [*corpus, *COMPARED, *flags], folder)
        searches[scheduler] = Journal(folder / "trials").read_all()
    bests = {scheduler: max(trial.best_f1 or 0.0 for trial in found) for scheduler, found in searches.items()}
    random, asha = (_sum_up(searches[scheduler]) for scheduler in ("none", "asha"))
    spent = {
        name: spend_until(kept / "compared-asha", f1)
        for name, f1 in (("best_of_random", bests["none"]), ("own_best", bests["asha"]))
    }
    return {
        "num_trials": num_trials,
        "best_f1_of_random": bests["none"],
        "best_f1_of_asha": bests["asha"],
        "random": random,
        "asha": asha,
        "share_of_tokens": asha["tokens"] / random["tokens"],
        "share_of_tokens_until": {name: tokens and tokens / random["tokens"] for name, tokens in spent.items()},
    }


def spend_until(folder: Path, f1: float) -> int | None:
    """Sub-tokens that all trials of a search had been trained on when one had this F1; None if none had."""
    journal = Journal(folder / "trials")
    rows = [row for trial in journal.read_all() for row in read_metrics(journal.find(trial.number) / METRICS_FILE)]
    reached = [row["time"] for row in rows if row["kind"] == "epoch" and row["dev_f1"] >= f1]
    if not reached:
        return None
    return sum(int(row["num_tokens"]) for row in rows if row["kind"] == "step" and row["time"] <= min(reached))


def render_table(results: dict[str, Any]) -> str:
    """The results as Markdown, with what they are."""
    lines = [
        "A search on WNUT-17 within 25 minutes, two CPU cores: the default recipe and the found one, mean over the",
        "same seeds. `python -m benchmarks.tune` writes them to `benchmarks/results/tune-cpu.json`.",
        "",
    ]
    if "found" in results:
        found = results["found"]
        lines += ["| recipe | dev F1 | test F1 |", "|---|---|---|"]
        for name, scores in found["f1"].items():
            cells = [f"{100 * statistics.mean(scores[split]):.1f}" for split in ("dev", "test")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += [
            "",
            f"The found one less the default one, with the standard error over seeds: {_compare(found['f1'])}.",
        ]
        settings = ", ".join(f"{path.rsplit('.', 1)[-1]} {value}" for path, value in found["settings"].items())
        lines += [
            "",
            f"Found in {found['seconds'] / 60:.0f} minutes, {found['num_trials']} trials, of which "
            f"{found['num_stopped']} stopped early: {settings or 'the default'}.",
        ]
    if "asha" in results:
        asha = results["asha"]
        spent = asha["share_of_tokens_until"]["own_best"]
        lines += [
            "",
            f"Over the same {asha['num_trials']} draws the best dev F1 of random search is "
            f"{100 * asha['best_f1_of_random']:.2f}, that of ASHA {100 * asha['best_f1_of_asha']:.2f}: after "
            f"{spent:.0%} of the sub-tokens, and {asha['share_of_tokens']:.0%} in all.",
        ]
    return "\n".join(lines)


def _compare(scores: dict[str, dict[str, list[float]]]) -> str:
    told = []
    for split in ("dev", "test"):
        gains = [100 * (own - base) for own, base in zip(scores["found"][split], scores["default"][split], strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else math.nan
        told.append(f"{split} {statistics.mean(gains):+.1f} ± {error:.1f}")
    return ", ".join(told)


def _list_corpus(data: Path, *, quick: bool) -> list[str]:
    splits = ("train", "dev", "test")
    if quick:
        files = [part for split in splits for part in (f"--corpus.{split}", f"sample:en-{split}.jsonl")]
        return [*files, "--model.encoder", "scratch", "--training.num_epochs", "2", "--training.batch_tokens", "512"]
    files = [
        part
        for split, name in zip(splits, CORPORA["wnut17"], strict=True)
        for part in (f"--corpus.{split}", str((data / "wnut17" / name).absolute()))
    ]
    return [*files, "--model.encoder", ENCODER]


def _keep(results: dict[str, Any], *, quick: bool) -> None:
    if not quick:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _run(verb: str, arguments: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", f"pipelines.{verb}", *arguments, "--output_dir", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _score(folder: Path, arguments: list[str]) -> dict[str, float]:
    _run("train", arguments, folder)
    scores = json.loads((folder / "run.json").read_text(encoding="utf-8"))["scores"]
    return {"dev": scores["dev_strict_micro_f1"], "test": scores["strict_micro_f1"]}


def _sum_up(trials: Sequence[Trial]) -> dict[str, int]:
    return {
        "tokens": sum(trial.num_tokens for trial in trials),
        "epochs": sum(len(trial.epochs) for trial in trials),
    }


if __name__ == "__main__":
    main()
