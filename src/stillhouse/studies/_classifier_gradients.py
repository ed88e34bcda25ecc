"""What each row would do to a softmax regression: its gradient at a few moments of learning, as a vector.

Shapes: N rows, D width of a vector, C classes, G width of a gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from stillhouse.classifiers.fitting import Floats, softmax_regression
from stillhouse.features._sketch import Sketch

CHECKPOINTS = (1, 3, 10)
"""Iterations of the learner after which gradients are taken: it has hardly begun, knows the classes, is nearly done."""
_WIDEST = 4096
"""Wider gradients are sketched, which about keeps angles."""
_BLOCK = 256


def gradients(inputs_ND: ArrayLike, targets_NC: Floats, *, penalty: float, seed: int = 0) -> NDArray[np.float32]:
    """Of every row the gradients of its cross-entropy to its target at all checkpoints, side by side, [N, G].

    One row's gradient of a softmax regression is `(p - target) x [input, 1]`, an outer product. With one-hot targets
    it is that of cross-entropy (CRAIG, Mirzasoleiman et al. 2020, arXiv 1906.01827; GRAD-MATCH, Killamsetty et al.
    2021, arXiv 2103.00123); with a teacher's distribution it is that of the distillation loss. The learner learns from
    the same targets on all rows. Products over checkpoints add up as in TracIn (Pruthi et al. 2020, arXiv 2002.08484).
    """
    inputs_ND = np.asarray(inputs_ND, dtype=np.float64)
    rows, width, classes = len(inputs_ND), inputs_ND.shape[1] + 1, targets_NC.shape[1]
    with_bias_ND = np.concatenate([inputs_ND, np.ones((rows, 1))], axis=1).astype(np.float32)
    apart = []
    for iterations in CHECKPOINTS:
        learner = softmax_regression(inputs_ND, targets_NC, penalty=penalty, iterations=iterations)
        apart.append((learner.probabilities(inputs_ND) - targets_NC).astype(np.float32))
    apart_NKC = np.stack(apart, axis=1)
    full = len(CHECKPOINTS) * classes * width
    sketch = Sketch(width=_WIDEST, seed=seed) if full > _WIDEST else None
    found_NG = np.empty((rows, min(full, _WIDEST)), dtype=np.float32)
    for start in range(0, rows, _BLOCK):
        part = slice(start, start + _BLOCK)
        outer_BG = np.einsum("bkc,bd->bkcd", apart_NKC[part], with_bias_ND[part]).reshape(-1, full)
        found_NG[part] = outer_BG if sketch is None else sketch.of(torch.from_numpy(outer_BG)).numpy()
    return found_NG
