"""Peak memory of a piece of work: of the GPU where it runs there, else of the process."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak(device: torch.device) -> None:
    """Begin to count anew, where the system can: elsewhere the peak is that of the whole process so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        RESET.write_text("5")  # Linux: the high-water mark of this process


def peak_mib(device: torch.device) -> float:
    """The peak since `forget_peak`, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        (line,) = [x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
