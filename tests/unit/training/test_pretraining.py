"""Masked language modelling by the loop: the loss of transformers, resumption bit for bit, any number of workers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM

from pipelines.ner.casing import split_cases
from pipelines.ner.encoders import EncoderError, load_tokenizer
from pipelines.ner.units import SEPARATOR, WORD
from pipelines.training.config import TrainingConfig
from pipelines.training.loop import train
from pipelines.training.masked_model import IN_ORDER, IN_SWAPPED_ORDER, build_masked_model, has_masked_head
from pipelines.training.masking import MaskingConfig
from pipelines.training.objective import sum_loss
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.parallel import ParallelConfig
from pipelines.training.pretraining import Frame, HeldOut, MaskedWindows, PretrainingJob
from pipelines.training.pretraining_rules import find_setting_problems

CONFIG = TrainingConfig(num_epochs=2, batch_tokens=160, precision="fp32", checkpoint_every_steps=3)
PLAIN = replace(CONFIG, num_epochs=1, optimizer=OptimizerConfig(sparse_embeddings=False))
CPU = torch.device("cpu")


def make_table(num_windows=24, seed=0):
    """Windows of words that repeat in a fixed order, so that what is hidden can be told from its neighbours."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(num_windows):
        length = int(generator.integers(12, 40))
        ids = 20 + (np.arange(length) + generator.integers(30)) % 30
        starts = np.arange(0, length, 2)
        kinds = np.full(len(starts), WORD)
        kinds[len(starts) // 2] = SEPARATOR
        sentences = starts[::4]
        columns = {"input_ids": ids, "unit_starts": starts, "unit_kinds": kinds, "sentence_starts": sentences}
        rows.append({"window_id": f"w{index:03d}"} | {name: column.tolist() for name, column in columns.items()})
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def frame(tiny_encoder):
    return Frame.of(load_tokenizer(tiny_encoder))


def open_windows(frame, *, seed=1, tells_order=False, table=None):
    return MaskedWindows(table or make_table(), frame, MaskingConfig(), seed, tells_order=tells_order)


def run(frame, encoder, training_room, *, state=None, config=CONFIG, tells_order=False, dropout=0.1, parallel=None):
    torch.manual_seed(1)
    model = build_masked_model(encoder, dropout=dropout, tells_order=tells_order)
    held_out = HeldOut(open_windows(frame, seed=0, tells_order=tells_order), slice(0, None, 3), CPU, 400)
    told = training_room.Told()
    windows = open_windows(frame, tells_order=tells_order)
    settings = {"pad_id": frame.pad_id, "device": CPU, "evaluate": held_out.score, "listener": told, "state": state}
    told.final = train(model, windows, config, parallel=parallel, **settings)
    return told


def test_loss_at_hidden_places_is_that_of_transformers(frame, tiny_encoder):
    model = build_masked_model(tiny_encoder, dropout=0.0).eval()
    windows = open_windows(frame)
    step = np.arange(5)
    batch = windows.collate(step.tolist(), frame.pad_id, epoch=3)
    assert windows.count_words(step, 3) == int(batch.lengths_B.sum())
    labels_BT = torch.full_like(batch.input_ids_BT, -100)
    for row, length in enumerate(batch.lengths_B.tolist()):
        labels_BT[row, batch.word_starts_BW[row, :length]] = batch.tag_ids_BW[row, :length]
    with torch.no_grad():
        scores_BWV = model(batch.input_ids_BT, batch.attention_mask_BT, batch.word_starts_BW)
        loss = float(sum_loss(model, scores_BWV, batch))
        model.network.base_model._forward_hooks.clear()
        whole_BTV = model.network(batch.input_ids_BT, batch.attention_mask_BT).logits
    expected = functional.cross_entropy(whole_BTV.flatten(0, 1), labels_BT.flatten(), reduction="sum")
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_perplexity_falls_and_masks_change_with_the_epoch_alone(frame, tiny_encoder, training_room):
    told = run(frame, tiny_encoder, training_room, config=replace(CONFIG, num_epochs=5))
    scores = [row["dev_f1"] for row in told.epochs]
    assert scores[-1] > 3 * scores[0]
    windows = open_windows(frame)
    first, again, other = (windows.collate([0, 1], 0, epoch=epoch).input_ids_BT for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("tells_order", [False, True])
def test_resumed_run_repeats_the_rest_bit_for_bit(frame, tiny_encoder, training_room, tells_order):
    whole = run(frame, tiny_encoder, training_room, tells_order=tells_order)
    middle = next(state for state in whole.states if state.epoch == 1 and state.epoch_step)
    step = middle.step
    resumed = run(frame, tiny_encoder, training_room, state=middle, tells_order=tells_order)
    assert resumed.losses == whole.losses[step:]
    for name, weight in whole.final.best_model.items():
        assert torch.equal(weight, resumed.final.best_model[name]), name


def test_order_of_segments_is_the_first_place_and_its_loss_that_of_two_classes(frame, tiny_encoder):
    windows = open_windows(frame, tells_order=True)
    step = np.arange(8)
    batch = windows.collate(step.tolist(), frame.pad_id, epoch=0)
    assert windows.count_words(step, 0) == int(batch.lengths_B.sum())
    assert set(batch.tag_ids_BW[:, 0].tolist()) == {0, 1}
    ids_BT, types_BT = split_cases(batch.input_ids_BT)
    plain = open_windows(frame).collate(step.tolist(), frame.pad_id, epoch=0)
    for row in range(8):
        length = int(batch.attention_mask_BT[row].sum())
        cut = ids_BT[row, :length].tolist().index(frame.separator_id)
        assert types_BT[row, :length].tolist() == [0] * (cut + 1) + [1] * (length - cut - 1)
        assert batch.word_starts_BW[row, 0] == 0
        told = torch.sort(batch.tag_ids_BW[row, 1 : batch.lengths_B[row]]).values
        assert torch.equal(told, torch.sort(plain.tag_ids_BW[row, : plain.lengths_B[row]]).values)
        places = batch.word_starts_BW[row, 1 : batch.lengths_B[row]]
        assert places.tolist() == sorted(set(places.tolist()))
    model = build_masked_model(tiny_encoder, tells_order=True).eval()
    with torch.no_grad():
        scores_BWV = model(batch.input_ids_BT, batch.attention_mask_BT, batch.word_starts_BW)
    order_B2 = scores_BWV[:, 0, :2]
    expected = functional.cross_entropy(order_B2, batch.tag_ids_BW[:, 0])
    assert float(functional.cross_entropy(scores_BWV[:, 0], batch.tag_ids_BW[:, 0])) == pytest.approx(float(expected))


def test_separator_of_documents_at_the_cut_does_not_tell_the_order(frame, tiny_encoder):
    columns = {"input_ids": [20, 21, frame.separator_id, 30, 31], "unit_starts": [0, 1, 2, 3, 4]}
    columns |= {"unit_kinds": [WORD, WORD, SEPARATOR, WORD, WORD], "sentence_starts": [0, 3]}
    windows = open_windows(frame, tells_order=True, table=pa.Table.from_pylist([{"window_id": "w"} | columns]))
    windows.config = replace(windows.config, rate=0.0)
    seen = {}
    for epoch in range(20):
        batch = windows.collate([0], frame.pad_id, epoch)
        ids_BT, types_BT = split_cases(batch.input_ids_BT)
        hidden = batch.word_starts_BW[0, 1 : batch.lengths_B[0]]
        ids_BT[0, hidden] = batch.tag_ids_BW[0, 1 : batch.lengths_B[0]]
        seen[int(batch.tag_ids_BW[0, 0])] = (ids_BT[0].tolist(), types_BT[0].tolist())
    [before], [after], separator = frame.prefix, frame.suffix, frame.separator_id
    types = [0, 0, 0, 0, 1, 1, 1]
    assert seen == {
        IN_ORDER: ([before, 20, 21, separator, 30, 31, after], types),
        IN_SWAPPED_ORDER: ([before, 30, 31, separator, 20, 21, after], types),
    }


def test_held_out_perplexity_is_the_same_for_any_cut_into_batches(frame, tiny_encoder):
    torch.manual_seed(2)
    model = build_masked_model(tiny_encoder)
    scores = [
        HeldOut(open_windows(frame, seed=0), slice(None), CPU, batch_tokens).score(model)
        for batch_tokens in (1, 10_000)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert 1 / scores[0] > 100  # random weights know nothing of some thousand sub-tokens


def test_job_masks_held_out_text_without_preference_and_the_same_in_every_run(tiny_encoder):
    def draw_held_out(seed, **settings):
        masking = MaskingConfig(**settings)
        job = PretrainingJob(
            tiny_encoder, None, masking, False, replace(CONFIG, seed=seed), ParallelConfig(), lambda _: make_table()
        )
        mask = job.open_windows("held_out").draw(3, 0)
        return mask.positions.tolist(), mask.ids.tolist()

    plain = draw_held_out(1)
    assert draw_held_out(7, entity_weight=5.0, rare_weight=5.0) == plain
    assert draw_held_out(1, rate=0.4) == draw_held_out(1, mask_share=0.0, unit="sub-token") == plain


def test_head_is_told_to_be_new_or_old(tiny_encoder, tmp_path):
    assert not has_masked_head(tiny_encoder)
    AutoModelForMaskedLM.from_pretrained(tiny_encoder).save_pretrained(tmp_path)
    assert has_masked_head(str(tmp_path))


def test_weights_of_other_shapes_than_the_configuration_are_told(tiny_encoder, tmp_path):
    shutil.copytree(tiny_encoder, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(EncoderError, match="cannot be loaded"):
        build_masked_model(str(tmp_path / "other"))


def test_settings_without_meaning_are_refused_together():
    training = replace(CONFIG, label_smoothing=0.1, r_drop=1.0, dropout_samples=2)
    problems = find_setting_problems("next", training, ParallelConfig(strategy="pipeline"))
    where = [problem.where for problem in problems]
    assert where[0] == "`objective`"
    assert where[1:4] == [f"`training.{name}`" for name in ("label_smoothing", "r_drop", "dropout_samples")]
    assert where[4] == "`parallel.strategy` pipeline"
    assert len(problems) == 5


STRATEGIES = ("ddp", "fsdp", "tensor", "local_sgd")


def run_rank(rank, training_room, encoder, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    frame = Frame.of(load_tokenizer(encoder))
    found = {}
    for strategy in STRATEGIES:
        parallel = ParallelConfig(strategy=strategy, sync_every=2)
        told = run(frame, encoder, training_room, config=PLAIN, dropout=0.0, parallel=parallel, tells_order=True)
        found[strategy] = (told.losses, told.epochs[-1]["dev_f1"], told.states[-1].model)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_every_strategy_trains_as_one_worker_does(frame, tiny_encoder, training_room, tmp_path):
    torch.multiprocessing.spawn(run_rank, (training_room, tiny_encoder, tmp_path), nprocs=2)
    alone = run(frame, tiny_encoder, training_room, config=PLAIN, dropout=0.0, tells_order=True)
    held_out = HeldOut(open_windows(frame, seed=0, tells_order=True), slice(0, None, 3), CPU, 400)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for found in (first, second):
        for strategy, (losses, score, _) in found.items():
            weights = first[strategy][2]
            tolerance = 0.5 if strategy == "local_sgd" else 1e-4
            assert losses == pytest.approx(alone.losses, abs=tolerance), strategy
            assert weights.keys() == alone.states[-1].model.keys()
            model = build_masked_model(tiny_encoder, tells_order=True)
            model.load_state_dict(weights)
            assert score == pytest.approx(held_out.score(model), rel=1e-3), strategy


SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
OTHERS = {
    "roberta": SMALL,
    "electra": SMALL | {"embedding_size": 8},
    "albert": SMALL | {"embedding_size": 8},
    "deberta-v2": SMALL,
    "modernbert": SMALL | {"pad_token_id": 0},
    "distilbert": {"vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_heads_of_other_architectures_are_computed_at_the_places_alone(kind, tmp_path):
    config = AutoConfig.for_model(kind, **OTHERS[kind])
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    assert has_masked_head(str(tmp_path))
    model = build_masked_model(str(tmp_path), dropout=0.0).eval()
    ids_BT, places_BW = torch.arange(5, 17).view(2, 6), torch.tensor([[1, 4], [0, 5]])
    mask_BT = torch.ones_like(ids_BT)
    with torch.no_grad():
        found_BWV = model(ids_BT, mask_BT, places_BW)
        model.network.base_model._forward_hooks.clear()
        whole_BTV = model.network(input_ids=ids_BT, attention_mask=mask_BT).logits
    expected_BWV = whole_BTV.gather(1, places_BW[:, :, None].expand(-1, -1, whole_BTV.shape[2]))
    torch.testing.assert_close(found_BWV, expected_BWV)
