"""What this process takes of the machine."""

import os

import numpy as np
import pytest

from pipelines.ner.machine import forget_peak_memory, read_peak_memory_mib


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="a system that cannot forget")
def test_memory_of_what_went_before_is_forgotten():
    np.ones(300 << 17).sum()  # 300 MiB
    before = read_peak_memory_mib()
    forget_peak_memory()
    assert read_peak_memory_mib() < before - 200
    np.ones(300 << 17).sum()
    assert read_peak_memory_mib() > before - 100
