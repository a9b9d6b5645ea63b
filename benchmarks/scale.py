"""What a second worker brings where each has a core: `rayner scale` on WNUT-17, with its result kept.

    python -m benchmarks.scale [--data ../shared/data]

Writes `benchmarks/results/scale-cpu.json` and the table of README.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.predict import describe_machine
from benchmarks.quality import CORPORA, ENCODER
from benchmarks.tables import README, put_table
from pipelines.run_record import read_git_revision, read_versions

RESULTS = Path(__file__).parent / "results" / "scale-cpu.json"
CASES = ["--workers", "1", "2", "--strategies", "ddp", "local_sgd", "--num_steps", "80", "--cpus_per_worker", "1"]


def main() -> None:
    """Measure, write the results, render the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--render", action="store_true", help="run nothing; only put the table into README.md")
    arguments = parser.parse_args()
    if not arguments.render:
        results = measure(arguments.data)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    README.write_text(put_table(README.read_text(encoding="utf-8"), render_table(results), "scale"), encoding="utf-8")


def measure(data: Path) -> dict[str, Any]:
    """The cases as `rayner scale` finds them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipelines.scale", *CASES, "--model.encoder", ENCODER, "--output_dir", folder]
        for split, file in zip(("train", "dev", "test"), CORPORA["wnut17"], strict=True):
            command += [f"--corpus.{split}", str(data / "wnut17" / file)]
        subprocess.run(command, check=True)
        found = json.loads((Path(folder) / "scaling.json").read_text(encoding="utf-8"))
    about = {"versions": read_versions(), "git_revision": read_git_revision(), "machine": describe_machine("cpu")}
    return about | {"cases": found["cases"]}


def render_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| | sub-tokens/s | speed-up | time of the same work a worker | MiB sent in a step | loss differs by |",
        "|---|---|---|---|---|---|",
    ]
    for case in results["cases"]:
        differs = "" if case["loss_difference"] is None else f"{case['loss_difference']:.4f}"
        per_worker = case["num_workers"] / case["speed_up"]
        sent = sum(case["sent_mib"].values())
        rate = f"{case['tokens_per_s']:,.0f} | {case['speed_up']:.2f} | {per_worker:.2f}"
        lines.append(f"| {case['name']} | {rate} | {sent:.1f} | {differs} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
