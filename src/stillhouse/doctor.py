"""`doctor`: what is installed, what is missing and which extra brings it, and what a run would choose here and why."""

from __future__ import annotations

import shutil
from importlib import metadata, util
from typing import Any

from stillhouse.runs import environment

_EXTRAS: dict[str, str] = {"peft": "peft"}
"""Optional packages and the extra that brings each; filled by the features that use them."""


def examine() -> dict[str, Any]:
    """Facts about this machine and installation, and a list of problems with their remedies."""
    import torch

    from stillhouse.workshop import choose_device

    facts = environment()
    device, reason = choose_device("auto")
    free = shutil.disk_usage(".").free
    return {
        **facts,
        "device": device,
        "device_reason": reason,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "free_disk_bytes": free,
        "extras": {
            package: {"installed": util.find_spec(package) is not None, "extra": extra}
            for package, extra in _EXTRAS.items()
        },
        "problems": _problems(free),
    }


def _problems(free_disk: int) -> list[str]:
    found = []
    for package in ("torch", "transformers", "datasets", "pyarrow"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            found.append(f"{package} is not installed: pip install stillhouse")
    if free_disk < 2 * 2**30:
        found.append(f"only {free_disk / 2**30:.1f} GiB of disk are free here; checkpoints may not fit")
    return found
