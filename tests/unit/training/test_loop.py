"""The loop on a tiny encoder: it learns, repeats itself bit for bit, resumes, and does not depend on the workers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from pipelines.ner.errors import UserError
from pipelines.ner.model import ModelConfig
from pipelines.training.adversarial import AdversarialConfig
from pipelines.training.averaging import AveragingConfig
from pipelines.training.batches import BatchPlan, TrainingWindows
from pipelines.training.config import TrainingConfig, TrainingError, find_contradictions
from pipelines.training.devices import DeviceMemoryError, build_memory_error, resolve_precision
from pipelines.training.freezing import FreezingConfig
from pipelines.training.loop import MEASURED_STEP, MOST_OVERFLOWS
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.parallel import ParallelConfig, Strategy

BASE = {"num_epochs": 2, "batch_tokens": 120, "precision": "fp32", "checkpoint_every_steps": 3}


def configure(**changes):
    return TrainingConfig(**(BASE | changes))


def are_equal(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def test_loss_falls_on_windows_that_can_be_learned(training_room, tiny_encoder, head):
    model = training_room.build_model(tiny_encoder, head)
    told = training_room.run_loop(model, training_room.make_table(40), configure(num_epochs=6))
    per_epoch = len(told.losses) // 6
    assert sum(told.losses[-per_epoch:]) < sum(told.losses[:per_epoch]) * 0.4


def test_steps_tell_what_they_did(training_room, tiny_encoder):
    table = training_room.make_table(30)
    told = training_room.run_loop(training_room.build_model(tiny_encoder, "linear"), table, configure())
    windows = TrainingWindows(table)
    assert [step["step"] for step in told.steps] == list(range(1, told.starts[0]["num_steps"] + 1))
    for epoch in (0, 1):
        steps = [step for step in told.steps if step["epoch"] == epoch]
        assert sum(step["num_words"] for step in steps) == windows.num_words.sum()
        assert sum(step["num_tokens"] for step in steps) == windows.num_tokens.sum()
    assert [(row["epoch"], row["dev_f1"]) for row in told.epochs] == [(1, 0.5), (2, 0.5)]
    for row in told.steps:
        assert set(row["parts_s"]) == {"batch", "forward", "backward", "optimizer"}
        assert 0.5 * row["seconds"] < sum(row["parts_s"].values()) <= row["seconds"]


def test_what_a_worker_holds_is_measured_once(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    whole = sum(weight.nbytes for weight in model.parameters()) / 2**20
    told = training_room.run_loop(model, training_room.make_table(30), configure())
    [measured] = [row for row in told.steps if "state_mib" in row]
    assert measured["step"] == MEASURED_STEP
    assert measured["state_mib"]["weights"] == pytest.approx(whole, rel=0.01)
    assert "sent_mib" not in measured


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_same_seed_gives_a_bit_identical_curve_and_model(training_room, tiny_encoder, head, dropout):
    table = training_room.make_table(40)

    def run(seed):
        model = training_room.build_model(tiny_encoder, head, dropout=dropout)
        return training_room.run_loop(model, table, configure(seed=seed))

    first, again, other = run(1), run(1), run(2)
    assert first.losses == again.losses
    assert are_equal(first.final.best_model, again.final.best_model)
    assert first.losses != other.losses


def test_dropout_is_drawn_anew_in_each_step(training_room, tiny_encoder):
    """One window, so steps differ by dropout alone as long as the weights stand still."""
    model = training_room.build_model(tiny_encoder, "linear", dropout=0.3)
    config = configure(num_epochs=4, optimizer=OptimizerConfig(learning_rate=1e-30))
    told = training_room.run_loop(model, training_room.make_table(1), config)
    assert len(set(told.losses)) == 4


def test_accumulation_gives_the_same_losses_as_one_pass(training_room, tiny_encoder, head):
    table = training_room.make_table(40)

    def run(device_batch_tokens):
        config = configure(device_batch_tokens=device_batch_tokens)
        return training_room.run_loop(training_room.build_model(tiny_encoder, head), table, config)

    whole, parts = run(4096), run(40)
    windows = TrainingWindows(table)
    plan = BatchPlan(windows.num_tokens, windows.usable, batch_tokens=120, device_batch_tokens=40, seed=1)
    assert max(len(plan.share(step, 0, 1)) for step in plan.plan_epoch(0)) > 3
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)
    norms = [[step["gradient_norm"] for step in told.steps] for told in (whole, parts)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resumed_run_repeats_the_rest_bit_for_bit_from_every_checkpoint(training_room, tiny_encoder, head, dropout):
    table, f1s = training_room.make_table(40), [0.7, 0.3]

    def run(state=None, seed=1, f1s=f1s):
        model = training_room.build_model(tiny_encoder, head, dropout=dropout, seed=seed)
        return training_room.run_loop(model, table, configure(), f1s=f1s, state=state)

    whole = run()
    assert any(state.epoch_step > 0 and state.epoch == 1 for state in whole.states)
    for state in whole.states:
        step, epoch = state.step, state.epoch
        resumed = run(state, seed=99, f1s=f1s[epoch:] or [0.0])
        assert resumed.losses == whole.losses[step:]
        assert are_equal(resumed.final.best_model, whole.final.best_model)
        assert (resumed.final.best_f1, resumed.final.best_epoch) == (0.7, 1)
        assert [(one["step"], one["epoch"]) for one in resumed.starts] in ([], [(step, epoch)])
        if resumed.states:
            assert are_equal(resumed.states[-1].model, whole.states[-1].model)


def test_run_resumed_within_an_epoch_takes_the_same_steps_in_smaller_passes(training_room, tiny_encoder, head):
    table = training_room.make_table(40)

    def run(state=None, **changes):
        model = training_room.build_model(tiny_encoder, head, dropout=0.0)
        return training_room.run_loop(model, table, configure(**changes), f1s=[0.7, 0.3], state=state)

    whole = run()
    state = next(one for one in whole.states if one.epoch_step)
    done = state.step
    resumed = run(state, device_batch_tokens=30, checkpoint_every_steps=2)
    facts = ("step", "epoch", "num_tokens", "num_words")
    rest = [[row[name] for name in facts] for row in whole.steps[done:]]
    assert [[row[name] for name in facts] for row in resumed.steps] == rest
    assert resumed.losses == pytest.approx(whole.losses[done:], rel=1e-4)


OPTIONS = {
    "pgd, ema, dropout samples": {
        "adversarial": AdversarialConfig("pgd", steps=2, first_epoch=2),
        "averaging": AveragingConfig("ema"),
        "dropout_samples": 3,
    },
    "awp, swa, r-drop, unfreezing": {
        "adversarial": AdversarialConfig("awp"),
        "averaging": AveragingConfig("swa", every_steps=2, start_fraction=0.2),
        "freezing": FreezingConfig(1, unfreeze_per_epoch=1),
        "r_drop": 0.5,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_resumed_run_with_options_repeats_the_rest_bit_for_bit(training_room, tiny_encoder, options):
    table, f1s = training_room.make_table(36), [0.7, 0.3]

    def run(state=None, seed=1, f1s=f1s):
        model = training_room.build_model(tiny_encoder, "linear", dropout=0.2, seed=seed)
        return training_room.run_loop(model, table, configure(**options), f1s=f1s, state=state)

    whole = run()
    assert {state.epoch for state in whole.states if state.epoch_step} == {0, 1}
    for state in whole.states[:-1]:
        step, epoch = state.step, state.epoch
        resumed = run(state, seed=99, f1s=f1s[epoch:])
        assert resumed.losses == whole.losses[step:]
        assert are_equal(resumed.final.best_model, whole.final.best_model)
        last, expected = resumed.states[-1], whole.states[-1]
        assert are_equal(last.model, expected.model)
        assert are_equal(last.average["weights"], expected.average["weights"])
        assert last.average["count"] == expected.average["count"] > 1
        assert not are_equal(last.average["weights"], last.model)


def test_checkpoints_come_within_epochs_and_after_each(training_room, tiny_encoder):
    told = training_room.run_loop(
        training_room.build_model(tiny_encoder, "linear"), training_room.make_table(40), configure()
    )
    per_epoch = len(told.losses) // 2
    within = [step for step in range(3, 2 * per_epoch, 3) if step % per_epoch]
    assert [state.step for state in told.states] == sorted([*within, per_epoch, 2 * per_epoch])
    assert [state.done for state in told.states] == [False] * (len(told.states) - 1) + [True]


def test_a_listener_gets_the_state_when_it_wants_it_also_at_the_end_of_an_epoch(training_room, tiny_encoder):
    table, config = training_room.make_table(40), configure(checkpoint_every_steps=1000)
    plain = training_room.run_loop(training_room.build_model(tiny_encoder, "linear"), table, config)
    per_epoch = plain.epochs[0]["step"]
    wanted = training_room.run_loop(
        training_room.build_model(tiny_encoder, "linear"), table, config, keep_after=(2, per_epoch)
    )
    assert wanted.losses == plain.losses
    places = [(state.step, state.epoch, state.epoch_step) for state in wanted.states]
    expected = [(2, 0, 2), (per_epoch, 0, per_epoch), (per_epoch, 1, 0)]
    assert places == [*expected, (plain.epochs[1]["step"], 2, 0)]
    for state in wanted.states[:3]:
        at = state.step
        model = training_room.build_model(tiny_encoder, "linear")
        rest = training_room.run_loop(model, table, config, state=state)
        assert rest.losses == plain.losses[at:]
        assert are_equal(rest.final.best_model, plain.final.best_model)


def test_finished_state_trains_no_further(training_room, tiny_encoder):
    table = training_room.make_table(8)
    done = training_room.run_loop(training_room.build_model(tiny_encoder, "linear"), table, configure()).states[-1]
    told = training_room.run_loop(training_room.build_model(tiny_encoder, "linear"), table, configure(), state=done)
    assert (told.steps, told.epochs, told.final.step) == ([], [], done.step)


def test_training_stops_when_patience_runs_out_and_keeps_the_best_epoch(training_room, tiny_encoder):
    told = training_room.run_loop(
        training_room.build_model(tiny_encoder, "linear"),
        training_room.make_table(16),
        configure(num_epochs=9, patience=2, checkpoint_every_steps=1000),
        f1s=[0.1, 0.6, 0.2, 0.6, 0.9, 0.9],
    )
    assert [row["dev_f1"] for row in told.epochs] == [0.1, 0.6, 0.2, 0.6]
    assert (told.final.best_epoch, told.final.best_f1, told.final.done) == (2, 0.6, True)
    assert are_equal(told.final.best_model, told.states[1].model)
    assert not are_equal(told.final.best_model, told.states[-1].model)


def test_patience_counts_from_the_last_better_epoch_and_goes_on_over_a_resume(training_room, tiny_encoder):
    table, config = training_room.make_table(16), configure(num_epochs=9, patience=2, checkpoint_every_steps=1000)
    f1s = [0.5, 0.4, 0.6, 0.1, 0.2, 0.9]
    whole = training_room.run_loop(training_room.build_model(tiny_encoder, "linear"), table, config, f1s=f1s)
    resumed = training_room.run_loop(
        training_room.build_model(tiny_encoder, "linear"), table, config, f1s=f1s[4:], state=whole.states[3]
    )
    assert len(whole.epochs) == 5
    assert len(resumed.epochs) == 1
    assert are_equal(resumed.final.best_model, whole.final.best_model)


def test_a_model_that_finds_nothing_is_still_kept(training_room, tiny_encoder):
    told = training_room.run_loop(
        training_room.build_model(tiny_encoder, "linear"),
        training_room.make_table(8),
        configure(checkpoint_every_steps=1000),
        f1s=[0.0, 0.0],
    )
    assert (told.final.best_epoch, told.final.best_f1) == (2, 0.0)
    assert are_equal(told.final.best_model, told.states[1].model)
    assert not are_equal(told.final.best_model, told.states[0].model)


def test_epochs_that_find_nothing_yet_do_not_count_against_patience(training_room, tiny_encoder):
    told = training_room.run_loop(
        training_room.build_model(tiny_encoder, "linear"),
        training_room.make_table(8),
        configure(num_epochs=9, patience=2, checkpoint_every_steps=1000),
        f1s=[0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.9],
    )
    assert [row["dev_f1"] for row in told.epochs] == [0.0, 0.0, 0.0, 0.3, 0.0, 0.0]
    assert (told.final.best_epoch, told.final.best_f1) == (4, 0.3)
    assert are_equal(told.final.best_model, told.states[3].model)


def test_loss_that_is_not_a_number_names_the_place_and_the_records(training_room, tiny_encoder, head):
    model = training_room.build_model(tiny_encoder, head)
    with torch.no_grad():
        model.network.classifier.bias.fill_(math.nan)
    table = training_room.make_table(4)
    with pytest.raises(TrainingError, match=r"^the loss is not a number") as caught:
        training_room.run_loop(model, table, configure(batch_tokens=1000))
    assert caught.value.where == "step 1, epoch 1"
    for record in set(table["record_id"].to_pylist()):
        assert record in str(caught.value)


def test_a_gradient_that_is_not_finite_is_told_as_one(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    next(model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"^the norm of the gradients is not a number") as caught:
        training_room.run_loop(model, training_room.make_table(4), configure(batch_tokens=1000))
    assert caught.value.where == "step 1, epoch 1"


@pytest.mark.parametrize(
    ("changes", "parallel", "remedy"),
    [
        ({"batch_tokens": 1000}, {}, "set `--training.device_batch_tokens {half}` (the steps stay the same) or "),
        ({"batch_tokens": 1000, "r_drop": 1.0}, {}, "set `--training.device_batch_tokens {twice_half}` (the"),
        ({"batch_tokens": 1}, {}, "set `--parallel.gradient_checkpointing true`"),
        ({"batch_tokens": 1}, {"gradient_checkpointing": True}, "take a smaller `--encoding.window`"),
    ],
)
def test_a_device_without_memory_is_told_with_a_size_to_try(
    training_room, tiny_encoder, monkeypatch, changes, parallel, remedy
):
    def compute(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Strategy, "compute", compute)
    table = training_room.make_table(20)
    lengths = TrainingWindows(table).num_tokens
    half = len(lengths) * lengths.max() // 2
    with pytest.raises(DeviceMemoryError) as caught:
        training_room.run_loop(
            training_room.build_model(tiny_encoder, "linear", dropout=0.1),
            table,
            configure(**changes),
            parallel=ParallelConfig(**parallel),
        )
    assert caught.value.where == "step 1, epoch 1"
    assert "CUDA out of memory" in caught.value.value
    assert caught.value.remedy.startswith(remedy.format(half=half, twice_half=2 * half))


def test_the_size_to_try_is_none_that_the_planner_would_take_for_left_out():
    error = build_memory_error("step 1", [np.full(32, 256)], 1, True, torch.OutOfMemoryError("out of memory"))
    assert TrainingConfig.device_batch_tokens == 4096
    assert error.remedy == "set `--training.device_batch_tokens 4095` (the steps stay the same)"


def test_windows_without_any_word_are_refused(training_room, tiny_encoder):
    table = training_room.make_table(2).slice(0, 0)
    with pytest.raises(TrainingError, match="no words"):
        training_room.run_loop(training_room.build_model(tiny_encoder, "linear"), table, configure())


def test_bf16_trains_with_weights_in_fp32(training_room, tiny_encoder, head):
    table = training_room.make_table(40)

    def run(precision):
        model = training_room.build_model(tiny_encoder, head)
        return training_room.run_loop(model, table, configure(precision=precision, num_epochs=4))

    rough, exact = run("bf16"), run("fp32")
    assert rough.starts[0]["precision"] == "bf16"
    assert rough.losses != exact.losses
    assert rough.losses == pytest.approx(exact.losses, rel=0.3, abs=0.1)
    assert {tensor.dtype for tensor in rough.final.best_model.values()} == {torch.float32}


def test_gradients_that_never_fit_into_fp16_end_training(training_room, tiny_encoder):
    model = training_room.build_model(tiny_encoder, "linear")
    next(model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match="do not fit into fp16") as caught:
        training_room.run_loop(model, training_room.make_table(30), configure(precision="fp16", batch_tokens=1))
    assert caught.value.where.startswith(f"step {MOST_OVERFLOWS},")


def test_precision_is_taken_as_given_and_auto_is_resolved():
    cpu = torch.device("cpu")
    assert [resolve_precision(one, cpu) for one in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert resolve_precision("auto", cpu) in ("fp32", "bf16")


def test_find_problems_lists_every_bad_value_at_once():
    optimizer = OptimizerConfig(
        learning_rate=0.0,
        head_learning_rate=2.0,
        layer_decay=0.0,
        schedule="steps",
        weight_decay=-0.1,
        warmup_fraction=1.5,
        max_grad_norm=0.0,
    )
    groups = {
        "optimizer": optimizer,
        "adversarial": AdversarialConfig(method="fgsm", epsilon=0.0, steps=0, first_epoch=0),
        "averaging": AveragingConfig(method="mean", decay=1.0, start_fraction=1.1, every_steps=0),
        "freezing": FreezingConfig(layers=-1, unfreeze_per_epoch=-1),
    }
    config = TrainingConfig(
        num_epochs=0,
        batch_tokens=0,
        device_batch_tokens=-1,
        precision="fp8",
        patience=0,
        checkpoint_every_steps=0,
        label_smoothing=1.0,
        r_drop=-1.0,
        dropout_samples=0,
        seed=-1,
        **groups,
    )
    problems = config.find_problems()
    names = [f"`training.{name}`" for name in vars(config) if name not in groups]
    names += [f"`training.{group}.{name}`" for group, settings in groups.items() for name in vars(settings)]
    names.remove("`training.optimizer.sparse_embeddings`")  # yes or no
    assert sorted(problem.where for problem in problems) == sorted(names)
    assert all(isinstance(problem, UserError) and problem.rule for problem in problems)
    assert {problem.where: problem.value for problem in problems}["`training.precision`"] == "fp8"


def test_find_problems_has_nothing_against_the_defaults():
    assert TrainingConfig().find_problems() == []


CRF, NO_DROPOUT = ModelConfig(head="crf"), ModelConfig(dropout=0.0)
CONTRADICTIONS = [
    ({"label_smoothing": 0.1}, CRF, "ddp"),
    ({"r_drop": 1.0}, CRF, "ddp"),
    ({"r_drop": 1.0}, NO_DROPOUT, "ddp"),
    ({"r_drop": 1.0}, ModelConfig(), "pipeline"),
    ({"dropout_samples": 4}, NO_DROPOUT, "ddp"),
    ({"dropout_samples": 4}, ModelConfig(), "pipeline"),
    *(({"adversarial": AdversarialConfig("awp")}, ModelConfig(), one) for one in ("fsdp", "tensor", "hybrid")),
    ({"averaging": AveragingConfig("ema")}, ModelConfig(), "pipeline"),
    ({"freezing": FreezingConfig(1)}, ModelConfig(), "pipeline"),
    ({"freezing": FreezingConfig(0), "adversarial": AdversarialConfig("pgd")}, ModelConfig(), "ddp"),
    ({"freezing": FreezingConfig(None, 1)}, ModelConfig(), "ddp"),
]


@pytest.mark.parametrize(("changes", "model", "strategy"), CONTRADICTIONS)
def test_each_contradiction_is_refused_and_names_both_settings(changes, model, strategy):
    [problem] = find_contradictions(model, TrainingConfig(**changes), ParallelConfig(strategy=strategy))
    assert problem.what == "two settings that contradict each other"
    assert f"`training.{next(iter(changes))}" in problem.value
    assert problem.value.count("`") == 4


@pytest.mark.parametrize(
    ("changes", "model", "strategy"),
    [
        ({}, CRF, "pipeline"),
        ({"dropout_samples": 4, "averaging": AveragingConfig("swa"), "freezing": FreezingConfig(2, 1)}, CRF, "fsdp"),
        ({"r_drop": 1.0, "averaging": AveragingConfig("ema")}, ModelConfig(dropout=0.1), "tensor"),
        ({"adversarial": AdversarialConfig("fgm"), "averaging": AveragingConfig("ema")}, CRF, "local_sgd"),
        ({"adversarial": AdversarialConfig("awp"), "freezing": FreezingConfig(2)}, NO_DROPOUT, "ddp"),
    ],
)
def test_settings_that_go_together_are_not_refused(changes, model, strategy):
    assert find_contradictions(model, TrainingConfig(**changes), ParallelConfig(strategy=strategy)) == []


def test_fp16_is_refused_with_powersgd_which_remembers_an_overflow():
    [problem] = find_contradictions(
        ModelConfig(), TrainingConfig(precision="fp16"), ParallelConfig(gradient_compression="powersgd")
    )
    assert problem.value == "`training.precision`, `parallel.gradient_compression` powersgd"
    for precision, compression in (("bf16", "powersgd"), ("fp16", "bf16")):
        training, parallel = TrainingConfig(precision=precision), ParallelConfig(gradient_compression=compression)
        assert find_contradictions(ModelConfig(), training, parallel) == []


def test_fp16_is_refused_with_local_sgd_whose_workers_overflow_alone():
    [problem] = find_contradictions(ModelConfig(), TrainingConfig(precision="fp16"), ParallelConfig("local_sgd"))
    assert problem.value == "`training.precision`, `parallel.strategy` local_sgd"
    for precision, strategy in (("bf16", "local_sgd"), ("fp16", "fsdp")):
        assert find_contradictions(ModelConfig(), TrainingConfig(precision=precision), ParallelConfig(strategy)) == []


def test_find_problems_refuses_numbers_that_are_not_finite():
    config = TrainingConfig(
        optimizer=OptimizerConfig(learning_rate=math.nan, weight_decay=math.inf, max_grad_norm=math.nan)
    )
    assert len(config.find_problems()) == 3


# Steps of one window leave one of two workers idle; the small device budget makes them accumulate too.
SEVERAL = {"batch_tokens": 120, "device_batch_tokens": 40}
ONE = {"batch_tokens": 1, "device_batch_tokens": 4096}
UNFREEZING = SEVERAL | {"freezing": FreezingConfig(1, 1), "averaging": AveragingConfig("ema"), "r_drop": 1.0}
DISTRIBUTED = {
    "several windows a step": (16, SEVERAL, "ddp"),
    "one window a step": (4, ONE, "ddp"),
    "pgd": (16, SEVERAL | {"adversarial": AdversarialConfig("pgd", steps=2)}, "ddp"),
    "awp, swa": (16, SEVERAL | {"adversarial": AdversarialConfig("awp"), "averaging": AveragingConfig("swa")}, "ddp"),
    "unfreezing": (16, UNFREEZING, "ddp"),
    "unfreezing, sliced": (16, UNFREEZING, "fsdp"),
    "unfreezing, sliced products": (16, UNFREEZING, "tensor"),
}
HEADS = {"several windows a step": ("linear", "crf"), "one window a step": ("linear", "crf")}


def run_distributed_cases(room, encoder):
    found = {}
    for case, (num_windows, changes, strategy) in DISTRIBUTED.items():
        for head in HEADS.get(case, ("linear",)):
            model = room.build_model(encoder, head)
            config = configure(**changes, optimizer=OptimizerConfig(learning_rate=3e-4))
            told = room.run_loop(model, room.make_table(num_windows), config, parallel=ParallelConfig(strategy))
            found[f"{head}, {case}"] = (told.losses, told.states[-1].model, told.final.best_model)
    return found


def run_alone_together(room, encoder):
    """Workers that seldom meet, with weights moved and averaged."""
    config = configure(**SEVERAL, adversarial=AdversarialConfig("fgm"), averaging=AveragingConfig("ema"))
    parallel = ParallelConfig("local_sgd", sync_every=3)
    told = room.run_loop(room.build_model(encoder, "linear"), room.make_table(16), config, parallel=parallel)
    return told.losses, told.states[-1].model, told.states[-1].average["weights"]


def run_rank(rank, room, encoder, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = run_distributed_cases(room, encoder) | {"local_sgd": run_alone_together(room, encoder)}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_as_one_does_also_when_one_is_idle(training_room, tiny_encoder, tmp_path):
    windows = TrainingWindows(training_room.make_table(4))
    plan = BatchPlan(windows.num_tokens, windows.usable, batch_tokens=1, device_batch_tokens=4096, seed=1)
    assert {tuple(map(len, plan.share(step, 0, 2))) for step in plan.plan_epoch(0)} == {(0,)}
    torch.multiprocessing.spawn(run_rank, (training_room, tiny_encoder, str(tmp_path)), nprocs=2)
    alone = run_distributed_cases(training_room, tiny_encoder)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for case, (losses, weights, best) in alone.items():
        assert all(rank[case][0] == pytest.approx(losses, abs=1e-4) for rank in ranks), case
        _, found_weights, found_best = ranks[0][case]
        for name, tensor in weights.items():
            torch.testing.assert_close(found_weights[name], tensor, rtol=0, atol=1e-4, msg=f"{case}: {name}")
        for name, tensor in best.items():
            torch.testing.assert_close(found_best[name], tensor, rtol=0, atol=1e-4, msg=f"{case}: {name}")
        assert "sliced" in case or are_equal(ranks[0][case][1], ranks[1][case][1]), case
    (losses, weights, average), (other_losses, other_weights, other_average) = (rank["local_sgd"] for rank in ranks)
    assert losses == other_losses
    assert sum(losses[-3:]) < sum(losses[:3])
    assert are_equal(weights, other_weights)
    assert are_equal(average, other_average)
    assert not are_equal(weights, average)
