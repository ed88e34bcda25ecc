"""Likelihood of held-out text: loss in nats per token, and bits per byte, which compares across tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.evaluation._logits import likelihoods, rendered_for
from stillhouse.evaluation.base import Evaluator, Heldout, Result
from stillhouse.models import CausalLM
from stillhouse.statistics import Metric


@dataclass(frozen=True, kw_only=True)
class Likelihood(Evaluator):
    """How probable a model finds the trained tokens of held-out data.

    `loss` is `-log q(y_t | y_<t)` per trained token. `bits_per_byte` is the same information over the bytes of UTF-8
    text behind those tokens, `-sum log2 q / bytes` (Gao et al. 2020, arXiv 2101.00027, section 3.1): two models that
    cut text into different tokens can be compared by it. The end token costs bits and stands for no byte.

    >>> Likelihood().metrics()["bits_per_byte"]
    Metric(title='Bits per byte', unit='bits/byte', better='lower')
    """

    def metrics(self) -> Mapping[str, Metric]:
        """`loss` and `bits_per_byte`."""
        return {
            "loss": Metric("Loss", "nats/token", "lower"),
            "bits_per_byte": Metric("Bits per byte", "bits/byte", "lower"),
        }

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        """Both from one pass over the data; the teacher is not asked.

        Raises:
            DataError: no example has tokens to measure on.
        """
        loss, bits_per_byte = likelihoods(model, rendered_for(model, data))
        return Result({"loss": loss, "bits_per_byte": bits_per_byte})
