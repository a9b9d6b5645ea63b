"""What makes a worker's memory more or less."""

from dataclasses import replace

import pytest
from transformers import BertConfig

from pipelines.planning.architecture import convert_config, read_architecture
from pipelines.planning.cost import TrainingSetup, count_parameters
from pipelines.planning.lengths import Lengths
from pipelines.planning.memory import MIB, estimate_inference_memory, estimate_training_memory

LENGTHS = Lengths.from_counts({20: 2000, 40: 1000, 80: 300})
ALONE = TrainingSetup(num_epochs=1)


@pytest.fixture(scope="module")
def scratch():
    return read_architecture("scratch")


def test_weights_and_moments_are_fp32_whatever_the_precision(scratch):
    parameters = count_parameters(scratch, 9)
    for precision in ("fp32", "bf16"):
        memory = estimate_training_memory(scratch, replace(ALONE, precision=precision), LENGTHS)
        assert (memory.weights, memory.optimizer) == (4 * parameters, 8 * parameters)


def test_the_best_epoch_and_averages_are_copies_of_the_weights(scratch):
    alone, best, average = (
        estimate_training_memory(scratch, setup, LENGTHS).weights
        for setup in (ALONE, replace(ALONE, num_epochs=3), replace(ALONE, has_average=True))
    )
    assert best == average == 2 * alone


def test_the_best_epoch_is_not_kept_on_a_gpu(scratch):
    one, more = (
        estimate_training_memory(scratch, TrainingSetup(device="cuda", num_epochs=epochs), LENGTHS) for epochs in (1, 4)
    )
    assert one == more


@pytest.mark.parametrize(
    "change",
    [{"batch_tokens": 2048}, {"num_copies": 2}, {"head": "crf"}, {"num_passes": 2}],
    ids=str,
)
def test_more_to_compute_takes_more(scratch, change):
    more = estimate_training_memory(scratch, replace(ALONE, **change), LENGTHS)
    assert more.total > estimate_training_memory(scratch, ALONE, LENGTHS).total


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"precision": "bf16"}], ids=str)
def test_checkpointing_and_reduced_precision_take_less(scratch, change):
    less = estimate_training_memory(scratch, replace(ALONE, **change), LENGTHS)
    assert less.activations < estimate_training_memory(scratch, ALONE, LENGTHS).activations


@pytest.mark.parametrize("strategy", ["fsdp", "tensor", "pipeline", "hybrid"])
def test_slices_hold_a_part_of_the_moments(scratch, strategy):
    whole = estimate_training_memory(scratch, TrainingSetup(device="cuda"), LENGTHS)
    part = estimate_training_memory(
        scratch, TrainingSetup(device="cuda", strategy=strategy, num_workers=2 if strategy != "hybrid" else 4), LENGTHS
    )
    assert part.optimizer < whole.optimizer
    assert part.weights < whole.weights


def test_sparse_embeddings_save_their_gradients(scratch):
    sparse, dense = (
        estimate_training_memory(scratch, replace(ALONE, sparse_embeddings=sparse, accumulation=2), LENGTHS)
        for sparse in (True, False)
    )
    assert dense.gradients - sparse.gradients > 2 * scratch.num_word_parameters


def test_offloaded_slices_leave_the_gpu(scratch):
    setup = TrainingSetup(device="cuda", strategy="fsdp", num_workers=2, cpu_offload=True)
    memory = estimate_training_memory(scratch, setup, LENGTHS)
    assert memory.weights == memory.optimizer == memory.gradients == 0 < memory.activations


@pytest.mark.parametrize("strategy", ["fsdp", "tensor", "pipeline", "hybrid"])
def test_who_holds_a_part_needs_room_for_the_whole_model_to_be_scored(strategy):
    bert = convert_config(BertConfig())
    sliced = TrainingSetup(batch_tokens=1, strategy=strategy, num_workers=4)
    whole = 4 * count_parameters(bert, 9)
    memory = estimate_training_memory(bert, replace(sliced, device="cuda"), LENGTHS)
    assert memory.gradients + memory.activations + memory.validation == pytest.approx(whole)
    large = replace(sliced, device="cuda", batch_tokens=2**20)  # whose activations make room for it
    assert estimate_training_memory(bert, large, Lengths.from_counts({400: 99_999})).validation == 0
    on_cpus, with_average = (
        estimate_training_memory(bert, replace(sliced, has_average=has), LENGTHS).weights for has in (False, True)
    )
    assert on_cpus > 5 * whole  # to be scored, the best epoch's, and of the checkpoint weights and moments
    assert with_average > on_cpus + whole


def test_the_longest_windows_decide(scratch):
    longer = Lengths.from_counts({20: 2000, 40: 1000, 500: 30})
    assert (
        estimate_training_memory(scratch, ALONE, longer).activations
        > estimate_training_memory(scratch, ALONE, LENGTHS).activations
    )


def test_inference_needs_neither_gradients_nor_moments(scratch):
    memory = estimate_inference_memory(scratch, "fp32", 2048, 256, process_bytes=100 * MIB)
    assert (memory.gradients, memory.optimizer, memory.context) == (0, 0, 100 * MIB)
    assert memory.total < estimate_training_memory(scratch, TrainingSetup(batch_tokens=2048), LENGTHS).total


def test_inference_in_reduced_precision_takes_less_on_a_gpu(scratch):
    fp32, bf16 = (
        estimate_inference_memory(scratch, precision, 32_768, 256, device="cuda") for precision in ("fp32", "bf16")
    )
    assert bf16.weights == fp32.weights / 2
    assert bf16.activations == fp32.activations / 2
