"""Against bytes of tensors that live while the training's own forward and backward passes run."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForTokenClassification

from pipelines.ner.labels import LabelScheme
from pipelines.ner.model import TokenClassifier
from pipelines.planning.activations import count_activations
from pipelines.planning.architecture import convert_config
from pipelines.planning.cost import Load, TrainingSetup
from pipelines.planning.memory import find_peak
from pipelines.training.batches import Batch
from pipelines.training.forward import PaddedForward, build_forward
from pipelines.training.objective import Objective
from tests.unit.planning.conftest import FAMILIES
from tests.unit.planning.live_bytes import LiveBytes

SCHEME = LabelScheme.from_labels(["A", "B"])
PACKED = ("bert", "roberta", "electra", "distilbert")
IMPOSSIBLE = {("deberta", "bf16")}
"""transformers' first DeBERTa cannot be trained in bf16: it fills masks with the least number of fp32."""
WIDE = {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 384, "num_hidden_layers": 4}


def make_config(name, **changes):
    family, settings = FAMILIES[name]
    own = {"dim": "hidden_size", "n_heads": "num_attention_heads", "hidden_dim": "intermediate_size"}
    own["n_layers"] = "num_hidden_layers"
    if family == "distilbert":
        changes = {mine: changes.pop(theirs) for mine, theirs in own.items() if theirs in changes} | changes
    return AutoConfig.for_model(family, num_labels=len(SCHEME.tags), **(settings | changes))


def make_batch(lengths):
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    words_B = torch.tensor([length // 2 for length in lengths])
    starts_BW = torch.minimum(torch.arange(int(words_B.max())), words_B[:, None] - 1)
    ends = torch.ones(len(lengths), dtype=torch.bool)
    tags_BW = torch.zeros_like(starts_BW)
    return Batch(
        torch.randint(5, 200, mask_BT.shape) * mask_BT, mask_BT.long(), starts_BW, tags_BW, words_B, ends, ends
    )


def measure(config, lengths, precision="fp32", padded=False, checkpointing=False):
    """Bytes kept at the end of the forward pass, and at most of all until the end of the backward pass."""
    model = TokenClassifier(AutoModelForTokenClassification.from_config(config), SCHEME).train()
    make = PaddedForward if padded else build_forward
    where = () if padded else (torch.device("cpu"),)
    objective, batch = Objective(make(model, precision, *where, checkpointing)), make_batch(lengths)
    with LiveBytes() as live:
        loss = objective(batch)
        kept = live.now
        loss.backward()
    return kept, live.peak


def predict(config, lengths, precision="fp32", padded=False, checkpointing=False):
    architecture = convert_config(config)
    strategy = {"strategy": "fsdp", "num_workers": 2} if padded else {}  # which pads
    setup = TrainingSetup(precision=precision, num_tags=5, gradient_checkpointing=checkpointing, **strategy)
    load = Load.of(np.array(lengths), 0.5, setup.is_packed(architecture))
    held = count_activations(architecture, setup, load)
    return held.total, sum(find_peak(architecture, TrainingSetup(num_tags=5), held, load))


@pytest.mark.parametrize("lengths", [[32] * 16, [128] * 4, [100, 99, 98, 97, 60]], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_passes_keep_what_is_counted(name, precision, lengths):
    config = make_config(name, **WIDE)
    kept, _ = measure(config, lengths, precision)
    assert predict(config, lengths, precision)[0] == pytest.approx(kept, rel=0.06)


@pytest.mark.parametrize("lengths", [[32] * 16, [128] * 4], ids=str)
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (name, precision)
        for name in FAMILIES
        for precision in ("fp32", "bf16")
        if (name, precision) != ("deberta", "bf16")
    ],
)  # transformers' first DeBERTa cannot be trained in bf16: it fills masks with the least fp32
def test_padded_passes_keep_what_is_counted(name, precision, lengths):
    config = make_config(name, **WIDE)
    kept, _ = measure(config, lengths, precision, padded=True)
    assert predict(config, lengths, precision, padded=True)[0] == pytest.approx(kept, rel=0.12)


def test_dropout_costs_its_masks():
    config = make_config("bert", **WIDE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    kept, _ = measure(config, [128] * 4)
    assert predict(config, [128] * 4)[0] == pytest.approx(kept, rel=0.08)
    assert kept < 0.8 * measure(make_config("bert", **WIDE), [128] * 4)[0]


def test_checkpointing_keeps_the_inputs_of_layers():
    config = make_config("bert", **WIDE)
    kept, _ = measure(config, [128] * 4, checkpointing=True)
    assert predict(config, [128] * 4, checkpointing=True)[0] == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("lengths", [[32] * 16, [128] * 4, [64] * 16, [17] * 3], ids=str)
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_peak_of_gradients_and_activations_is_what_lives_at_most(name, lengths, checkpointing):
    config = make_config(name, **WIDE)
    _, peak = measure(config, lengths, checkpointing=checkpointing)
    assert predict(config, lengths, checkpointing=checkpointing)[1] == pytest.approx(peak, rel=0.1)
