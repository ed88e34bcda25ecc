"""The memory a model needs on a CPU: its folder is loaded in a process of its own, writes a little, and says how much
it took.

That process is `python -m stillhouse.evaluation._memory FOLDER DTYPE BATCH PROMPT NEW [--trust-remote-code]`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from stillhouse.adapters import is_adapted
from stillhouse.errors import ModelError
from stillhouse.models import CausalLM, Sampling
from stillhouse.records import fingerprint


class Load(NamedTuple):
    """What the process does: `batch` prompts of `prompt` tokens, `new` tokens written to each."""

    batch: int
    prompt: int
    new: int


_measured: dict[str, int] = {}
"""Peaks by architecture: student before, student and control need the same, and each process takes seconds."""


def peak_of_own_process(model: CausalLM, load: Load) -> int:
    """Bytes of resident memory at the peak of a fresh process that loads the model and writes.

    Raises:
        ModelError: that process failed.
    """
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in model.model.state_dict().items()]
    key = fingerprint([type(model.model).__name__, shapes, load])
    if key not in _measured:
        with tempfile.TemporaryDirectory(prefix="stillhouse-") as scratch:
            _measured[key] = _run(model, _folder(model, Path(scratch)), load)
    return _measured[key]


def _folder(model: CausalLM, scratch: Path) -> str:
    """Where the model was loaded from; a model made here, or whose folder has gone, is saved first."""
    place = str(model.model.name_or_path)
    if place and not is_adapted(model.model) and (Path(place).is_dir() or not place.startswith(("/", "."))):
        return place
    model.save(scratch)
    return str(scratch)


def _run(model: CausalLM, place: str, load: Load) -> int:
    command = [sys.executable, "-m", __name__, place, str(model.model.dtype).removeprefix("torch."), *map(str, load)]
    if type(model.model).__module__.startswith("transformers_modules"):
        command.append("--trust-remote-code")  # it was given to load the model here
    # The process must import this very package, installed or not.
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ModelError(
            f"Measuring the memory of {model.name!r} failed: the process that loads {place} ended with {last!r}. Mend "
            f"it, or leave memory out: efficiency: {{memory: false}}."
        )
    return int(done.stdout.split()[-1])


def main(arguments: list[str]) -> None:
    """Load, write, and print the peak of this process's resident memory in bytes."""
    place, dtype, *sizes = arguments[:5]
    load = Load(*map(int, sizes))
    lm = CausalLM.load(place, dtype=dtype, trust_remote_code="--trust-remote-code" in arguments[5:])
    prompts = [[i % lm.vocabulary for i in range(load.prompt)]] * load.batch
    lm.generate(prompts, Sampling(max_new_tokens=load.new, batch_size=load.batch))
    print(peak_resident_bytes())


def peak_resident_bytes() -> int:
    """The largest amount of memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: there, a child process starts at the peak of the process that made it.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(sys.argv[1:])
