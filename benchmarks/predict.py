"""Labelling speed: the engine and `rayner predict` against transformers' NER pipeline, and against the machine.

    python -m benchmarks.predict [--data ../shared/data] [--model BUNDLE] [--parts engine job]

In one run, on the same texts and threads: the machine's matrix-product rate, the pipeline (batches of 32, fp32,
`aggregation_strategy="first"`), every runtime of the engine, equality of their entities with fp32 PyTorch, the offline
job on a corpus of a minute, and on two of which one is ten times larger, with the memory of all its processes.
Without `--model` the model is trained first, on WNUT-17 with the defaults. Writes
`benchmarks/results/predict-DEVICE.json` and the table of README.md. Rates count the texts' own sub-tokens, without
special tokens and padding.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.equality import measure_equality
from benchmarks.processes import run_watched
from benchmarks.tables import README, put_table
from benchmarks.texts import generate_documents, read_sentences, write_jsonl
from pipelines.ner.engine import NerEngine
from pipelines.run_record import read_git_revision, read_versions

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
NUM_SENTENCES = 4000
PIPELINE_SENTENCES = 1000
NUM_CHARACTERS = 400_000
JOB_CHARACTERS = {"minute": 8_000_000, "small": 2_500_000, "large": 25_000_000}
"""One that takes a minute, to compare with the engine alone; two, one ten times the other, to compare their memory."""
PEER = "pipeline"
ENGINES = ("torch fp32", "torch bf16", "torch-compiled bf16", "openvino bf16", "packed fp32", "packed bf16")


def main() -> None:
    """Measure, write the results, render the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, help="a bundle; default: one is trained on WNUT-17")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--parts", nargs="+", default=["engine", "job"], choices=["engine", "job"])
    parser.add_argument("--render", action="store_true", help="run nothing; only put the table into README.md")
    arguments = parser.parse_args()
    path = RESULTS / f"predict-{arguments.device}.json"
    if not arguments.render:
        with tempfile.TemporaryDirectory(prefix="predict-") as folder:
            model = arguments.model or train(arguments.data, Path(folder))
            results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if "engine" in arguments.parts:
                results |= measure_engine(model, arguments.data, arguments.device)
            if "job" in arguments.parts and arguments.device == "cpu":
                results["job"] = measure_job(model, arguments.data, Path(folder))
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))
    README.write_text(put_table(README.read_text(encoding="utf-8"), render_table(results), "predict"), encoding="utf-8")


def train(data: Path, folder: Path) -> Path:
    """The model: all-MiniLM-L6-v2 on WNUT-17, defaults."""
    command = [sys.executable, "-m", "pipelines.train", "--output_dir", str(folder / "run")]
    for split in ("train", "dev", "test"):
        command += [f"--corpus.{split}", str(data / "wnut17" / f"{split}.conll")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "run" / "bundle"


def measure_engine(model: Path, data: Path, device: str) -> dict[str, Any]:
    """Rates of the pipeline and of every runtime on sentences and on documents, and the machine's own."""
    sentences = read_sentences(data)
    corpora = {
        "sentences": sentences[:NUM_SENTENCES],
        "documents": list(generate_documents(sentences, NUM_CHARACTERS)),
    }
    engines = {}
    for name in ENGINES:
        runtime, precision = name.split()
        if device == "cpu" or runtime != "openvino":
            engines[name] = NerEngine.load(model, device=device, runtime=runtime, precision=precision)
    reference = engines["torch fp32"]
    flop_per_token = count_flop_per_token(model)
    results: dict[str, Any] = {
        "versions": read_versions() | {"openvino": _read_version("openvino")},
        "git_revision": read_git_revision(),
        "machine": describe_machine(device),
        "flop_per_token": flop_per_token,
        "auto": NerEngine.load(model, device=device).describe(),
        "corpora": {},
    }
    roofs = []
    for name, texts in corpora.items():
        peer = open_pipeline(model, device)
        few = texts[:PIPELINE_SENTENCES] if name == "sentences" else texts[: len(texts) // 6]
        rates: dict[str, list[float]] = {candidate: [] for candidate in (PEER, *engines)}
        num_tokens, num_few = (sum(map(reference.count_tokens, some)) for some in (texts, few))
        for _ in range(ROUNDS):
            roofs.append(measure_roof(device))
            rates[PEER].append(num_few / time_call(lambda: list(peer(few, batch_size=32))))  # noqa: B023
            for candidate, engine in engines.items():
                rates[candidate].append(num_tokens / time_call(lambda: engine.predict(texts)))  # noqa: B023
        results["corpora"][name] = {
            "num_texts": len(texts),
            "num_characters": sum(map(len, texts)),
            "num_tokens": num_tokens,
            "pipeline_num_texts": len(few),
            "tokens_per_s": {candidate: statistics.median(found) for candidate, found in rates.items()},
            "rounds": rates,
            "equality": {
                candidate: measure_equality(reference, engine, texts) for candidate, engine in engines.items()
            },
        }
    results["bf16_gflop_per_s"] = statistics.median(roofs)
    return results


def open_pipeline(model: Path, device: str) -> Any:
    """What users take today; with a stride, for without one it cuts what does not fit."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(model, model_max_length=256)
    network = AutoModelForTokenClassification.from_pretrained(model, dtype=torch.float32)
    settings = {"aggregation_strategy": "first", "stride": 64, "device": device}
    return pipeline("token-classification", model=network, tokenizer=tokenizer, **settings)


def time_call(call: Callable[[], Any]) -> float:
    """Wall seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_roof(device: str) -> float:
    """GFLOP/s of the product of two square matrices in bf16, with all threads."""
    size, count = (2048, 10) if device == "cpu" else (8192, 50)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        """All the products, to their end."""
        for _ in range(count):
            left @ right
        if device != "cpu":
            torch.cuda.synchronize()

    multiply()
    return 2 * size**3 * count / time_call(multiply) / 1e9


def count_flop_per_token(model: Path) -> int:
    """Of the linear layers of the encoder; attention's own products come on top and are left out."""
    from pipelines.ner.bundle import load_bundle

    layers = load_bundle(model).model.network.base_model.encoder
    weights = (module.weight.numel() for module in layers.modules() if isinstance(module, torch.nn.Linear))
    return 2 * sum(weights)


def measure_job(model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """`rayner predict` next to the engine alone on the same corpus, before and after it; and its memory by size."""
    sentences = read_sentences(data)
    results: dict[str, Any] = {"git_revision": read_git_revision()}
    for name, num_characters in JOB_CHARACTERS.items():
        corpus, output = folder / f"{name}.jsonl", folder / f"{name}-entities"
        write_jsonl(corpus, generate_documents(sentences, num_characters, seed=1))
        command = [sys.executable, "-m", "pipelines.predict", "--model", str(model), "--input", str(corpus)]
        rates = [measure_in_process(model, corpus)] if name == "minute" else []
        peak_mib, seconds = run_watched([*command, "--output_dir", str(output)])
        bill = json.loads((output / "run.json").read_text(encoding="utf-8"))["bill"]
        results[name] = {"peak_memory_mib": peak_mib, "seconds": seconds, "bill": bill}
        if rates:
            rates.append(measure_in_process(model, corpus))
            share = bill["tokens_per_s"] / statistics.mean(rates)
            results[name] |= {"in_process_tokens_per_s": rates, "share_of_in_process": share}
    results["memory_growth"] = results["large"]["peak_memory_mib"] / results["small"]["peak_memory_mib"] - 1
    return results


def measure_in_process(model: Path, corpus: Path) -> float:
    """Sub-tokens per second of the engine alone on a corpus, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.predict_in_process", str(model), str(corpus)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    capability = torch.backends.cpu.get_cpu_capability()
    gpu = {"gpu": torch.cuda.get_device_name()} if device != "cpu" else {}
    products = "AMX" if torch.cpu._is_amx_tile_supported() else capability
    if products == "AVX512" and torch.cpu._is_avx512_bf16_supported():
        products = "AVX512-BF16"
    return {"threads": torch.get_num_threads(), "cpu_capability": capability, "cpu_products": products} | gpu


def render_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    corpora = results["corpora"]
    roof = results["bf16_gflop_per_s"] * 1e9 / results["flop_per_token"]
    lines = [
        "| sub-tokens/s | sentences | ratio | documents | ratio | of the bf16 roof | equal to fp32 | ties apart |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in corpora["sentences"]["tokens_per_s"]:
        rates = [corpora[corpus]["tokens_per_s"][name] for corpus in ("sentences", "documents")]
        ratios = [corpora[corpus]["tokens_per_s"][PEER] for corpus in ("sentences", "documents")]
        equality = [corpora[corpus]["equality"][name] for corpus in ("sentences", "documents") if name != PEER]
        shown = [
            " / ".join(f"{100 * one[share]:.2f} %" for one in equality) for share in ("equal", "equal_but_for_ties")
        ]
        title = "transformers' pipeline, fp32" if name == PEER else f"`{name.replace(' ', '`, ')}"
        cells = [title]
        for rate, ratio in zip(rates, ratios, strict=True):
            cells += [f"{rate:,.0f}", f"{rate / ratio:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{100 * rates[0] / roof:.0f} %", *shown]) + " |")
    return "\n".join(lines)


def _read_version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


if __name__ == "__main__":
    main()
