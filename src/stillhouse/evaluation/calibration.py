"""Calibration: whether a model is as often right as it is sure, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.evaluation._logits import Chunk, measurement, rendered_for, sums_of, token_values
from stillhouse.evaluation.base import Evaluator, Heldout, Result
from stillhouse.models import CausalLM
from stillhouse.statistics import FloatArray, Metric


@dataclass(frozen=True, kw_only=True)
class Calibration(Evaluator):
    """Confidence against accuracy of the next-token prediction, over the trained tokens of held-out data.

    A token's confidence is the largest probability, and it is correct where that falls on the true token. `ece` is
    `sum_b |accuracy_b - confidence_b| n_b / n` (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599) over bins that
    hold equally many tokens (Nixon et al. 2019, arXiv 1904.01685), cut at the model's own quantiles, because nearly
    all tokens of a good model fall in the last bins of equal width. `brier` is `sum_v (q_v - [v = y])^2` (Brier
    1950), 0 to 2 and a proper score. `overconfidence` is mean confidence minus accuracy.

    Attributes:
        bins: of `ece` and of the reliability curve.
    """

    bins: int = 15

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins is {self.bins}; it must be at least 1, such as 15")

    def metrics(self) -> Mapping[str, Metric]:
        """`ece`, `brier` and `overconfidence`."""
        return {
            "ece": Metric("Expected calibration error", "share", "lower"),
            "brier": Metric("Brier score", "", "lower"),
            "overconfidence": Metric("Overconfidence", "share"),
        }

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        """All from one pass over the data; the teacher is not asked.

        Raises:
            DataError: no example has tokens to measure on.
        """
        rendered = rendered_for(model, data)
        example_N, values_NS = token_values(model, rendered, _sureness)
        confidence_N, correct_N, brier_N = values_NS.T
        excess_N, one_N = confidence_N - correct_N, np.ones_like(brier_N)
        bin_N = equal_mass_bins(confidence_N, self.bins)
        columns = np.column_stack([brier_N, excess_N, one_N])
        brier_E, excess_E, tokens_E = sums_of(example_N, columns, len(rendered)).T
        cell_N, cells = example_N * self.bins + bin_N, len(rendered) * self.bins
        gaps_EB = np.bincount(cell_N, excess_N, minlength=cells).reshape(-1, self.bins)
        return Result(
            {
                "ece": measurement(rendered, *gaps_EB.T, tokens_E, kind="ece"),
                "brier": measurement(rendered, brier_E, tokens_E),
                "overconfidence": measurement(rendered, excess_E, tokens_E),
            },
            reliability=_curve(confidence_N, correct_N, bin_N),
        )


def equal_mass_bins(confidence_N: FloatArray, bins: int) -> NDArray[np.int64]:
    """The bin of each token, 0 to bins - 1, by rank; equal confidences share the bin of their middle rank.

    >>> equal_mass_bins(np.array([0.1, 0.9, 0.3, 0.8]), 2)
    array([0, 1, 0, 1])
    """
    _, place_N, count_U = np.unique(confidence_N, return_inverse=True, return_counts=True)
    middle_U = np.cumsum(count_U) - count_U / 2
    return (middle_U * bins / len(confidence_N)).astype(np.int64)[place_N]


def _sureness(chunk: Chunk) -> Sequence[Tensor]:
    """Confidence, whether it is right, and the Brier score `sum_v q_v^2 - 2 q_y + 1`."""
    q_NV = chunk.logits_NV.softmax(-1)
    true_N = q_NV.gather(-1, chunk.targets_N[:, None]).squeeze(-1)
    confidence_N, guess_N = q_NV.max(-1)
    return confidence_N, guess_N == chunk.targets_N, q_NV.square().sum(-1) - 2 * true_N + 1


def _curve(confidence_N: FloatArray, correct_N: FloatArray, bin_N: NDArray[np.int64]) -> list[dict[str, float]]:
    """Mean confidence, accuracy and count of every bin that holds tokens, from the least confident on."""
    points = []
    for b in np.unique(bin_N):
        inside = bin_N == b
        confidence, accuracy = float(confidence_N[inside].mean()), float(correct_N[inside].mean())
        points.append({"confidence": confidence, "accuracy": accuracy, "count": int(inside.sum())})
    return points
