"""Training speed: our loop against transformers' `Trainer`, as run_ner users run it and tuned by hand.

    python -m benchmarks.train [--data ../shared/data]

In one run, on the same texts and threads: the `Trainer` in fp32 with random batches of 32; the `Trainer` in bf16 with
fused AdamW and batches grouped by length; and our loop with its defaults. On the sentences of WNUT-17, and on documents
made of ten of them. Each trains all-MiniLM-L6-v2 from the same start for some steps, in a process of its own, ours set
up as a worker of `rayner train` is; the first few steps, in which kernels are made, do not count. Rates count the real
sub-tokens that a step reads, special tokens included. Writes `benchmarks/results/train-DEVICE.json` and the table of
README.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from benchmarks.predict import describe_machine, measure_roof
from benchmarks.tables import README, put_table
from pipelines.corpus.formats.files import read_records
from pipelines.corpus.records import Record
from pipelines.ner.encoders import find_encoder, load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, build_token_classifier
from pipelines.run_record import read_git_revision, read_versions
from pipelines.training.batches import TrainingWindows
from pipelines.training.config import TrainingConfig
from pipelines.training.loop import train
from pipelines.training.process import prepare_process

RESULTS = Path(__file__).parent / "results"
ENCODER = "all-MiniLM-L6-v2"
WINDOW, STRIDE = 256, 64
WARMUP_STEPS = 5
ROUNDS = 3
CORPORA = ("sentences", "documents")
SENTENCES_PER_DOCUMENT = 10
NUM_TOKENS = 60_000
PEERS: dict[str, dict[str, Any]] = {
    "Trainer, fp32": {},
    "Trainer, tuned": {"bf16": True, "optim": "adamw_torch_fused", "train_sampling_strategy": "group_by_length"},
}
OURS = {"ours, fp32": "fp32", "ours, bf16": "bf16"}

Sample = tuple[list[str], list[str]]
"""Words and their tags."""


def main() -> None:
    """Measure, write the results, render the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--render", action="store_true", help="run nothing; only put the table into README.md")
    parser.add_argument("--one", nargs=2, metavar=("CORPUS", "CANDIDATE"), help="one measurement; prints its result")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_one(arguments.data, arguments.device, *arguments.one)))
        return
    path = RESULTS / f"train-{arguments.device}.json"
    if not arguments.render:
        results = measure(arguments.data, arguments.device)
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))
    README.write_text(put_table(README.read_text(encoding="utf-8"), render_table(results), "train"), encoding="utf-8")


def measure(data: Path, device: str) -> dict[str, Any]:
    """Rates of both peers and of our loop in both precisions, in turns."""
    results: dict[str, Any] = {
        "versions": read_versions(),
        "git_revision": read_git_revision(),
        "machine": describe_machine(device),
        "bf16_gflop_per_s": measure_roof(device),
        "corpora": {},
    }
    for corpus in CORPORA:
        rates: dict[str, list[float]] = {candidate: [] for candidate in (*PEERS, *OURS)}
        shares: dict[str, dict[str, float]] = {}
        for _ in range(ROUNDS):
            for candidate in rates:
                command = [sys.executable, "-m", "benchmarks.train", "--one", corpus, candidate]
                command += ["--data", str(data), "--device", device]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rate, parts = json.loads(done.stdout.splitlines()[-1])
                rates[candidate].append(rate)
                if parts:
                    shares[candidate] = parts
            print(corpus, rates, flush=True)
        middle = {candidate: statistics.median(found) for candidate, found in rates.items()}
        results["corpora"][corpus] = {"tokens_per_s": middle, "rounds": rates, "shares": shares}
    return results


def measure_one(data: Path, device: str, corpus: str, candidate: str) -> tuple[float, dict[str, float]]:
    """Sub-tokens per second, and of our loop the share of each part in a step."""
    samples = list(read_samples(data / "wnut17" / "train.conll"))
    if corpus == "documents":
        samples = join_samples(samples)
    labels = sorted({tag[2:] for _, tags in samples for tag in tags if tag != "O"})
    scheme = LabelScheme.from_labels(labels)
    if candidate in PEERS:
        return measure_peer(samples, scheme, PEERS[candidate], device), {}
    prepare_process()
    return measure_ours(samples, scheme, OURS[candidate], device)


def read_samples(path: Path) -> Iterator[Sample]:
    """Sentences with their tags."""
    for record in read_records(str(path)):
        if isinstance(record, Record) and record.words is not None and record.tags is not None:
            yield list(record.words), list(record.tags)


def join_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Documents of `SENTENCES_PER_DOCUMENT` sentences each."""
    groups = [samples[at : at + SENTENCES_PER_DOCUMENT] for at in range(0, len(samples), SENTENCES_PER_DOCUMENT)]
    return [([w for words, _ in group for w in words], [t for _, tags in group for t in tags]) for group in groups]


class Clock:
    """When each step began, and how many sub-tokens it read."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.num_tokens: list[int] = []
        self.parts: list[dict[str, float]] = []

    def tick(self, num_tokens: int) -> None:
        """A step begins, or has ended."""
        self.times.append(time.perf_counter())
        self.num_tokens.append(num_tokens)

    def find_rate(self, ticks_at_end: bool) -> float:
        """Sub-tokens per second from the first step that counts to the last tick."""
        first = WARMUP_STEPS
        counted = self.num_tokens[first + 1 :] if ticks_at_end else self.num_tokens[first:-1]
        return sum(counted) / (self.times[-1] - self.times[first])


def measure_peer(samples: Sequence[Sample], scheme: LabelScheme, settings: dict[str, Any], device: str) -> float:
    """Sub-tokens per second of transformers' Trainer."""
    from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments

    clock = Clock()

    class TimedTrainer(Trainer):
        """Transformers' Trainer, with a clock that counts sub-tokens."""

        def training_step(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            """Tick before each step."""
            clock.tick(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *args, **more)

    tokenizer = load_tokenizer(find_encoder(ENCODER))
    rows, total = [], 0
    for words, tags in samples:
        if total >= NUM_TOKENS:
            break
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=WINDOW)
        found: list[int | None] = [None, *encoded.word_ids()[:-1]]
        firsts = zip(encoded.word_ids(), found, strict=True)
        ids = [scheme.tags.index(tags[now]) if now is not None and now != before else -100 for now, before in firsts]
        rows.append({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": ids})
        total += len(ids)
    torch.manual_seed(1)
    network = build_token_classifier(find_encoder(ENCODER), scheme, ModelConfig()).network
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=32,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
            **settings,
        )
        collator = DataCollatorForTokenClassification(tokenizer)
        TimedTrainer(network, arguments, train_dataset=rows, data_collator=collator).train()
    return clock.find_rate(ticks_at_end=False)


def measure_ours(
    samples: Sequence[Sample], scheme: LabelScheme, precision: str, device: str
) -> tuple[float, dict[str, float]]:
    """Sub-tokens per second of our loop, with its defaults, and the share of each part in a step."""
    clock = Clock()

    class Listener:
        """Counts each step's sub-tokens and seconds by part."""

        def on_start(self, metrics: dict[str, Any]) -> None:
            """The clock starts with the first step."""

        def on_step(self, metrics: dict[str, Any]) -> None:
            """Tick after each step."""
            clock.tick(metrics["num_tokens"])
            clock.parts.append(metrics["parts_s"])

        def on_checkpoint(self, metrics: dict[str, Any] | None, get_state: Any) -> None:
            """Nothing is kept."""

    encoder = Encoder(load_tokenizer(find_encoder(ENCODER)), window=WINDOW, stride=STRIDE, splitter="whitespace")
    rows: list[dict[str, Any]] = []
    total = 0
    for number, (words, tags) in enumerate(samples):
        at = 0
        for window in encoder.encode_words(words).windows if total < NUM_TOKENS else ():
            own = tags[at : at + len(window.word_starts)]
            at += len(own)
            rows.append(
                {
                    "record_id": f"{number:06}",
                    "input_ids": window.input_ids,
                    "word_starts": window.word_starts,
                    "tag_ids": [scheme.tags.index(tag) for tag in own],
                    "starts_document": window.starts_document,
                    "ends_document": window.ends_document,
                }
            )
            total += len(window.input_ids)
    torch.manual_seed(1)
    train(
        build_token_classifier(find_encoder(ENCODER), scheme, ModelConfig()),
        TrainingWindows(pa.Table.from_pylist(rows)),
        TrainingConfig(num_epochs=1, precision=precision),
        pad_id=encoder.pad_id,
        device=torch.device(device),
        evaluate=lambda _: 0.0,
        listener=Listener(),
    )
    seconds = Counter[str]()
    for parts in clock.parts[WARMUP_STEPS:]:
        seconds.update(parts)
    return clock.find_rate(ticks_at_end=True), {name: value / seconds.total() for name, value in seconds.items()}


def render_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    corpora = results["corpora"]
    lines = ["| sub-tokens/s in training | sentences | ratio | documents | ratio |", "|---|---|---|---|---|"]
    for name in corpora["sentences"]["tokens_per_s"]:
        cells = [name]
        for corpus in CORPORA:
            rates = corpora[corpus]["tokens_per_s"]
            cells += [f"{rates[name]:,.0f}", f"{rates[name] / rates[next(iter(PEERS))]:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    shares = corpora["sentences"]["shares"]["ours, bf16"]
    told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    return "\n".join([*lines, "", f"Where a step of ours in bf16 spends its time, on sentences: {told}."])


if __name__ == "__main__":
    main()
