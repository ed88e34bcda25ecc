"""Where a model lies that a recipe names: in the package, in a folder, or on the hub; pickled weights are refused."""

from __future__ import annotations

from pathlib import Path

from stillhouse import adapters
from stillhouse.errors import ModelError, did_you_mean
from stillhouse.records import fingerprint, fingerprint_path

EMBEDDED = {"stillhouse:arithmetic": Path(__file__).parent / "assets" / "teacher"}
"""Models that ship with the package, by the name recipes use."""

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "consolidated.00.pth")


def locate(name: str) -> str:
    """The folder of an embedded or local model, or the hub name as it is.

    Raises:
        ModelError: an unknown embedded name, a path that does not exist, a file where a folder is meant, or pickled
        weights only.
    """
    if name in EMBEDDED:
        return str(EMBEDDED[name])
    if name.startswith("stillhouse:"):
        raise ModelError(f"There is no embedded model {name!r}. {did_you_mean(name, EMBEDDED)}")
    path = Path(name).expanduser()
    if path.is_file():
        raise ModelError(
            f"{name} is a file; a model is a folder with config.json, model.safetensors and tokenizer.json, or a hub "
            "name. Weights are read from safetensors only: a pickled checkpoint can run code when it is opened. "
            "Convert it once where you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)."
        )
    if path.is_dir():
        _refuse_pickles(path)
        return str(path)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(
            f"There is no model folder {name!r}. Give the folder that holds config.json, or a hub name such as "
            "Qwen/Qwen3-0.6B."
        )
    return name


def _refuse_pickles(folder: Path) -> None:
    if adapters.adapter_base(str(folder)) is not None:
        return
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} holds no config.json, so it is no model folder. It holds: {_listing(folder)}.")
    if any(folder.glob("*.safetensors")):
        return
    pickled = [name for name in _PICKLES if (folder / name).exists()] or [p.name for p in folder.glob("*.bin")]
    if pickled:
        raise ModelError(
            f"{folder} holds only pickled weights ({', '.join(pickled)}), which can run code when they are opened, so "
            "they are refused. Convert them once where you trust them: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)."
        )
    raise ModelError(f"{folder} holds no model.safetensors. It holds: {_listing(folder)}.")


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"


def fingerprint_model(name: str) -> str | None:
    """A hash of a model folder's files, so that a run notices when they change; None for a hub name, which says what it
    is by its revision.

    Raises:
        ModelError: as `locate`.
    """
    place = Path(locate(name))
    if (base := adapters.adapter_base(str(place))) is not None:
        return fingerprint([fingerprint_path(place), fingerprint_model(base[0])])
    return fingerprint_path(place) if place.is_dir() else None
