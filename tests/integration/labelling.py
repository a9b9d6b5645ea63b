"""Running `predict` in this process, and reading what it wrote."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines import predict
from pipelines.corpus.inference import ActorPlan, InferenceConfig, load_engine
from pipelines.ner.engine import NerEngine

PLAIN = InferenceConfig(runtime="torch", precision="fp32", device="cpu")
"""Random weights have near-ties: engines are compared where they compute in the same way."""
PLAIN_FLAGS = ("--inference.runtime", "torch", "--inference.precision", "fp32", "--inference.device", "cpu")


def load_plain(bundle: Path | str) -> NerEngine:
    """The engine that an actor loads when `predict` is given `PLAIN_FLAGS`."""
    return load_engine(str(bundle), PLAIN, ActorPlan(num_actors=1, num_cpus=1, num_gpus=0))


def build_command(bundle: Path, source: Path | str, folder: Path, *arguments: object) -> list[str]:
    """Arguments of `predict`."""
    given = ["--model", bundle, "--input", source, "--output_dir", folder, *PLAIN_FLAGS, *arguments]
    return [str(one) for one in given]


def run_predict(bundle: Path, source: Path | str, folder: Path, *arguments: object) -> list[dict[str, Any]]:
    """Rows that `predict` writes, in its order."""
    assert predict.main(build_command(bundle, source, folder, *arguments)) == 0
    assert (folder / "_SUCCESS").is_file()
    assert not (folder / ".work").exists()
    return read_rows(folder)


def read_rows(folder: Path, name: str = "entities") -> list[dict[str, Any]]:
    """Rows of the output files, in their order."""
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / name).rglob("part-*")):
        if path.suffix == ".parquet":
            rows += pq.read_table(path, partitioning=None).to_pylist()
        else:
            rows += [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return rows


def read_success(folder: Path) -> dict[str, Any]:
    """What `_SUCCESS` says."""
    facts: dict[str, Any] = json.loads((folder / "_SUCCESS").read_text(encoding="utf-8"))
    return facts


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")
    return path
