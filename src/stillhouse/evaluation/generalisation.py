"""Generalisation: how well models know what the student was trained on, to be held against data it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.evaluation._logits import likelihoods, rendered_for
from stillhouse.evaluation.base import Evaluator, Heldout, Result
from stillhouse.models import CausalLM
from stillhouse.statistics import Metric


@dataclass(frozen=True, kw_only=True)
class Generalisation(Evaluator):
    """Loss on a sample of the training data, about as large as the held-out data and the same for all models.

    With `likelihood` beside it, the report shows each model's gap between what the student was trained on and what it
    was not. A gap alone says little, because the two data sets differ in more than that; what counts is how much wider
    the student's is than that of models which were not trained so: its teacher, itself before, its control.

    Where the teacher wrote the training text (`data.steps`), that text is measured; the control, which learned from
    the original one, has then not seen it either.

    >>> Generalisation().metrics()["train_loss"]
    Metric(title='Loss on training data', unit='nats/token', better='lower')
    """

    def metrics(self) -> Mapping[str, Metric]:
        """`train_loss` and `train_bits_per_byte`."""
        return {
            "train_loss": Metric("Loss on training data", "nats/token", "lower"),
            "train_bits_per_byte": Metric("Bits per byte of training data", "bits/byte", "lower"),
        }

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        """Both from one pass over the sample; nothing on out-of-domain data, which brings none.

        Raises:
            DataError: no training example has tokens to measure on.
        """
        if data.training is None:
            return Result()
        loss, bits_per_byte = likelihoods(model, rendered_for(model, data.training()))
        return Result({"train_loss": loss, "train_bits_per_byte": bits_per_byte})
