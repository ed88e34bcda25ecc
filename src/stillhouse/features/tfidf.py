"""Words: hashed TF-IDF of words and word pairs, projected by a singular value decomposition; nothing to download.

Shapes: N examples, V buckets of words, D the width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.utils.extmath import randomized_svd

from stillhouse.errors import DataError
from stillhouse.features.base import FeatureBench, Features, Matrix, text_of
from stillhouse.records import Example

_BUCKETS = 2**18
_BLOCK = 4096
_NOTHING = 1e-5
"""Of 1, what float32 leaves of nothing: a direction or a vector of less is rounding, which scaling would blow up."""


@dataclass(frozen=True, kw_only=True)
class Tfidf(Features):
    """Latent semantic analysis (Deerwester et al. 1990) on hashed words (Weinberger et al. 2009, arXiv 0902.2206).

    Weights and projection are fitted on a sample, so that a million rows need no more memory than their vectors.

    Attributes:
        dimensions: of the vectors, at most; a small set of texts, or a small sample, has fewer.
        pairs: whether pairs of neighbouring words count beside single ones.
        sample: rows the weights and the projection are fitted on.
        seed: of the sample and of the randomised decomposition.

    >>> from stillhouse.records import Example
    >>> texts = ["a cat sat", "a cat lay", "shares fell", "shares rose"]
    >>> cats, _, shares, _ = Tfidf(dimensions=2).compute([Example(id=t, text=t) for t in texts])
    >>> bool(cats @ shares < 0.1)
    True
    """

    dimensions: int = 256
    pairs: bool = True
    sample: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("dimensions", "sample"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**32 - 1")

    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        """Unit vectors, or zero for a text without a word that the sample has.

        Raises:
            DataError: no example of the sample has a word.
        """
        words = HashingVectorizer(
            n_features=_BUCKETS,
            ngram_range=(1, 1 + self.pairs),
            token_pattern=r"\w+",  # one digit or one ideograph is a word as well
            alternate_sign=False,
            norm=None,
            dtype=np.float32,
        )
        rows = self._sampled(len(examples))
        counted = words.transform(text_of(examples[row]) for row in rows)
        if not counted.nnz:
            raise DataError(
                f"None of {len(rows)} examples has a word, so that tfidf has nothing to count. Use other features."
            )
        weigh = TfidfTransformer(sublinear_tf=True).fit(counted)
        basis_VD = self._basis(weigh.transform(counted))
        for start in range(0, len(examples), _BLOCK):
            texts = [text_of(examples[row]) for row in range(start, min(start + _BLOCK, len(examples)))]
            yield _scaled(weigh.transform(words.transform(texts)) @ basis_VD)

    def _sampled(self, count: int) -> Sequence[int]:
        if count <= self.sample:
            return range(count)
        return sorted(np.random.default_rng(self.seed).choice(count, self.sample, replace=False).tolist())

    def _basis(self, weights_NV: Any) -> Matrix:
        """The directions in which the sample spreads most, of those in which it spreads at all."""
        used = np.unique(weights_NV.indices)  # most buckets of a small sample are empty
        width = min(self.dimensions, len(used), weights_NV.shape[0])
        # Two iterations: more cost twice the time, and tell topics apart no better.
        how: dict[str, Any] = {"n_iter": 2, "power_iteration_normalizer": "LU", "random_state": self.seed}
        # In float64, because directions that spread alike turn with rounding, which differs with the number of threads.
        _, spread_D, directions_DU = randomized_svd(weights_NV[:, used].astype(np.float64), width, **how)
        kept = spread_D > _NOTHING * spread_D[0]
        basis_VD = np.zeros((_BUCKETS, int(kept.sum())), np.float32)
        basis_VD[used] = directions_DU[kept].T
        return basis_VD


def _scaled(vectors_ND: Matrix) -> Matrix:
    """Vectors of length 1; what is shorter than rounding is zero."""
    length_N = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.divide(vectors_ND, length_N, where=length_N > _NOTHING, out=np.zeros_like(vectors_ND)).astype(np.float32)
