"""What every result says of where it was measured."""

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any


def machine(*packages: str) -> dict[str, Any]:
    """Hardware, versions, the day, and how busy the machine was in the last minute."""
    hardware = {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}
    torch = sys.modules.get("torch")  # not imported for the sake of its name: some benchmarks do without
    if torch is not None and torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
