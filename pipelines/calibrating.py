"""How fast this machine trains, measured where training runs: in a worker of Ray Train."""

from functools import partial
from pathlib import Path

import torch

from pipelines.cluster import ClusterConfig, connect, find_address
from pipelines.planning.calibration import calibrate
from pipelines.planning.rates import Rates
from pipelines.training.probes import train_probe


def measure_machine(precision: str = "auto", *, folder: Path | None = None) -> Rates:
    """Rates of this machine, which are kept; about a minute.

    Beside a worker a dozen of Ray's processes wake up a hundred times a second: on two cores a step takes a fifth
    longer for it. Where a cluster is meant that runs already, its worker might be elsewhere: this process measures.

    Args:
        precision: of the steps.
        folder: where they are kept; default: the user's cache.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measure = partial(calibrate, train_probe, precision=precision, device=device, folder=folder)
    config = ClusterConfig()
    if find_address(config):
        return measure()
    with connect(config, is_private=True):
        from pipelines.training.trainer import run_alone  # imports Ray

        return run_alone(measure)
