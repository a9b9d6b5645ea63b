"""What every runtime offers, and what they share."""

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.ner.encoding import Window
from pipelines.ner.errors import UserError
from pipelines.ner.model import TokenClassifier

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
"""int8 is of a bundle that carries it: see `int8.py`."""
IDEEP_KERNELS, ONEDNN_KERNELS = 32, 256
"""Shapes that ideep and oneDNN keep kernels for; by default 1,024, with scratch memory, which grows for hours."""
SWITCH_INTERVAL = 0.0005
"""Seconds after which Python code must let the threads go on that compute, and that only want to start a product."""
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, LARGEST_BLOCK = 2**28, 2**25
"""Of glibc, of each thread's memory: so much that is free stays with the process, in blocks of up to so much; else each
batch has the system hand out and zero what the one before gave back, which takes int8 a seventh of its time."""


def set_up_process(onednn_kernels: int = ONEDNN_KERNELS) -> None:
    """Prepare a process that does little but predict; before anything is computed in it."""
    keep = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if keep is not None:
        keep(MALLOC_TRIM_THRESHOLD, KEPT_BYTES)
        keep(MALLOC_MMAP_THRESHOLD, LARGEST_BLOCK)
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(IDEEP_KERNELS))
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(onednn_kernels))
    torch.set_num_interop_threads(1)
    sys.setswitchinterval(SWITCH_INTERVAL)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are the hardware's own; where they are emulated they take several times as long as fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine() in ("aarch64", "arm64"):
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def release_memory() -> None:
    """Give free memory back to the system, where the C library can (glibc); it takes some ten milliseconds.

    Batches of ever new shapes leave holes between the blocks that last, such as kernels: hundreds of MiB in a minute.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class RuntimeUnavailable(UserError):
    """A runtime that this machine or this model cannot have."""


def refuse_exits(model: TokenClassifier, name: str) -> None:
    """Raise RuntimeUnavailable for a model with early exits, whose way is not known before it is gone."""
    if model.exits is not None:
        raise RuntimeUnavailable(
            "a model with early exits cannot be compiled or exported",
            where=f"runtime `{name}`",
            remedy="use the runtime `auto`, `packed` or `torch`",
        )


class Runtime(Protocol):
    """Computes emissions. `compute` may be called from several threads at once."""

    name: str
    precision: str
    batch_tokens: int
    """Sub-tokens in one batch at which it is fastest."""
    group_tokens: int
    """Sub-tokens worth sorting by length together."""

    def compute(self, windows: Sequence[Window]) -> Tensor:
        """Emissions `[W, K]` in float32 on the CPU: the owned words of the windows, window after window."""


def pad_windows(windows: Sequence[Window], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """`input_ids` and `attention_mask` `[B, T]`, and the words' places `[W]` in the flattened `[B * T]`."""
    width = max(len(window.input_ids) for window in windows)
    ids_BT = np.full((len(windows), width), pad_id, dtype=np.int64)
    mask_BT = np.zeros((len(windows), width), dtype=np.int64)
    places: list[int] = []
    for row, window in enumerate(windows):
        ids_BT[row, : len(window.input_ids)] = window.input_ids
        mask_BT[row, : len(window.input_ids)] = 1
        places += [row * width + start for start in window.word_starts]
    return torch.from_numpy(ids_BT), torch.from_numpy(mask_BT), torch.tensor(places, dtype=torch.long)
