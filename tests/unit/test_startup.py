"""What a command imports before it says a word: nothing that takes seconds and that only some runs need."""

import gc
import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipelines.__main__ import main
from tests.conftest import ROOT

SLOW = ("torch.distributed.tensor", "torch.distributed.pipelining", "torch._dynamo", "transformers.modeling_utils")


@pytest.mark.parametrize("verb", ["predict", "train"])
def test_slow_imports_are_left_to_the_runs_that_need_them(verb: str):
    code = f"import sys, pipelines.{verb}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert f"pipelines.{verb}" in imported
    assert imported.isdisjoint(SLOW)


def test_garbage_is_collected_again_once_a_command_is_imported(monkeypatch: pytest.MonkeyPatch):
    were_collecting: list[bool] = []

    def import_door(name: str) -> SimpleNamespace:
        were_collecting.append(gc.isenabled())
        return SimpleNamespace(main=lambda arguments: were_collecting.append(gc.isenabled()) or 7)

    monkeypatch.setattr(importlib, "import_module", import_door)
    assert main(["train"]) == 7
    assert were_collecting == [False, True]


def test_garbage_is_collected_again_after_an_import_that_failed(monkeypatch: pytest.MonkeyPatch):
    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError):
        main(["train"])
    assert gc.isenabled()
