"""How likely a small model finds a trace, by its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stillhouse.solutions.tokens import without_annotations
from stillhouse.traces.base import Scores, Trace, TraceSignal

if TYPE_CHECKING:
    from stillhouse.models import CausalLM


@dataclass(frozen=True, kw_only=True)
class Likelihood(TraceSignal):
    """`(1 / T) sum_t log q(y_t | x, y_<t)` over the T tokens of the trace without its annotations, under the small
    model q (length-normalised: Wu et al. 2016, arXiv 1609.08144, section 7, with alpha 1; as confidence in an answer:
    Malinin and Gales 2020, arXiv 2002.07650).

    Attributes:
        window: tokens of the unlikeliest stretch, for one surprising step says more than many dull words.
    """

    needs_model: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str]] = {
        "": "mean log-probability of a token",
        "lowest": "mean log-probability of the unlikeliest stretch",
    }

    window: int = 16

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1 token, found {self.window}")

    def score(self, traces: Sequence[Trace], model: CausalLM | None) -> Scores:
        """Mean of all tokens, and of the unlikeliest window."""
        from stillhouse.traces._reading import logprobs

        assert model is not None  # it says `needs_model`
        read = logprobs(
            model, [trace.question for trace in traces], [without_annotations(trace.text) for trace in traces]
        )
        return {
            "": np.array([values_N.mean() if len(values_N) else 0.0 for values_N in read]),
            "lowest": np.array([self._lowest(values_N.tolist()) for values_N in read]),
        }

    def _lowest(self, values: Sequence[float]) -> float:
        if not values:
            return 0.0
        size = min(self.window, len(values))
        sums = np.concatenate([[0.0], np.cumsum(values)])
        return float((sums[size:] - sums[:-size]).min() / size)
