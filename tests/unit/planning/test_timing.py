"""Seconds of steps, and the table of GPUs."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.planning.architecture import read_architecture
from pipelines.planning.cost import TrainingSetup
from pipelines.planning.errors import PlanError
from pipelines.planning.lengths import Lengths
from pipelines.planning.rates import GPUS, estimate_cpu_rates, find_rates
from pipelines.planning.timing import (
    count_sent_bytes,
    count_steps,
    estimate_inference_tokens_per_s,
    estimate_step_s,
)

LENGTHS = Lengths.from_counts({20: 2000, 40: 1000, 80: 300})
CPU = estimate_cpu_rates(2)


@pytest.fixture(scope="module")
def scratch():
    return read_architecture("scratch")


def test_a_step_is_the_sum_of_its_parts(scratch):
    step = estimate_step_s(scratch, TrainingSetup(), LENGTHS, CPU)
    assert step.total == pytest.approx(sum(vars(step).values()))
    assert min(step.compute, step.memory, step.optimizer, step.overhead) > 0
    assert step.communication == 0


def test_a_machine_twice_as_fast_takes_half(scratch):
    twice = replace(
        CPU,
        flops={name: 2 * rate for name, rate in CPU.flops.items()},
        memory_bytes_per_s=2 * CPU.memory_bytes_per_s,
        operator_s=CPU.operator_s / 2,
    )
    slow, fast = (estimate_step_s(scratch, TrainingSetup(), LENGTHS, rates).total for rates in (CPU, twice))
    assert fast == pytest.approx(slow / 2)


def test_seconds_of_elements_come_before_bandwidth(scratch):
    measured = replace(CPU, element_s={"hidden": 1e-9, "inner": 2e-9, "pair": 0.0}, parameter_s=1e-9)
    step = estimate_step_s(scratch, TrainingSetup(), LENGTHS, measured)
    assert step.memory < estimate_step_s(scratch, TrainingSetup(), LENGTHS, CPU).memory
    moved = scratch.num_encoder_parameters - scratch.num_word_parameters + 129 * 9
    assert step.optimizer == pytest.approx(moved * 1e-9)


def test_passes_add_up(scratch):
    plain, doubled = (
        estimate_step_s(scratch, TrainingSetup(num_passes=passes), LENGTHS, CPU).compute for passes in (1, 2)
    )
    assert doubled == pytest.approx(2 * plain)


def test_checkpointing_computes_the_forward_pass_again(scratch):
    plain, again = (
        estimate_step_s(scratch, TrainingSetup(gradient_checkpointing=again), LENGTHS, CPU).compute
        for again in (False, True)
    )
    assert again == pytest.approx(4 / 3 * plain)


@pytest.mark.parametrize("rates", [CPU, find_rates("L4")], ids=["CPU", "L4"])
def test_checkpointing_is_never_faster(scratch, rates):
    setup = TrainingSetup(batch_tokens=1024, device=rates.device)
    plain, again = (
        estimate_step_s(scratch, replace(setup, gradient_checkpointing=on), LENGTHS, rates) for on in (False, True)
    )
    assert all(getattr(again, part) >= getattr(plain, part) for part in ("compute", "memory", "optimizer", "overhead"))
    assert again.total > plain.total


def test_steps_of_an_epoch_are_fewer_with_more_shares(scratch):
    one, four = (count_steps(LENGTHS, TrainingSetup(num_workers=workers)) for workers in (1, 4))
    assert one == pytest.approx(4 * four, rel=0.1)
    assert one == pytest.approx(LENGTHS.num_tokens / 1024, rel=0.1)


@pytest.mark.parametrize("workers", [2, 4])
def test_ddp_sends_gradients_twice_around_the_ring(scratch, workers):
    setup = TrainingSetup(num_workers=workers, sparse_embeddings=False)
    parameters = scratch.num_encoder_parameters + 129 * 9
    assert count_sent_bytes(scratch, setup) == pytest.approx(8 * parameters * (workers - 1) / workers)


def test_compressed_and_rare_exchanges_send_less(scratch):
    plain = TrainingSetup(num_workers=4, sparse_embeddings=False)
    sent = count_sent_bytes(scratch, plain)
    assert count_sent_bytes(scratch, replace(plain, gradient_compression="bf16")) == pytest.approx(sent / 2)
    assert count_sent_bytes(scratch, replace(plain, strategy="local_sgd")) == pytest.approx(sent / 8)
    assert count_sent_bytes(scratch, replace(plain, strategy="fsdp")) == pytest.approx(1.5 * sent)
    assert count_sent_bytes(scratch, replace(plain, num_workers=1)) == 0


def test_a_faster_gpu_trains_and_predicts_faster(scratch):
    setup = TrainingSetup(device="cuda", precision="bf16", batch_tokens=16_384)
    steps = [estimate_step_s(scratch, setup, LENGTHS, GPUS[name]).total for name in ("T4", "A100-80G", "H100")]
    rates = [
        estimate_inference_tokens_per_s(scratch, "bf16", LENGTHS, GPUS[name]) for name in ("T4", "A100-80G", "H100")
    ]
    assert steps == sorted(steps, reverse=True)
    assert rates == sorted(rates)


def test_prediction_is_faster_than_training(scratch):
    setup = TrainingSetup(batch_tokens=2048)
    training = LENGTHS.num_tokens / (count_steps(LENGTHS, setup) * estimate_step_s(scratch, setup, LENGTHS, CPU).total)
    assert estimate_inference_tokens_per_s(scratch, "fp32", LENGTHS, CPU) > 2 * training


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("l4", "L4"),
        ("NVIDIA L4", "L4"),
        ("A100", "A100-40G"),
        ("A100-80G", "A100-80G"),
        ("NVIDIA A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("GeForce-RTX-3090-Ti", "RTX-3090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
    ],
)
def test_accelerators_are_found_by_their_usual_names(name, found):
    assert find_rates(name).name == found


@pytest.mark.parametrize("name", ["GeForce-RTX-3060", "RTX-A2000", "RTX-5090", "RTX-6000"])
def test_a_card_is_not_taken_for_another_of_its_family(name):
    with pytest.raises(PlanError, match="unknown accelerator"):
        find_rates(name)


def test_an_unknown_accelerator_is_refused_with_near_names():
    with pytest.raises(PlanError, match="H100") as caught:
        find_rates("H10")
    assert "H100" in (caught.value.remedy or "")


def test_peaks_of_the_table_are_plausible():
    for gpu in GPUS.values():
        assert gpu.flops["fp32"] <= gpu.flops["fp16"] <= gpu.flops["int8"] or gpu.name == "V100"
        assert 100e9 < gpu.memory_bytes_per_s < 10e12
        assert np.log2(gpu.memory_bytes) > 33
