"""What all tests share: a quiet environment, and real tiny models made on the spot."""

import os
import tempfile

# Before torch and ray are imported.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": tempfile.mkdtemp(prefix="rayner-cache-"),  # figures of other runs are none of ours
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_memory_usage_threshold": "0.98",
        # Workers of tests end soon: what they import is no garbage, and to look for some takes a fifth of their start.
        "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "gc.disable",
    }
)

import json
from pathlib import Path

import hypothesis
import pytest
import torch

from pipelines.ner.bundle import Bundle, BundleInfo, save_bundle
from pipelines.ner.encoders import build_scratch_encoder, load_tokenizer
from pipelines.ner.encoding import Encoder
from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import ModelConfig, build_token_classifier
from tests.quickstart import ROOT, Quickstart, make_quickstart

torch.set_num_threads(1)
hypothesis.settings.register_profile("patient", deadline=None)  # as in `ci`: a busy machine is no mistake
if not os.environ.get("CI"):
    hypothesis.settings.load_profile("patient")

SAMPLE = ROOT / "pipelines" / "sample"
SHARED_DATA = ROOT.parent / "shared" / "data"
EXACT = {"device": "cpu", "runtime": "torch", "precision": "fp32"}
"""How the engine computes what other runtimes are held to."""


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a two-layer BERT whose vocabulary is learned from the sample corpus; cased, random weights."""
    texts = [json.loads(line)["text"] for path in sorted(SAMPLE.glob("*-train.jsonl")) for line in path.open()]
    return build_scratch_encoder(texts, tmp_path_factory.mktemp("encoder") / "tiny", seed=0)


@pytest.fixture(scope="session", params=["linear", "crf"])
def tiny_bundle(request: pytest.FixtureRequest, tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved bundle with random weights and a short window (32, stride 8), so that most documents have several."""
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("bundle") / request.param, head=request.param)


def make_bundle(
    encoder: str, folder: Path, *, head: str = "linear", window: int = 32, stride: int = 8, scheme: str = "BIO"
) -> Path:
    """Save a bundle with random weights, scaled so that it finds many entities with varied scores."""
    torch.manual_seed(3)
    labels = LabelScheme.from_labels(["PER", "ORG", "LOC", "MISC"], scheme)
    model = build_token_classifier(encoder, labels, ModelConfig(head=head))
    with torch.no_grad():
        model.network.classifier.weight.mul_(60)
        if model.crf is not None:
            for parameter in model.crf.parameters():
                parameter.normal_()
    tokens = Encoder(load_tokenizer(encoder), window=window, stride=stride, splitter="punctuation")
    save_bundle(folder, Bundle(model.eval(), tokens, BundleInfo(scheme, head, "punctuation", window, stride)))
    return folder


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """The README's first command, run once."""
    return make_quickstart(tmp_path_factory.mktemp("quickstart"))
