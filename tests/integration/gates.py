"""Training held before chosen steps, so that what disturbs it comes at a known moment."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import torch.distributed as dist

from tests.integration.processes import wait_until

HELD_S = 120


class Gate:
    """Holds workers before the steps given (from 1), in a group of `num_workers`, until they are let through."""

    def __init__(self, folder: Path, *steps: int | tuple[int, int]) -> None:
        self.folder = folder
        self.steps = dict((step, 1) if isinstance(step, int) else step for step in steps)

    def wrap(self, load: Callable[[], pa.Table]) -> Callable[[], pa.Table]:
        """`load_windows` of a job whose workers the gate holds."""
        folder, steps = self.folder, self.steps

        def load_and_hold() -> pa.Table:
            from pipelines.training import loop

            take_step = loop._Run.take_step

            def hold(run: loop._Run, step: Sequence[int]) -> None:
                number = run.state.step + 1
                size = dist.get_world_size() if dist.is_initialized() else 1
                if steps.get(number) == size and not (folder / f"passed-{number}").exists():
                    (folder / f"at-{number}").touch()
                    wait_until((folder / f"passed-{number}").exists, f"let through at {number}", HELD_S)
                take_step(run, step)

            loop._Run.take_step = hold
            return load()

        return load_and_hold

    def wait(self, step: int) -> None:
        """Until a worker stands before a step."""
        wait_until((self.folder / f"at-{step}").exists, f"training at step {step}", HELD_S)

    def open(self, step: int) -> None:
        """Let through whoever stands before a step or comes to it."""
        (self.folder / f"passed-{step}").touch()

    def open_all(self, below: int = sys.maxsize) -> None:
        """Let through everywhere before a step."""
        for step in self.steps:
            if step < below:
                self.open(step)
