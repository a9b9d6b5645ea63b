"""OpenVINO's packages tell Intel who uses them unless told otherwise; nothing of this project calls out by itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SILENT = {"CI": "true", "NNCF_CI": "1"}
"""What openvino-telemetry and NNCF take for a machine on which they are to be quiet."""


@contextmanager
def silence_telemetry() -> Iterator[None]:
    """While OpenVINO converts a model, or NNCF is imported for the first time."""
    before = {name: os.environ.get(name) for name in _SILENT}
    os.environ.update(_SILENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
