"""The model in OpenVINO's form, for CPUs (extra `cpu`): exported once and kept beside the bundle, or its int8 form."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.ner.casing import compute_logits
from pipelines.ner.encoding import Window
from pipelines.ner.errors import tell_first_line
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.runtime import RuntimeUnavailable, has_fast_bf16, pad_windows, refuse_exits
from pipelines.ner.runtimes.telemetry import silence_telemetry

_FIRST_CALL = Lock()
OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoRuntime:
    """OpenVINO with one stream a thread.

    Args:
        cache: where the exported model is kept, or None to keep it nowhere.
        num_threads: CPU threads; each computes a batch of its own.
        graph: another graph than the model's own, or the file of one: its int8 form.
    """

    name = "openvino"
    batch_tokens = 2048
    group_tokens = 131_072

    def __init__(
        self,
        model: TokenClassifier,
        *,
        precision: str,
        pad_id: int,
        num_threads: int,
        cache: Path | None = None,
        graph: Any = None,
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            raise RuntimeUnavailable(
                "OpenVINO is not installed",
                where="runtime `openvino`",
                rule="the package `openvino`",
                remedy="pip install 'rayner[cpu]', or use the runtime `auto`",
            ) from error
        refuse_exits(model, self.name)
        self.precision, self.pad_id = precision, pad_id
        core = openvino.Core()
        path = cache / "openvino.xml" if cache is not None else None
        try:
            if graph is not None:
                exported = core.read_model(graph) if isinstance(graph, Path) else graph
            else:
                exported = core.read_model(path) if path is not None and path.is_file() else export_graph(model, path)
            settings = {
                "INFERENCE_PRECISION_HINT": _find_hint(precision),
                "NUM_STREAMS": str(num_threads),
                "INFERENCE_NUM_THREADS": str(num_threads),
            }
            self.compiled = core.compile_model(exported, "CPU", settings)
            with _FIRST_CALL:  # two threads that are the first to call into OpenVINO's binding wait for each other
                self.compute([Window([pad_id] * 4, [1], True, True)])
        except Exception as error:
            raise RuntimeUnavailable(
                "OpenVINO cannot take the model",
                where="runtime `openvino`",
                value=tell_first_line(error),
                remedy="use the runtime `auto`, `packed` or `torch`",
            ) from error

    def compute(self, windows: Sequence[Window]) -> Tensor:
        """See `Runtime`."""
        ids_BT, mask_BT, places_W = pad_windows(windows, self.pad_id)
        request = self.compiled.create_infer_request()
        logits_BTK = request.infer({0: ids_BT.numpy(), 1: mask_BT.numpy()})[0]
        return torch.from_numpy(logits_BTK).flatten(0, 1)[places_W].float()


def _find_hint(precision: str) -> str:
    """In what OpenVINO computes the layers that are not int8 themselves."""
    if precision == "int8":
        return OPENVINO_PRECISIONS["bf16" if has_fast_bf16(torch.device("cpu")) else "fp32"]
    return OPENVINO_PRECISIONS[precision]


class _Logits(nn.Module):
    """The network with plain tensors in and out, as the exporter wants it."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B, T, K]` of sub-tokens `[B, T]`."""
        return compute_logits(self.network, input_ids, attention_mask)


def export_graph(model: TokenClassifier, path: Path | None = None) -> Any:
    """OpenVINO's graph of a model's logits, in fp32; written to `path` where that is given."""
    import warnings

    import openvino

    example = (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long))
    noisy = logging.getLogger("transformers")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode(), silence_telemetry():
            warnings.simplefilter("ignore")  # the tracer's remarks on transformers' code
            exported = openvino.convert_model(_Logits(model.network).eval(), example_input=example)
    finally:
        noisy.setLevel(level)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".partial-{os.uname().nodename}-{os.getpid()}-{path.name}")
        weights = staging.with_suffix(".bin")
        try:
            openvino.save_model(exported, staging, compress_to_fp16=False)
            weights.replace(path.with_suffix(".bin"))
            staging.replace(path)  # last: its presence says that both are whole
        finally:
            for left in (staging, weights):
                left.unlink(missing_ok=True)
    return exported
