"""OpenVINO graphs with int8 layers: made by NNCF, and layers of them taken back to full precision.

NNCF puts a FakeQuantize on the weights and on the input of each layer that it makes int8. A layer is taken back by
leading its inputs past them, with the bias that it had before NNCF corrected it for what int8 shifts. So one
calibration serves every choice of layers.
"""

import importlib
import importlib.util
import io
import logging
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from pipelines.compression.int8_form import QuantizationError, Site
from pipelines.ner.bundle import INT8_FORMS
from pipelines.ner.encoding import Window
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.exported import OpenVinoRuntime, export_graph
from pipelines.ner.runtimes.runtime import pad_windows
from pipelines.ner.runtimes.telemetry import silence_telemetry

PRESETS = ("mixed", "symmetric")
_PREFIX = "__module.network."
_FAKE = "FakeQuantize"


class GraphForm:
    """See `Int8Form`. `GraphForm(model, …)` calibrates it on windows of text."""

    runtime = "openvino"

    def __init__(
        self,
        model: TokenClassifier,
        windows: Sequence[Window],
        pad_id: int,
        *,
        preset: str,
        smooth: float | None,
        correct_bias: bool,
    ) -> None:
        self.model, self.pad_id = model, pad_id
        self.original = export_graph(model)
        self.quantized = insert_quantizers(
            self.original, windows, pad_id, preset=preset, smooth=smooth, correct_bias=correct_bias
        )
        self.sites = find_sites(self.quantized)

    def open(self, chosen: Collection[str]) -> OpenVinoRuntime:
        """See `Int8Form`."""
        graph = build_int8_graph(self.quantized, self.original, chosen)
        return OpenVinoRuntime(self.model, precision="fp32", pad_id=self.pad_id, num_threads=1, graph=graph)

    def write(self, chosen: Collection[str], folder: Path) -> dict[str, int]:
        """See `Int8Form`."""
        import openvino

        graph = build_int8_graph(self.quantized, self.original, chosen)
        for name in INT8_FORMS[self.runtime]:  # a new file, for a graph that is in use has the old one mapped
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).unlink(missing_ok=True)
        with silence_telemetry():
            openvino.save_model(graph, folder / INT8_FORMS[self.runtime][0], compress_to_fp16=False)
        return count_int8(graph)


def insert_quantizers(
    graph: Any, windows: Sequence[Window], pad_id: int, *, preset: str, smooth: float | None, correct_bias: bool
) -> Any:
    """The graph with quantizers in all layers, their ranges set for these windows.

    Args:
        preset: mixed (symmetric weights, asymmetric activations) or symmetric.
        smooth: how much of the activations' outliers moves into the weights (SmoothQuant, Xiao et al. 2023): 0 to 1,
            None for not at all.
        correct_bias: whether biases make up for what int8 shifts in the mean (Nagel et al. 2019).
    """
    nncf = import_nncf()
    inputs = [pad_windows([window], pad_id)[:2] for window in windows]
    items = [{0: ids_1T.numpy(), 1: mask_1T.numpy()} for ids_1T, mask_1T in inputs]
    smoothing = nncf.AdvancedSmoothQuantParameters(matmul=-1.0 if smooth is None else smooth)
    settings = nncf.AdvancedQuantizationParameters(
        smooth_quant_alphas=smoothing,
        disable_bias_correction=not correct_bias,
        backend_params={"compress_weights": False},  # so that layers can be taken back
    )
    presets = {"mixed": nncf.QuantizationPreset.MIXED, "symmetric": nncf.QuantizationPreset.PERFORMANCE}
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # its bars; the door has its own
        return nncf.quantize(
            graph.clone(),
            nncf.Dataset(items),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=presets[preset],
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(items),
            advanced_parameters=settings,
        )


def import_nncf() -> Any:
    """NNCF, quiet. Raises QuantizationError where it is not installed."""
    missing = [name for name in ("openvino", "nncf") if importlib.util.find_spec(name) is None]
    if missing:
        raise QuantizationError(
            "int8 needs packages that are not installed",
            where="step `int8`",
            rule="the packages `openvino` and `nncf`",
            value="missing: " + ", ".join(missing),
            remedy="pip install 'rayner[compress]'",
        )
    with silence_telemetry():
        nncf = importlib.import_module("nncf")
        importlib.import_module("nncf.openvino.quantization.quantize_model")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def find_sites(graph: Any) -> list[Site]:
    """The layers with quantizers, in the order of the graph."""
    sites: dict[str, Site] = {}
    fakes = [node for node in graph.get_ordered_ops() if node.get_type_name() == _FAKE]
    weighted = set()
    for fake in fakes:
        if _is_constant(fake.input_value(0).get_node()):
            for port in _find_readers(fake):
                node = port.get_node()
                kind = "linear" if node.get_type_name() == "MatMul" else "embedding"
                name = _read_name(node)
                site = sites.setdefault(name, Site(name, kind))
                site.inputs.append((port, fake))
                site.num_weights += _count(fake)
                weighted.add(node.get_friendly_name())
    for fake in fakes:
        if not _is_constant(fake.input_value(0).get_node()):
            for port in _find_readers(fake):
                node = port.get_node()
                is_product = node.get_friendly_name() not in weighted
                name = f"{_read_name(fake)} (read by attention)" if is_product else _read_name(node)
                sites.setdefault(name, Site(name, "activation")).inputs.append((port, fake))
    order = {node.get_friendly_name(): index for index, node in enumerate(graph.get_ordered_ops())}
    return sorted(sites.values(), key=lambda site: min(order[p.get_node().get_friendly_name()] for p, _ in site.inputs))


def build_int8_graph(quantized: Any, original: Any, chosen: Collection[str]) -> Any:
    """A new graph in which the chosen layers are int8, with bytes as weights, and all others as in the original."""
    transformations = importlib.import_module("openvino._offline_transformations")
    graph = quantized.clone()
    biases = {node.get_friendly_name(): constant for node, constant in _find_biases(original)}
    for site in find_sites(graph):
        if site.name in chosen:
            continue
        for port, fake in site.inputs:
            port.replace_source_output(fake.input_value(0))
    for node, _ in list(_find_biases(graph)):
        before = biases.get(node.get_friendly_name())
        if before is not None and _read_name(node) not in chosen:
            index = next(i for i in (0, 1) if node.input_value(i).get_node().get_type_name() == "Constant")
            node.input(index).replace_source_output(before.output(0))
    transformations.compress_quantize_weights_transformation(graph)
    graph.validate_nodes_and_infer_types()
    return graph


def count_int8(graph: Any) -> dict[str, int]:
    """How many tables of bytes and how many quantized activations a graph has."""
    nodes = graph.get_ops()
    tables = [
        one for one in nodes if one.get_type_name() == "Constant" and one.get_element_type().get_type_name() == "i8"
    ]
    return {"weights": len(tables), "activations": sum(one.get_type_name() == _FAKE for one in nodes)}


def _find_biases(graph: Any) -> list[tuple[Any, Any]]:
    """The additions of constants to the results of products with weights."""
    found = []
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Add":
            continue
        sources = [node.input_value(index).get_node() for index in (0, 1)]
        kinds = {source.get_type_name(): source for source in sources}
        if kinds.keys() == {"MatMul", "Constant"}:
            found.append((node, kinds["Constant"]))
    return found


def _find_readers(node: Any) -> list[Any]:
    return sorted(
        node.output(0).get_target_inputs(), key=lambda port: (port.get_node().get_friendly_name(), port.get_index())
    )


def _read_name(node: Any) -> str:
    """`__module.network.bert.encoder.layer.0.output.dense/aten::linear/MatMul` → `bert.encoder.layer.0.output.dense`"""
    return str(node.get_friendly_name()).split("/")[0].removeprefix(_PREFIX)


def _is_constant(node: Any) -> bool:
    if node.get_type_name() == "Constant":
        return True
    inputs = node.inputs()
    return bool(inputs) and all(_is_constant(one.get_source_output().get_node()) for one in inputs)


def _count(fake: Any) -> int:
    size = 1
    for dimension in fake.output(0).get_shape():
        size *= int(dimension)
    return size
