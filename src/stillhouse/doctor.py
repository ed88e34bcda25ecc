"""`doctor`: what is installed, what is missing and which extra brings it, and what a run would choose here and why.

A problem is what would stop a run, or leave an accelerator idle; all else is a fact or a note.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from stillhouse.runs import environment, installed_version

EXTRAS: dict[str, str] = {
    "peft": "LoRA adapters that every other tool can load",
    "data": "MinHash near-duplicates and static embeddings in Model2Vec's form",
    "eval": "lm-eval's tasks and self-BLEU in evaluation",
    "track": "curves in TensorBoard, trackio or W&B",
}
"""What each extra is for; which packages it brings is read from the installation's own metadata."""
_MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
"""Import names that are not the distribution's with underscores."""
_BREAKERS = ("torchvision", "torchaudio")
"""Not needed, and built for one exact torch: transformers imports them where it finds them, and falls over."""
_LITTLE_DISK = 2 * 2**30
_LITTLE_MEMORY = 2**30


def examine() -> dict[str, Any]:
    """Facts about this machine and installation, notes, and a list of problems with their remedies."""
    required, extras = _requirements()
    packages = {r.name: _package(r) for r in required}
    optional: dict[str, dict[str, Any]] = {
        extra: {
            "for": EXTRAS.get(extra, ""),
            "install": f'pip install "stillhouse[{extra}]"',
            "packages": {r.name: _package(r) for r in found},
        }
        for extra, found in extras.items()
    }
    breakers = {name: _package(Requirement(name)) for name in _BREAKERS if installed_version(name)}
    every = {**packages, **{n: p for e in optional.values() for n, p in e["packages"].items()}, **breakers}
    problems = [*_missing(packages), *_unmet(["stillhouse", *every]), *_broken(every)]
    machine = {**_memory(), "free_disk_bytes": shutil.disk_usage(".").free, **_hub()}
    facts: dict[str, Any] = {**environment(), "packages": packages, "extras": optional, "breakers": breakers, **machine}
    notes: list[str] = []
    if packages["torch"]["works"]:
        facts |= _torch_facts()
        accelerator, notes = accelerator_findings(
            facts["torch_cuda"],
            usable=facts["device"] == "cuda",
            driver=Path("/dev/nvidiactl").exists(),
            card=_nvidia_card(),
        )
        problems += accelerator
    return facts | {"problems": problems + _scarce(machine), "notes": notes}


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What this installation of stillhouse asks for: always, and by extra, those for its development left out."""
    always: list[Requirement] = []
    extras: dict[str, list[Requirement]] = {extra: [] for extra in EXTRAS}
    for text in metadata.requires("stillhouse") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            always.append(requirement)
            continue
        for extra, found in extras.items():
            if requirement.marker.evaluate({"extra": extra}):
                found.append(requirement)
    return always, extras


def _package(requirement: Requirement) -> dict[str, Any]:
    """Its version, the range that was asked for, and whether it can be imported, with the error where it cannot."""
    version = installed_version(requirement.name)
    error = _import_error(requirement.name) if version else None
    works = version is not None and error is None
    return {"version": version, "range": str(requirement.specifier), "works": works, "error": error}


def _import_error(package: str) -> str | None:
    """Why an installed package cannot be imported, or None; what it prints and warns about on the way is its own."""
    module = _MODULES.get(package.lower(), package.replace("-", "_"))
    heard = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(heard), redirect_stderr(heard):
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 -- a broken installation raises anything; it is what is looked for
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def _missing(packages: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f'{name} is not installed: pip install "{name}{found["range"]}"'
        for name, found in packages.items()
        if found["version"] is None
    ]


def _unmet(packages: list[str]) -> Iterator[str]:
    """Installed packages that ask for another version of one that is installed; what is absent is another matter."""
    for package in packages:
        extras = EXTRAS if package == "stillhouse" else ("",)
        for text in (metadata.requires(package) or []) if installed_version(package) else []:
            wanted = Requirement(text)
            version = installed_version(wanted.name)
            asked = wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras)
            if version and asked and not wanted.specifier.contains(version, prereleases=True):
                remedy = f'pip install "{wanted.name}{wanted.specifier}"'
                if package in _BREAKERS:
                    remedy = f"pip uninstall {package} (nothing here needs it), or install the one for torch {version}"
                needs = f"{package} {installed_version(package)} needs {wanted.name}{wanted.specifier}"
                yield f"{needs}, {version} is installed: {remedy}"


def _broken(packages: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, found in packages.items():
        if found["error"]:
            again = f'pip install --force-reinstall --no-deps "{name}=={found["version"]}"'
            remedy = f"pip uninstall {name} (nothing here needs it)" if name in _BREAKERS else again
            yield f"{name} {found['version']} is installed but cannot be imported ({found['error']}): {remedy}"


def _torch_facts() -> dict[str, Any]:
    import torch

    from stillhouse.checking.metering import operations_per_second
    from stillhouse.workshop import choose_device

    device, reason = choose_device("auto")
    speed = {name: int(operations_per_second(getattr(torch, name), device)) for name in ("float32", "bfloat16")}
    return {
        "device": device,
        "device_reason": reason,
        "torch_cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "operations_per_second": speed,
    }


def accelerator_findings(cuda: str | None, *, usable: bool, driver: bool, card: bool) -> tuple[list[str], list[str]]:
    """Problems and notes about an NVIDIA card.

    Args:
        cuda: the version that torch was built for; None for a build without.
        usable: torch can use a card.
        driver: the driver is loaded and visible here.
        card: a card is on the bus, which inside a container may be one that is kept from it.

    >>> accelerator_findings(None, usable=False, driver=False, card=False)
    ([], [])
    """
    if usable:
        return [], []
    if driver and cuda is None:
        return ["an NVIDIA driver is here, but torch is a build without CUDA: install torch from its CUDA index"], []
    if driver:
        return [
            f"an NVIDIA driver is here, but torch's CUDA {cuda} cannot use it: `nvidia-smi` shows the CUDA version "
            "that this driver is for; update it, or install torch for that version"
        ], []
    if card and cuda is not None:
        return [
            f"torch is built for CUDA {cuda} and an NVIDIA card is in this machine, but no driver: install it, or "
            "start the container with its GPUs"
        ], []
    if card:
        return [], ["an NVIDIA card is in this machine, but neither a driver nor a torch with CUDA; runs use the CPU"]
    if cuda is not None:
        return [], [f"torch is built for CUDA {cuda} and no card is here; a CPU build does the same and is far smaller"]
    return [], []


def _nvidia_card() -> bool:
    return any(
        (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x03")
        for device in Path("/sys/bus/pci/devices").glob("*")
    )


def _memory() -> dict[str, Any]:
    """Bytes that a process here may still take: of the machine, or of the container's limit where that is lower."""
    facts: dict[str, Any] = {"available_memory_bytes": None, "memory_limit_bytes": None}
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        facts["available_memory_bytes"] = int(rows["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        facts["memory_limit_bytes"] = int(text)
        left = max(0, int(text) - int(used.read_text()))
        facts["available_memory_bytes"] = min(left, facts["available_memory_bytes"] or left)
    return facts


def _hub() -> dict[str, Any]:
    """Where models come from; of the token only whether there is one."""
    if installed_version("huggingface_hub") is None or _import_error("huggingface_hub"):
        return {"hub": None}
    from huggingface_hub import constants, get_token

    home = Path(constants.HF_HOME)
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    return {
        "hub": {
            "home": str(home),
            "offline": bool(constants.HF_HUB_OFFLINE),
            "endpoint": constants.ENDPOINT,
            "token": get_token() is not None,
            "free_disk_bytes": shutil.disk_usage(there).free,
        }
    }


def _scarce(machine: dict[str, Any]) -> list[str]:
    found = []
    if machine["free_disk_bytes"] < _LITTLE_DISK:
        free = machine["free_disk_bytes"] / 2**30
        found.append(
            f"only {free:.1f} GiB of disk are free here; checkpoints may not fit: run elsewhere, or clear some"
        )
    available = machine["available_memory_bytes"]
    if available is not None and available < _LITTLE_MEMORY:
        found.append(f"only {available / 2**30:.1f} GiB of memory are free; torch and a small model need as much")
    return found
