"""Efficiency: what a model costs to keep and to run, in weights, bytes, tokens per second and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stillhouse.evaluation._memory import Load, peak_of_own_process
from stillhouse.evaluation.base import Evaluator, Heldout, Result
from stillhouse.models import CausalLM
from stillhouse.statistics import Estimate, Metric


@dataclass(frozen=True, kw_only=True)
class Efficiency(Evaluator):
    """Size, speed and memory of a model on the device it is on, in the type its weights have.

    `prefill_tokens_per_second` is how fast it reads a batch of prompts, `decode_tokens_per_second` how fast it writes
    to all of them together, one token each at a time, from short prompts. Both are means over trials after one that
    warms up, with the standard error over trials. `bytes` is what the weights take on disk as safetensors, tied ones
    once. `peak_memory_bytes` is, on CUDA, the most that the model and its work have allocated there; on a
    CPU, the peak of a fresh process that loads the model and writes, Python and PyTorch included.

    Attributes:
        batch_size: sequences at once.
        prompt_tokens: of each sequence that is read; fewer where the model's context is shorter.
        new_tokens: written to each; fewer where the model's context is shorter.
        trials: timed repetitions.
        memory: whether to measure memory, which on a CPU starts a process and takes seconds.
    """

    batch_size: int = 8
    prompt_tokens: int = 128
    new_tokens: int = 32
    trials: int = 5
    memory: bool = True

    def __post_init__(self) -> None:
        for key in ("batch_size", "prompt_tokens", "new_tokens", "trials"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1")

    @property
    def once(self) -> bool:
        """Yes: speed and size do not depend on the data."""
        return True

    def metrics(self) -> Mapping[str, Metric]:
        """`parameters`, `bytes`, the two speeds, and `peak_memory_bytes`."""
        return {
            "parameters": Metric("Parameters", "parameters", "lower"),
            "bytes": Metric("Weights on disk", "bytes", "lower"),
            "prefill_tokens_per_second": Metric("Reading", "tokens/s", "higher"),
            "decode_tokens_per_second": Metric("Writing", "tokens/s", "higher"),
            "peak_memory_bytes": Metric("Peak memory", "bytes", "lower"),
        }

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        """All of them; neither the data nor the teacher is looked at.

        Raises:
            ModelError: the model cannot be loaded in a process of its own.
        """
        new = min(self.new_tokens, max(1, model.context // 2))
        prompt = min(self.prompt_tokens, model.context - new)
        tokens = torch.arange(self.batch_size * prompt).remainder(model.vocabulary).view(self.batch_size, prompt)
        work = _Work(model, tokens.to(model.device), new)
        with torch.no_grad(), model.inference():
            found = {
                "parameters": _exact(model.parameters()),
                "bytes": _exact(weight_bytes(model)),
                "prefill_tokens_per_second": self._speed(work.read, self.batch_size * prompt, model.device),
                "decode_tokens_per_second": self._speed(work.write, self.batch_size * new, model.device),
            }
            if self.memory and (peak := _peak_memory(work)) is not None:
                found["peak_memory_bytes"] = _exact(peak)
        return Result(estimates=found)

    def _speed(self, job: Callable[[], object], tokens: int, device: torch.device) -> Estimate:
        """Tokens per second of a job that handles so many."""
        speeds = []
        for trial in range(-1, self.trials):
            _wait(device)
            start = time.perf_counter()
            job()
            _wait(device)
            if trial >= 0:  # the first warms up
                speeds.append(tokens / (time.perf_counter() - start))
        stderr = float(np.std(speeds, ddof=1) / np.sqrt(self.trials)) if self.trials > 1 else None
        return Estimate(float(np.mean(speeds)), stderr, self.trials)


@dataclass(frozen=True)
class _Work:
    """What is timed: the prompts of a batch, and how many tokens are written."""

    model: CausalLM
    tokens_BT: torch.Tensor
    new: int

    def read(self) -> object:
        hidden_BTD = self.model.hidden(self.tokens_BT)
        return self.model.head(hidden_BTD[:, -1])

    def write(self) -> object:
        # From prompts of one token, so that no reading is timed as writing; the end token may not cut it short.
        start_B1 = self.tokens_BT[:, :1]
        model: Any = self.model.model  # transformers types generate() against a protocol its own classes do not meet
        return model.generate(
            input_ids=start_B1,
            attention_mask=torch.ones_like(start_B1),
            min_new_tokens=self.new,
            max_new_tokens=self.new,
            do_sample=False,
            pad_token_id=0,
        )


def weight_bytes(model: CausalLM) -> int:
    """Bytes of a model's weights in their own type, tied ones once, as a safetensors file holds them (header aside)."""
    stored = {tensor.data_ptr(): tensor.nbytes for tensor in model.model.state_dict().values()}
    return sum(stored.values())


def _exact(count: int) -> Estimate:
    return Estimate(float(count), None, 1)


def _wait(device: torch.device) -> None:
    """Accelerators work on while Python goes ahead; what is timed must have ended."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _peak_memory(work: _Work) -> int | None:
    """Bytes; None on accelerators other than CUDA's, which do not say."""
    device = work.model.device
    if device.type == "cpu":
        return peak_of_own_process(work.model, Load(*work.tokens_BT.shape, work.new))
    if device.type != "cuda":
        return None
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work.read()
    work.write()
    _wait(device)
    # Other models lie on the device too; only this one's weights are billed to it.
    return torch.cuda.max_memory_allocated(device) - before + weight_bytes(work.model)
