"""The model as transformers computes it, on padded batches: any architecture, any device; eager or compiled."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.ner.casing import compute_logits
from pipelines.ner.encoding import Window
from pipelines.ner.errors import tell_first_line
from pipelines.ner.exits import compute_with_exits
from pipelines.ner.model import TokenClassifier
from pipelines.ner.runtimes.runtime import PRECISIONS, RuntimeUnavailable, pad_windows, refuse_exits

MIXING_PADDING = ("big_bird", "canine", "fnet", "nystromformer", "yoso")
"""Architectures whose answers depend on what they are padded with: windows of one length are computed together."""


class TorchRuntime:
    """Eager PyTorch. In fp32 it is the reference for all others."""

    name = "torch"
    group_tokens = 131_072

    def __init__(self, model: TokenClassifier, *, device: torch.device, precision: str, pad_id: int) -> None:
        dtype = PRECISIONS[precision]
        network = model.network
        if dtype != next(network.parameters()).dtype:
            network = copy.deepcopy(network)  # the caller's model keeps its precision
        self.network: Callable[..., Any] = network.eval().to(device, dtype)
        self.exits = None if model.exits is None else copy.deepcopy(model.exits).to(device)
        self.mixes_padding = model.network.config.model_type in MIXING_PADDING
        self.device, self.precision, self.pad_id = device, precision, pad_id
        self.batch_tokens = 2048 if device.type == "cpu" else 32_768

    def compute(self, windows: Sequence[Window]) -> Tensor:
        """See `Runtime`."""
        if not self.mixes_padding or len({len(window.input_ids) for window in windows}) == 1:
            return self._compute(windows)
        by_length: dict[int, list[int]] = {}
        for index, window in enumerate(windows):
            by_length.setdefault(len(window.input_ids), []).append(index)
        parts: dict[int, Tensor] = {}
        for indices in by_length.values():
            some = [windows[index] for index in indices]
            counts = [len(window.word_starts) for window in some]
            parts |= zip(indices, self._compute(some).split(counts), strict=True)
        return torch.cat([parts[index] for index in range(len(windows))])

    def _compute(self, windows: Sequence[Window]) -> Tensor:
        ids_BT, mask_BT, places_W = pad_windows(windows, self.pad_id)
        with torch.inference_mode(), self._guard():
            if self.exits is not None:
                windows_W = np.repeat(np.arange(len(windows)), [len(window.word_starts) for window in windows])
                where = (places_W, torch.from_numpy(windows_W))
                inputs = (part.to(self.device) for part in (ids_BT, mask_BT, *where))
                return compute_with_exits(self.network, self.exits, *inputs).cpu()
            logits_BTK = compute_logits(self.network, ids_BT.to(self.device), mask_BT.to(self.device))
            emissions_WK = logits_BTK.flatten(0, 1)[places_W.to(self.device)]
            return emissions_WK.float().cpu()

    def _guard(self) -> AbstractContextManager[Any]:
        return nullcontext()


class CompiledRuntime(TorchRuntime):
    """The same, compiled by inductor for any shape once, with the weights folded in; needs a C++ compiler on a CPU.

    After the warm-up a shape that the compiled code does not cover runs eagerly: nothing is ever compiled again.
    """

    name = "torch-compiled"

    def __init__(self, model: TokenClassifier, *, device: torch.device, precision: str, pad_id: int) -> None:
        refuse_exits(model, self.name)
        super().__init__(model, device=device, precision=precision, pad_id=pad_id)
        import torch._inductor.config as inductor

        self.compiled = False
        self.network = torch.compile(self.network, dynamic=True)
        try:
            with inductor.patch(freezing=True):
                for length, count in ((24, 32), (96, 8), (33, 3)):
                    window = Window([pad_id] * length, [1], True, True)
                    self.compute([window] * count)
        except Exception as error:
            raise RuntimeUnavailable(
                "the model cannot be compiled on this machine",
                where="runtime `torch-compiled`",
                rule="torch.compile needs a C++ compiler (CPU) or Triton (GPU)",
                value=tell_first_line(error),
                remedy="install one, or use the runtime `auto`",
            ) from error
        self.compiled = True

    def _guard(self) -> AbstractContextManager[Any]:
        return torch.compiler.set_stance("eager_on_recompile") if self.compiled else nullcontext()
