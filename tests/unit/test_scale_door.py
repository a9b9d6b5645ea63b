"""What `rayner scale` takes for the same case."""

from pipelines.evaluation.scaling import Case
from pipelines.scale import ScaleConfig, _find_idle, _fix_training, _name_folder
from pipelines.training.adversarial import AdversarialConfig
from pipelines.training.config import TrainingConfig
from pipelines.training.parallel import ParallelConfig
from pipelines.training.resources import ResourcesConfig


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
