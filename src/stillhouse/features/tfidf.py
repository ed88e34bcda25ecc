"""Words: hashed TF-IDF of words and word pairs, projected by a singular value decomposition; nothing to download.

Shapes: N examples, D the width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from stillhouse.errors import DataError
from stillhouse.features.base import FeatureBench, Features, Matrix, text_of
from stillhouse.records import Example

_BUCKETS = 2**18
_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class Tfidf(Features):
    """Latent semantic analysis (Deerwester et al. 1990) on hashed words (Weinberger et al. 2009, arXiv 0902.2206).

    Weights and projection are fitted on a sample, so that a million rows need no more memory than their vectors.

    Attributes:
        dimensions: of the vectors, at most; a small set of texts has fewer.
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
        if self.dimensions < 1:
            raise ValueError(f"dimensions is {self.dimensions}; it must be at least 1")

    def blocks(self, examples: Sequence[Example], bench: FeatureBench) -> Iterator[Matrix]:
        """Unit vectors, or zero for a text without a word.

        Raises:
            DataError: no example has a word.
        """
        words = HashingVectorizer(n_features=_BUCKETS, ngram_range=(1, 1 + self.pairs), alternate_sign=False, norm=None)
        counted = words.transform(text_of(examples[row]) for row in self._sampled(len(examples)))
        if not counted.nnz:
            raise DataError("No example has a word, so that tfidf has nothing to count. Use other features.")
        width = min(self.dimensions, min(counted.shape) - 1) or 1
        project = make_pipeline(
            TfidfTransformer(sublinear_tf=True),
            TruncatedSVD(width, random_state=self.seed),
            Normalizer(),
        ).fit(counted)
        for start in range(0, len(examples), _BLOCK):
            texts = [text_of(examples[row]) for row in range(start, min(start + _BLOCK, len(examples)))]
            yield project.transform(words.transform(texts)).astype(np.float32)

    def _sampled(self, count: int) -> Sequence[int]:
        if count <= self.sample:
            return range(count)
        return sorted(np.random.default_rng(self.seed).choice(count, self.sample, replace=False).tolist())
