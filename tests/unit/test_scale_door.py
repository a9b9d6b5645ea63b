"""What `rayner scale` takes for the same case."""

from pipelines.evaluation.scaling import Case
from pipelines.scale import ScaleConfig, _fix_training, _name_folder
from pipelines.training.resources import ResourcesConfig


def test_a_case_with_sparse_gradients_is_not_the_one_with_dense_ones():
    """With fsdp, which needs dense ones, ddp is measured with them too: losses and speeds of both are compared."""
    case, needs = Case("ddp", 2), ResourcesConfig(2, 1, False)
    configs = [ScaleConfig(strategies=names) for names in (["ddp"], ["ddp", "local_sgd"], ["ddp", "fsdp"])]
    names = [_name_folder(case, needs, _fix_training(config, case)) for config in configs]
    assert names[0] == names[1] != names[2]
