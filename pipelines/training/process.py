"""What the process of a training worker sets before it computes: how memory is kept from one step to the next."""

import ctypes
import os

KERNEL_CACHES = {"LRU_CACHE_CAPACITY": 128, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": 256}
"""Shapes that ideep and oneDNN keep kernels for; by default 1,024, each with scratch memory: gigabytes in an hour."""
MALLOC_OPTIONS = {-1: 2**31 - 1, -2: 64 * 2**20, -3: 32 * 2**20}
"""glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD (the last at its maximum), in bytes."""


def prepare_process() -> None:
    """Bound the caches of kernels, and keep memory that a step has freed for the next one.

    By default glibc gives large blocks back to the system, which hands them out again page by page, each cleared: a
    tenth of a step's time. Elsewhere than on glibc this changes nothing of that.
    """
    for name, shapes in KERNEL_CACHES.items():
        os.environ.setdefault(name, str(shapes))
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    for option, value in MALLOC_OPTIONS.items():
        set_option(option, value)
