"""What `rayner scale` takes for the same case, what it refuses, and what it does where cases fail."""

from types import SimpleNamespace

import pytest
from ray.train import WorkerGroupError

from pipelines import scale
from pipelines.corpus.config import CorpusConfig
from pipelines.evaluation.scaling import ALONE, Case
from pipelines.run_record import RunRecord
from pipelines.scale import ScaleConfig, _find_idle, _find_problems, _fix_training, _measure_all, _name_folder
from pipelines.training.adversarial import AdversarialConfig
from pipelines.training.config import TrainingConfig
from pipelines.training.devices import DeviceMemoryError
from pipelines.training.parallel import ParallelConfig
from pipelines.training.resources import ResourcesConfig

CORPUS = CorpusConfig(train=["sample:en-dev.jsonl"])


def test_a_case_with_sparse_gradients_is_not_the_one_with_dense_ones():
    """With fsdp, which needs dense ones, ddp is measured with them too: losses and speeds of both are compared."""
    case, needs = Case("ddp", 2), ResourcesConfig(2, 1, False)
    configs = [ScaleConfig(strategies=names) for names in (["ddp"], ["ddp", "local_sgd"], ["ddp", "fsdp"])]
    names = [_name_folder(case, needs, _fix_training(config, case)) for config in configs]
    assert names[0] == names[1] != names[2]


def test_settings_without_effect_in_any_case_are_told():
    training = TrainingConfig(adversarial=AdversarialConfig("fgm", first_epoch=2))
    config = ScaleConfig(training=training, parallel=ParallelConfig(sync_every=2), strategies=["ddp", "fsdp"])
    assert [told.split("`")[1] for told in _find_idle(config)] == ["training.adversarial", "parallel.sync_every"]
    used = ScaleConfig(parallel=ParallelConfig(sync_every=2), strategies=["ddp", "local_sgd"])
    assert _find_idle(used) == []


def test_what_needs_dropout_is_refused_because_there_is_none():
    problems = _find_problems(ScaleConfig(corpus=CORPUS, training=TrainingConfig(r_drop=0.5, dropout_samples=3)))
    assert [problem.where for problem in problems] == ["`training.r_drop`", "`training.dropout_samples`"]
    assert all("scale trains without dropout" in problem.rule for problem in problems)
    assert _find_problems(ScaleConfig(corpus=CORPUS)) == []


def test_local_sgd_needs_steps_in_which_it_exchanges():
    few = ScaleConfig(corpus=CORPUS, strategies=["local_sgd"], num_steps=40, parallel=ParallelConfig(sync_every=20))
    [problem] = _find_problems(few)
    assert (problem.where, problem.value) == ("`num_steps`", 40)
    assert "at least 60" in problem.rule
    assert "local_sgd needs 3 rounds of `parallel.sync_every`" in problem.rule
    assert _find_problems(ScaleConfig(corpus=CORPUS, num_steps=40, parallel=ParallelConfig(sync_every=20))) == []


@pytest.mark.parametrize("failing", [(1,), (1, 2)])
@pytest.mark.parametrize("error", [WorkerGroupError("too little memory", {}), DeviceMemoryError("too little memory")])
def test_cases_that_fail_are_left_out_unless_nothing_is_left_to_compare_with(monkeypatch, tmp_path, failing, error):
    def measure(job, needs, *_):
        if needs.num_workers in failing and job.training.batch_tokens == batch_tokens:
            raise error
        return [{"kind": "start"}]

    config, batch_tokens = ScaleConfig(), TrainingConfig().batch_tokens
    cases = [Case(ALONE, 1), Case("ddp", 2), Case("ddp", 2, 2)]
    jobs = {case: SimpleNamespace(training=_fix_training(config, case)) for case in cases}
    resources = {case: ResourcesConfig(case.num_workers, 1, False) for case in cases}
    monkeypatch.setattr(scale, "_measure", measure)
    left_out: dict[Case, str] = {}
    if len(failing) == 2:
        with pytest.raises(type(error), match="too little memory"):
            _measure_all(jobs, resources, tmp_path, RunRecord("scale", config), left_out)
    else:
        runs = _measure_all(jobs, resources, tmp_path, RunRecord("scale", config), left_out)
        assert list(runs) == cases[1:]
    assert list(left_out) == cases[: len(failing)]
