"""The largest memory that this process had in use: on a GPU what torch allocated, on a CPU the resident set."""

from contextlib import suppress
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def start_peak(device: torch.device) -> int:
    """Forget earlier peaks; bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):  # where it may not, the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    """Return the largest number of bytes in use, since start_peak() where that was called; 0 where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = STATUS.read_text().splitlines() if STATUS.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
