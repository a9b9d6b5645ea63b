"""OpenVINO's packages tell Intel who uses them unless told otherwise; nothing of this project calls out by itself."""

from contextlib import AbstractContextManager

from pipelines.ner.machine import set_environment

_SILENT = {"CI": "true", "NNCF_CI": "1"}
"""What openvino-telemetry and NNCF take for a machine on which they are to be quiet."""


def silence_telemetry() -> AbstractContextManager[None]:
    """While OpenVINO converts a model, or NNCF is imported for the first time."""
    return set_environment(_SILENT)
